"""The Modelfile that tells Ollama about a GGUF file: `ollama create NAME -f Modelfile`.

Ollama takes a chat template of its own kind (Go's text/template) and guesses one where none is
given. It is written for the formats below, and only where it gives, token for token, what our own
chats give; for others the GGUF's jinja template stays the only one.
Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path

from mistral_jax import templates
from mistral_jax import tokenizers
from mistral_jax.formats.tensor_source import write_text

NAME = "Modelfile"
HEAD = "# Written by mistral-jax export. To use it: ollama create NAME -f THIS_FILE"
CUE = "<|im_start|>assistant\n"
_USER = {"role": "user", "content": "How are you?"}
_ANSWER = {"role": "assistant", "content": "Fine. And you?"}
_SYSTEM = {"role": "system", "content": "Be brief."}
_PROBES = (
    [_USER],
    [_USER, _ANSWER, _USER],
    [_SYSTEM, _USER],
    [_SYSTEM, _USER, _ANSWER, _USER],
)

Chat = Sequence[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """One chat format twice: as Ollama's template, and the text that it gives, to check it by."""

    template: str
    text: Callable[[Chat], str]


def _turns(chat: Chat, spelled: dict[str, str]) -> str:
    return "".join(spelled[m["role"]].format(m["content"]) for m in chat)


def _chatml(default: str = "") -> ChatFormat:
    """ChatML; `default` stands in front of a chat without a system prompt."""

    def text(chat: Chat) -> str:
        head = "" if any(m["role"] == "system" for m in chat) else default
        turns = (f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat)
        return head + "".join(turns) + CUE

    head = f"{{{{ if not .System }}}}{default}{{{{ end }}}}" if default else ""
    loop = (
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
        "<|im_start|>assistant\n"
    )
    return ChatFormat(head + loop, text)


def _mistral_v3_text(chat: Chat) -> str:
    system = "".join(m["content"] + "\n\n" for m in chat if m["role"] == "system")
    said = [dict(m) for m in chat if m["role"] != "system"]
    said[-1]["content"] = system + said[-1]["content"]
    return _turns(said, {"user": "[INST]{}[/INST]", "assistant": "{}</s>"})


# v2, v3 and tekken's: the system prompt stands in the last user's turn.
MISTRAL_V3 = ChatFormat(
    '{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}[INST]'
    "{{ if and $.System (eq (len (slice $.Messages $i)) 1) }}{{ $.System }}\n\n{{ end }}"
    '{{ .Content }}[/INST]{{ else if eq .Role "assistant" }}{{ .Content }}</s>{{ end }}{{ end }}',
    _mistral_v3_text,
)
MISTRAL_V7 = ChatFormat(
    '{{ range .Messages }}{{ if eq .Role "system" }}[SYSTEM_PROMPT]{{ .Content }}[/SYSTEM_PROMPT]'
    '{{ else if eq .Role "user" }}[INST]{{ .Content }}[/INST]'
    '{{ else if eq .Role "assistant" }}{{ .Content }}</s>{{ end }}{{ end }}',
    lambda chat: _turns(
        chat,
        {
            "system": "[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]",
            "user": "[INST]{}[/INST]",
            "assistant": "{}</s>",
        },
    ),
)


def ollama_template(tokenizer: tokenizers.Tokenizer) -> str | None:
    """Return Ollama's template of a tokenizer's chats, None where none of ours is exactly it."""
    if tokenizer.chat_template is None:
        return None
    try:
        expected = [templates.render_prompt(chat, tokenizer) for chat in _PROBES]
    except templates.TemplateError:  # a format without a place for one of them
        return None
    backend = tokenizer.backend()
    start = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []

    def encoded(text: str) -> list[int]:
        return start + backend.encode(text, add_special_tokens=False).ids

    chatml = _chatml()
    formats = [MISTRAL_V3, MISTRAL_V7, chatml]
    plain = encoded(chatml.text([_USER]))[len(start) :]
    if plain and len(expected[0]) > len(plain) and expected[0][-len(plain) :] == plain:
        front = expected[0][len(start) : -len(plain)]
        default = backend.decode(front, skip_special_tokens=False)
        if not any(mark in default for mark in ("{{", "}}", '"""')):
            formats.append(_chatml(default))
    for form in formats:
        if [encoded(form.text(chat)) for chat in _PROBES] == expected:
            return form.template
    return None


def text(gguf_name: str, tokenizer: tokenizers.Tokenizer | None) -> str:
    """Return the Modelfile of a GGUF file beside it."""
    lines = [HEAD, f"FROM ./{gguf_name}"]
    if tokenizer is not None:
        template = ollama_template(tokenizer)
        if template is not None:
            lines.append(f'TEMPLATE """{template}"""')
        stop = tokenizer.spelling.get(tokenizer.eos_id)
        if stop is not None and '"' not in stop:
            lines.append(f'PARAMETER stop "{stop}"')
    return "\n".join(lines) + "\n"


def write(gguf: Path, tokenizer: tokenizers.Tokenizer | None) -> Path:
    """Write the Modelfile beside a GGUF file; one of another file is left as it is."""
    path = gguf.with_name(NAME)
    # Somebody's own, or that of another export in this folder.
    if path.exists() and f"{HEAD}\nFROM ./{gguf.name}\n" not in path.read_text(errors="replace"):
        path = gguf.with_name(f"{gguf.name}.{NAME}")
    write_text(path, text(gguf.name, tokenizer))
    return path
