"""Mistral's chat formats, by mistral-common itself."""

import copy
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.messages import UATS
from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.protocol.instruct.validator import get_validator

from mistral_jax.templates.base import Message
from mistral_jax.templates.base import Rendered
from mistral_jax.templates.base import TemplateError
from mistral_jax.tokenizers import MistralCommonTokenizer


def render(
    messages: Sequence[Message],
    tokenizer: MistralCommonTokenizer,
    mode: ValidationMode,
    learnt: Sequence[bool],
) -> Rendered:
    """Let mistral-common make the tokens; its per-message parts give the mask.

    Args:
        messages: the chat, as mistral-common spells it.
        tokenizer: decides the version of the format.
        mode: how strictly the chat is checked.
        learnt: of each message, whether it counts for the loss if it is an answer.
    """
    version, inner = tokenizer.version, tokenizer.text_tokenizer
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
        request = ChatCompletionRequest[UATS].model_validate({"messages": list(messages)})
        get_validator(version, mode=mode).validate_request(request)
        normalizer = get_normalizer(version, inner.model_settings_builder)
        normalized = normalizer.from_chat_completion_request(request)
        tokens = instruct.encode_instruct(normalized).tokens
    except (MistralCommonException, ValueError, NotImplementedError, AssertionError) as error:
        raise TemplateError(f"not a chat of Mistral's format {version.value}: {error}") from error
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
