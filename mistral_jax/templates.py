"""Chats to tokens with a loss mask: Mistral's formats by mistral-common, others by their jinja.

The loss covers what the model has to say: an assistant's content and its end-of-turn token. Text
inside a message is always plain text; only the format itself places control tokens, so a message
cannot forge a turn. A template that rewrites messages, or whose prompt is no prefix of the whole
chat, has no sound mask and is refused.
"""

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jinja2
from jinja2 import ext
from jinja2 import nodes
from jinja2 import parser
from jinja2 import sandbox
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.messages import UATS
from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.protocol.instruct.validator import get_validator

from mistral_jax.tokenizers import MistralCommonTokenizer
from mistral_jax.tokenizers import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Message = Mapping[str, Any]


class TemplateError(ValueError):
    """A chat that its format cannot express, or a template that cannot be used for training."""


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A chat as tokens; `loss_mask[i]` says that token i is one the model should produce."""

    tokens: list[int]
    loss_mask: list[bool]


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    """Return a whole chat, which ends with an assistant's turn, as tokens and loss mask.

    Args:
        messages: objects with `role` (one of `ROLES`) and `content` (text).
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
    if isinstance(tokenizer, MistralCommonTokenizer):
        return _render_mistral(messages, tokenizer, ValidationMode.finetuning)
    return _jinja_chat(tokenizer).render(messages)


def render_prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool = True
) -> list[int]:
    """Return the tokens after which the model writes the next assistant's turn.

    Raises:
        TemplateError: an empty chat, an unknown role, or a chat that the format cannot express.
    """
    _check(messages)
    if isinstance(tokenizer, MistralCommonTokenizer):
        # Mistral's formats have no extra prompt: the end of the user's turn is the cue.
        return _render_mistral(messages, tokenizer, ValidationMode.test).tokens
    return _jinja_chat(tokenizer).prompt(messages, add_generation_prompt)


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


def _render_mistral(
    messages: Sequence[Message], tokenizer: MistralCommonTokenizer, mode: ValidationMode
) -> Rendered:
    """Let mistral-common make the tokens; its per-message parts give the mask."""
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
    mask = [False] * len(instruct.start())
    for is_loss, length in parts:
        mask += [is_loss] * length
    if len(mask) != len(tokens):
        raise TemplateError(
            f"Mistral's format {version.value} gave {len(tokens)} tokens for parts of {len(mask)}; "
            f"this version of mistral-common is not supported"
        )
    return Rendered(tokens, mask)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A stretch of rendered text; `message` is the index of its message, None for the format's."""

    text: str
    message: int | None


# How templates commonly trim a message before they place it.
_TRIMS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    str.strip,
    str.rstrip,
    str.lstrip,
    lambda text: text.rstrip(" "),
)


class _GenerationBlock(ext.Extension):
    """Accepts `{% generation %}` around an assistant's turn; the mask is found without it."""

    tags = frozenset({"generation"})  # pyright: ignore[reportAssignmentType]

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _JinjaChat:
    """Renders by a checkpoint's own jinja template, in a sandbox."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        source = tokenizer.chat_template
        if source is None and {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.special_tokens):
            source = CHATML
        if source is None:
            raise TemplateError(
                f"tokenizer {tokenizer.name} has no chat template; put a chat_template.jinja "
                f"beside its tokenizer.json"
            )
        self._tokenizer, self._source = tokenizer, source
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[ext.LoopControlExtension, _GenerationBlock],
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(
            value, ensure_ascii=False, **options
        )
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template does not parse: {error}") from error
        spelled = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, spelled)) or r"(?!)")

    def render(self, messages: Sequence[Message]) -> Rendered:
        pieces = self._pieces(messages, add_generation_prompt=False)
        return self._encode(pieces, self._spans(messages, pieces))

    def prompt(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        pieces = self._pieces(messages, add_generation_prompt)
        try:
            spans = self._spans(messages, pieces)
        except TemplateError:
            spans = []  # a template without a sound mask can still be generated from
        return self._encode(pieces, spans).tokens

    def _encode(self, pieces: Sequence[_Piece], spans: Sequence[tuple[int, int]]) -> Rendered:
        """Encode run by run; earlier answers start a token of their own, as they were generated."""
        tokens, mask = [], []
        for start, text, control in self._runs(pieces):
            end = start + len(text)
            if control is not None:
                tokens.append(control)
                mask.append(any(begin <= start < stop for begin, stop in spans))
                continue
            cut = next((begin for begin, _ in spans if start < begin < end), start)
            head, tail = self._encode_at(text, cut - start)
            tokens += head + tail
            inside = any(begin <= cut < stop for begin, stop in spans)
            mask += [False] * len(head) + [inside] * len(tail)
        return Rendered(tokens, mask)

    def _encode_at(self, text: str, cut: int) -> tuple[list[int], list[int]]:
        """Encode a run so that a token border lies at `cut`, in one go where that has one there."""
        if cut == 0:
            return [], self._tokenizer.encode(text)
        head, whole = self._tokenizer.encode(text[:cut]), self._tokenizer.encode(text)
        if whole[: len(head)] == head:
            return head, whole[len(head) :]
        # Encoded apart, as at generation time, where the prompt ends exactly here.
        return head, self._tokenizer.encode(text[cut:])

    def _text(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        special = self._tokenizer.special_tokens.items()
        spelling: dict[int | None, str] = {number: text for text, number in special}
        named = {
            "bos_token": spelling.get(self._tokenizer.bos_id, ""),
            "eos_token": spelling.get(self._tokenizer.eos_id, ""),
            "pad_token": spelling.get(self._tokenizer.pad_id, ""),
        }
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **named,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise TemplateError(f"the chat template refuses this chat: {error}") from error

    def _pieces(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[_Piece]:
        """Split the rendered chat into the format's own text and the messages' text.

        Each content is replaced by a mark, so that the format shows; then the marks are filled and
        the result must be what the template makes of the chat itself.
        """
        contents = [message.get("content") or "" for message in messages]
        used = set("".join([*contents, self._source]))
        mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)
        marked = [{**m, "content": f"{mark}{i}{mark}"} for i, m in enumerate(messages)]
        skeleton = re.split(f"{mark}([0-9]+){mark}", self._text(marked, add_generation_prompt))
        text = self._text(messages, add_generation_prompt)
        pieces, position = [_Piece(skeleton[0], None)], len(skeleton[0])
        is_same = text.startswith(skeleton[0]) and mark not in "".join(skeleton[::2])
        for index, after in zip(skeleton[1::2], skeleton[2::2], strict=True):
            trimmed = (trim(contents[int(index)]) for trim in _TRIMS)
            content = next((c for c in trimmed if text.startswith(c + after, position)), None)
            if content is None:
                is_same = False
                break
            pieces += [_Piece(content, int(index)), _Piece(after, None)]
            position += len(content) + len(after)
        if not is_same or position != len(text):
            raise TemplateError(
                "this chat template rewrites the messages, so control tokens and the loss mask "
                "cannot be placed safely; give the tokenizer a chat_template.jinja that does not"
            )
        return pieces

    def _runs(self, pieces: Sequence[_Piece]) -> Iterator[tuple[int, str, int | None]]:
        """Yield (start, text, control id or None); plain text between two controls is one run."""
        start, run = 0, ""
        for piece in pieces:
            position = 0
            found = self._control.finditer(piece.text) if piece.message is None else ()
            for match in found:
                run += piece.text[position : match.start()]
                if run:
                    yield start, run, None
                start, run = start + len(run), ""
                yield start, match.group(), self._tokenizer.special_tokens[match.group()]
                start += len(match.group())
                position = match.end()
            run += piece.text[position:]
        if run:
            yield start, run, None

    def _spans(
        self, messages: Sequence[Message], pieces: Sequence[_Piece]
    ) -> list[tuple[int, int]]:
        """Return the [start, end) characters of each assistant's turn."""
        text, spans, position = "".join(piece.text for piece in pieces), [], 0
        placed = [piece.message for piece in pieces]
        for index, message in enumerate(messages):
            if message["role"] == "assistant" and placed.count(index) != 1:
                raise TemplateError(
                    f"the chat template places the assistant's message {index} "
                    f"{placed.count(index)} times; a sound loss mask needs exactly one"
                )
        for piece, after in zip(pieces, [*pieces[1:], _Piece("", None)], strict=True):
            position += len(piece.text)
            index = piece.message
            if index is None or messages[index]["role"] != "assistant":
                continue
            prompt = self._text(messages[:index], True) if index else ""
            if not text.startswith(prompt) or len(prompt) > position - len(piece.text):
                raise TemplateError(
                    f"the chat template's prompt before message {index} is not a prefix of the "
                    f"whole chat, so the loss mask would be wrong; train on the last turn alone"
                )
            end = self._control.search(after.text)
            if end is None or after.text[: end.start()].strip():
                raise TemplateError(
                    f"the chat template puts no end-of-turn token after the assistant's message "
                    f"{index}, so the model could not learn to stop"
                )
            spans.append((len(prompt), position + end.end()))
        return spans


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


@functools.lru_cache(maxsize=16)
def _jinja_chat(tokenizer: Tokenizer) -> _JinjaChat:
    """Parse a tokenizer's template once; tokenizers compare by identity."""
    return _JinjaChat(tokenizer)
