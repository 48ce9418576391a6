"""Labelled texts with and without personal data, made up by a fixed seed.

Numbers are valid by construction, or valid but for one digit, or something else that looks like
one: versions, hashes, dates, ISBNs, identifiers. Nobody's data is in here; keys are random.
"""

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipelines.processors import checksums

SEED = "pii probes 1"
EACH = 14  # texts of each kind and form
# fmt: off
NAMES = ("anna", "jan.kowalski", "m_rossi", "o'neil", "li.wei", "j.d.salinger+books", "info", "a-b")
HOSTS = ("gmail.com", "uni-bonn.de", "mail.company.co.uk", "proton.me", "post.cz", "sub.shop.io")
IBANS = {  # a country, and the form of what follows the check digits: 0 digit, A letter
    "DE": "0" * 18, "GB": "AAAA" + "0" * 14, "FR": "0" * 23, "NL": "AAAA" + "0" * 10,
    "ES": "0" * 20, "CH": "0" * 17, "PL": "0" * 24, "NO": "0" * 11,
}
PHONES = (
    "+49 30 {0}{1}{2}{3}{4}{5}{6}", "+1 (415) 555-01{0}{1}", "(212) 555-{0}{1}{2}{3}",
    "415-555-{0}{1}{2}{3}", "phone: 0{0}0 {1}{2}{3} {4}{5} {6}{7}",
    "+44 20 7{0}{1}{2} {3}{4}{5}{6}", "Tel. 0{0}1/{1}{2}{3}{4}{5}{6}",
    "call me at 06 {0}{1} {2}{3} {4}{5} {6}{7}",
    "WhatsApp +5511{0}{1}{2}{3}{4}{5}{6}{7}{0}", "+86 138 {0}{1}{2}{3} {4}{5}{6}{7}",
)
FRAMES = (
    "Please write to {} about the invoice.", "My details: {}, thanks in advance.",
    "{} is what the form says.", "You will find it under {}",
)
LOOK_ALIKES = (
    "Upgrade to version {a}.{b}.{c}.{d} before Friday.", "pip install package=={a}.{b}.{c}.{d}",
    "The commit {hash} broke the build.", "Published on 2024-0{n}-1{n}, revised 1{n}/0{n}/2025.",
    "ISBN 978-3-16-1484{a:02d}-{n} is out of print.", "See arXiv:21{b:02d}.{five} for the proof.",
    "The value is 3.14159265{five} and not 2.7182818{five}.", "Lot 2024{five}{five}, 12 pieces.",
    "Between 1{n}:0{n}:2{n} and 1{n}:3{n}:4{n} nothing happened.", "EUR 1 {n}00 000 000 were lent.",
    "uuid {hash8}-{hash4}-4{hash3}-a{hash3}-{hash12}", "The host 192.168.{n}.{a} is unreachable.",
    "Bind to 127.0.0.1:80{b:02d} or 0.0.0.0.", "MAC 0{n}:1{n}:2{n}:3{n}:4{n}:5{n}",
    "Use std::vector<int>::iterator{n} here.", "The decorator @property_{n} has no setter.",
    "Mail user{n}@example.com to test.", "Section 4.{n}.{a}.{b} lists the limits.",
    "Pages {a}00-{a}45, chapter {n}.", "x = [{a}, {b}, {c}, {d}, {n}00, {n}50]",
    "1 2 3 4 5 6 7 8 9 {a} {b} {c}", "DOI 10.10{b:02d}/s{five}-0{n}0-{five}", "{five}-{five}-{n}",
    "See git@{hash8} and user@host{n} for details.",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Probe:
    """A text, the kinds that are in it, and the class it belongs to in the report."""

    text: str
    kinds: tuple[str, ...]
    form: str


def probes() -> list[Probe]:
    """Return all texts, the same on every machine."""
    draw = random.Random(SEED)
    makers = (
        _emails, _cards, _ibans, _phones, _ssns, _addresses, _passports, _secrets, _look_alikes,
    )  # fmt: skip
    return [probe for maker in makers for probe in maker(draw)]


def _framed(draw: random.Random, value: str) -> str:
    return draw.choice(FRAMES).format(value)


def _digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choice(string.digits) for _ in range(count))


def _word(draw: random.Random, alphabet: str, count: int) -> str:
    return "".join(draw.choice(alphabet) for _ in range(count))


def _emails(draw: random.Random) -> Iterator[Probe]:
    for _ in range(EACH):
        address = f"{draw.choice(NAMES)}{draw.randrange(100)}@{draw.choice(HOSTS)}"
        yield Probe(_framed(draw, address), ("email",), "email")


def _cards(draw: random.Random) -> Iterator[Probe]:
    for at in range(2 * EACH):
        first = draw.choice(("4", "51", "37", "6011"))
        length = 15 if first == "37" else 16
        body = first + _digits(draw, length - 1 - len(first))
        check = next(each for each in string.digits if checksums.luhn(body + each))
        is_right = at % 2 == 0
        number = body + (check if is_right else str((int(check) + 1 + draw.randrange(8)) % 10))
        if length == 16 and at % 4 < 2:
            number = draw.choice((" ", "-")).join(number[i : i + 4] for i in range(0, 16, 4))
        kinds = ("card",) if is_right else ()
        yield Probe(_framed(draw, number), kinds, "card" if is_right else "card, wrong digit")


def _ibans(draw: random.Random) -> Iterator[Probe]:
    for at in range(2 * EACH):
        country, form = draw.choice(sorted(IBANS.items()))
        alphabets = {"0": string.digits, "A": string.ascii_uppercase}
        body = "".join(draw.choice(alphabets[each]) for each in form)
        digits = next(
            each
            for each in map("{:02d}".format, range(2, 99))
            if checksums.is_iban(country + each + body)
        )
        is_right = at % 2 == 0
        digits = digits if is_right else f"{(int(digits) + 1 + draw.randrange(60)) % 97 + 2:02d}"
        is_right = checksums.is_iban(country + digits + body)
        iban = country + digits + body
        if at % 4 < 2:
            iban = " ".join(iban[i : i + 4] for i in range(0, len(iban), 4))
        kinds = ("iban",) if is_right else ()
        yield Probe(_framed(draw, iban), kinds, "iban" if is_right else "iban, wrong digits")


def _phones(draw: random.Random) -> Iterator[Probe]:
    for at in range(2 * EACH):
        written = PHONES[at % len(PHONES)].format(*(draw.randrange(1, 10) for _ in range(8)))
        yield Probe(_framed(draw, written), ("phone",), "phone")


def _ssns(draw: random.Random) -> Iterator[Probe]:
    for at in range(EACH):
        parts = (draw.randrange(1, 666), draw.randrange(1, 100), draw.randrange(1, 10_000))
        text = "{:03d}-{:02d}-{:04d}" if at % 3 else "SSN: {:03d}{:02d}{:04d}"
        yield Probe(_framed(draw, text.format(*parts)), ("ssn",), "ssn")
    for at in range(EACH // 2):
        wrong = (f"000-{at:02d}-1234", f"9{at:02d}-12-3456", f"123-00-{at:04d}")[at % 3]
        yield Probe(_framed(draw, wrong), (), "ssn, not given out")


def _addresses(draw: random.Random) -> Iterator[Probe]:
    for at in range(EACH):
        if at % 3:
            address = f"{draw.choice((8, 52, 93, 185))}." + ".".join(
                str(draw.randrange(1, 255)) for _ in range(3)
            )
        else:
            address = "2a02:" + ":".join(_word(draw, "0123456789abcdef", 4) for _ in range(7))
        yield Probe(_framed(draw, address), ("ip",), "ip")


def _passports(draw: random.Random) -> Iterator[Probe]:
    for at in range(EACH // 2):
        number = ("", "C", "XK")[at % 3] + _digits(draw, 8)
        yield Probe(f"Her passport number is {number}, issued in Riga.", ("passport",), "passport")


def _secrets(draw: random.Random) -> Iterator[Probe]:
    letters = string.ascii_letters + string.digits
    forms = (
        ("AK" + "IA", string.ascii_uppercase + string.digits, 16, "aws_access_key_id = {}"),
        ("gh" + "p_", letters, 36, "git clone https://{}@github.com/a/b"),
        ("sk" + "-", letters, 40, 'OPENAI = "{}"'),
        ("hf" + "_", letters, 34, "login(token='{}')"),
        ("", letters, 24, 'api_key = "{}"'),
        ("", letters, 20, "password: '{}'"),
        ("", letters, 12, "postgres://user:{}@db.internal/app"),
    )
    for at in range(2 * EACH):
        head, alphabet, count, text = forms[at % len(forms)]
        body = _word(draw, alphabet, count - 1) + draw.choice(string.digits)
        yield Probe(text.format(head + body), ("secret",), "secret")
    for text in (
        'password = "your-password-here"', "api_key = os.environ['API_KEY']", "token: <TOKEN>",
        'secret = "changeme-changeme"', "class sk_learn_estimator_base_wrapper: pass",
        "postgres://user:password@localhost/app".replace("password", "${PASSWORD}"),
        "token = tokenizer.next_token(position)", "password_reset_url = '/accounts/password/reset'",
    ):  # fmt: skip
        yield Probe(text, (), "secret, only named")


def _look_alikes(draw: random.Random) -> Iterator[Probe]:
    for text in LOOK_ALIKES * 4:
        hexadecimal = "0123456789abcdef"
        values = {name: draw.randrange(1, 60) for name in "abcd"}
        values |= {"n": draw.randrange(1, 10)}
        words = {f"hash{n}": _word(draw, hexadecimal, n) for n in (3, 4, 8, 12)}
        words |= {"hash": _word(draw, hexadecimal, 40), "five": _digits(draw, 5)}
        yield Probe(text.format(**values, **words), (), "look-alike")
