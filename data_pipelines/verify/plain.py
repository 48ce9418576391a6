"""Checks that only read: quotes in documents, exact answers, numbers with units."""

import math
import re
from collections.abc import Callable

from data_pipelines.corpus.row import Row
from data_pipelines.verify import answers
from data_pipelines.verify import checks
from mistral_jax.protocols import Score

Documents = Callable[[str], str | None]
_NUMBER = re.compile(r"[-+−]?(?:\d[\d,_  ]*)?\.?\d+(?:[eE][-+]?\d+)?")


def no_documents(_: str) -> None:
    """Know no document."""


def span(check: checks.Span, row: Row, documents: Documents) -> Score:
    """Look the quote up and compare the answer with it."""
    if check.within == "prompt":
        text: str | None = row.document.prompt
    else:
        text = documents(check.document or row.document.made_from)
    if text is None:
        return answers.unverified("span", "the document is not at hand")
    there = text[check.start : check.end]
    if there != check.quote:
        return answers.failed(
            "span", f"characters {check.start} to {check.end} are {there[:80]!r}, not the quote"
        )
    said, quote = _spaced(answers.whole_answer(row)), _spaced(check.quote)
    if not quote or (said != quote if check.exact else quote not in said):
        return answers.failed("span", f"the answer does not say {quote[:80]!r}")
    return answers.passed("span")


def exact(check: checks.Exact, row: Row) -> Score:
    """Compare the answer with the texts that are right."""
    said = _spaced(answers.answer_of(row, check))
    wanted = [check.expected] if isinstance(check.expected, str) else list(check.expected)
    right = [_spaced(text) for text in wanted]
    if check.fold:
        said, right = said.casefold(), [text.casefold() for text in right]
    if said in right:
        return answers.passed("exact")
    return answers.failed("exact", f"{said[:80]!r} is not {wanted[0][:80]!r}")


def number(check: checks.Number, row: Row) -> Score:
    """Compare the answer's number and unit."""
    said = answers.answer_of(row, check).rstrip(".")
    found = _NUMBER.match(said)
    if found is None:
        return answers.failed("number", f"{said[:80]!r} is no number")
    value = float(re.sub(r"[,_  ]", "", found.group()).replace("−", "-"))
    unit = said[found.end() :].strip()
    if check.unit is not None and unit != check.unit:
        return answers.failed("number", f"the unit is {unit[:40]!r}, not {check.unit!r}")
    if check.unit is None and unit:
        return answers.failed("number", f"{unit[:40]!r} stands behind the number")
    if math.isclose(value, check.expected, rel_tol=check.relative, abs_tol=check.absolute):
        return answers.passed("number")
    return answers.failed("number", f"{value:g} is not {check.expected:g}")


def _spaced(text: str) -> str:
    return " ".join(text.split())
