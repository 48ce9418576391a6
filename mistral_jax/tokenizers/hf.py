"""Tokenizers that `tokenizers` runs: tokenizer.json, GGUF vocabularies, plain bytes."""

import functools
import hashlib
import json
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers as hf_tokenizers

from mistral_jax.formats import vocabulary
from mistral_jax.formats.fields import read_json_object
from mistral_jax.tokenizers.base import Tokenizer

# Bytes and turns: what tiny test models speak. Its two control tokens delimit a turn.
BYTES_TEMPLATE = (
    "{% for message in messages %}{{ bos_token + message['role'] + '\n' + message['content'] "
    "+ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}"
    "{% endif %}"
)


class HfTokenizer(Tokenizer):
    """A tokenizer.json, or anything else that `tokenizers` runs (GGUF vocabularies too).

    Args:
        backend: the tokenizer; its padding, truncation and post-processing are switched off.
        name: for logs and manifests.
        bos_id, eos_id, pad_id: as in `Tokenizer`; `eos_id` is required.
        add_bos: as in `Tokenizer`.
        chat_template: jinja source or None.
    """

    def __init__(
        self,
        backend: hf_tokenizers.Tokenizer,
        *,
        name: str,
        bos_id: int | None,
        eos_id: int,
        pad_id: int | None = None,
        add_bos: bool = False,
        chat_template: str | None = None,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        # Without this, spelling a control token in a document would produce it.
        backend.encode_special_tokens = True
        self._backend = backend
        self.name, self.add_bos, self.chat_template = name, add_bos, chat_template
        added = backend.get_added_tokens_decoder()
        self.special_tokens = {t.content: number for number, t in added.items() if t.special}
        highest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.vocab_size = highest + 1
        for label, number in (("bos", bos_id), ("eos", eos_id), ("pad", pad_id)):
            if number is not None and not 0 <= number <= highest:
                raise ValueError(
                    f"tokenizer {name}: its {label} id {number} is outside [0, {highest}]"
                )
        self.bos_id, self.eos_id = bos_id, eos_id
        self.pad_id = eos_id if pad_id is None else pad_id
        self.digest = self._digest()

    def _digest(self) -> str:
        definition = json.loads(self._backend.to_str())
        # A post-processor only adds begin tokens, which we place ourselves.
        definition = {k: v for k, v in definition.items() if k != "post_processor"}
        ids = [self.bos_id, self.eos_id, self.pad_id, self.add_bos]
        content = json.dumps([definition, ids, self.chat_template], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _encode_text(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _without_prefix(self) -> hf_tokenizers.Tokenizer:
        """The same tokenizer without the space that SentencePiece's heirs put before a text."""
        definition = json.loads(self._backend.to_str())
        for step in _steps(definition["pre_tokenizer"]):
            if "prepend_scheme" in step:
                step["prepend_scheme"] = "never"
            elif "add_prefix_space" in step:
                step["add_prefix_space"] = False
        for step in _steps(definition["normalizer"]):
            if step["type"] == "Prepend":
                step["prepend"] = ""
        plain = hf_tokenizers.Tokenizer.from_str(json.dumps(definition))
        plain.encode_special_tokens = True
        return plain

    @functools.cached_property
    def _has_prefix_at_start_only(self) -> bool:
        definition = json.loads(self._backend.to_str())
        return any(
            step.get("prepend_scheme") == "first" for step in _steps(definition["pre_tokenizer"])
        )

    def encode_after_control(self, text: str) -> list[int]:
        if self._has_prefix_at_start_only:
            return self.encode_continuation(text)
        return self._encode_text(text)

    def encode_continuation(self, text: str) -> list[int]:
        return self._without_prefix.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def backend(self) -> hf_tokenizers.Tokenizer:
        return hf_tokenizers.Tokenizer.from_str(self._backend.to_str())

    @classmethod
    def from_folder(cls, folder: Path) -> "HfTokenizer":
        """Load tokenizer.json with the settings beside it."""
        backend = _parse_backend(folder / "tokenizer.json")
        config_path = folder / "tokenizer_config.json"
        config = read_json_object(config_path) if config_path.exists() else {}
        named = {key: _special_id(backend, config.get(f"{key}_token")) for key in _NAMED}
        if named["eos"] is None:
            raise ValueError(
                f"{config_path}: eos_token is {config.get('eos_token')!r}; expected a token of "
                f"{folder / 'tokenizer.json'}"
            )
        add_bos = config.get("add_bos_token")
        if add_bos is None:
            bos_id = named["bos"]
            add_bos = bos_id is not None and backend.encode("a").ids[:1] == [bos_id]
        return cls(
            backend,
            name=folder.name or "tokenizer.json",
            bos_id=named["bos"],
            eos_id=named["eos"],
            pad_id=named["pad"],
            add_bos=bool(add_bos),
            chat_template=_folder_template(folder, config),
        )


_NAMED = ("bos", "eos", "pad")


def _steps(node: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, those inside of sequences too."""
    if node is None:
        return []
    inner = [*node.get("normalizers", ()), *node.get("pretokenizers", ())]
    return [node, *(step for each in inner for step in _steps(each))]  # pyright: ignore[reportReturnType]


def _parse_backend(path: Path) -> hf_tokenizers.Tokenizer:
    if not path.is_file():
        raise ValueError(f"{path}: no such tokenizer file")
    # The Rust binding raises bare Exception for any defect of the file: narrowed here.
    try:
        return hf_tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise ValueError(f"{path}: not a valid tokenizer.json: {error}") from error


def _special_id(backend: hf_tokenizers.Tokenizer, value: object) -> int | None:
    """Return the id of a token that tokenizer_config.json gives as text or as an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return backend.token_to_id(value) if isinstance(value, str) else None


def _folder_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates: `default` is the chat's
        named = [item for item in template if isinstance(item, dict)]
        template = {item.get("name"): item.get("template") for item in named}.get("default")
    return template if isinstance(template, str) else None


class GgufTokenizer(HfTokenizer):
    """The tokenizer inside a GGUF file, rebuilt from its metadata.

    Raises:
        ValueError: the metadata describes none, or one of an unsupported kind.
    """

    def __init__(self, metadata: Mapping[str, Any], *, name: str) -> None:
        def token_id(key: str) -> int | None:
            value = metadata.get(f"tokenizer.ggml.{key}_token_id")
            return value if isinstance(value, int) else None

        eos_id = token_id("eos")
        if eos_id is None:
            raise ValueError(f"{name}: the GGUF metadata lacks tokenizer.ggml.eos_token_id")
        # Where the file does not say: as llama.cpp has it for these kinds (llama-vocab.cpp).
        is_sentencepiece = metadata.get("tokenizer.ggml.model") == "llama"
        starts = metadata.get("tokenizer.ggml.pre") in ("llama-bpe", "tekken")
        default_bos = is_sentencepiece or (starts and token_id("bos") is not None)
        template = metadata.get("tokenizer.chat_template")
        super().__init__(
            vocabulary.from_gguf(metadata),
            name=name,
            bos_id=token_id("bos"),
            eos_id=eos_id,
            pad_id=token_id("padding"),
            add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", default_bos)),
            chat_template=template if isinstance(template, str) else None,
        )


class ByteTokenizer(HfTokenizer):
    """One id per UTF-8 byte, then bos, eos and pad: 259 ids. For tests and tiny models."""

    def __init__(self) -> None:
        tokens = [vocabulary.byte_letters(bytes([byte])) for byte in range(256)]
        kinds = [vocabulary.NORMAL] * 256 + [vocabulary.CONTROL] * 3
        listed = vocabulary.Vocabulary([*tokens, "<bos>", "<eos>", "<pad>"], kinds)
        super().__init__(
            vocabulary.build_byte_bpe(listed, [], "gpt-2"),
            name="bytes",
            bos_id=256,
            eos_id=257,
            pad_id=258,
            add_bos=True,
            chat_template=BYTES_TEMPLATE,
        )

    def _encode_text(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_continuation(self, text: str) -> list[int]:
        return self._encode_text(text)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(number for number in ids if number < 256).decode("utf-8", errors="replace")
