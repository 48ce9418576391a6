"""The messages and tools of one line of JSONL, checked and in one spelling.

Calls' arguments become JSON text, thinking becomes a part of its message; keys that no chat format
knows are left out, keys that a chat depends on and that are not supported are refused. Whether the
model's format has a place for all of it is the template's to say.
"""

import json
import reprlib
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
REASONING = ("reasoning_content", "reasoning")  # thinking beside the content, as servers give it
MAX_DEPTH = 64  # of a tool's schema or a call's arguments


class BadLine(ValueError):
    """Why a line is refused: a short kind and a sentence."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def read_messages(value: Any) -> tuple[dict[str, Any], ...]:
    """Return the messages of a chat as templates take them.

    Raises:
        BadLine: something else than a list of messages with something to learn.
    """
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise BadLine("bad_schema", '"messages" must be a list of objects')
    if not value:
        raise BadLine("empty_chat", '"messages" is empty')
    messages = tuple(_message(each, f"messages[{index}]") for index, each in enumerate(value))
    if not any(each["role"] == "assistant" and says_something(each) for each in messages):
        raise BadLine("empty_chat", "no assistant message with text, so nothing to learn")
    return messages


def says_something(message: dict[str, Any]) -> bool:
    """Tell whether a message has text, thinking or calls."""
    content = message["content"]
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return bool(message.get("tool_calls")) or any(part[part["type"]].strip() for part in parts)


def read_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Return the tools of a chat.

    Raises:
        BadLine: something else than null or a list of functions.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadLine("bad_schema", f'"tools" must be a list, got {type(value).__name__}')
    for index, tool in enumerate(value):
        where = f"tools[{index}]"
        function = _function(tool, where)
        for key, kind in (("description", str), ("parameters", dict)):
            if not isinstance(function.get(key), kind | None):
                raise BadLine(
                    "bad_schema",
                    f"{where}.function.{key} must be {'text' if kind is str else 'an object'}, "
                    f"got {type(function[key]).__name__}",
                )
        _check_nested(tool, where)
    return tuple(value)


def read_string(row: dict, key: str, where: str = "") -> str:
    """Return a text of a row; `where` names what is around it in messages.

    Raises:
        BadLine: no text, or one that is no Unicode.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise BadLine("bad_schema", f'{where}"{key}" must be a string, got {type(value).__name__}')
    _check_unicode(value, f'{where}"{key}"')
    return value


def _message(each: dict, where: str) -> dict[str, Any]:
    role = each.get("role")
    if role not in ROLES:
        raise BadLine(
            "bad_schema", f"{where}.role must be one of {', '.join(ROLES)}: {reprlib.repr(role)}"
        )
    if each.get("function_call"):
        raise BadLine("bad_schema", f"{where}.function_call is not supported; spell it tool_calls")
    calls = _tool_calls(each, where)
    message = {"role": role, "content": _content(each, where, may_be_missing=bool(calls))}
    if calls:
        message["tool_calls"] = calls
    if role == "tool":
        named = (key for key in ("tool_call_id", "name") if each.get(key) is not None)
        message |= {key: read_string(each, key, f"{where}.") for key in named}
    return {**message, **_weight(each, where)}


def _content(message: dict, where: str, *, may_be_missing: bool) -> str | list[dict[str, str]]:
    content = message.get("content")
    if isinstance(content, list):
        content = [_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
    elif content is None and may_be_missing:
        content = ""
    else:
        content = read_string(message, "content", f"{where}.")
    reasoning = next((key for key in REASONING if message.get(key)), None)
    if reasoning is None or message["role"] != "assistant":
        return content
    thinking = {"type": "thinking", "thinking": read_string(message, reasoning, f"{where}.")}
    if isinstance(content, list):
        if any(part["type"] == "thinking" for part in content):
            raise BadLine("bad_schema", f"{where} gives its thinking twice")
        return [thinking, *content]
    return [thinking, *([{"type": "text", "text": content}] if content else [])]


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "thinking"):
        raise BadLine(
            "bad_schema",
            f"{where}.type must be text or thinking, got {reprlib.repr(kind)}",
        )
    made: dict[str, Any] = {"type": kind, kind: read_string(part, kind, f"{where}.")}
    if part.get("closed") is False:  # thinking that was cut off
        made["closed"] = False
    return made


def _tool_calls(message: dict, where: str) -> list[dict[str, Any]]:
    calls = message.get("tool_calls")
    if not calls:
        return []
    if message["role"] != "assistant" or not isinstance(calls, list):
        raise BadLine("bad_schema", f"{where}.tool_calls must be a list, of an assistant's message")
    made = []
    for index, call in enumerate(calls):
        place = f"{where}.tool_calls[{index}]"
        function = _function(call, place)
        arguments = function.get("arguments")
        if isinstance(arguments, dict) or arguments is None:
            _check_nested(arguments, place)
            arguments = json.dumps(arguments or {}, ensure_ascii=False)
        if not isinstance(arguments, str):
            raise BadLine(
                "bad_schema",
                f"{place}.function.arguments must be an object or its JSON text, got "
                f"{type(arguments).__name__}",
            )
        _check_unicode(arguments, f"{place}.function.arguments")
        made.append({
            **({"id": read_string(call, "id", f"{place}.")} if call.get("id") is not None else {}),
            "type": "function",
            "function": {"name": function["name"], "arguments": arguments},
        })  # fmt: skip
    return made


def _function(value: Any, where: str) -> dict[str, Any]:
    """Return the function inside a tool or a call, checked to have a name."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or value.get("type", "function") != "function":
        raise BadLine("bad_schema", f'{where} must be {{"type": "function", "function": {{...}}}}')
    if not read_string(function, "name", f"{where}.function."):
        raise BadLine("bad_schema", f"{where}.function.name is empty")
    return function


def _weight(message: dict, where: str) -> dict[str, int]:
    """Return {"weight": 0} for an answer to leave out of the loss, {} for any other message."""
    weight = message.get("weight")
    allowed = (0, 1) if message["role"] == "assistant" else (0,)
    if weight is not None and weight not in allowed:
        raise BadLine(
            "bad_schema",
            f"{where}.weight of role {message['role']} must be "
            f"{' or '.join(map(str, allowed))}, got {reprlib.repr(weight)}",
        )
    return {"weight": 0} if weight == 0 and message["role"] == "assistant" else {}


def _check_nested(value: Any, where: str) -> None:
    """Refuse what later programs could not spell, or not without end of their stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = []
        for each in level:
            if isinstance(each, dict):
                inner += [*each, *each.values()]
            elif isinstance(each, list):
                inner += each
            elif isinstance(each, str):
                _check_unicode(each, where)
        level = inner
    if level:
        raise BadLine("bad_schema", f"{where} is nested more than {MAX_DEPTH} deep")


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadLine("bad_json", f"{where} holds half of a surrogate pair") from None
