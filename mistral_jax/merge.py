"""An adapter folded into its base: a PEFT folder or a run, to Hugging Face safetensors.

Streams from file to file, one tensor of one layer at a time: the host needs a few layers of the
model, not the model. The base of a QLoRA run is what its files have, not what it was quantised to.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from mistral_jax import adapter_source
from mistral_jax import artifact
from mistral_jax import convert
from mistral_jax import export
from mistral_jax.config import load
from mistral_jax.formats import locate
from mistral_jax.formats import names
from mistral_jax.formats import peft
from mistral_jax.models import readers
from mistral_jax.models import streamed
from mistral_jax.models import weights


def merge(
    adapter: str | Path,
    destination: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str = "checkpoint",
) -> export.Exported:
    """Write the base with an adapter folded in, and measure what the rounding lost.

    Args:
        adapter: a PEFT folder or a run directory, on this machine, in s3:// or gs://.
        destination: a folder, likewise.
        base: the base's weights; None is what the adapter names.
        dtype: float32, float16, bfloat16, or "checkpoint" for the base's own.

    Returns:
        What was written; the logit difference is against the base with the adapter beside it.

    Raises:
        ValueError: no base is known, or the adapter is another base's; both are named.
    """
    folder = adapter_source.find(adapter)
    weights_path = locate.local_path(_named_base(folder) if base is None else base)
    reader = weights.open_reader(weights_path)
    settings, arrays = adapter_source.open_adapter(
        folder,
        adapter_source.Base(reader.config, weights_path, export.has_interleaved_rows(reader)),
    )
    if dtype == "checkpoint":
        stored = np.dtype(reader.dtype("embed/embedding")).name
        is_gguf = weights.detect.open_weights(weights_path).kind == "gguf"
        dtype = "bfloat16" if is_gguf or stored not in export.DTYPES else stored
    beside = _Beside(reader, arrays)
    expected = streamed.logits(
        beside, reader.config, export.parity_tokens(reader.config), settings
    )[0]
    return convert.write_and_check(
        readers.MergedReader(reader, arrays, settings),
        destination,
        "hf",
        dtype,
        convert.tokenizer_of(weights_path, reader),
        locate.short_name(str(adapter)),
        expected,
    )


class _Beside:
    """A base and its adapter, each read from where it is."""

    def __init__(self, base: readers.FileReader, arrays: adapter_source.Arrays) -> None:
        self.config = base.config
        self._base, self._arrays = base, arrays

    def read(self, path: str, index: names.Index) -> Shaped[np.ndarray, "..."]:
        """Return one slice; see ParamReader."""
        if path not in self._arrays:
            return self._base.read(path, index)
        if isinstance(self._arrays, readers.AdapterReader):
            return self._arrays.read(path, index)
        return self._arrays[path][index]

    def dtype(self, path: str) -> np.dtype:
        """Return the dtype that `read` gives."""
        return np.dtype(np.float32) if path in self._arrays else self._base.dtype(path)


def _named_base(folder: Path) -> str:
    """Return the base that an adapter names, where it can be found."""
    if artifact.is_run(folder):
        uri = load.load_run(folder / artifact.CONFIG_NAME).model.weights
        if uri is None:
            raise ValueError(f"{folder}: this run began without weights; export it as hf")
        return uri
    uri = peft.AdapterFile(folder).settings.base_model
    if uri and (locate.scheme_of(uri) is not None or Path(uri).exists()):
        return uri
    named = f"its base {uri!r} is not here" if uri else "it names no base"
    hint = f", or --base hf://{uri}" if uri.count("/") == 1 else ""
    raise ValueError(f"{folder}: {named}; give the base's weights with --base PATH{hint}")
