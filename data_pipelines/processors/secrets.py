"""The step `secrets`: keys, tokens and passwords, known by their issuer's form or by their name."""

import math
import re
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from data_pipelines.corpus.row import Row
from data_pipelines.documents import Reject
from data_pipelines.processors import pii
from data_pipelines.processors import texts
from data_pipelines.processors.resources import Resources
from mistral_jax.config import processors

# What the text must hold -> the token. The first is found fast, the second tried only there.
TOKENS = tuple(
    (mark, re.compile(rf"(?<![A-Za-z0-9_]){pattern}(?![A-Za-z0-9_])"))
    for mark, pattern in (
        ("AKIA", r"AKIA[0-9A-Z]{16}"),
        ("ASIA", r"ASIA[0-9A-Z]{16}"),
        ("gh", r"gh[pousr]_[A-Za-z0-9]{36,}"),
        ("github_pat_", r"github_pat_[A-Za-z0-9_]{40,}"),
        ("glpat-", r"glpat-[A-Za-z0-9_\-]{20,}"),
        ("xox", r"xox[abeoprs]-[A-Za-z0-9\-]{20,}"),
        ("sk", r"sk[-_](?:live_|test_|proj-|ant-)?[A-Za-z0-9_\-]{20,}"),
        ("AIza", r"AIza[A-Za-z0-9_\-]{35}"),
        ("ya29.", r"ya29\.[A-Za-z0-9_\-]{20,}"),
        ("hf_", r"hf_[A-Za-z0-9]{30,}"),
        ("npm_", r"npm_[A-Za-z0-9]{36}"),
        ("pypi-", r"pypi-[A-Za-z0-9_\-]{50,}"),
        ("SG.", r"SG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}"),
        ("eyJ", r"eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"),
    )
)
SLOW = {"gh": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), "sk": ("sk-", "sk_"), "xox": ("xox",)}
KEY_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
KEY_END = "-----END"
KEY_CHARACTERS = 20_000
PASSWORD_IN_URL = re.compile(r"(?<=://)[^\s:/@\"'<>]{1,64}:([^\s:/@\"'<>{}$]{3,128})(?=@)")
NAMES = ("password", "passwd", "secret", "token", "api_key", "apikey", "access_key", "private_key")
ASSIGNED = re.compile(
    r"(?i)(?:password|passwd|secret|token|api_?key|access_?key|private_?key)[\w\-]{0,24}[\"']?"
    r"\s{0,4}[:=]\s{0,4}[\"']([^\s\"']{12,200})[\"']"
)
# A value that stands for one: a place to fill in, a path, a name that is looked up.
STANDS_FOR = re.compile(
    r"(?i)your|example|change|placeholder|dummy|sample|xxx|\*\*\*|[<>{}$()%\[\]]|://|^[a-z_.\-/ ]+$"
)


def build(config: processors.Secrets, resources: Resources) -> Callable[[Row], Row | Reject]:
    """Return the step."""
    del resources
    return partial(run, config=config)


def run(row: Row, *, config: processors.Secrets) -> Row | Reject:
    """Return the row without secrets, or why it is left out."""
    count = 0

    def change(text: str) -> str:
        nonlocal count
        found = find(text, config.min_entropy_bits)
        count += len(found)
        return pii.replaced(text, [(start, end, "secret") for start, end in found])

    document = texts.change_texts(row.document, change)
    if not count:
        return row
    if config.action == "reject":
        return Reject(row.id, "secrets", f"{count} keys, tokens or passwords")
    return pii.with_counts(replace(row, document=document), Counter(secret=count))


def find(text: str, min_entropy_bits: float = 3.0) -> list[tuple[int, int]]:
    """Return beginning and end of each secret, in order; those inside another are left out."""
    found = sorted(_candidates(text, min_entropy_bits), key=lambda each: (each[0], -each[1]))
    kept: list[tuple[int, int]] = []
    for start, end in found:
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


def _candidates(text: str, min_entropy_bits: float) -> Iterator[tuple[int, int]]:
    for mark, token in TOKENS:
        if any(each in text for each in SLOW.get(mark, (mark,))):
            for match in token.finditer(text):
                if any(map(str.isdigit, match.group())):  # `sk-some-name-of-a-class` is none
                    yield match.span()
    if "PRIVATE KEY" in text:
        yield from _private_keys(text)
    if "://" in text and "@" in text:
        for match in PASSWORD_IN_URL.finditer(text):
            if not STANDS_FOR.search(match.group(1)) or match.group(1).isalpha():
                yield match.span(1)
    for match in _assigned(text):
        value = match.group(1)
        if not STANDS_FOR.search(value) and entropy_bits(value) >= min_entropy_bits:
            yield match.span(1)


def _assigned(text: str) -> Iterator[re.Match[str]]:
    """Yield the assignments to telling names, each perhaps more than once."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a few letters become two; places would not be the same
        yield from ASSIGNED.finditer(text)
        return
    for name in NAMES:
        at = lowered.find(name)
        while at >= 0:
            match = ASSIGNED.match(text, at)
            if match:
                yield match
            at = lowered.find(name, at + len(name))


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    for match in KEY_BEGIN.finditer(text):
        end = text.find(KEY_END, match.end(), match.end() + KEY_CHARACTERS)
        stop = text.find("\n", end) if end >= 0 else match.end()
        yield match.start(), stop if stop >= 0 else len(text)


def entropy_bits(text: str) -> float:
    """Return the entropy per character of a text, in bits."""
    counts = Counter(text).values()
    return sum(count / len(text) * math.log2(len(text) / count) for count in counts)
