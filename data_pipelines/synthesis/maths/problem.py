"""How a problem of mathematics is put into words: its wording, its solution, a wrong answer."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws

MARK = "Answer:"
_NUMBER = re.compile(r"(?<![\w.*])\d+(?![\w.])")
OPENINGS = (
    "",
    "",
    "",
    "{name} found this on a worksheet from {place}. ",
    "A question from the {place} evening class: ",
    "{name} and {other} disagree about the following. ",
    "Exercise {number}. ",
    "Problem {number}, page {page}: ",
    "{name} is preparing for an exam in {place}. ",
    "Please help {name} with this. ",
    "From {name}'s notebook, {place}: ",
    "For the quiz in {place}, round {page}: ",
)
ENDINGS = (
    " End with a line that says 'Answer:' and the result.",
    " Show the steps; the last line is 'Answer: ...'.",
    " Work it out and give the result after 'Answer:'.",
    " Explain briefly, then write 'Answer:' and the result.",
    " Put the final result after 'Answer:'.",
)
STARTS = (
    "",
    "",
    "Step by step: ",
    "Here is one way. ",
    "Write it down first. ",
    "To begin: ",
    "This goes directly. ",
    "Let us see. ",
)


def problem(
    draws: Draws,
    topic: str,
    asked: str,
    *,
    steps: Sequence[str],
    answer: str,
    expected: str | None = None,
    zero: str | None = None,
    **check: Any,
) -> Task:
    """Return the task of a problem.

    Args:
        draws: its choices.
        topic: of which family it is.
        asked: the question itself.
        steps: sentences of the worked solution.
        answer: what stands behind "Answer:", in Python's notation.
        expected: what the checker computes; None takes the answer itself.
        zero: in its place: what is 0 when `answer` is put into it.
        check: further keys of the check.
    """
    opening = draws.pick(OPENINGS).format(
        name=draws.pick(words.PEOPLE),
        other=draws.pick(words.PEOPLE),
        place=draws.pick(words.PLACES),
        number=draws.between(1, 400),
        page=draws.between(2, 90),
    )
    worked = draws.pick(STARTS) + draws.pick((" ", "\n")).join(steps)
    wrong = spoiled(answer, draws)
    return Task(
        prompt=opening + asked + draws.pick(ENDINGS),
        completion=f"{worked}\n{MARK} {answer}",
        check={
            "kind": "sympy",
            **({"zero": zero} if zero else {"expected": answer if expected is None else expected}),
            "after": MARK,
            **check,
        },
        topic=topic,
        wrong=f"{worked}\n{MARK} {wrong}",
        kind="math",
    )


def spoiled(answer: str, draws: Draws) -> str:
    """Return an answer that differs in one number; a plausible slip."""
    places = list(_NUMBER.finditer(answer))
    if not places:
        return f"{answer} + {draws.between(1, 9)}"
    place = draws.pick(places)
    value = int(place.group())
    other = value + draws.pick((1, -1, 2, 10)) if value > 2 else value + draws.between(1, 3)
    return f"{answer[: place.start()]}{other}{answer[place.end() :]}"


def term(factor: int | Fraction, power: int, variable: str) -> str:
    """Return factor * variable ** power without a sign, for factor > 0."""
    shown = str(factor) if Fraction(factor).denominator == 1 else f"({factor})"
    if power == 0:
        return str(factor)
    base = variable if power == 1 else f"{variable}**{power}"
    return base if factor == 1 else f"{shown}*{base}"


def polynomial(factors: Sequence[int | Fraction], variable: str) -> str:
    """Return a polynomial, highest power first; factors[k] belongs to power k."""
    text = ""
    for power in reversed(range(len(factors))):
        if factor := factors[power]:
            sign = " - " if factor < 0 else " + "
            lead = "-" if factor < 0 else ""
            text += (sign if text else lead) + term(abs(factor), power, variable)
    return text or "0"


def linear(factor: int | Fraction, constant: int | Fraction, variable: str) -> str:
    """Return factor * variable + constant."""
    return polynomial((constant, factor), variable)


def signed(value: int | Fraction) -> str:
    """Return " + 3" or " - 3"."""
    return f" - {-value}" if value < 0 else f" + {value}"


def multiply(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Return the factors of a product of polynomials."""
    out = [0] * (len(left) + len(right) - 1)
    for at, a in enumerate(left):
        for to, b in enumerate(right):
            out[at + to] += a * b
    return out


def derived[T: (int, Fraction)](factors: Sequence[T]) -> list[T]:
    """Return the factors of a polynomial's derivative."""
    return [factor * power for power, factor in enumerate(factors)][1:]


def value_at(factors: Sequence[int | Fraction], where: int | Fraction) -> int | Fraction:
    """Return a polynomial's value (Horner)."""
    value: int | Fraction = 0
    for factor in reversed(factors):
        value = value * where + factor
    return value
