"""A family of functions: its code with drawn names, and an independent oracle for its tests.

The expected values of the tests come from the oracle, which solves the task another way than the
code does; so a test that passes says something of both. `bug` is a slip in the code that the
tests catch: the rejected answer of a preference pair.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from typing import Any

from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws

# Names that code may give the same thing; a family's code says $xs, $x, $out and so on.
ROLES: dict[str, tuple[str, ...]] = {
    "xs": ("numbers", "values", "readings", "scores", "samples", "amounts", "prices", "weights"),
    "ys": ("others", "second", "right", "partners", "reference"),
    "x": ("number", "value", "current", "item", "each"),
    "out": ("result", "found", "collected", "answer", "kept", "output"),
    "i": ("index", "place", "position", "at"),
    "n": ("count", "size", "length", "limit"),
    "s": ("text", "phrase", "line", "message", "sentence"),
    "c": ("letter", "character", "symbol", "mark"),
    "t": ("total", "amount", "running", "accumulated"),
    "a": ("left", "first", "low", "start"),
    "b": ("end", "last", "high", "stop"),
    "d": ("mapping", "table", "counts", "seen", "lookup"),
}
OPENINGS = (
    "Implement this function in Python.",
    "Complete the function below.",
    "{name} needs this function for the {goods} of a shop in {place}. Write it.",
    "Write the body of the following Python function.",
    "Fill in the implementation so that all the checks pass.",
    "A script that {name} maintains in {place} calls this function; implement it.",
    "Give a correct Python implementation.",
    "The signature and the docstring are fixed. {name} asks for the code.",
    "Solve this exercise from the {place} course.",
    "Write clean Python for this specification, for a report on {goods}.",
)
TESTED = (
    "It has to satisfy:",
    "Your code is run against checks such as:",
    "These must hold:",
    "Examples that are checked:",
    "The tests include:",
)
ANSWERS = (
    "",
    "",
    "Here is the implementation.",
    "This does it:",
    "One straightforward way:",
    "The function:",
    "Implementation, with the edge cases covered:",
)
SHOWN = 3
_PLACE = re.compile(r"\$(\w+)")


@dataclass(frozen=True, slots=True)
class Family:
    """Functions of one kind.

    Attributes:
        topic: its name.
        names: what the function may be called.
        parameters: as the signature has them, with $roles.
        docs: what the docstring may say, with $roles and $constants.
        body: the code below the signature, without its first indentation.
        bug: a piece of the body and what a slip makes of it.
        oracle: from the constants (by name) and the arguments to the right value.
        cases: from choices and constants to argument tuples.
        constants: what is drawn for the code beside the names.
        header: imports that the code needs.
    """

    topic: str
    names: tuple[str, ...]
    parameters: str
    docs: tuple[str, ...]
    body: str
    bug: tuple[str, str]
    oracle: Callable[..., Any]
    cases: Callable[..., list[tuple]]
    constants: Callable[[Draws], dict[str, Any]] = field(default=lambda draws: {})
    header: str = ""


@dataclass(frozen=True, slots=True)
class Function:
    """One drawn function.

    Attributes:
        name, signature, doc: what is given.
        code, wrong: the whole source, right and with the family's bug.
        tests: lines of `assert`.
    """

    name: str
    signature: str
    doc: str
    code: str
    wrong: str
    tests: list[str]


def draw(family: Family, draws: Draws) -> Function:
    """Return a function of the family."""
    constants = family.constants(draws)
    name = draws.pick(family.names)
    taken = {role: draws.pick(options) for role, options in ROLES.items()}
    known = taken | {key: repr(value) for key, value in constants.items()} | {"f": name}
    fill = _filler(known)
    signature = f"def {name}({fill(family.parameters)}):"
    doc = fill(draws.pick(family.docs))
    tests = []
    for arguments in family.cases(draws, **constants):
        expected = family.oracle(*arguments, **constants)
        shown = ", ".join(map(repr, arguments))
        tests.append(f"assert {name}({shown}) == {expected!r}")
    return Function(
        name=name,
        signature=signature,
        doc=doc,
        code=_source(family, signature, doc, fill, family.body),
        wrong=_source(family, signature, doc, fill, family.body.replace(*family.bug, 1)),
        tests=list(dict.fromkeys(tests)),
    )


def task(family: Family, draws: Draws, *, min_killed: float = 0.0) -> Task:
    """Return a row of the family; its tests must catch a share of the code's mutants."""
    made = draw(family, draws)
    opening = draws.pick(OPENINGS).format(
        name=draws.pick(words.PEOPLE),
        place=draws.pick(words.PLACES),
        goods=draws.pick(words.GOODS),
    )
    shown = "\n".join(draws.sample(made.tests, min(SHOWN, len(made.tests))))
    given = f'{made.signature}\n    """{made.doc}"""'
    answer = draws.pick(ANSWERS)
    lead = f"{answer}\n" if answer else ""
    return Task(
        prompt=f"{opening}\n```python\n{given}\n```\n{draws.pick(TESTED)}\n{shown}",
        completion=f"{lead}```python\n{made.code}```",
        check={
            "kind": "mutants" if min_killed else "python_tests",
            "tests": "\n".join(made.tests) + "\n",
            **({"min_killed": min_killed} if min_killed else {}),
        },
        topic=family.topic,
        wrong=f"{lead}```python\n{made.wrong}```",
        kind="code",
        facts={"programming_language": "python"},
    )


def integers(draws: Draws, low: int, high: int, size: int) -> list[int]:
    """Return a list of whole numbers."""
    return [draws.between(low, high) for _ in range(size)]


def lists(draws: Draws, low: int, high: int, *, count: int = 6, longest: int = 9) -> list[tuple]:
    """Return cases of one list each: the empty one, one of one, and drawn ones."""
    sizes = [0, 1, *(draws.between(2, longest) for _ in range(count - 2))]
    return [(integers(draws, low, high, size),) for size in sizes]


def sentences(draws: Draws, count: int = 5) -> list[tuple]:
    """Return cases of one text each, the empty one among them."""
    drawn = [" ".join(draws.sample(words.NOUNS, draws.between(2, 6))) for _ in range(count)]
    return [("",), *((text,) for text in drawn)]


def _filler(known: dict[str, str]) -> Callable[[str], str]:
    return lambda text: _PLACE.sub(lambda found: known[found.group(1)], text)


def _source(family: Family, signature: str, doc: str, fill: Callable[[str], str], body: str) -> str:
    lines = fill(body.strip("\n")).split("\n")
    indented = "\n".join(f"    {line}" if line else "" for line in lines)
    head = f"{family.header}\n\n\n" if family.header else ""
    return f'{head}{signature}\n    """{doc}"""\n{indented}\n'
