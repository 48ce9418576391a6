"""Tokenizers behind one small surface: Mistral's own, `tokenizers` files, GGUF vocabularies, bytes.

`encode` treats its text as plain text: no spelling of a control token inside a document can
produce that token. Chats go through mistral_jax.templates, which alone places control tokens.
Loading needs no network; Mistral's own files ship in the wheel of mistral-common.
"""

from importlib import resources
from pathlib import Path

from mistral_jax.formats import locate
from mistral_jax.formats.gguf_file import GgufFile
from mistral_jax.tokenizers.base import EncodeError as EncodeError
from mistral_jax.tokenizers.base import Tokenizer
from mistral_jax.tokenizers.hf import ByteTokenizer
from mistral_jax.tokenizers.hf import GgufTokenizer
from mistral_jax.tokenizers.hf import HfTokenizer
from mistral_jax.tokenizers.mistral import MistralCommonTokenizer

MISTRAL_COMMON_FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
    "v7m1": "mistral_instruct_tokenizer_241114.model.v7m1",
    "tekken-240718": "tekken_240718.json",
    "tekken-240911": "tekken_240911.json",
}


def load_tokenizer(uri_or_path: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Args:
        uri_or_path: `bytes`, `mistral-common:v3` (or another name of `MISTRAL_COMMON_FILES`), a
            tokenizer.json, tekken.json, tokenizer.model* or .gguf file, or a checkpoint folder,
            where Mistral's own files go before tokenizer.json; also `package:NAME`, `hf://`,
            `s3://` and `gs://` (see formats/locate.py).

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
    is_elsewhere = locate.scheme_of(text) is not None
    path = locate.headers_path(text, has_text=True) if is_elsewhere else Path(text).expanduser()
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
