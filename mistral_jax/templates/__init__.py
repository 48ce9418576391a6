"""Chats to tokens with a loss mask: Mistral's formats by mistral-common, others by their jinja.

The loss covers what the model has to say: an assistant's content and its end-of-turn token. Text
inside a message is always plain text; only the format itself places control tokens, so a message
cannot forge a turn.
"""

from collections.abc import Mapping
from collections.abc import Sequence

from mistral_common.protocol.instruct.validator import ValidationMode

from mistral_jax.templates import jinja
from mistral_jax.templates import mistral
from mistral_jax.templates.base import Message
from mistral_jax.templates.base import Rendered
from mistral_jax.templates.base import TemplateError
from mistral_jax.tokenizers import MistralCommonTokenizer
from mistral_jax.tokenizers import Tokenizer

ROLES = ("system", "user", "assistant", "tool")


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    """Return a whole chat, which ends with an assistant's turn, as tokens and loss mask.

    Args:
        messages: objects with `role` (one of `ROLES`) and `content` (text); an answer of
            `weight` 0 is not learnt.
        tokenizer: decides the format: Mistral's own, or its `chat_template`, or ChatML.

    Raises:
        TemplateError: an empty chat, an unknown role, no assistant's turn at the end, or a
            template without a sound mask.
    """
    _check(messages)
    if messages[-1]["role"] != "assistant":
        raise TemplateError(
            f"a chat to learn from must end with an assistant's turn, this one ends with "
            f"{messages[-1]['role']!r}; drop the turns after the last answer"
        )
    learnt = [message.get("weight") != 0 for message in messages]
    messages = _without_weights(messages)
    if isinstance(tokenizer, MistralCommonTokenizer):
        return mistral.render(messages, tokenizer, ValidationMode.finetuning, learnt)
    return jinja.chat_of(tokenizer).render(messages, learnt)


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Return the tokens after which the model writes the next assistant's turn.

    Raises:
        TemplateError: an empty chat, an unknown role, or a chat that the format cannot express.
    """
    _check(messages)
    messages = _without_weights(messages)
    if isinstance(tokenizer, MistralCommonTokenizer):
        # Mistral's formats have no extra prompt: the end of the user's turn is the cue.
        learnt = [True] * len(messages)
        return mistral.render(messages, tokenizer, ValidationMode.test, learnt).tokens
    return jinja.chat_of(tokenizer).prompt(messages)


def _without_weights(messages: Sequence[Message]) -> list[Message]:
    return [{key: value for key, value in m.items() if key != "weight"} for m in messages]


def prompt_tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return a prompt as the model expects it: as a chat where it has a template, else plain."""
    if tokenizer.chat_template is not None and tokenizer.name != "bytes":
        return render_prompt([{"role": "user", "content": text}], tokenizer)
    return tokenizer.encode(text, bos=tokenizer.add_bos)


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise TemplateError("the chat is empty; expected at least one message")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, Mapping) else message
            raise TemplateError(
                f"message {number} has role {role!r}; expected one of {', '.join(ROLES)}"
            )
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise TemplateError(
                f"message {number} ({message['role']}) has content {message.get('content')!r}; "
                f"expected text"
            )
