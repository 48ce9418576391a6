"""An adapter folded into its base: a PEFT folder or a run, to Hugging Face safetensors.

Streams from file to file, one tensor of one layer at a time: the host needs a few layers of the
model, not the model. The base of a QLoRA run is what its files have, not what it was quantised to.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from mistral_jax import artifact
from mistral_jax import convert
from mistral_jax import export
from mistral_jax import manifest
from mistral_jax import run_directory
from mistral_jax import sharding
from mistral_jax.config import load
from mistral_jax.config import model as model_config
from mistral_jax.formats import locate
from mistral_jax.formats import names
from mistral_jax.formats import peft
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from mistral_jax.models import streamed
from mistral_jax.models import weights

Arrays = Mapping[str, np.ndarray] | readers.AdapterReader


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
    path = locate.local_path(str(adapter))
    if artifact.is_run(path):
        settings, arrays, reader, weights_path = _open_run(path, base)
    else:
        settings, arrays, reader, weights_path = _open_folder(path, base)
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

    def __init__(self, base: readers.FileReader, arrays: Arrays) -> None:
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


def _open_folder(
    folder: Path, base: str | Path | None
) -> tuple[model_config.LowRankAdapter, readers.AdapterReader, readers.FileReader, Path]:
    """Open a PEFT folder and its base."""
    settings = peft.AdapterFile(folder).settings
    uri = str(base if base is not None else settings.base_model)
    is_found = uri and (locate.scheme_of(uri) is not None or Path(uri).exists())
    if base is None and not is_found:
        named = f"its base {uri!r} is not here" if uri else "it names no base"
        hint = f", or --base hf://{uri}" if uri.count("/") == 1 else ""
        raise ValueError(f"{folder}: {named}; give the base's weights with --base PATH{hint}")
    path = locate.local_path(uri)
    reader = weights.open_reader(path)
    try:
        adapter, arrays = export.open_adapter(
            folder, reader.config, is_interleaved=export.has_interleaved_rows(reader)
        )
    except ValueError as error:
        raise ValueError(f"the adapter {folder} does not fit the base {path}: {error}") from error
    _check_digest(folder, settings.base_digest, path)
    return adapter, arrays, reader, path


def _open_run(
    folder: Path, base: str | Path | None
) -> tuple[model_config.LowRankAdapter, dict[str, np.ndarray], readers.FileReader, Path]:
    """Open a run's best adapter and its base."""
    run = load.load_run(folder / artifact.CONFIG_NAME)
    adapter = run.adapter
    if adapter.kind == "none":
        raise ValueError(f"{folder}: this run has no adapter; export it as hf")
    uri = base if base is not None else run.model.weights
    if uri is None:
        raise ValueError(f"{folder}: this run began without weights; export it as hf")
    path = locate.local_path(str(uri))
    reader = weights.open_reader(path)
    definition = definition_lib.define(artifact.resolve_decoder(run.model), adapter=adapter)
    fitting = definition_lib.define(reader.config, adapter=adapter)
    for name in definition.trainable_paths():
        wanted, found = definition.shapes[name].shape, fitting.shapes.get(name)
        if found is None or wanted != found.shape:
            room = "no such projection" if found is None else f"room for {found.shape}"
            raise ValueError(
                f"the adapter of {folder} does not fit the base {path}: {name} is {wanted}, the "
                f"base has {room}; merge it into {run.model.weights}"
            )
    _check_digest(folder, run_directory.recorded_base(folder), path)
    state = artifact.restore(folder, run, definition, sharding.single_device_mesh())
    arrays = {name: np.asarray(value) for name, value in state.params.items()}
    return adapter, arrays, reader, path


def _check_digest(adapter: Path, recorded: str | None, base: Path) -> None:
    """Refuse a base whose weight files are not those that the adapter was trained on."""
    if recorded is None:
        return
    found = manifest.weights_digest(base)
    if found != recorded:
        raise ValueError(
            f"the adapter {adapter} was trained on a base whose files are {recorded}, but {base} "
            f"has {found}; merge it into the base that it was trained on"
        )
