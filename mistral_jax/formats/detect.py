"""Open any supported checkpoint as one thing: names, lazy tensors, and our decoder's fields.

Kinds: `hf` (folder with config.json and safetensors), `gguf` (one file, or a folder with exactly
one), `consolidated` (Mistral's params.json and consolidated*.safetensors). Reads headers only;
a tensor's bytes are touched when `tensor` is called. Of a multimodal checkpoint the text model is
seen, under the names that it has alone, without the layers that predict further tokens; FP8
weights come out multiplied by their scales.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from mistral_jax.formats import gguf_config
from mistral_jax.formats import hf_config
from mistral_jax.formats import names
from mistral_jax.formats import params_config
from mistral_jax.formats import pickles
from mistral_jax.formats.fields import read_json_object
from mistral_jax.formats.gguf_file import GgufFile
from mistral_jax.formats.names import DecoderShape
from mistral_jax.formats.names import Entry
from mistral_jax.formats.safetensors_file import CONSOLIDATED_INDEX_NAME
from mistral_jax.formats.safetensors_file import INDEX_NAME
from mistral_jax.formats.safetensors_file import SafetensorsReader

# Where a checkpoint keeps its text model: alone, or inside a multimodal one (old and new names).
_TEXT_PREFIXES = (
    ("model.", "lm_head.weight"),
    ("language_model.model.", "language_model.lm_head.weight"),
    ("model.language_model.", "lm_head.weight"),
)
FP8_BLOCK = 128
# What a mixture has where its fields are silent; the config's own defaults.
_FFN = {
    "num_groups": 1, "router": {"kind": "softmax"}, "weights_scale": 1.0, "is_normalised": True,
    "num_shared_experts": 0, "num_dense_layers": 0, "dense_width": None,
}  # fmt: skip


class WeightsFile:
    """A checkpoint that is open for reading.

    Attributes:
        path: the folder or file that was asked for.
        kind: the format, as `names.entries` spells it: hf, gguf or consolidated.
        hf_config: the content of config.json (or params.json); empty for GGUF.
        metadata: the file's own metadata (all of a GGUF's, the header's of safetensors).
        left_out: tensors beside the text model: towers, projectors, layers for multi-token
            prediction, scales of activations.
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
        stored = reader.names()
        self._stored = (
            _without_prediction_layers(_text_names(stored), config)
            if kind == "hf"
            else {name: name for name in stored}
        )
        scales = _scale_names(self._stored)
        self._scales = {name: scale for name, scale in scales.items() if self._is_fp8(name)}
        used = set(self._scales.values())
        self._stored = {own: name for own, name in self._stored.items() if name not in used}
        self.left_out = sorted(
            name for name in stored if name not in used and name not in self._stored.values()
        )

    def names(self) -> list[str]:
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, outermost axis first.

        Raises:
            ValueError: the file has no such tensor; the message names both.
        """
        return self._reader.shape(self._stored.get(name, name))

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor: a mapped view for safetensors, dequantised float32 for GGUF.

        FP8 weights come in bfloat16, multiplied by their scale.

        Raises:
            ValueError: the file has no such tensor, or an FP8 weight no scale that fits it.
        """
        array = self._reader.tensor(self._stored.get(name, name))
        if not self._is_fp8(name):
            return array
        if name not in self._scales:
            raise ValueError(f"{self.path}: tensor {name!r} is FP8 and has no scale beside it")
        scale = np.asarray(self._reader.tensor(self._scales[name]), np.float32)
        return _scaled(array, scale, f"{self.path}: tensor {name!r}")

    def dtype_name(self, name: str) -> str:
        """Return the dtype of `tensor`, or how a GGUF stores it: bfloat16, Q4_1."""
        if isinstance(self._reader, GgufFile):
            return self._reader.info(name).block.name
        if self._is_fp8(name):
            return "bfloat16"
        return self._reader.info(self._stored.get(name, name)).dtype.name

    def _is_fp8(self, name: str) -> bool:
        if isinstance(self._reader, GgufFile):
            return False
        stored = self._stored.get(name)
        return stored is not None and self._reader.info(stored).dtype == ml_dtypes.float8_e4m3fn

    def decoder_config(self) -> dict[str, Any]:
        """Return our decoder's fields as plain data.

        Raises:
            ValueError: an architecture or option that our decoder does not compute, or more
                layers or experts than there are tensors.
        """
        decoder = self._decoder_config()
        # Checked here, before anything is listed layer by layer: headers may claim any number.
        counts = {"layers": decoder["num_layers"]}
        if not self._has_stacked_experts():
            counts["experts"] = decoder["ffn"].get("num_experts", 1)
        for what, count in counts.items():
            if count > len(self._stored):
                raise ValueError(
                    f"{self.path}: its config tells of {count} {what}, but it holds only "
                    f"{len(self._stored)} tensors; the checkpoint is incomplete or its config is "
                    f"another model's"
                )
        return decoder

    def _has_stacked_experts(self) -> bool:
        """Tell whether a tensor holds all experts of a layer, as in GGUF and mistral4."""
        return self.kind == "gguf" or any(n.endswith(".experts.down_proj") for n in self._stored)

    def _decoder_config(self) -> dict[str, Any]:
        if isinstance(self._reader, GgufFile):
            shapes = {name: info.shape for name, info in self._reader.tensors.items()}
            return gguf_config.decoder_from_gguf(self.metadata, shapes, self.path)
        present = set(self.names())
        if self.kind == "consolidated":
            has_head = "output.weight" in present
            return params_config.decoder_from_params(
                self.hf_config, self.path / "params.json", has_head=has_head
            )
        has_head = "lm_head.weight" in present
        return hf_config.decoder_from_hf(self.hf_config, self._config_path(), has_head=has_head)

    def _config_path(self) -> Path:
        return (self.path if self.path.is_dir() else self.path.parent) / "config.json"

    def entries(self, shape: DecoderShape | None = None) -> list[Entry]:
        """Return the tensors that a decoder needs, each checked to be there in its shape.

        Args:
            shape: the decoder's sizes; the file's own config where it is None.

        Raises:
            ValueError: a tensor is missing or has another shape; the message names the tensor,
                the expected and the found shape.
        """
        shape = decoder_shape(self.decoder_config()) if shape is None else shape
        table = names.entries(shape, self.kind, is_interleaved=self.is_interleaved())
        present = set(self.names())
        for entry in table:
            if entry.foreign_name not in present:
                raise ValueError(
                    f"{self.path}: tensor {entry.foreign_name!r} of shape {entry.shape} is "
                    f"missing; the checkpoint is incomplete, or its config is another model's"
                )
            if (found := self.shape(entry.foreign_name)) != entry.shape:
                raise ValueError(
                    f"{self.path}: tensor {entry.foreign_name!r} has shape {found}, but the "
                    f"model's config asks for {entry.shape}; give the config and the weights of "
                    f"one model"
                )
        return table

    def is_interleaved(self) -> bool:
        """Tell whether latent attention's rotating rows lie in pairs; see `names.entries`."""
        if self.kind != "hf":
            return True
        return hf_config.is_interleaved(self.hf_config, self._config_path())


def _without_prediction_layers(
    stored: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, str]:
    """Leave out the layers behind the last, with which DeepSeek-V3 guesses further tokens."""
    text = config.get("text_config", config)
    depth = text.get("num_hidden_layers") if isinstance(text, dict) else None
    if type(depth) is not int or not text.get("num_nextn_predict_layers"):
        return dict(stored)
    found = {}
    for name, place in stored.items():
        layer = name.removeprefix("model.layers.").partition(".")[0]
        is_layer = name.startswith("model.layers.") and layer.isdecimal() and len(layer) < 10
        if not (is_layer and int(layer) >= depth):
            found[name] = place
    return found


def _text_names(stored: list[str]) -> dict[str, str]:
    """Map the text model's names to those in the file; a multimodal model nests them."""
    for prefix, head in _TEXT_PREFIXES:
        if f"{prefix}embed_tokens.weight" not in stored:
            continue
        found = {
            "model." + name.removeprefix(prefix): name for name in stored if name.startswith(prefix)
        }
        if head in stored:
            found["lm_head.weight"] = head
        return found
    return {name: name for name in stored}


def _scale_names(stored: Mapping[str, str]) -> dict[str, str]:
    """Map each weight to its scale's stored name, in either layout's spelling."""
    found = {}
    for name in stored:
        stem = name.removesuffix("weight")
        for spelling in (f"{name}_scale_inv", f"{name}_scale", f"{stem}qscale_weight"):
            if spelling != name and spelling in stored:
                found[name] = stored[spelling]
    return found


def _scaled(array: np.ndarray, scale: np.ndarray, where: str) -> np.ndarray:
    """Return an FP8 matrix times its scale: one number, or one for each block of the matrix.

    Raises:
        ValueError: the blocks do not cover the matrix.
    """
    if array.ndim == 3 and scale.shape[:1] == array.shape[:1]:  # a layer's experts, one by one
        scales = scale.reshape(len(array), *(scale.shape[1:] or (1,)))
        return np.stack([_scaled(one, own, where) for one, own in zip(array, scales, strict=True)])
    wide = array.astype(np.float32)
    if scale.size == 1:
        return (wide * scale.reshape(())).astype(ml_dtypes.bfloat16)
    if scale.ndim != 2 or array.ndim != 2 or any(np.array(scale.shape) > array.shape):
        raise ValueError(f"{where} of shape {array.shape} has a scale of shape {scale.shape}")
    for axis, (size, count) in enumerate(zip(array.shape, scale.shape, strict=True)):
        # Blocks of 128, of which the last may be cut; else the matrix in equal parts.
        block = FP8_BLOCK if -(-size // FP8_BLOCK) == count else -(-size // count)
        scale = np.repeat(scale, block, axis=axis)
    return (wide * scale[: array.shape[0], : array.shape[1]]).astype(ml_dtypes.bfloat16)


def decoder_shape(decoder: Mapping[str, Any]) -> DecoderShape:
    """Give plain decoder fields the attributes that the name tables read."""
    ffn = SimpleNamespace(**{**_FFN, **decoder["ffn"]})
    ffn.router = SimpleNamespace(**ffn.router)
    attention = SimpleNamespace(
        **{"query_rank": None, **decoder.get("attention", {"kind": "full"})}
    )
    shape: Any = SimpleNamespace(**{**decoder, "ffn": ffn, "attention": attention})
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
    if pickles.find([path.name]):
        _refuse_pickles(path.parent, [path.name])
    raise ValueError(f"{path}: expected a .safetensors or .gguf file or a checkpoint folder")


def _open_folder(path: Path) -> WeightsFile:
    if not any(any(path.glob(f"*.{kind}")) for kind in ("safetensors", "gguf")):
        _refuse_pickles(path, [file.name for file in path.iterdir()])
    is_hf = (path / INDEX_NAME).exists() or (path / "model.safetensors").exists()
    if is_hf or ((path / "config.json").exists() and not (path / "params.json").exists()):
        config = read_json_object(path / "config.json")
        return WeightsFile(path, "hf", SafetensorsReader(path), config)
    if (path / "params.json").exists():
        params = read_json_object(path / "params.json")
        has_shards = (path / CONSOLIDATED_INDEX_NAME).exists()
        reader = (
            SafetensorsReader(path, index_name=CONSOLIDATED_INDEX_NAME)
            if has_shards
            else SafetensorsReader(_single(path, "consolidated*.safetensors"))
        )
        return WeightsFile(path, "consolidated", reader, params)
    file = _single(path, "*.gguf")
    return WeightsFile(file, "gguf", GgufFile(file), {})


def _refuse_pickles(folder: Path, file_names: list[str]) -> None:
    if found := pickles.find(file_names):
        is_transformers = (folder / "config.json").is_file()
        raise ValueError(pickles.refusal(str(folder), found[0], is_transformers=is_transformers))


def _single(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(
            f"{folder}: expected model.safetensors with config.json, params.json with one "
            f"consolidated.safetensors, or one .gguf file; {len(found)} files match {pattern}"
        )
    return found[0]
