"""Personal data and secrets: found by checksum and form, replaced in place, counted."""

import pytest

from data_pipelines import processors
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.processors import checksums
from data_pipelines.processors import pii
from data_pipelines.processors import secrets
from mistral_jax.config import processors as config

ALL = tuple(pii.FINDERS)


def kinds(text):
    return [kind for _, _, kind in pii.find(text, ALL)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Mail bob.smith+x@mail.uni-bonn.de now", ["email"]),
        ("IBAN GB82 WEST 1234 5698 7654 32.", ["iban"]),  # the example of ISO 13616
        ("IBAN GB82 WEST 1234 5698 7654 33.", []),
        ("card 4111 1111 1111 1111 or 378282246310005", ["card", "card"]),  # issuers' test numbers
        ("card 4111 1111 1111 1112", []),
        ("ring +49 30 901820 or (415) 555-0132", ["phone", "phone"]),
        ("SSN 078-05-1120, ssn: 219099999", ["ssn", "ssn"]),
        ("from 8.8.8.8 and 2001:4860:4860::8888", ["ip", "ip"]),
        ("version 8.8.8.8, lib==8.8.8.8, 10.0.0.1, 300.1.1.1, dead::beef, a::b", []),
        ("Passport No. C01X00T4, passport number 123456789", ["passport"]),
        ("2024-01-15 10:30:00, 15/01/2024, 978-3-16-148410-0, 3.14159265358979", []),
        ("1 + 2 = 3; 10 000 000; 123456789012; 1e-5; 2^31 - 1 = 2147483647", []),
        ("def f(self): @decorator\n  x[1:2] -> a@b; user@example.com", []),
    ],
)
def test_only_what_is_personal_is_found(text, found):
    assert kinds(text) == found


def test_findings_are_replaced_by_their_kind_and_counted_in_every_turn():
    messages = (
        {"role": "user", "content": "I am a@b.org, call +49 30 901820."},
        {"role": "assistant", "content": "Noted: a@b.org"},
    )
    row = Row(Document("c", "chat", messages=messages), "s", "text", "general", "x")
    made = processors.build([config.Pii()])(row)
    assert made.text == "I am <EMAIL>, call <PHONE>.\nNoted: <EMAIL>"
    assert made.facts["pii"] == {"email": 2, "phone": 1}
    assert processors.build([config.Pii(kinds=("iban",))])(row) is row
    refused = processors.build([config.Pii(action="reject")])(row)
    assert isinstance(refused, Reject) and "2 x email, 1 x phone" in refused.reason
    many = processors.build([config.Pii(reject_above=2)])(row)
    assert isinstance(many, Reject) and many.kind == "pii"


def test_checksums():
    assert checksums.luhn("79927398713") and not checksums.luhn("79927398710")
    assert checksums.is_iban("DE89370400440532013000") and not checksums.is_iban(
        "DE88370400440532013000"
    )
    assert not checksums.is_iban("DE893704004405320130")


KEY = "AK" + "IA" + "QW3ERTYUIOP7ASDF"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"id = {KEY}\n", KEY),
        ('api_key = "aB3dE5gH7jK9mN1pQ3"', "aB3dE5gH7jK9mN1pQ3"),
        ("postgres://app:s3cretPw9@db/x", "s3cretPw9"),
        ('password = "your-password-here"', None),
        ('token = "aaaaaaaaaaaaaaaaaaaa1"', None),
        ("secret_name = get_secret('path/to/it')", None),
        ("x = sk_learn_wrapper_for_estimators", None),
    ],
)
def test_secrets_are_known_by_issuer_or_name(text, value):
    found = [text[start:end] for start, end in secrets.find(text)]
    assert found == ([] if value is None else [value])


def test_a_private_key_goes_as_a_whole():
    begin, end = "-----BEGIN RSA PRIVATE " + "KEY-----", "-----END RSA PRIVATE " + "KEY-----"
    row = Row(
        Document("k.py", "text", text=f"x\n{begin}\nMIIabc\nabc=\n{end}\ny"), "s", "code", "x", "x"
    )
    made = processors.build([config.Secrets()])(row)
    assert made.text == "x\n<SECRET>\ny"
    assert made.facts["pii"] == {"secret": 1}
