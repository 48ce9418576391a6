"""The step `clean`: regular text (data_pipelines/clean.py) without boilerplate.

Boilerplate is what a site or a book puts around every text: navigation, notices, running heads.
Whole lines go, never parts of one.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from data_pipelines import clean
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.processors import texts
from data_pipelines.processors.resources import Resources
from mistral_jax.config import processors

MAX_LINE = 160  # longer lines are prose, whatever words are in them
# Lines that are nothing else, in lower case.
NAVIGATION = frozenset(
    """
skip to content|skip to main content|skip to navigation|jump to navigation|back to top
log in|login|sign in|sign up|register|log out|subscribe|subscribe now|my account
share|share this|share on facebook|share on twitter|share on linkedin|tweet|pin it
read more|continue reading|learn more|see more|show more|load more|view all|click here
previous post|next post|previous page|next page|older posts|newer posts|related posts
related articles|you may also like|leave a comment|leave a reply|post a comment
all rights reserved|privacy policy|terms of service|terms of use|terms and conditions
cookie policy|cookie settings|contact us|about us|advertisement|advertise with us
toggle navigation|search this site|print this page|email this page|powered by wordpress
""".strip()
    .replace("\n", "|")
    .split("|")
)
# With the signs that are usual around them: looking a line up is far faster than stripping it.
BEFORE = ("", "» ", "› ", "> ", "* ", "- ", "• ", "| ", "[", "[ ", "← ", "« ", "# ", "## ")
AFTER = ("", " »", " ›", " >", "...", "…", " …", "]", " ]", ":", "!", ".", " →", " |", " +")
NAVIGATION_LINES = frozenset(
    before + line + after for line in NAVIGATION for before in BEFORE for after in AFTER
)
# Lines that hold one of these; the first word of each tells whether the text need be searched.
NOTICES = {
    "cookies": (
        "we use cookies", "uses cookies", "accept all cookies", "accept cookies", "use of cookies",
    ),
    "javascript": (
        "enable javascript", "javascript is disabled", "javascript is required",
        "javascript must be enabled",
    ),
    "newsletter": (
        "our newsletter", "to the newsletter", "newsletter sign",
    ),
}  # fmt: skip
PAGE_NUMBER = re.compile(
    r"(?i)[\s\-–—|]{0,4}(?:page |seite |p\. ?)?\d{1,5}(?: ?(?:of|/|von) ?\d{1,5})?[\s\-–—|]{0,4}"
)
DIGITS = re.compile(r"\d+")
EDGE_LINES = 2  # lines at a page's top and foot that may be running heads
MIN_PAGES = 4


def build(config: processors.Clean, resources: Resources) -> Callable[[Row], Row | Reject]:
    """Return the step."""
    del resources

    def run(row: Row) -> Row | Reject:
        document = _clean(row.document)
        if config.boilerplate and document.kind == "text" and row.kind != "code":
            pages = texts.pages_of(document)
            pages = without_running_heads(pages) if len(pages) >= MIN_PAGES else pages
            document = texts.with_pages(document, [without_notices(page) for page in pages])
        if document.kind == "text" and not document.text.strip():
            return Reject(row.id, "empty", "nothing is left of it after cleaning")
        return replace(row, document=document)

    return run


def _clean(document: Document) -> Document:
    if document.kind != "text":
        return texts.change_texts(document, clean.clean_turn)
    if not document.pages:
        return replace(document, text=clean.clean_text(document.text))
    return texts.change_texts(document, _clean_page)


def _clean_page(page: str) -> str:
    """Return a page cleaned, with the line ends behind it as they were."""
    body = page.rstrip("\n")
    return clean.clean_text(body) + page[len(body) :]


def without_notices(text: str) -> str:
    """Return text without lines of navigation and notices."""
    lowered = text.lower()
    phrases = [
        phrase
        for word, found in NOTICES.items()
        if word in lowered
        for phrase in found
        if phrase in lowered
    ]
    if phrases:
        lines = text.split("\n")
        text = "\n".join([line for line in lines if not _is_notice(line, phrases)])
    # Most texts have no such line: that is found out without a loop in Python.
    if NAVIGATION_LINES.isdisjoint(map(str.strip, lowered.split("\n"))):
        return text
    lines = text.split("\n")
    return "\n".join([each for each in lines if each.strip().lower() not in NAVIGATION_LINES])


def _is_notice(line: str, phrases: list[str]) -> bool:
    lowered = line.lower()
    return len(line) <= MAX_LINE and any(phrase in lowered for phrase in phrases)


def without_running_heads(pages: list[str]) -> list[str]:
    """Return pages without the lines that most of them begin or end with, and page numbers."""
    split = [page.split("\n") for page in pages]
    edges = [_edges(lines) for lines in split]
    counts = Counter(
        key for lines, places in zip(split, edges) for key in {_key(lines[at]) for at in places}
    )
    often = {key for key, count in counts.items() if count > len(pages) / 2}
    made = []
    for lines, places in zip(split, edges):
        drop = {
            at
            for at in places
            if _key(lines[at]) in often or PAGE_NUMBER.fullmatch(lines[at]) is not None
        }
        made.append("\n".join(line for at, line in enumerate(lines) if at not in drop))
    return made


def _edges(lines: list[str]) -> list[int]:
    """Return the places of the first and last lines that are not blank."""
    filled = [at for at, line in enumerate(lines) if line.strip()]
    if len(filled) <= 2 * EDGE_LINES:
        return []
    return filled[:EDGE_LINES] + filled[-EDGE_LINES:]


def _key(line: str) -> str:
    return DIGITS.sub("0", line.strip().lower()[:MAX_LINE])
