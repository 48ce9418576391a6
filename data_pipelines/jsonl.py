"""JSONL to documents: `messages`, `prompt`/`completion`, `prefix`/`suffix`/`middle`, or `text`.

Lines are read with a cap and parsed strictly; a bad line is a Reject with file, line and reason,
and the lines after it are still read. A row may name the document that it was made from, as
`document` or else as `source`. jsonl_messages.py reads the messages and tools of a chat.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import BinaryIO

from data_pipelines import jsonl_messages
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from data_pipelines.jsonl_messages import BadLine

ORIGIN_KEYS = ("document", "source")
SHAPES = '"messages", "prompt" and "completion", "prefix", "suffix" and "middle", or "text"'


@dataclass(frozen=True, slots=True)
class ToolChat(Document):
    """A chat whose assistant may call functions.

    Attributes:
        tools: their definitions, `{"type": "function", "function": {"name": ..., ...}}`.
    """

    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Infill(Document):
    """A text with a gap: `prompt` stands before it, `completion` is what belongs into it.

    Attributes:
        suffix: what stands behind the gap.
    """

    suffix: str = ""


def read_jsonl(name: str, stream: BinaryIO, limits: Limits) -> Iterator[Document | Reject]:
    """Yield a document or a reject for every line that is not blank."""
    for where, row in read_objects(name, stream, limits):
        if isinstance(row, Reject):
            yield row
            continue
        try:
            yield document_of(where, row)
        except BadLine as bad:
            yield Reject(where, bad.kind, str(bad))


def read_objects(
    name: str, stream: BinaryIO, limits: Limits
) -> Iterator[tuple[str, dict[str, Any] | Reject]]:
    """Yield (id, object) of every line that is not blank, and (id, Reject) of every bad one."""
    number = 0
    seen = False
    while line := stream.readline(limits.line_bytes + 1):
        number += 1
        seen = seen or bool(line.strip())
        where = f"{name}#{number}"
        if len(line) > limits.line_bytes:
            while line and not line.endswith(b"\n"):
                line = stream.readline(limits.line_bytes)
            yield where, Reject(where, "line_too_long", f"more than {limits.line_bytes} bytes")
            continue
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not line.strip():
            continue
        try:
            yield where, parse_object(line)
        except BadLine as bad:
            yield where, Reject(where, bad.kind, str(bad))
    if not seen:
        yield name, Reject(name, "empty", "holds no lines")


def parse_object(data: bytes) -> dict[str, Any]:
    """Return a strict JSON object.

    Raises:
        BadLine: no object, or no JSON.
    """
    row = parse(data)
    if not isinstance(row, dict):
        raise BadLine("bad_schema", f"expected an object, got {type(row).__name__}")
    return row


def parse(data: bytes) -> Any:
    """Return a strict JSON value: UTF-8, no NaN, no key twice, of bounded depth.

    Raises:
        BadLine: it is not JSON.
    """
    try:
        return json.loads(
            data.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_without_duplicates
        )
    except UnicodeDecodeError as error:
        raise BadLine("not_utf8", f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise BadLine("bad_json", "nested too deeply") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise BadLine("bad_json", f"not JSON: {error.msg} at {where}column {error.colno}") from None
    except BadLine:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise BadLine("bad_json", f"not usable JSON: {error}") from None


def document_of(where: str, row: dict[str, Any]) -> Document:
    """Return the document of a row in one of the shapes.

    Raises:
        BadLine: the row has none of them, or a value of the wrong type.
    """
    made_from = _origin(row)
    document = _shaped(where, row)
    return replace(document, made_from=made_from) if made_from else document


def _origin(row: dict) -> str:
    """Return the document that a row names, a text or a whole number; "" if it names none."""
    for key in ORIGIN_KEYS:
        value = row.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip():
            return value.strip().encode("utf-8", "replace").decode()
    return ""


def _shaped(where: str, row: dict) -> Document:
    shapes = [key for key in ("messages", "completion", "middle", "text") if key in row]
    if len(shapes) != 1:
        keys = ", ".join(sorted(map(str, row)))[:200]
        raise BadLine("bad_schema", f"expected {SHAPES}, got the keys {keys or '(none)'}")
    if row.get("functions"):
        raise BadLine("bad_schema", '"functions" is not supported, and the chat depends on it')
    if shapes == ["messages"]:
        return _chat(where, row)
    if row.get("tools"):
        raise BadLine("bad_schema", '"tools" needs "messages"; beside others it has no place')
    if shapes == ["middle"]:
        return _infill(where, row, "prefix", "middle")
    if shapes == ["text"]:
        text = _string(row, "text")
        _refuse_further_prompt(row, [])
        return Document(where, "text", text=text)
    if row.get("suffix"):  # the names of mistral-common's FIMRequest
        return _infill(where, row, "prompt", "completion")
    return Document(
        where,
        "prompt_completion",
        prompt=_string(row, "prompt", may_be_blank=True),
        completion=_string(row, "completion"),
    )


def _infill(where: str, row: dict, before: str, between: str) -> Infill:
    if before != "prompt":
        _refuse_further_prompt(row, [])
    return Infill(
        where,
        "prompt_completion",
        prompt=_string(row, before, may_be_blank=True),
        completion=_string(row, between),
        suffix=_string(row, "suffix", may_be_blank=True),
    )


def _chat(where: str, row: dict) -> Document:
    messages = jsonl_messages.read_messages(row["messages"])
    _refuse_further_prompt(row, [each["content"] for each in messages])
    tools = jsonl_messages.read_tools(row.get("tools"))
    if not tools:
        return Document(where, "chat", messages=messages)
    return ToolChat(where, "chat", messages=messages, tools=tools)


def _refuse_further_prompt(row: dict, said: list[Any]) -> None:
    """Refuse a prompt that would be dropped; data sets repeat a chat's first message under it."""
    prompt = row.get("prompt")
    if prompt and prompt not in said:
        raise BadLine("bad_schema", '"prompt" needs a "completion"; beside others it has no place')


def _string(row: dict, key: str, *, may_be_blank: bool = False) -> str:
    value = jsonl_messages.read_string(row, key)
    if not may_be_blank and not value.strip():
        raise BadLine("empty", f'"{key}" is blank')
    return value


def _refuse(constant: str) -> None:
    raise BadLine("bad_json", f"{constant} is not JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise BadLine("bad_json", "an object gives the same key twice")
    return row
