"""Mistral's own tokenizer files (SentencePiece v1 to v7, tekken), run by mistral-common."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import tokenizers as hf_tokenizers
from mistral_common.exceptions import MistralCommonException
from mistral_common.tokens.tokenizers.base import TokenizerVersion
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from mistral_jax.formats import mistral_vocabulary
from mistral_jax.tokenizers.base import EncodeError
from mistral_jax.tokenizers.base import Tokenizer


class MistralCommonTokenizer(Tokenizer):
    """One of Mistral's own tokenizer files, run by mistral-common itself.

    Raises:
        ValueError: not a file that mistral-common reads.
    """

    def __init__(self, path: Path | str, *, name: str | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such tokenizer file")
        raw = self.path.read_bytes()
        try:
            self.mistral = MistralTokenizer.from_file(self.path)
        except (
            MistralCommonException,
            ValueError,
            TypeError,
            LookupError,
            RuntimeError,
            AssertionError,
        ) as error:
            raise ValueError(f"{self.path}: not a Mistral tokenizer file: {error}") from error
        self.text_tokenizer = self.mistral.instruct_tokenizer.tokenizer
        inner = self.text_tokenizer
        self.name = name or self.path.name
        self.vocab_size = inner.n_words
        self.bos_id, self.eos_id = inner.bos_id, inner.eos_id
        self.pad_id = inner.pad_id if inner.pad_id >= 0 else inner.eos_id
        self.add_bos = True
        self.special_tokens = {inner.id_to_piece(i): i for i in sorted(inner.special_ids)}
        self.digest = hashlib.sha256(raw).hexdigest()

    @property
    def version(self) -> TokenizerVersion:
        """The version of Mistral's chat format that this file belongs to."""
        return self.text_tokenizer.version

    @property
    def is_tekken(self) -> bool:
        return isinstance(self.text_tokenizer, Tekkenizer)

    @property
    def chat_template(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A jinja twin of the chat format for exports; we ourselves render by mistral-common."""
        return mistral_vocabulary.chat_template(self.version.value)

    def _encode_text(self, text: str) -> list[int]:
        try:
            return self.text_tokenizer.encode(text, bos=False, eos=False)
        except ValueError as error:  # tekken's splitter, at runs of a million spaces
            raise EncodeError(
                f"tokenizer {self.name} gives up on this text of {len(text)} characters ({error}); "
                "shorten its longest run of one character"
            ) from error

    def encode_continuation(self, text: str) -> list[int]:
        if self.is_tekken:
            return self._encode_text(text)
        # SentencePiece puts a space before whatever it is given; a line end never joins a token.
        mark = self._encode_text("\n")
        return self._encode_text(f"\n{text}")[len(mark) :]

    def decode(self, ids: Sequence[int]) -> str:
        return self.text_tokenizer.decode(list(ids))

    def backend(self) -> hf_tokenizers.Tokenizer:
        return mistral_vocabulary.build(self.path, is_tekken=self.is_tekken)

    def save(self, folder: Path | str) -> None:
        """Write the Hugging Face files and, beside them, Mistral's own file unchanged."""
        super().save(folder)
        suffix = self.path.name.rpartition(".model")[2] or f".{self.version.value}"
        name = "tekken.json" if self.is_tekken else f"tokenizer.model{suffix}"
        (Path(folder) / name).write_bytes(self.path.read_bytes())
