"""Chats to tokens with a loss mask: Mistral's formats by mistral-common, others by their jinja.

The loss covers what the model has to say: an assistant's content, thinking and tool calls, and its
end-of-turn token. Text inside a message is always plain text; only the format itself places control
tokens, so a message cannot forge a turn. infill.py does the same for text with a gap.
"""

import reprlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from mistral_common.protocol.instruct.validator import ValidationMode

from mistral_jax.templates import jinja
from mistral_jax.templates import mistral
from mistral_jax.templates.base import Message
from mistral_jax.templates.base import Rendered
from mistral_jax.templates.base import TemplateError
from mistral_jax.templates.base import Tool
from mistral_jax.templates.infill import infill_prompt as infill_prompt
from mistral_jax.templates.infill import render_infill as render_infill
from mistral_jax.tokenizers import MistralCommonTokenizer
from mistral_jax.tokenizers import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
PARTS = ("text", "thinking")  # a part's type names the key that holds its text


def render(
    messages: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[Tool] = ()
) -> Rendered:
    """Return a whole chat, which ends with an assistant's turn, as tokens and loss mask.

    Args:
        messages: objects with `role` (one of `ROLES`) and `content`: text, or a list of parts
            `{"type": "text", "text": ...}` and `{"type": "thinking", "thinking": ...}`. An answer
            may have `tool_calls`, its results come as role `tool` with a `tool_call_id`; an answer
            of `weight` 0 is not learnt.
        tokenizer: decides the format: Mistral's own, or its `chat_template`, or ChatML.
        tools: what the assistant may call: `{"type": "function", "function": {"name", ...}}`.

    Raises:
        TemplateError: an empty chat, an unknown role, no assistant's turn at the end, something
            that the format has no place for, or a template without a sound mask.
    """
    _check(messages, tools)
    if messages[-1]["role"] != "assistant":
        raise TemplateError(
            f"a chat to learn from must end with an assistant's turn, this one ends with "
            f"{messages[-1]['role']!r}; drop the turns after the last answer"
        )
    learnt = [message.get("weight") != 0 for message in messages]
    messages = _without_weights(messages)
    if isinstance(tokenizer, MistralCommonTokenizer):
        return mistral.render(messages, tokenizer, ValidationMode.finetuning, learnt, tools)
    return jinja.chat_of(tokenizer).render(messages, learnt, tools)


def render_prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, tools: Sequence[Tool] = ()
) -> list[int]:
    """Return the tokens after which the model writes the next assistant's turn.

    Raises:
        TemplateError: an empty chat, an unknown role, or a chat that the format cannot express.
    """
    _check(messages, tools)
    messages = _without_weights(messages)
    if isinstance(tokenizer, MistralCommonTokenizer):
        # Mistral's formats have no extra prompt: the end of the user's turn is the cue.
        learnt = [True] * len(messages)
        return mistral.render(messages, tokenizer, ValidationMode.test, learnt, tools).tokens
    return jinja.chat_of(tokenizer).prompt(messages, tools)


def _without_weights(messages: Sequence[Message]) -> list[Message]:
    return [{key: value for key, value in m.items() if key != "weight"} for m in messages]


def prompt_tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return a prompt as the model expects it: as a chat where it has a template, else plain."""
    if tokenizer.chat_template is not None and tokenizer.name != "bytes":
        return render_prompt([{"role": "user", "content": text}], tokenizer)
    return tokenizer.encode(text, bos=tokenizer.add_bos)


def _check(messages: Sequence[Message], tools: Sequence[Tool]) -> None:
    if not messages:
        raise TemplateError("the chat is empty; expected at least one message")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, Mapping) else message
            raise TemplateError(
                f"message {number} has role {reprlib.repr(role)}; expected one of "
                f"{', '.join(ROLES)}"
            )
        role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
        if not _is_content(content) and not (content is None and calls):
            raise TemplateError(
                f"message {number} ({role}) has content {reprlib.repr(content)}; "
                f"expected text, or a list of text and thinking parts"
            )
        if calls and (role != "assistant" or not _are_functions(calls)):
            raise TemplateError(
                f"message {number} ({role}) has tool_calls {reprlib.repr(calls)}; expected, of an "
                f'assistant, a list of {{"function": {{"name": ..., "arguments": ...}}}}'
            )
    if tools and not _are_functions(tools):
        raise TemplateError(
            f'tools are {reprlib.repr(tools)}; expected a list of {{"type": "function", '
            f'"function": {{"name": ..., "description": ..., "parameters": ...}}}}'
        )


def _is_content(content: Any) -> bool:
    if not isinstance(content, list):
        return isinstance(content, str)
    return all(
        isinstance(part, Mapping)
        and part.get("type") in PARTS
        and isinstance(part.get(part["type"]), str)
        for part in content
    )


def _are_functions(values: Any) -> bool:
    """Tell a list of tools, or of calls of them, by the names inside."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return False
    functions = [v.get("function") if isinstance(v, Mapping) else None for v in values]
    return all(isinstance(f, Mapping) and isinstance(f.get("name"), str) for f in functions)
