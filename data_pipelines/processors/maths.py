"""The step `maths`: formulas in LaTeX that close what they open, and enough of them."""

import re
from collections.abc import Callable
from functools import partial

from data_pipelines.corpus.row import Row
from data_pipelines.documents import Reject
from data_pipelines.processors.resources import Resources
from mistral_jax.config import processors

COMMAND = re.compile(r"\\[A-Za-z]{2,}")
ENVIRONMENT = re.compile(r"\\(begin|end)\{([A-Za-z*]{1,40})\}")
DELIMITER = re.compile(r"\\(left|right)(?![A-Za-z])")
COMMENT = re.compile(r"(?<!\\)%[^\n]*")
VERBATIM = re.compile(r"\\verb\*?([^\sA-Za-z*])[^\n]{0,200}?\1")
ESCAPED = re.compile(r"\\[\\{}$%]")
SIGNS = frozenset("=<>+^*/\\≤≥≠±×÷√∑∫∞∈∀∃→⇒πθλ")


def build(config: processors.Maths, resources: Resources) -> Callable[[Row], Row | Reject]:
    """Return the step."""
    del resources
    return partial(run, config=config)


def run(row: Row, *, config: processors.Maths) -> Row | Reject:
    """Return the row, or why its mathematics is not whole."""
    text = row.text
    if config.min_density:
        share = density(text)
        if share < config.min_density:
            return Reject(
                row.id,
                "little_maths",
                f"{share:.1%} of its words are mathematics; at least {config.min_density:.1%}",
            )
    problem = unbalanced(text) if config.balanced else ""
    return Reject(row.id, "unbalanced_latex", problem) if problem else row


def density(text: str) -> float:
    """Return the share of words that are numbers or formulas."""
    words = text.split()
    found = sum([not SIGNS.isdisjoint(word) or word[0].isdigit() or "$" in word for word in words])
    return found / len(words) if words else 0.0


def unbalanced(text: str) -> str:
    """Return what is not closed in LaTeX, "" if nothing is; texts without LaTeX are balanced."""
    if "\\" not in text or COMMAND.search(text) is None:
        return ""
    plain = VERBATIM.sub("", COMMENT.sub("", text))
    problem = _environments(plain) or _delimiters(plain)
    if problem:
        return problem
    plain = ESCAPED.sub("", plain)
    depth = 0
    for brace in re.findall(r"[{}]", plain):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return "a brace closes that was not opened"
    if depth:
        return f"{depth} braces are not closed"
    if plain.count("$$") % 2 or plain.replace("$$", "").count("$") % 2:
        return "a dollar sign has no partner"
    return ""


def _environments(text: str) -> str:
    opened: list[str] = []
    for match in ENVIRONMENT.finditer(text):
        what, name = match.groups()
        if what == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            return f"\\end{{{name}}} closes what was not opened"
    return f"\\begin{{{opened[-1]}}} is not closed" if opened else ""


def _delimiters(text: str) -> str:
    found = DELIMITER.findall(text)
    left = found.count("left")
    return "" if 2 * left == len(found) else f"{left} \\left and {len(found) - left} \\right"
