"""Chat formats that a checkpoint brings as its own jinja template, run in a sandbox.

A template that rewrites messages, or whose prompt is no prefix of the whole chat, has no sound
mask and is refused.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import jinja2
from jinja2 import ext
from jinja2 import nodes
from jinja2 import parser
from jinja2 import sandbox

from mistral_jax.templates import jinja_messages
from mistral_jax.templates.base import Message
from mistral_jax.templates.base import Rendered
from mistral_jax.templates.base import TemplateError
from mistral_jax.templates.base import Tool
from mistral_jax.tokenizers import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A stretch of rendered text; `message` is the index of its message, None for the format's."""

    text: str
    message: int | None


@dataclasses.dataclass(frozen=True)
class _Span:
    """The characters [start, end) of an assistant's turn, its end-of-turn token included."""

    start: int
    end: int
    message: int
    end_of_turn: str


# How templates commonly trim a message, or quote a tool's result, before they place it.
_TRIMS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    str.strip,
    str.rstrip,
    str.lstrip,
    lambda text: text.rstrip(" "),
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
)


@dataclasses.dataclass(frozen=True)
class _Chat:
    """What the template gets: messages with text as content, and tools."""

    messages: list[dict[str, Any]]
    tools: list[Tool]

    def until(self, stop: int) -> "_Chat":
        return _Chat(self.messages[:stop], self.tools)


class _GenerationBlock(ext.Extension):
    """Accepts `{% generation %}` around an assistant's turn; the mask is found without it."""

    tags = frozenset({"generation"})  # pyright: ignore[reportAssignmentType]

    def parse(self, parser: parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class JinjaChat:
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

    def render(
        self, messages: Sequence[Message], learnt: Sequence[bool], tools: Sequence[Tool] = ()
    ) -> Rendered:
        """Return the chat with the mask of the assistant's turns; `learnt[i]` is of message i."""
        chat, pieces = self._chat(messages, tools, add_generation_prompt=False)
        spans = self._spans(chat, pieces)
        text = "".join(piece.text for piece in pieces)
        for span in spans:
            turn = text[span.start : span.end]
            jinja_messages.refuse_missing_parts(turn, span.message, chat.messages[span.message])
        return self._encode(pieces, spans, learnt)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        chat, pieces = self._chat(messages, tools, add_generation_prompt=True)
        try:
            spans = self._spans(chat, pieces)
        except TemplateError:
            spans = []  # a template without a sound mask can still be generated from
        return self._encode(pieces, spans, [False] * len(messages)).tokens

    def _chat(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, add_generation_prompt: bool
    ) -> tuple[_Chat, list[_Piece]]:
        chat = _Chat(jinja_messages.prepare(messages), list(tools))
        jinja_messages.refuse_control_tokens(chat.messages, tools, self._control)
        pieces = self._pieces(chat, add_generation_prompt)
        own = "".join(piece.text for piece in pieces if piece.message is None)
        jinja_messages.refuse_missing_tools(own, tools)
        placed = {piece.message for piece in pieces}
        for index, message in enumerate(chat.messages):
            if message["role"] == "tool" and index not in placed:
                raise TemplateError(
                    f"the chat template leaves out the tool's result, message {index}; this "
                    f"model's format has no place for tools"
                )
        return chat, pieces

    def _encode(
        self, pieces: Sequence[_Piece], spans: Sequence[_Span], learnt: Sequence[bool]
    ) -> Rendered:
        """Encode run by run; earlier answers start a token of their own, as they were generated."""
        tokens, mask = [], []

        def counts(position: int) -> bool:
            return any(s.start <= position < s.end and learnt[s.message] for s in spans)

        for start, text, control in self._runs(pieces):
            if control is not None:
                tokens.append(control)
                mask.append(counts(start))
                continue
            inside = (span.start for span in spans if start < span.start < start + len(text))
            cut = next(inside, start)
            head, tail = self._tokenizer.encode_parts(
                text[: cut - start], text[cut - start :], is_start=start == 0
            )
            tokens += head + tail
            mask += [False] * len(head) + [counts(cut)] * len(tail)
        return Rendered(tokens, mask)

    def _text(self, chat: _Chat, add_generation_prompt: bool) -> str:
        tokenizer = self._tokenizer
        ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
        spelling: dict[int | None, str] = {**tokenizer.spelling}
        named = {f"{name}_token": spelling.get(number, "") for name, number in ids.items()}
        try:
            return self._template.render(
                messages=[dict(message) for message in chat.messages],
                tools=chat.tools or None,
                add_generation_prompt=add_generation_prompt,
                **named,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise TemplateError(f"the chat template refuses this chat: {error}") from error

    def _pieces(self, chat: _Chat, add_generation_prompt: bool) -> list[_Piece]:
        """Split the rendered chat into the format's own text and the messages' text.

        Each content is replaced by a mark, so that the format shows; then the marks are filled and
        the result must be what the template makes of the chat itself.
        """
        contents = [message["content"] for message in chat.messages]
        used = set("".join([*contents, self._source]))
        mark = next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)
        marked = [
            # Templates ask whether a call has content beside it.
            {**m, "content": f"{mark}{i}{mark}"} if m["content"] or not m.get("tool_calls") else m
            for i, m in enumerate(chat.messages)
        ]
        template_text = self._text(_Chat(marked, chat.tools), add_generation_prompt)
        skeleton = re.split(f"{mark}([0-9]+){mark}", template_text)
        text = self._text(chat, add_generation_prompt)
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

    def _spans(self, chat: _Chat, pieces: Sequence[_Piece]) -> list[_Span]:
        """Return where each assistant's turn lies."""
        placed = [piece.message for piece in pieces]
        for index, message in enumerate(chat.messages):
            is_bare_call = message.get("tool_calls") and not message["content"]
            if message["role"] != "assistant" or is_bare_call or placed.count(index) == 1:
                continue
            raise TemplateError(
                f"the chat template places the assistant's message {index} "
                f"{placed.count(index)} times; a sound loss mask needs exactly one"
            )
        if any(message.get("tool_calls") for message in chat.messages):
            return self._spans_with_calls(chat, pieces)
        text, spans, position = "".join(piece.text for piece in pieces), [], 0
        for piece, after in zip(pieces, [*pieces[1:], _Piece("", None)], strict=True):
            position += len(piece.text)
            index = piece.message
            if index is None or chat.messages[index]["role"] != "assistant":
                continue
            start = self._start(chat, index, text, position - len(piece.text))
            end = self._control.search(after.text)
            if end is None or after.text[: end.start()].strip():
                raise _endless(index)
            spans.append(_Span(start, position + end.end(), index, end.group()))
        self._check_ends(spans)
        return spans

    def _spans_with_calls(self, chat: _Chat, pieces: Sequence[_Piece]) -> list[_Span]:
        """Return the turns of a chat whose calls are the format's own text.

        A turn ends with the last control token that the chat up to it has.
        """
        text, position = "".join(piece.text for piece in pieces), 0
        controls: list[tuple[int, int, str]] = []
        contents: dict[int, int] = {}
        for piece in pieces:
            if piece.message is not None:
                contents[piece.message] = position
            else:
                found = self._control.finditer(piece.text)
                controls += [(position + m.start(), position + m.end(), m.group()) for m in found]
            position += len(piece.text)
        spans = []
        for index, message in enumerate(chat.messages):
            if message["role"] != "assistant":
                continue
            start = self._start(chat, index, text, contents.get(index, len(text)))
            until = self._text(chat.until(index + 1), False)
            ends = [each for each in controls if start <= each[0] and each[1] <= len(until)]
            if not text.startswith(until) or not ends or text[ends[-1][1] : len(until)].strip():
                raise _endless(index)
            spans.append(_Span(start, ends[-1][1], index, ends[-1][2]))
        return spans

    def _start(self, chat: _Chat, index: int, text: str, content_start: int) -> int:
        """Return where an answer starts: behind the prompt that asks for it."""
        prompt = self._text(chat.until(index), True) if index else ""
        if not text.startswith(prompt) or len(prompt) > content_start:
            raise TemplateError(
                f"the chat template's prompt before message {index} is not a prefix of the "
                f"whole chat, so the loss mask would be wrong; train on the last turn alone"
            )
        return len(prompt)

    def _check_ends(self, spans: Sequence[_Span]) -> None:
        """Refuse turns that end as no answer does: with the next turn's marker, for instance."""
        eos = self._tokenizer.spelling.get(self._tokenizer.eos_id)
        for span in spans:
            if span.end_of_turn not in (spans[-1].end_of_turn, eos):
                raise TemplateError(
                    f"the chat template ends the assistant's message {span.message} with "
                    f"{span.end_of_turn!r}, but the last one with {spans[-1].end_of_turn!r}, so "
                    f"the model could not learn to stop; train on the last turn alone"
                )


def _endless(index: int) -> TemplateError:
    return TemplateError(
        f"the chat template puts no end-of-turn token after the assistant's message {index}, so "
        f"the model could not learn to stop"
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


@functools.lru_cache(maxsize=16)
def chat_of(tokenizer: Tokenizer) -> JinjaChat:
    """Parse a tokenizer's template once; tokenizers compare by identity."""
    return JinjaChat(tokenizer)
