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
from mistral_jax.adapters import merging
from mistral_jax.config import model as model_config
from mistral_jax.formats import detect
from mistral_jax.formats import names
from mistral_jax.formats import peft
from mistral_jax.nn import quantised


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

    def __init__(
        self,
        weights: detect.WeightsFile | peft.AdapterFile,
        config: model_config.DecoderConfig,
        entries: list[names.Entry] | None = None,
    ) -> None:
        self.config = config
        self._weights = weights
        self._entries: dict[str, dict[names.Index, names.Entry]] = {}
        if entries is None:
            assert isinstance(weights, detect.WeightsFile)  # an adapter's need its base's shape
            entries = weights.entries()
        for entry in entries:
            self._entries.setdefault(entry.path, {})[entry.index] = entry
        # The last tensor that holds more than was asked for: a layer's experts in one.
        self._kept: tuple[names.Entry, np.ndarray] | None = None

    @property
    def is_interleaved(self) -> bool:
        """Whether the file keeps latent attention's rotating rows in pairs."""
        assert isinstance(self._weights, detect.WeightsFile)
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
        """Return one slice; see ParamReader. A quantised kernel is dequantised."""
        if path in self._params:
            return np.asarray(self._params[path][index])
        prefix = f"{path}/"
        own = {name: value for name, value in self._params.items() if name.startswith(prefix)}
        return quantised.to_host(
            {name.removeprefix(prefix): np.asarray(value[index]) for name, value in own.items()}
        )

    def dtype(self, path: str) -> np.dtype:
        """Return the dtype that `read` gives (float32 for quantised kernels)."""
        return np.dtype(self._params[path].dtype if path in self._params else np.float32)


class AdapterReader(FileReader):
    """The parameters of an adapter's file, for a decoder.

    Raises:
        ValueError: a tensor is missing, unexpected or has another shape than this decoder's.
    """

    def __init__(
        self, file: peft.AdapterFile, config: model_config.DecoderConfig, *, is_interleaved: bool
    ) -> None:
        super().__init__(file, config, file.entries(config, is_interleaved=is_interleaved))

    def read(self, path: str, index: names.Index) -> Shaped[np.ndarray, "..."]:
        """Return one slice; see ParamReader."""
        return np.asarray(super().read(path, index), np.float32)

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def paths(self) -> list[str]:
        """Return the paths of its parameters."""
        return list(self._entries)


class MergedReader:
    """A base with its adapters folded in, one layer at a time.

    Attributes:
        config: the base's.
    """

    def __init__(
        self,
        base: ParamReader,
        adapters: Mapping[str, Shaped[np.ndarray, "..."]] | AdapterReader,
        adapter: model_config.LowRankAdapter,
    ) -> None:
        self.config = base.config
        self._base = base
        self._adapters = adapters
        self._scale = adapter.scale

    def read(self, path: str, index: names.Index) -> Shaped[np.ndarray, "..."]:
        """Return one slice; see ParamReader."""
        value = self._base.read(path, index)
        prefix = path.removesuffix("kernel")
        if not path.endswith("/kernel") or f"{prefix}{lora.A}" not in self._adapters:
            return value
        lora_a, lora_b, magnitude = (
            self._part(f"{prefix}{name}", index) for name in lora.ADAPTER_NAMES
        )
        assert lora_a is not None and lora_b is not None
        return merging.merged(value, lora_a, lora_b, self._scale, magnitude)

    def _part(self, path: str, index: names.Index) -> Shaped[np.ndarray, "..."] | None:
        if path not in self._adapters:
            return None
        if isinstance(self._adapters, AdapterReader):
            return self._adapters.read(path, index)
        return np.asarray(self._adapters[path][index])

    def dtype(self, path: str) -> np.dtype:
        """Return the dtype that `read` gives."""
        return self._base.dtype(path)
