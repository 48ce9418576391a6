"""Rows from Python's own library: functions whose docstrings hold examples with their outputs.

The question is the function's documentation with one example whose output is left out; the answer
is the output that the library's authors wrote down. Running the example confirms it.
"""

import ast
import doctest
import functools
import importlib
import inspect
from dataclasses import dataclass

from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws

LEVEL = 1
LICENCE = "PSF-2.0"
# Pure modules without side effects, whose docstrings have examples.
MODULES = (
    "ast",
    "base64",
    "bisect",
    "calendar",
    "collections",
    "colorsys",
    "copy",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "enum",
    "fractions",
    "functools",
    "heapq",
    "inspect",
    "ipaddress",
    "itertools",
    "json",
    "math",
    "numbers",
    "operator",
    "posixpath",
    "pprint",
    "random",
    "re",
    "shlex",
    "statistics",
    "string",
    "textwrap",
    "types",
    "urllib.parse",
)
# Documented elsewhere than where they are defined, or in need of what their module does not export.
EXCLUDED = {("enum", "bin"), ("statistics", "median_grouped")}
PRINTED = ("print(", "pprint(")  # their output is not their value
DOC_CHARS = 300
OPENINGS = (
    "What does the last line give?",
    "Which output belongs to the example?",
    "Read the documentation and say what the example returns.",
    "{name} runs this in an interpreter. What is printed?",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One example of a docstring."""

    module: str
    function: str
    doc: str
    setup: str
    call: str
    output: str


@functools.cache
def examples() -> tuple[Example, ...]:
    """Return the examples of the standard library that one expression answers, in fixed order."""
    found: dict[tuple[str, str], Example] = {}
    for module in MODULES:
        loaded = importlib.import_module(module)
        for name, value in sorted(vars(loaded).items()):
            inner = sorted(vars(value).items()) if inspect.isclass(value) else []
            members = [(name, value), *((f"{name}.{key}", each) for key, each in inner)]
            for full, member in members:
                if name.startswith("_") or getattr(value, "__module__", module) != module:
                    continue
                for each in _of(module, full, member):
                    found.setdefault((each.setup, each.call), each)
    return tuple(found.values())


def _of(module: str, name: str, member: object) -> list[Example]:
    doc = inspect.getdoc(member) if callable(member) else None
    if not doc or ">>>" not in doc or (module, name) in EXCLUDED:
        return []
    setup = f"import {module}\nfrom {module} import *\n"
    made = []
    try:
        parsed = doctest.DocTestParser().get_examples(doc)
    except ValueError:
        return []
    for each in parsed:
        source = each.source.strip()
        if each.exc_msg or each.options:
            break
        if each.want and _is_value(each.want) and _is_expression(source):
            made.append(
                Example(
                    module,
                    name,
                    doc[:DOC_CHARS].split(">>>")[0].strip(),
                    setup,
                    source,
                    each.want.strip(),
                )
            )
        elif each.want:
            break
        setup += source + "\n"
    return made


def _is_value(text: str) -> bool:
    """Tell whether the output is a literal, so that it can be compared without running it."""
    try:
        ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return False
    return len(text) < 400


def _is_expression(source: str) -> bool:
    if source.startswith(PRINTED):
        return False
    try:
        ast.parse(source, mode="eval")
    except SyntaxError:
        return False
    return True


def confirmation(example: Example) -> str:
    """Return a program that fails unless the output is what the call gives."""
    return f"{example.setup}assert (\n{example.call}\n) == (\n{example.output}\n)\n"


def task(example: Example, draws: Draws) -> Task:
    """Return the row of one example."""
    asked = draws.pick(OPENINGS).format(name=draws.pick(words.PEOPLE))
    shown = "".join(f">>> {line}\n" for line in [*example.setup.split("\n")[1:-1]])
    return Task(
        prompt=f"`{example.module}.{example.function}`: {example.doc}\n\n{asked}\n"
        f"{shown}>>> {example.call}\n",
        completion=f"Answer: {example.output}",
        check={"kind": "exact", "expected": example.output, "after": "Answer:"},
        topic=f"standard_library.{example.module}",
        kind="code",
        licence=LICENCE,
        facts={"programming_language": "python", "level": LEVEL, "difficulty": 0.3},
    )
