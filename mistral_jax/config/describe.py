"""The keys of a corpus's config as a page of Markdown, from the classes and their docstrings.

python -m mistral_jax.config.describe > docs/corpus_keys.md
"""

import inspect
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mistral_jax.config.corpus import CorpusConfig

HEAD = """# Every key of a corpus's config

Written by `python -m mistral_jax.config.describe`; a test keeps it so. [data.md](data.md) says how
the parts work together.
"""
ATTRIBUTE = re.compile(r"^([\w, ]+): (.*)$")


def page(root: type[BaseModel] = CorpusConfig) -> str:
    """Return the page: a section for each class, those that a class refers to after it."""
    sections = [_section(each) for each in _classes(root)]
    return "\n".join([HEAD, *sections])


def _classes(root: type[BaseModel]) -> list[type[BaseModel]]:
    found = [root]
    for each in found:
        for field in each.model_fields.values():
            found += [one for one in _models_in(field.annotation) if one not in found]
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _section(node: type[BaseModel]) -> str:
    about, meanings = _docstring(node)
    kind = _kind(node)
    named = "" if kind is None else f" (`kind: {kind}`)"
    lines = [f"## {node.__name__}{named}", "", about, ""]
    rows = [
        f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {meanings.get(name, '')} |"
        for name, field in node.model_fields.items()
        if name != "kind" or kind is None
    ]
    if rows:
        lines += ["| key | value | default | what it says |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _kind(node: type[BaseModel]) -> str | None:
    """Return what a node's `kind` has to be; None where it has none, or a choice."""
    field = node.model_fields.get("kind")
    allowed = () if field is None else typing.get_args(field.annotation)
    return allowed[0] if len(allowed) == 1 and isinstance(allowed[0], str) else None


def _docstring(node: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """Return what stands before `Attributes:`, and the meaning of each attribute."""
    meanings: dict[str, str] = {}
    about = ""
    for base in reversed([each for each in node.__mro__ if issubclass(each, BaseModel)]):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        about, _, attributes = text.partition("\nAttributes:\n")
        names: list[str] = []
        for line in inspect.cleandoc(attributes).splitlines():
            if match := ATTRIBUTE.match(line):
                names = [name.strip() for name in match[1].split(",")]
                meanings |= dict.fromkeys(names, match[2])
            else:
                meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    return about.strip(), {name: text.replace("|", "\\|") for name, text in meanings.items()}


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " \\| ".join(f"`{json.dumps(each)}`" for each in arguments)
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join("null" if each is type(None) else _type(each) for each in arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"list of {_type(arguments[0])}"
        return f"list of {len(arguments)} values"
    if origin is dict:
        return "mapping"
    if annotation is type(None):
        return "null"
    return {str: "text", int: "integer", float: "number", bool: "true, false"}.get(
        annotation, str(annotation.__name__)
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return type(value).__name__
    if isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
        return ", ".join(_shown(each) for each in value)
    plain = list(value) if isinstance(value, tuple) else value
    return f"`{json.dumps(plain, ensure_ascii=False)}`"


if __name__ == "__main__":
    print(page(), end="")
