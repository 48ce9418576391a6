"""The step `pii`: personal data found by its form and its checksum, and replaced.

Names and street addresses are not looked for: that takes a model. A number counts as a phone only
where it is written as one or called one, so that versions, dates and results stay what they are.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from data_pipelines.corpus.row import Row
from data_pipelines.documents import Reject
from data_pipelines.processors import checksums
from data_pipelines.processors import texts
from data_pipelines.processors.resources import Resources
from mistral_jax.config import processors

# A finding: where it begins and ends. Finders look at a whole text; what two of them claim is the
# earlier kind's (the order of PiiKind's members in FINDERS).
Span = tuple[int, int]

EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,6}"
    r"[A-Za-z]{2,24}(?![\w-])"
)
# Domains of RFC 2606 and 6761: nobody has an address there. Code hosts' noreply ones neither.
NOBODY = re.compile(
    r"(?i)@(?:.*\.)?(?:example(?:\.(?:com|org|net))?|test|invalid|localhost|users\.noreply\.github\.com)$"
)
NUMBER = re.compile(r"(?<![\w.,/\-+=#])(\+|00 ?)?\(?\d[\d ().\-/]{5,24}\d(?![\w/])(?!-\w)(?!\.\d)")
CARD = re.compile(r"(?<![\w.\-/+=#])\d(?:[ -]?\d){12,18}(?![\w/])(?!-\d)(?!\.\d)")
CALLED_PHONE = re.compile(
    r"(?i)(?:\b(?:tele?phone|phone|tel|telefon[eo]?|t[eé]l[eé]phone|mobile|mob|cell|handy|fax|"
    r"call|whatsapp|sms|text(?: me)?(?: at)?|dial|hotline|number)\b|☎|📞)[\w .:=()]{0,16}$"
)
NORTH_AMERICA = re.compile(r"(?:1[ .-])?\(?[2-9]\d\d\)?[ .-]\s?[2-9]\d\d[ .-]\d{4}")
DATE = re.compile(r"\d{4}([-/.])\d\d?\1\d\d?|\d\d?([-/.])\d\d?\2\d{4}")
# Six characters and more of digits and the signs between them.
STRETCH = re.compile(r"[0-9][0-9 ().\-/]{5,}")
COLONS = re.compile(":[0-9A-Fa-f]{0,4}:")
HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
SSN = re.compile(r"(?<![\w\-.])(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w\-])")
CALLED_SSN = re.compile(
    r"(?i)\b(?:ssn|social security(?: number| no\.?)?)[\s:#=is]{0,6}"
    r"((?!000|666|9\d\d)\d{3} ?(?!00)\d\d ?(?!0000)\d{4})(?!\d)"
)
IBAN = re.compile(r"[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
IPV4 = re.compile(r"(?<![\w.\-~^])(?:\d{1,3}\.){3}\d{1,3}(?![\w\-]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:.])")
CALLED_VERSION = re.compile(
    r"(?i)(?:\b(?:v|ver|version|versions|release|releases|build|firmware|rev|revision|section|"
    r"sect?|chapter|clause|oid|assembly\w*|python|kernel)\b[\s.:=\"'(]{0,4}|[=<>~!]=\s?|§ ?)$"
)
PASSPORT = re.compile(
    r"(?i)\bpassport(?:[ -](?:number|no\.?|num|nr\.?|id|#))?(?: is)?[ :#=]{1,4}"
    r"([A-Z]{0,2}\d{6,9})(?!\w)"
)
BEFORE = 32  # characters that tell what a number is called
SHORTEST_NATIONAL, LONGEST = 7, 15  # digits of a phone (ITU-T E.164)


def build(config: processors.Pii, resources: Resources) -> Callable[[Row], Row | Reject]:
    """Return the step."""
    del resources
    return partial(run, config=config)


def run(row: Row, *, config: processors.Pii) -> Row | Reject:
    """Return the row without personal data, or why it is left out."""
    counts: Counter[str] = Counter()

    def change(text: str) -> str:
        found = find(text, config.kinds)
        counts.update(kind for _, _, kind in found)
        return replaced(text, found)

    document = texts.change_texts(row.document, change)
    if not counts:
        return row
    limit = 0 if config.action == "reject" else config.reject_above
    if limit is not None and counts.total() > limit:
        told = ", ".join(f"{count} x {kind}" for kind, count in sorted(counts.items()))
        return Reject(row.id, "pii", f"personal data: {told}; at most {limit} may be replaced")
    return with_counts(replace(row, document=document), counts)


def with_counts(row: Row, counts: Counter[str]) -> Row:
    """Return the row with counts added to its fact `pii`."""
    total = counts + Counter(row.facts.get("pii", {}))
    return row.with_facts(pii=dict(sorted(total.items())))


def find(text: str, kinds: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """Return beginning, end and kind of each piece of personal data, in order, none twice."""
    claimed: list[tuple[int, int, str]] = []
    stretches = [match.span() for match in STRETCH.finditer(text)]
    for kind, finder in FINDERS.items():
        if kind in kinds:
            claimed += [(start, end, kind) for start, end in finder(text, stretches)]
    if len(claimed) < 2:
        return claimed
    order = {kind: rank for rank, kind in enumerate(FINDERS)}
    claimed.sort(key=lambda each: (order[each[2]], each[0]))
    taken = bytearray(len(text))
    kept = []
    for start, end, kind in claimed:
        if not any(taken[start:end]):
            taken[start:end] = b"\1" * (end - start)
            kept.append((start, end, kind))
    return sorted(kept)


def replaced(text: str, found: list[tuple[int, int, str]]) -> str:
    """Return text with each finding in angle brackets, by its kind."""
    if not found:
        return text
    parts, last = [], 0
    for start, end, kind in found:
        parts += [text[last:start], f"<{kind.upper()}>"]
        last = end
    return "".join([*parts, text[last:]])


def find_emails(text: str, stretches: list[Span]) -> Iterator[Span]:
    """Yield addresses, but those of reserved domains."""
    del stretches
    at = text.find("@")
    while at >= 0:
        # Only where an at sign is: over the whole text the pattern would try every word.
        match = EMAIL.match(text, _local_start(text, at))
        if match and not NOBODY.search(match.group()):
            yield match.span()
        at = text.find("@", max(match.end() if match else 0, at + 1))


def _local_start(text: str, at: int) -> int:
    start, first = at, max(0, at - 64)
    while start > first and (text[start - 1].isalnum() or text[start - 1] in "_.+%-"):
        start -= 1
    return start


def numbers(text: str, stretches: list[Span], pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """Yield the matches of a pattern for something that begins in a stretch of digits and signs.

    Such stretches are few, and to find them is faster than to try each pattern everywhere.
    """
    last = 0
    for start, end in stretches:
        for match in pattern.finditer(text, max(last, start - 4), min(len(text), end + 40)):
            if match.start() >= end:
                break
            yield match
            last = match.end()
        last = max(last, end - 1)


def find_phones(text: str, stretches: list[Span]) -> Iterator[Span]:
    """Yield numbers that are written as phones, or called so."""
    for match in numbers(text, stretches, NUMBER):
        written = match.group()
        digits = re.sub(r"\D", "", written)
        called = CALLED_PHONE.search(text, max(0, match.start() - BEFORE), match.start())
        if is_phone(written, digits, is_called=called is not None):
            yield match.span()


def is_phone(written: str, digits: str, *, is_called: bool) -> bool:
    """Tell whether a number is a phone's by how it is written."""
    if written.startswith("+"):
        return 8 <= len(digits) <= LONGEST and digits[0] != "0"
    if is_called:
        return SHORTEST_NATIONAL <= len(digits) <= LONGEST and not _is_date(written)
    if written.startswith("00 ") or (written.startswith("00") and " " in written):
        return 10 <= len(digits) <= LONGEST + 2 and digits[2] != "0"
    return NORTH_AMERICA.fullmatch(written) is not None


def _is_date(written: str) -> bool:
    return DATE.fullmatch(written) is not None


def find_cards(text: str, stretches: list[Span]) -> Iterator[Span]:
    """Yield card numbers: an issuer's first digits and length, and the Luhn digit."""
    for match in numbers(text, stretches, CARD):
        digits = re.sub(r"\D", "", match.group())
        if checksums.is_card(digits):
            yield match.span()


def find_ssns(text: str, stretches: list[Span]) -> Iterator[Span]:
    """Yield US social security numbers: with hyphens, or called so."""
    yield from (match.span() for match in numbers(text, stretches, SSN))
    lowered = text.lower()
    if "ssn" in lowered or "social security" in lowered:
        yield from (match.span(1) for match in CALLED_SSN.finditer(text))


def find_ibans(text: str, stretches: list[Span]) -> Iterator[Span]:
    """Yield IBANs of a country's length whose remainder is right."""
    del stretches
    for match in IBAN.finditer(text):
        length = checksums.IBAN_LENGTHS.get(match.group()[:2])
        if not length or text[match.start() - 1 : match.start()].isalnum():
            continue
        end = _end_of(match.group(), length)
        if end is not None and checksums.is_iban(match.group()[:end]):
            yield match.start(), match.start() + end


def _end_of(written: str, length: int) -> int | None:
    """Return where `length` characters that are no spaces end."""
    seen = 0
    for at, letter in enumerate(written, start=1):
        seen += letter != " "
        if seen == length:
            return at
    return None


def find_ips(text: str, stretches: list[Span]) -> Iterator[Span]:
    """Yield public addresses of version 4 and 6; versions of software are none."""
    for match in numbers(text, stretches, IPV4):
        before = CALLED_VERSION.search(text, max(0, match.start() - BEFORE), match.start())
        if before is None and _is_public(match.group()):
            yield match.span()
    last = 0
    for colons in COLONS.finditer(text):
        if colons.start() < last:
            continue
        start = colons.start()
        while start > last and text[start - 1] in HEXADECIMAL:
            start -= 1
        match = IPV6.match(text, start)
        written = match.group() if match else ""
        last = match.end() if match else colons.start() + 1
        if any(map(str.isdigit, written)) and written.count(":") >= 3 and _is_public(written):
            yield start, last


def _is_public(written: str) -> bool:
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


def find_passports(text: str, stretches: list[Span]) -> Iterator[Span]:
    """Yield numbers that are called a passport's."""
    del stretches
    if "assport" in text or "ASSPORT" in text:
        yield from (match.span(1) for match in PASSPORT.finditer(text))


# In the order of precedence: a checksum says more than a form.
FINDERS: dict[str, Callable[[str, list[Span]], Iterator[Span]]] = {
    "email": find_emails,
    "iban": find_ibans,
    "card": find_cards,
    "ssn": find_ssns,
    "passport": find_passports,
    "ip": find_ips,
    "phone": find_phones,
}
