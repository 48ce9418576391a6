"""Messages as jinja templates of Hugging Face expect them, and what of them a template left out.

Calls, tools and thinking are text that the template places itself, so they may not spell a control
token, and a template that ignores them is refused.
"""

import json
import re
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from mistral_jax.templates.base import Message
from mistral_jax.templates.base import TemplateError
from mistral_jax.templates.base import Tool


def prepare(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages with text as content, calls' arguments as objects, thinking beside them.

    Raises:
        TemplateError: content in several parts of text, which templates join in different ways.
    """
    prepared = []
    for number, message in enumerate(messages):
        made = dict(message)
        content = message.get("content")
        if isinstance(content, list):
            thinking = [part["thinking"] for part in content if part["type"] == "thinking"]
            texts = [part["text"] for part in content if part["type"] == "text"]
            is_in_order = [part["type"] for part in content] == sorted(
                (part["type"] for part in content), reverse=True
            )
            if len(thinking) > 1 or len(texts) > 1 or not is_in_order:
                raise TemplateError(
                    f"message {number} ({message['role']}) has {len(content)} parts; a jinja "
                    f"template takes one text with one thinking part before it, so join them"
                )
            content = "".join(texts)
            made |= {"reasoning_content": thinking[0]} if thinking else {}
        made["content"] = content or ""
        if message.get("tool_calls"):
            made["tool_calls"] = [_call(call) for call in message["tool_calls"]]
        prepared.append(made)
    return prepared


def _call(call: Message) -> dict[str, Any]:
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    function["arguments"] = {} if arguments is None else arguments
    return {"type": "function", **call, "function": function}


def refuse_control_tokens(
    messages: Sequence[Message], tools: Sequence[Tool], control: re.Pattern[str]
) -> None:
    """Refuse calls, tools and thinking that spell one of the tokenizer's control tokens."""
    for number, message in enumerate(messages):
        for key in ("tool_calls", "reasoning_content", "name", "tool_call_id"):
            _refuse_control(f"message {number}'s {key}", message.get(key), control)
    _refuse_control("a tool's definition", list(tools), control)


def _refuse_control(what: str, value: Any, control: re.Pattern[str]) -> None:
    for text in _strings(value):
        found = control.search(text)
        if found:
            raise TemplateError(
                f"{what} spells the control token {found.group()!r}, which this chat template "
                f"would turn into the token itself; reword it"
            )


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, list | tuple):
            waiting += each


def refuse_missing_tools(text: str, tools: Sequence[Tool]) -> None:
    """Refuse a template that did not name every tool in `text`, its own words."""
    for tool in tools:
        if tool["function"]["name"] not in text:
            raise TemplateError(
                f"the chat template leaves out the tool {tool['function']['name']!r}; this model's "
                f"format has no place for tools, so drop them or use a model that has one"
            )


def refuse_missing_parts(text: str, number: int, message: Message) -> None:
    """Refuse a template whose `text` of an assistant's turn lacks its calls or its thinking."""
    missing = [
        f"the call of {call['function']['name']!r}"
        for call in message.get("tool_calls") or ()
        if call["function"]["name"] not in text
    ]
    if message.get("reasoning_content", "").strip() not in text:
        missing.append("the thinking")
    if missing:
        raise TemplateError(
            f"the chat template leaves out {missing[0]} of the assistant's message {number}; this "
            f"model's format has no place for it there"
        )
