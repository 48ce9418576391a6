"""Tokenizers behind one small surface: Mistral's own, `tokenizers` files, GGUF vocabularies, bytes.

`encode` treats its text as plain text: no spelling of a control token inside a document can
produce that token. Chats go through templates.py, which alone places control tokens.
Loading needs no network; Mistral's own files ship in the wheel of mistral-common.
"""

import abc
import hashlib
import json
from collections.abc import Mapping
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tokenizers as hf_tokenizers
from mistral_common.exceptions import MistralCommonException
from mistral_common.tokens.tokenizers.base import TokenizerVersion
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import processors

from mistral_jax.formats import locate
from mistral_jax.formats import mistral_vocabulary
from mistral_jax.formats import vocabulary
from mistral_jax.formats.fields import read_json_object
from mistral_jax.formats.gguf_file import GgufFile
from mistral_jax.formats.tensor_source import write_text

MISTRAL_COMMON_FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "v7m1": "mistral_instruct_tokenizer_241114.model.v7m1",
    "tekken-240718": "tekken_240718.json",
    "tekken-240911": "tekken_240911.json",
}
# Bytes and turns: what tiny test models speak. Its two control tokens delimit a turn.
BYTES_TEMPLATE = (
    "{% for message in messages %}{{ bos_token + message['role'] + '\n' + message['content'] "
    "+ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}"
    "{% endif %}"
)


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

    def token(self, number: int) -> str:
        """Return the spelling of one id as the vocabulary has it (for displays)."""
        spelling = {number: text for text, number in self.special_tokens.items()}.get(number)
        return spelling if spelling is not None else self.decode([number])

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json.

        transformers loads the folder; so does `load_tokenizer`.
        """
        folder = Path(folder)
        spelling = {number: text for text, number in self.special_tokens.items()}
        backend = self.backend()
        special: dict[str, str] = {}
        for key, number in (
            ("bos_token", self.bos_id),
            ("eos_token", self.eos_id),
            ("pad_token", self.pad_id),
        ):
            if number is not None and number in spelling:
                special[key] = spelling[number]
        if self.add_bos and self.bos_id is not None:
            bos = spelling[self.bos_id]
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
        named = {item.get("name"): item.get("template") for item in template}
        template = named.get("default")
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
        is_sentencepiece = metadata.get("tokenizer.ggml.model") == "llama"
        template = metadata.get("tokenizer.chat_template")
        super().__init__(
            vocabulary.from_gguf(metadata),
            name=name,
            bos_id=token_id("bos"),
            eos_id=eos_id,
            pad_id=token_id("padding"),
            add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", is_sentencepiece)),
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

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(number for number in ids if number < 256).decode("utf-8", errors="replace")


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
        return self.text_tokenizer.encode(text, bos=False, eos=False)

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


def load_tokenizer(uri_or_path: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Args:
        uri_or_path: `bytes`, `mistral-common:v3` (or another name of `MISTRAL_COMMON_FILES`), a
            tokenizer.json, tekken.json, tokenizer.model* or .gguf file, or a checkpoint folder,
            where Mistral's own files go before tokenizer.json.

    Raises:
        ValueError: nothing there that this module loads; the message says what it looked for.
    """
    if uri_or_path == "bytes":
        return ByteTokenizer()
    text = str(uri_or_path)
    if text.startswith("mistral-common:"):
        version = text.removeprefix("mistral-common:")
        if version not in MISTRAL_COMMON_FILES:
            raise ValueError(
                f"unknown tokenizer {text!r}; mistral-common ships: "
                f"{', '.join(MISTRAL_COMMON_FILES)}"
            )
        data = Path(str(resources.files("mistral_common") / "data"))
        return MistralCommonTokenizer(data / MISTRAL_COMMON_FILES[version], name=text)
    is_package = text.startswith(f"{locate.PACKAGE_SCHEME}:")
    path = locate.local_path(text) if is_package else Path(text).expanduser()
    return _load_folder(path) if path.is_dir() else _load_file(path)


def _load_file(path: Path) -> Tokenizer:
    if not path.exists():
        raise ValueError(
            f"{path}: no such tokenizer; expected a file, a checkpoint folder, bytes, or "
            f"mistral-common:NAME"
        )
    if path.suffix == ".gguf":
        return GgufTokenizer(GgufFile(path).metadata, name=path.stem)
    if path.name == "tokenizer.json":
        return HfTokenizer.from_folder(path.parent)
    if ".model" in path.name or (path.suffix == ".json" and "tekken" in path.name):
        return MistralCommonTokenizer(path)
    raise ValueError(
        f"{path}: expected tokenizer.json, tekken.json, tokenizer.model* or a .gguf file"
    )


def _load_folder(folder: Path) -> Tokenizer:
    versioned = sorted(folder.glob("*.model.v*"))
    ggufs = sorted(folder.glob("*.gguf"))
    candidates = [folder / "tekken.json", *versioned[-1:], folder / "tokenizer.json"]
    candidates += [folder / "tokenizer.model", *(ggufs if len(ggufs) == 1 else [])]
    for candidate in candidates:
        if candidate.is_file():
            return _load_file(candidate)
    raise ValueError(
        f"{folder}: no tokenizer found; expected tekken.json, tokenizer.model.v*, tokenizer.json, "
        f"tokenizer.model or one .gguf file"
    )
