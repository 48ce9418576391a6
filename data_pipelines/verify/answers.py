"""What of a row is checked, and how a verdict is written down."""

import re
from typing import Any

from data_pipelines.corpus.row import Row
from data_pipelines.verify import checks
from mistral_jax.protocols import Score

PASSED, FAILED, UNVERIFIED = "passed", "failed", "unverified"
_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)


class NoAnswer(ValueError):
    """The row has no answer where its check looks for one."""


def passed(kind: str, reason: str = "", value: float = 1.0, **more: Any) -> Score:
    """Return the score of what holds."""
    return Score(value, {"kind": kind, "verdict": PASSED, "reason": reason, **more})


def failed(kind: str, reason: str, **more: Any) -> Score:
    """Return the score of what does not hold."""
    return Score(0.0, {"kind": kind, "verdict": FAILED, "reason": reason, **more})


def unverified(kind: str, reason: str, **more: Any) -> Score:
    """Return the score of what could not be found out."""
    return Score(0.0, {"kind": kind, "verdict": UNVERIFIED, "reason": reason, **more})


def whole_answer(row: Row) -> str:
    """Return what the row answers: completion, last assistant's message, or its text."""
    document = row.document
    if document.kind == "prompt_completion":
        return document.completion
    if document.kind == "text":
        return document.text
    for message in reversed(document.messages):
        if message.get("role") == "assistant" and isinstance(message.get("content"), str):
            return message["content"]
    raise NoAnswer("the conversation has no assistant's message of text")


def answer_of(row: Row, check: checks.Answered) -> str:
    """Return the answer that a check is about.

    Raises:
        NoAnswer: there is none, or the check's mark is not in it.
    """
    answer = whole_answer(row)
    if check.after is None:
        return answer.strip()
    _, mark, rest = answer.rpartition(check.after)
    if not mark:
        raise NoAnswer(f"the answer has no {check.after!r}")
    return rest.strip().partition("\n")[0].strip()


def code_of(answer: str) -> str:
    """Return the fenced blocks of an answer, joined; all of it if there are none."""
    blocks = [found.group(2) for found in _FENCED.finditer(answer)]
    return "\n".join(blocks) if blocks else answer
