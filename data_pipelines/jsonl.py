"""JSONL to documents: `messages`, `prompt`/`completion` or `text` on each line.

Lines are read with a cap and parsed strictly; a bad line is a Reject with file, line and reason,
and the lines after it are still read.
"""

import json
from collections.abc import Iterator
from typing import Any
from typing import BinaryIO

from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject

ROLES = ("system", "user", "assistant", "tool")
SHAPES = '"messages", "prompt" and "completion", or "text"'


class _BadLine(ValueError):
    """Why a line is refused: a short kind and a sentence."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def read_jsonl(name: str, stream: BinaryIO, limits: Limits) -> Iterator[Document | Reject]:
    """Yield a document or a reject for every line that is not blank."""
    number = 0
    seen = False
    while line := stream.readline(limits.line_bytes + 1):
        number += 1
        seen = seen or bool(line.strip())
        where = f"{name}#{number}"
        if len(line) > limits.line_bytes:
            while line and not line.endswith(b"\n"):
                line = stream.readline(limits.line_bytes)
            yield Reject(where, "line_too_long", f"more than {limits.line_bytes} bytes")
            continue
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not line.strip():
            continue
        try:
            yield _document(where, line)
        except _BadLine as bad:
            yield Reject(where, bad.kind, str(bad))
    if not seen:
        yield Reject(name, "empty", "holds no lines")


def _document(where: str, line: bytes) -> Document:
    row = _parse(line)
    if not isinstance(row, dict):
        raise _BadLine("bad_schema", f"expected an object, got {type(row).__name__}")
    shapes = [key for key in ("messages", "completion", "text") if key in row]
    if len(shapes) != 1:
        keys = ", ".join(sorted(map(str, row)))[:200]
        raise _BadLine("bad_schema", f"expected {SHAPES}, got the keys {keys or '(none)'}")
    for key in ("tools", "functions"):
        if row.get(key):
            raise _BadLine("bad_schema", f'"{key}" is not supported, and the chat depends on it')
    if shapes == ["messages"]:
        messages = _messages(row["messages"])
        _refuse_further_prompt(row, [each["content"] for each in messages])
        return Document(where, "chat", messages=messages)
    if shapes == ["text"]:
        text = _string(row, "text")
        _refuse_further_prompt(row, [])
        return Document(where, "text", text=text)
    return Document(
        where,
        "prompt_completion",
        prompt=_string(row, "prompt", may_be_blank=True),
        completion=_string(row, "completion"),
    )


def _refuse_further_prompt(row: dict, said: list[str]) -> None:
    """Refuse a prompt that would be dropped; data sets repeat a chat's first message under it."""
    prompt = row.get("prompt")
    if prompt and prompt not in said:
        raise _BadLine("bad_schema", '"prompt" needs a "completion"; beside others it has no place')


def _parse(line: bytes) -> Any:
    try:
        return json.loads(
            line.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_without_duplicates
        )
    except UnicodeDecodeError as error:
        raise _BadLine("not_utf8", f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise _BadLine("bad_json", "nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _BadLine("bad_json", f"not JSON: {error.msg} at column {error.colno}") from None
    except _BadLine:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise _BadLine("bad_json", f"not usable JSON: {error}") from None


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise _BadLine("bad_schema", '"messages" must be a list of objects')
    if not value:
        raise _BadLine("empty_chat", '"messages" is empty')
    messages = []
    for index, each in enumerate(value):
        role = each.get("role")
        if role not in ROLES:
            raise _BadLine(
                "bad_schema", f"messages[{index}].role must be one of {', '.join(ROLES)}: {role!r}"
            )
        for key in ("tool_calls", "function_call"):
            if each.get(key):
                raise _BadLine("bad_schema", f"messages[{index}].{key} is not supported")
        content = _string(each, "content", may_be_blank=True, where=f"messages[{index}].")
        messages.append({"role": role, "content": content, **_weight(each, index)})
    if not any(each["role"] == "assistant" and each["content"].strip() for each in messages):
        raise _BadLine("empty_chat", "no assistant message with text, so nothing to learn")
    return tuple(messages)


def _weight(message: dict, index: int) -> dict[str, int]:
    """Return {"weight": 0} for an answer to leave out of the loss, {} for any other message."""
    weight = message.get("weight")
    allowed = (0, 1) if message["role"] == "assistant" else (0,)
    if weight is not None and weight not in allowed:
        raise _BadLine(
            "bad_schema",
            f"messages[{index}].weight of role {message['role']} must be "
            f"{' or '.join(map(str, allowed))}, got {weight!r}",
        )
    return {"weight": 0} if weight == 0 and message["role"] == "assistant" else {}


def _string(row: dict, key: str, *, may_be_blank: bool = False, where: str = "") -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise _BadLine("bad_schema", f'{where}"{key}" must be a string, got {type(value).__name__}')
    if not may_be_blank and not value.strip():
        raise _BadLine("empty", f'{where}"{key}" is blank')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _BadLine("bad_json", f'{where}"{key}" holds half of a surrogate pair') from None
    return value


def _refuse(constant: str) -> None:
    raise _BadLine("bad_json", f"{constant} is not JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise _BadLine("bad_json", "an object gives the same key twice")
    return row
