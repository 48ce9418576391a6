"""An adapter where it lies, a PEFT folder or a run, opened for one base.

Finds it, and refuses it where it is another base's: its shapes must be the base's, and the digest
of the base's files the one that the adapter recorded. Puts nothing together: see merge.py (into the
base's files) and adapter_set.py (beside the base in memory).
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mistral_jax import artifact
from mistral_jax import export
from mistral_jax import manifest
from mistral_jax import sharding
from mistral_jax.config import load
from mistral_jax.config import model as model_config
from mistral_jax.formats import locate
from mistral_jax.formats import peft
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers

Arrays = Mapping[str, np.ndarray] | readers.AdapterReader
PLACES = "a PEFT folder or a run directory, on this machine, in hf://, s3:// or gs://"


@dataclasses.dataclass(frozen=True)
class Base:
    """What an adapter is to go on.

    Attributes:
        config: its shape.
        files: its weights on disk, or None for what a run trained whole.
        is_interleaved: export.has_interleaved_rows of it.
    """

    config: model_config.DecoderConfig
    files: Path | None
    is_interleaved: bool

    @functools.cached_property
    def digest(self) -> str | None:
        """manifest.weights_digest; reads all of the files."""
        return manifest.weights_digest(self.files)

    def __str__(self) -> str:
        return "that a run trained whole" if self.files is None else str(self.files)


def find(uri: str | Path) -> Path:
    """Return the local folder of an adapter; one that is far away is fetched.

    Raises:
        ValueError: neither a PEFT adapter nor a run is there.
        OSError: a store or the Hub does not answer.
    """
    text = str(uri)
    if locate.scheme_of(text) is None and not Path(text).expanduser().exists():
        raise ValueError(f"adapter {text!r}: no such folder; expected {PLACES}")
    folder = locate.local_path(text)
    if not artifact.is_run(folder) and not (folder / peft.CONFIG_NAME).is_file():
        raise ValueError(
            f"adapter {text!r}: neither {peft.CONFIG_NAME} nor a run is there; expected {PLACES}"
        )
    return folder


def open_adapter(folder: Path, base: Base) -> tuple[model_config.LowRankAdapter, Arrays]:
    """Return an adapter's settings and its arrays; a run's are those of its best step.

    Raises:
        ValueError: it is another base's; both are named.
    """
    if artifact.is_run(folder):
        return _open_run(folder, base)
    recorded = peft.AdapterFile(folder).settings.base_digest
    try:
        adapter, arrays = export.open_adapter(
            folder, base.config, is_interleaved=base.is_interleaved
        )
    except ValueError as error:
        raise ValueError(f"the adapter {folder} does not fit the base {base}: {error}") from error
    _check_digest(folder, recorded, base)
    return adapter, arrays


def _open_run(
    folder: Path, base: Base
) -> tuple[model_config.LowRankAdapter, dict[str, np.ndarray]]:
    run = load.load_run(folder / artifact.CONFIG_NAME)
    adapter = run.adapter
    if adapter.kind == "none":
        raise ValueError(f"{folder}: this run has no adapter; export it as hf")
    definition = definition_lib.define(artifact.resolve_decoder(run.model), adapter=adapter)
    fitting = definition_lib.define(base.config, adapter=adapter)
    for name in definition.trainable_paths():
        wanted, found = definition.shapes[name].shape, fitting.shapes.get(name)
        if found is None or wanted != found.shape:
            room = "no such projection" if found is None else f"room for {found.shape}"
            raise ValueError(
                f"the adapter of {folder} does not fit the base {base}: {name} is {wanted}, the "
                f"base has {room}; its base is {run.model.weights}"
            )
    if run.model.weights is None:
        raise ValueError(
            f"{folder}: this run began without weights, so that its adapter goes on no base; "
            "export the run as hf"
        )
    _check_digest(folder, artifact.recorded_base(folder), base)
    state = artifact.restore(folder, run, definition, sharding.single_device_mesh())
    return adapter, {name: np.asarray(value) for name, value in state.params.items()}


def _check_digest(adapter: Path, recorded: str | None, base: Base) -> None:
    """Refuse a base whose weight files are not those that the adapter was trained on."""
    if recorded is None or base.digest == recorded:
        return
    found = "has none" if base.files is None else f"has {base.digest}"
    raise ValueError(
        f"the adapter {adapter} was trained on a base whose files are {recorded}, but the base "
        f"{base} {found}; use it with the base that it was trained on"
    )
