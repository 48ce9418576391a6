"""One layer of one parameter at a time, in our layout, from wherever the numbers are.

Export, merge and verify go through a reader, so that host memory holds one layer's tensor and
not the model. NumPy only.
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

    def read(self, path: str, layer: int | None) -> Shaped[np.ndarray, "..."]:
        """Return one parameter: of one layer, or whole where `layer` is None."""
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
        self._entries = {(entry.path, entry.layer): entry for entry in weights.entries()}

    def read(self, path: str, layer: int | None) -> Shaped[np.ndarray, "..."]:
        """Return one parameter; see ParamReader."""
        entry = self._entries[path, layer]
        return names.from_foreign(self._weights.tensor(entry.foreign_name), entry)

    def dtype(self, path: str) -> np.dtype:
        """Return the dtype that `read` gives (float32 for quantised files)."""
        entry = next(entry for (name, _), entry in self._entries.items() if name == path)
        if self._weights.kind == "gguf":
            return np.dtype(np.float32)
        return self._weights.tensor(entry.foreign_name).dtype


class TreeReader:
    """Parameters that are in memory, on devices or not."""

    def __init__(self, params: Mapping[str, Shaped[Array | np.ndarray, "..."]],
                 config: model_config.DecoderConfig) -> None:  # fmt: skip
        self.config = config
        self._params = params

    def read(self, path: str, layer: int | None) -> Shaped[np.ndarray, "..."]:
        """Return one parameter; see ParamReader."""
        value = self._params[path]
        return np.asarray(value if layer is None else value[layer])

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

    def read(self, path: str, layer: int | None) -> Shaped[np.ndarray, "..."]:
        """Return one parameter; see ParamReader."""
        value = self._base.read(path, layer)
        prefix = path.removesuffix("kernel")
        if not path.endswith("/kernel") or f"{prefix}lora_a" not in self._adapters:
            return value
        lora_a, lora_b = (
            np.asarray(self._adapters[f"{prefix}{name}"][layer]) for name in lora.ADAPTER_NAMES
        )
        return lora.merged(value, lora_a, lora_b, self._scale)

    def dtype(self, path: str) -> np.dtype:
        """Return the dtype that `read` gives."""
        return self._base.dtype(path)
