"""Mistral's chat formats, by mistral-common itself."""

import copy
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import pydantic
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.messages import ChatMessage
from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import Tool as MistralTool
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.protocol.instruct.validator import get_validator
from mistral_common.tokens.tokenizers.base import TokenizerVersion

from mistral_jax.templates.base import Message
from mistral_jax.templates.base import Rendered
from mistral_jax.templates.base import TemplateError
from mistral_jax.templates.base import Tool
from mistral_jax.tokenizers import MistralCommonTokenizer

REASON_LETTERS = 300  # reasons quote what they refuse


def render(
    messages: Sequence[Message],
    tokenizer: MistralCommonTokenizer,
    mode: ValidationMode,
    learnt: Sequence[bool],
    tools: Sequence[Tool] = (),
) -> Rendered:
    """Let mistral-common make the tokens; its per-message parts give the mask.

    Args:
        messages: the chat, as mistral-common spells it.
        tokenizer: decides the version of the format.
        mode: how strictly the chat is checked.
        learnt: of each message, whether it counts for the loss if it is an answer.
        tools: what the assistant may call, as OpenAI spells it.
    """
    version, inner = tokenizer.version, tokenizer.text_tokenizer
    if tools and version == TokenizerVersion.v1:  # mistral-common would leave them out
        raise TemplateError("Mistral's format v1 has no place for tools; it came with v2")
    # A copy, because the recording below replaces methods on the instance.
    instruct: Any = copy.copy(tokenizer.mistral.instruct_tokenizer)
    parts: list[tuple[bool, int]] = []

    def recording(method: Callable[..., Any], is_loss: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            # Assistants give a list of ids; the other encoders a tuple that starts with one.
            parts.append((is_loss, len(result if is_loss else result[0])))
            return result

        return call

    for role in ("user", "system", "tool", "assistant"):
        name = f"encode_{role}_message"
        setattr(instruct, name, recording(getattr(instruct, name), role == "assistant"))
    try:
        request = ChatCompletionRequest[ChatMessage].model_validate({
            "messages": list(messages),
            "tools": [MistralTool.from_openai(dict(tool)) for tool in tools] or None,
        })  # fmt: skip
        get_validator(version, mode=mode).validate_request(request)
        normalizer = get_normalizer(version, inner.model_settings_builder)
        normalized = normalizer.from_chat_completion_request(request)
        tokens = instruct.encode_instruct(normalized).tokens
    except (
        MistralCommonException,
        ValueError,
        TypeError,
        NotImplementedError,
        AssertionError,
        RecursionError,  # deeply nested JSON, as text in a call's arguments or a tool's result
    ) as error:
        raise TemplateError(
            f"not a chat of Mistral's format {version.value}: {_sentence(error)}"
        ) from error
    answers = [learns for each, learns in zip(messages, learnt) if each["role"] == "assistant"]
    if not all(answers) and len(answers) != sum(is_loss for is_loss, _ in parts):
        raise TemplateError(
            f"Mistral's format {version.value} joins neighbouring answers of this chat, one of "
            f"weight 0 among them; put a turn between them or give them one weight"
        )
    counts = iter(answers)
    mask = [False] * len(instruct.start())
    for is_loss, length in parts:
        mask += [is_loss and next(counts, True)] * length
    if len(mask) != len(tokens):
        raise TemplateError(
            f"Mistral's format {version.value} gave {len(tokens)} tokens for parts of {len(mask)}; "
            f"this version of mistral-common is not supported"
        )
    return Rendered(tokens, mask)


def _sentence(error: Exception) -> str:
    """Return what an error says in one line."""
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= REASON_LETTERS else f"{said[:REASON_LETTERS]} ..."
