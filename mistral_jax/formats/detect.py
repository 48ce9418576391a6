"""Open any supported checkpoint as one thing: names, lazy tensors, and our decoder's fields.

Kinds: `hf` (folder with config.json and safetensors), `gguf` (one file, or a folder with exactly
one), `consolidated` (Mistral's params.json and consolidated*.safetensors). Reads headers only;
a tensor's bytes are touched when `tensor` is called.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mistral_jax.formats import gguf_config
from mistral_jax.formats import hf_config
from mistral_jax.formats import names
from mistral_jax.formats.fields import read_json_object
from mistral_jax.formats.gguf_file import GgufFile
from mistral_jax.formats.names import DecoderShape
from mistral_jax.formats.names import Entry
from mistral_jax.formats.safetensors_file import INDEX_NAME
from mistral_jax.formats.safetensors_file import SafetensorsReader


class WeightsFile:
    """A checkpoint that is open for reading.

    Attributes:
        path: the folder or file that was asked for.
        kind: the format, as `names.entries` spells it: hf, gguf or consolidated.
        hf_config: the content of config.json (or params.json); empty for GGUF.
        metadata: the file's own metadata (all of a GGUF's, the header's of safetensors).
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        reader: SafetensorsReader | GgufFile,
        config: Mapping[str, Any],
    ) -> None:
        self.path, self.kind, self.hf_config = path, kind, dict(config)
        self._reader = reader
        self.metadata: Mapping[str, Any] = reader.metadata

    def names(self) -> list[str]:
        return self._reader.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, outermost axis first.

        Raises:
            ValueError: the file has no such tensor; the message names both.
        """
        return self._reader.shape(name)

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor: a mapped view for safetensors, dequantised float32 for GGUF."""
        return self._reader.tensor(name)

    def dtype_name(self, name: str) -> str:
        """Return how the file stores a tensor, such as bfloat16 or Q4_1."""
        if isinstance(self._reader, GgufFile):
            return self._reader.info(name).block.name
        return self._reader.info(name).dtype.name

    def decoder_config(self) -> dict[str, Any]:
        """Return our decoder's fields as plain data.

        Raises:
            ValueError: an architecture or option that our decoder does not compute.
        """
        if isinstance(self._reader, GgufFile):
            shapes = {name: info.shape for name, info in self._reader.tensors.items()}
            return gguf_config.decoder_from_gguf(self.metadata, shapes, self.path)
        present = set(self.names())
        if self.kind == "consolidated":
            has_head = "output.weight" in present
            return hf_config.decoder_from_params(
                self.hf_config, self.path / "params.json", has_head=has_head
            )
        has_head = "lm_head.weight" in present
        return hf_config.decoder_from_hf(self.hf_config, self._config_path(), has_head=has_head)

    def _config_path(self) -> Path:
        return (self.path if self.path.is_dir() else self.path.parent) / "config.json"

    def entries(self) -> list[Entry]:
        """Return the tensors that the decoder needs, each checked to be there in its shape.

        Raises:
            ValueError: a tensor is missing or has another shape; the message names the tensor,
                the expected and the found shape.
        """
        table = names.entries(decoder_shape(self.decoder_config()), self.kind)
        present = set(self.names())
        for entry in table:
            if entry.foreign_name not in present:
                raise ValueError(
                    f"{self.path}: tensor {entry.foreign_name!r} of shape {entry.shape} is "
                    f"missing; the checkpoint is incomplete or its config is another model's"
                )
            if (found := self.shape(entry.foreign_name)) != entry.shape:
                raise ValueError(
                    f"{self.path}: tensor {entry.foreign_name!r}: expected shape {entry.shape} "
                    f"from the config, found {found}"
                )
        return table


def decoder_shape(decoder: Mapping[str, Any]) -> DecoderShape:
    """Give plain decoder fields the attributes that the name tables read."""
    ffn = SimpleNamespace(**{"num_groups": 1, **decoder["ffn"]})
    shape: Any = SimpleNamespace(**{**decoder, "ffn": ffn})
    return shape


def open_weights(path: Path | str) -> WeightsFile:
    """Open a checkpoint folder or file.

    Args:
        path: a Hugging Face or consolidated folder, a .safetensors file beside its config.json,
            a .gguf file, or a folder that holds exactly one .gguf file.

    Raises:
        ValueError: nothing supported lies there, or a file is missing, truncated or damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise ValueError(f"{path}: no such checkpoint file or folder")
    if path.suffix == ".gguf":
        return WeightsFile(path, "gguf", GgufFile(path), {})
    if path.suffix == ".safetensors":
        config = read_json_object(path.parent / "config.json")
        return WeightsFile(path, "hf", SafetensorsReader(path), config)
    raise ValueError(f"{path}: expected a .safetensors or .gguf file or a checkpoint folder")


def _open_folder(path: Path) -> WeightsFile:
    is_hf = (path / INDEX_NAME).exists() or (path / "model.safetensors").exists()
    if is_hf or ((path / "config.json").exists() and not (path / "params.json").exists()):
        config = read_json_object(path / "config.json")
        return WeightsFile(path, "hf", SafetensorsReader(path), config)
    if (path / "params.json").exists():
        params = read_json_object(path / "params.json")
        reader = SafetensorsReader(_single(path, "consolidated*.safetensors"))
        return WeightsFile(path, "consolidated", reader, params)
    file = _single(path, "*.gguf")
    return WeightsFile(file, "gguf", GgufFile(file), {})


def _single(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(
            f"{folder}: expected model.safetensors with config.json, params.json with one "
            f"consolidated.safetensors, or one .gguf file; {len(found)} files match {pattern}"
        )
    return found[0]
