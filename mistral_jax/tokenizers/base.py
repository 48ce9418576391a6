"""What every tokenizer offers: text to ids and back, and its files for other programs."""

import abc
import json
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers as hf_tokenizers
from tokenizers import processors

from mistral_jax.formats import vocabulary
from mistral_jax.formats.tensor_source import write_text


class EncodeError(ValueError):
    """A text that the tokenizer's own program gives up on."""


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    Attributes:
        name: short name for logs and manifests.
        vocab_size: ids run over [0, vocab_size).
        bos_id: begin-of-text id, None where the tokenizer has none.
        eos_id: end-of-text (or end-of-turn) id.
        pad_id: for rows' unused ends; the end-of-text id where there is no padding token.
        add_bos: documents and prompts of this model start with `bos_id`.
        special_tokens: control tokens by spelling.
        chat_template: jinja source of the model's chat format, None where it has none.
        digest: sha256 (hex) of everything that decides which ids a text gets.
    """

    name: str
    vocab_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    add_bos: bool
    special_tokens: Mapping[str, int]
    chat_template: str | None
    digest: str

    @property
    def spelling(self) -> dict[int, str]:
        """Control tokens by id."""
        return {number: text for text, number in self.special_tokens.items()}

    @abc.abstractmethod
    def _encode_text(self, text: str) -> list[int]:
        """Return the ids of plain text; never a control token."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, control tokens left out."""

    @abc.abstractmethod
    def backend(self) -> hf_tokenizers.Tokenizer:
        """Return an equivalent `tokenizers` object, for exports."""

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Return the ids of plain text, with begin and end tokens if asked for.

        Raises:
            ValueError: `bos` is asked of a tokenizer that has no such token.
        """
        ids = self._encode_text(text)
        if bos and self.bos_id is None:
            raise ValueError(f"tokenizer {self.name} has no begin-of-text token; use bos=False")
        return [*([self.bos_id] if bos and self.bos_id is not None else []), *ids] + (
            [self.eos_id] if eos else []
        )

    def encode_after_control(self, text: str) -> list[int]:
        """Return the ids of plain text that follows a control token, as `tokenizers` has them."""
        return self._encode_text(text)

    def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of text that goes on in a sentence: without a space before its start."""
        return self._encode_text(text)

    def encode_parts(
        self, head: str, tail: str, *, is_start: bool = True
    ) -> tuple[list[int], list[int]]:
        """Encode two texts that meet, in one go where a token ends between them.

        Elsewhere each is encoded by itself, as at generation time, where the prompt ends there.

        Args:
            head, tail: plain text.
            is_start: the head begins a document; otherwise it follows a control token.
        """
        encode = self._encode_text if is_start else self.encode_after_control
        if not head:
            return [], encode(tail)
        first, whole = encode(head), encode(head + tail)
        if whole[: len(first)] == first:
            return first, whole[len(first) :]
        return first, self.encode_continuation(tail)

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json.

        transformers loads the folder; so does `load_tokenizer`.
        """
        folder = Path(folder)
        spelling, backend = self.spelling, self.backend()
        special: dict[str, str] = {}
        for key, number in (
            ("bos_token", self.bos_id),
            ("eos_token", self.eos_id),
            ("pad_token", self.pad_id),
        ):
            if number is not None and (text := spelling.get(number) or backend.id_to_token(number)):
                special[key] = text
        if self.add_bos and self.bos_id is not None:
            bos = special["bos_token"]
            backend.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, self.bos_id)]
            )
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": self.add_bos,
            "add_eos_token": False,
            **special,
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "tokenizer.json", backend.to_str(pretty=False))
        for name, content in (
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", special),
        ):
            write_text(folder / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def gguf_metadata(self) -> dict[str, Any]:
        """Return the tokenizer part of a GGUF file's metadata.

        Raises:
            ValueError: a tokenizer that GGUF readers would not reproduce.
        """
        metadata = vocabulary.to_gguf(self.backend())
        metadata |= {
            "tokenizer.ggml.eos_token_id": self.eos_id,
            "tokenizer.ggml.padding_token_id": self.pad_id,
            "tokenizer.ggml.add_bos_token": self.add_bos,
            "tokenizer.ggml.add_eos_token": False,
        }
        if self.bos_id is not None:
            metadata["tokenizer.ggml.bos_token_id"] = self.bos_id
        if self.chat_template is not None:
            metadata["tokenizer.chat_template"] = self.chat_template
        return metadata
