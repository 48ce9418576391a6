"""The step `expert`: which of the eight experts a row belongs to, by marks that can be read here.

Code, mathematics and media go by their kind. Of texts, the marks of each expert are counted per
1,000 words; who has clearly the most takes the row, otherwise it stays where its source put it.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from data_pipelines.corpus.row import Row
from data_pipelines.documents import Reject
from data_pipelines.processors.resources import Resources
from mistral_jax.config import processors

SAMPLE_CHARACTERS = 20_000
MARGIN = 1.5  # how many times the next expert's marks the first must have
BY_KIND = {"code": "code", "math": "math", "media": "multimodal"}
# A mark, and what one of it counts for.
MARKS = {
    "code": (
        (re.compile(r"```|\b(?:def|return|import|elif|const|void|printf)\b|\(\)|::|=>|->"), 1),
        (re.compile(r"(?i)\b(?:function|compiler?|python|javascript|variable|api|bug)\b"), 1),
        (re.compile(r"(?i)\b(?:thread|null|database|server|commit|exception|loop)\b"), 0.7),
    ),
    "math": (
        (re.compile(r"\\[a-z]{2,12}\b|\$[^$\n]{1,200}\$"), 1),
        (re.compile(
            r"(?i)\b(?:theorem|lemma|proof|integral|polynomial|equations?|matrix|prime|integers?|"
            r"derivative|converges?|eigenvalues?|triangle|modulo|fraction)\b"
        ), 1),
    ),
    "language": (
        (re.compile(
            r"(?i)\b(?:translat\w{1,6}|nouns?|verbs?|plural|singular|conjugat\w{1,4}|pronouns?|"
            r"adjectives?|grammar|vowels?|dialects?|syllables?|suffix|prefix|tense|dative)\b"
        ), 1),
    ),
    "reasoning": (
        (re.compile(
            r"(?i)\b(?:therefore|premises?|conclusion|puzzle|deduce|riddle|logically|"
            r"must be true|must be false|knights?|knaves?|liar|implies|syllogism|infer|clues?|"
            r"contradiction|it follows that)\b"
        ), 1),
    ),
    "multimodal": (
        (re.compile(
            r"(?i)\b(?:images?|photo\w{0,6}|captions?|video|audio|screenshots?|pixels?|frames?|"
            r"picture|camera|foreground|background|depicts?)\b"
        ), 1),
    ),
    "scientific": (
        (re.compile(
            r"(?i)\bet al\.|\bdoi\b|\b(?:experiments?|hypothesis|species|protein|cells?|"
            r"molecul\w{1,4}|measured|patients?|genes?|electrons?|enzymes?|reaction|participants|"
            r"p ?< ?0\.\d|temperature|catalyst|samples?)\b"
        ), 1),
    ),
    "creative": (
        (re.compile(r"[“\"][^”\"\n]{2,200}[,.!?][”\"]"), 1.5),
        (re.compile(
            r"(?i)\b(?:whispered|murmured|sighed|smiled|moonlight|heart|shadows?|once upon|"
            r"dream\w{0,3}|tears|silence|laughed|stranger|wept|lantern)\b"
        ), 1),
    ),
}  # fmt: skip


def build(config: processors.Expert, resources: Resources) -> Callable[[Row], Row | Reject]:
    """Return the step."""
    del resources
    return partial(run, config=config)


def run(row: Row, *, config: processors.Expert) -> Row | Reject:
    """Return the row with its expert."""
    if config.only and row.source not in config.only:
        return row
    found = BY_KIND.get(row.kind) or expert_of(row.text, config.min_markers)
    return replace(row, expert=found) if found and found != row.expert else row


def expert_of(text: str, min_markers: float) -> str:
    """Return the expert whose marks stand out in a text, "" where none do."""
    rates = marks(text)
    first, second = sorted(rates, key=lambda name: rates[name], reverse=True)[:2]
    stands_out = rates[first] >= min_markers and rates[first] >= MARGIN * rates[second]
    return first if stands_out else ""


def marks(text: str) -> dict[str, float]:
    """Return the marks of each expert per 1,000 words."""
    sample = text[:SAMPLE_CHARACTERS]
    words = max(1, len(sample.split()))
    return {
        expert: 1000 * sum(weight * len(mark.findall(sample)) for mark, weight in found) / words
        for expert, found in MARKS.items()
    }
