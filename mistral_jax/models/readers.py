"""One slice of one parameter at a time, in our layout, from wherever the numbers are.

Export, merge and verify go through a reader, so that host memory holds one layer's tensor (or one
expert's) and not the model. NumPy only.
"""

from collections.abc import Mapping
from typing import Protocol
from typing import runtime_checkable

import numpy as np
from jaxtyping import Array
from jaxtyping import Shaped

from mistral_jax.adapters import lora
from mistral_jax.config import model as model_config
from mistral_jax.formats import detect
from mistral_jax.formats import names


@runtime_checkable
class ParamReader(Protocol):
    """Where an export takes its numbers from."""

    config: model_config.DecoderConfig

    def read(self, path: str, index: names.Index) -> Shaped[np.ndarray, "..."]:
        """Return a parameter's slice: (layer,), (layer, group, expert), or () for the whole."""
        ...

    def dtype(self, path: str) -> np.dtype:
        """Return the dtype that `read` gives."""
        ...


class FileReader:
    """Parameters of a checkpoint file or folder.

    Raises:
        ValueError: a tensor is missing or has another shape than the config says; it is named.
    """

    def __init__(self, weights: detect.WeightsFile, config: model_config.DecoderConfig) -> None:
        self.config = config
        self._weights = weights
        self._entries: dict[str, dict[names.Index, names.Entry]] = {}
        for entry in weights.entries():
            self._entries.setdefault(entry.path, {})[entry.index] = entry
        # The last tensor that holds more than was asked for: a layer's experts in one.
        self._kept: tuple[names.Entry, np.ndarray] | None = None

    @property
    def is_interleaved(self) -> bool:
        """Whether the file keeps latent attention's rotating rows in pairs."""
        return self._weights.is_interleaved()

    def read(self, path: str, index: names.Index) -> Shaped[np.ndarray, "..."]:
        """Return one slice; see ParamReader. The file may hold it whole, in parts or in a stack."""
        entries = self._entries[path]
        if index in entries:
            return self._read(entries[index])
        for length in range(len(index)):
            if index[:length] in entries:
                return self._read_kept(entries[index[:length]])[index[length:]]
        parts = {own: entry for own, entry in entries.items() if own[: len(index)] == index}
        inner = [own[len(index) :] for own in parts]
        first = self._read(next(iter(parts.values())))
        counts = tuple(max(axis) + 1 for axis in zip(*inner, strict=True))
        whole = np.empty((*counts, *first.shape), first.dtype)
        for place, entry in zip(inner, parts.values(), strict=True):
            whole[place] = self._read(entry)
        return whole

    def _read(self, entry: names.Entry) -> Shaped[np.ndarray, "..."]:
        return names.from_foreign(self._weights.tensor(entry.foreign_name), entry)

    def _read_kept(self, entry: names.Entry) -> Shaped[np.ndarray, "..."]:
        if self._kept is None or self._kept[0] != entry:
            self._kept = (entry, self._read(entry))
        return self._kept[1]

    def foreign_name(self, path: str) -> str:
        """Return what the file calls a parameter, or the first of its parts."""
        return next(iter(self._entries[path].values())).foreign_name

    def dtype(self, path: str) -> np.dtype:
        """Return the dtype that `read` gives (float32 for quantised files)."""
        if self._weights.kind == "gguf":
            return np.dtype(np.float32)
        entry = next(iter(self._entries[path].values()))
        return self._weights.tensor(entry.foreign_name).dtype


class TreeReader:
    """Parameters that are in memory, on devices or not."""

    def __init__(self, params: Mapping[str, Shaped[Array | np.ndarray, "..."]],
                 config: model_config.DecoderConfig) -> None:  # fmt: skip
        self.config = config
        self._params = params

    def read(self, path: str, index: names.Index) -> Shaped[np.ndarray, "..."]:
        """Return one slice; see ParamReader."""
        return np.asarray(self._params[path][index])

    def dtype(self, path: str) -> np.dtype:
        """Return the dtype that `read` gives."""
        return np.dtype(self._params[path].dtype)


class MergedReader:
    """A base with LoRA adapters folded in, one layer at a time."""

    def __init__(
        self,
        base: ParamReader,
        adapters: Mapping[str, Shaped[np.ndarray, "..."]],
        scale: float,
    ) -> None:
        self.config = base.config
        self._base = base
        self._adapters = adapters
        self._scale = scale

    def read(self, path: str, index: names.Index) -> Shaped[np.ndarray, "..."]:
        """Return one slice; see ParamReader."""
        value = self._base.read(path, index)
        prefix = path.removesuffix("kernel")
        if not path.endswith("/kernel") or f"{prefix}lora_a" not in self._adapters:
            return value
        lora_a, lora_b = (
            np.asarray(self._adapters[f"{prefix}{name}"][index]) for name in lora.ADAPTER_NAMES
        )
        return lora.merged(value, lora_a, lora_b, self._scale)

    def dtype(self, path: str) -> np.dtype:
        """Return the dtype that `read` gives."""
        return self._base.dtype(path)
