"""Where a document says something that can be asked: definitions, numbers, names, dates, headings,
lists, signatures, gaps. Every finding is a span of the text, with a question that it answers.

Patterns only look at one line or sentence at a time, and those are cut at a length, so that no text
takes more than linear time.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipelines.synthesis.draws import Draws

MAX_SENTENCE = 400
GAP = "____"
OPENING = "\"'`(["
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
UNITS = (
    r"%|percent|km/h|km|cm|mm|nm|m/s|kg|mg|g|kWh|kW|MW|W|Hz|kHz|MHz|GHz|bytes?|[KMGT]i?B|bits?|ms|"
    r"seconds?|minutes?|hours?|days?|weeks?|months?|years?|degrees|meters|metres|miles|feet|pages?|"
    r"times|lines?|characters?|users?|people|dollars|euros|items?|elements?|digits?|V|A|K|C"
)
# A sentence ends at a mark; a paragraph, list item, heading or block of code ends one without.
_BOUNDARY = re.compile(r"(?P<mark>[.!?])(?=\s|$)|\n[ \t]*(?=[\n\-*#•>|+=~`])|\n(?=[ \t]{4})")
_LEAD = re.compile(r"[\s#*>|+-]*")
_DEFINITION = re.compile(
    r"(?:The |An? )?(?P<term>[A-Z`\"][\w`\"'()./-]*(?: [\w`\"'()/-]+){0,4}) "
    r"(?P<verb>is|are|means|denotes|refers to|stands for) "
    r"(?P<answer>(?:an?|the|any|one|all|every) [^.;:]{8,180})"
)
_NUMBER = re.compile(rf"(?<![\w.,-])\d+(?:[.,]\d+)*\s?(?:{UNITS})(?!\w)")
_DATE = re.compile(
    rf"\b(?:\d{{1,2}} (?:{MONTHS}) \d{{4}}|(?:{MONTHS}) \d{{1,2}}, \d{{4}}|(?:{MONTHS}) \d{{4}}|"
    r"(?:1[4-9]|20)\d\d)\b(?![.\d])"
)
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+(?: (?:of |the |de |van )?[A-Z][a-z]+){1,3}(?!\w)")
_HEADING = re.compile(r"^#{1,6} +(?P<answer>[^\n#]{3,90}?) *#*$", re.MULTILINE)
_UNDERLINED = re.compile(r"^(?P<answer>\w[^\n]{2,80})\n(?:={4,}|-{4,}|~{4,})$", re.MULTILINE)
_ITEM = re.compile(
    r"^[ \t]{0,8}(?:[-*•+]|\d{1,2}[.)])[ \t]+(?P<answer>\S[^\n]{3,160})$", re.MULTILINE
)
_FUNCTION = re.compile(
    r"^[ \t]{0,12}(?P<answer>(?:async )?def \w+\([^\n]{0,160})\n"
    r"[ \t]{1,16}[rRuU]?\"\"\"(?P<doc>[^\n\"]{10,160})",
    re.MULTILINE,
)
_WORD = re.compile(r"[^\W\d_]{6,}")
PRONOUNS = {
    "it",
    "this",
    "that",
    "these",
    "those",
    "there",
    "they",
    "he",
    "she",
    "we",
    "you",
    "what",
    "which",
    "here",
    "one",
}

# What is asked of each kind; {context} is the sentence with a gap, {term} what is defined.
ASKED = {
    "definition": (
        "What does the text say that {term} {verb}?",
        "How is {term} described?",
        "Complete the statement about {term}: {term} {verb} {gap}",
        "{term}: what {verb_is} it, in the words of the text?",
    ),
    "number": (
        "Which figure with its unit belongs in the gap? {context}",
        "How much, or how many? Fill in: {context}",
        "Give the quantity missing here: {context}",
    ),
    "date": (
        "Which date or year belongs in the gap? {context}",
        "When? {context}",
        "Supply the date that is missing: {context}",
    ),
    "name": (
        "Which name is missing? {context}",
        "Who or what is named in the gap? {context}",
        "Fill in the proper name: {context}",
    ),
    "heading": (
        "Under which heading does the following stand? {context}",
        "Which section begins with these words? {context}",
        "Name the heading over this passage: {context}",
    ),
    "item": (
        "Which point of the list follows after '{before}'?",
        "The list goes on after '{before}' with which entry?",
        "Quote the entry behind '{before}'.",
    ),
    "signature": (
        "Which function is documented as '{doc}'? Give its signature line as it stands.",
        "Quote the def line of the function whose docstring begins '{doc}'.",
    ),
    "cloze": (
        "Fill the gap: {context}",
        "Which word is missing? {context}",
        "Complete the sentence with one word of the text. {context}",
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that can be asked.

    Attributes:
        kind: a key of ASKED.
        start, end: the answer's characters.
        around: the characters of the sentence or line that it stands in.
        told: what the question needs.
    """

    kind: str
    start: int
    end: int
    around: tuple[int, int]
    told: dict[str, str]


def sentences(text: str) -> list[tuple[int, int]]:
    """Return where the sentences of a text begin and end; those too short or long are left out."""
    found, start = [], 0
    for boundary in _BOUNDARY.finditer(text):
        end = boundary.end()
        if boundary["mark"]:
            if 25 <= end - start <= 2 * MAX_SENTENCE:
                lead = _LEAD.match(text, start, end)
                start = lead.end() if lead else start
            begins_well = text[start].isupper() or text[start] in OPENING
            if begins_well and 25 <= end - start <= MAX_SENTENCE:
                found.append((start, end))
        start = end
    return found


def find(text: str, *, is_code: bool = False) -> dict[str, list[Finding]]:
    """Return what can be asked of a text, by kind, in order of place; code has no headings."""
    found: dict[str, list[Finding]] = {kind: [] for kind in ASKED}
    for start, end in sentences(text):
        said = text[start:end]
        for each in _in_sentence(said, start):
            found[each.kind].append(each)
    outside = _signatures(text) if is_code else (*_headings(text), *_items(text))
    for each in outside:
        found[each.kind].append(each)
    return found


def question(finding: Finding, text: str, draws: Draws) -> str:
    """Return the question that a finding answers."""
    start, end = finding.around
    context = text[start : finding.start] + GAP + text[finding.end : end]
    told = {"context": " ".join(context.split()), "gap": GAP, **finding.told}
    return draws.pick(ASKED[finding.kind]).format(**told)


def _in_sentence(said: str, offset: int) -> Iterator[Finding]:
    around = (offset, offset + len(said))

    def at(kind: str, span: tuple[int, int], **told: str) -> Finding:
        return Finding(kind, offset + span[0], offset + span[1], around, told)

    defined = _DEFINITION.match(said)
    if defined and defined["term"].split()[0].lower() not in PRONOUNS:
        verb = defined["verb"]
        yield at(
            "definition",
            defined.span("answer"),
            term=defined["term"],
            verb=verb,
            verb_is=verb if verb in ("is", "are") else "is",
        )
    for kind, pattern in (("number", _NUMBER), ("date", _DATE), ("name", _NAME)):
        match = pattern.search(said)
        if match and said.count(match.group()) == 1:
            yield at(kind, match.span())
    longest = max(_WORD.finditer(said), key=lambda m: len(m.group()), default=None)
    if longest and said.count(" ") >= 7 and said.count(longest.group()) == 1:
        yield at("cloze", longest.span())


def _headings(text: str) -> Iterator[Finding]:
    for pattern in (_HEADING, _UNDERLINED):
        for found in pattern.finditer(text):
            below = text[found.end() : found.end() + 400].strip()
            line = below.partition("\n")[0].strip()
            if len(line) > 30 and found["answer"] not in line:
                yield Finding(
                    "heading", *found.span("answer"), found.span(), {"context": f"'{line[:160]}'"}
                )


def _items(text: str) -> Iterator[Finding]:
    last = None
    for found in _ITEM.finditer(text):
        if last and found.start() - last.end() <= 2 and last["answer"] != found["answer"]:
            before = last["answer"][:100]
            if found["answer"] not in before:
                start, end = found.span("answer")
                end -= len(found["answer"]) - len(found["answer"].rstrip())
                yield Finding("item", start, end, (last.start(), found.end()), {"before": before})
        last = found


def _signatures(text: str) -> Iterator[Finding]:
    for found in _FUNCTION.finditer(text):
        start, end = found.span("answer")
        end -= len(found["answer"]) - len(found["answer"].rstrip())
        yield Finding("signature", start, end, found.span(), {"doc": found["doc"].strip()})
