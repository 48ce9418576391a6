"""Checkpoints of any supported format into our parameters, tensor by tensor, onto a mesh.

Host memory holds each device's shard of one layer's tensor at a time beside what the devices hold:
a stacked parameter grows on the device, one donated update for each layer (or expert).
"""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jaxtyping import Array
from jaxtyping import Int
from jaxtyping import Shaped

from mistral_jax import precision
from mistral_jax import sharding
from mistral_jax.config import load
from mistral_jax.config import model as model_config
from mistral_jax.formats import detect
from mistral_jax.formats import names
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from mistral_jax.nn import quantised

FLOAT_NAMES = ("float32", "float16", "bfloat16", "F32", "F16", "BF16")


def read_config(path: Path) -> model_config.DecoderConfig:
    """Return the decoder's shape as a checkpoint's header gives it."""
    return config_of(detect.open_weights(path))


def config_of(weights: detect.WeightsFile) -> model_config.DecoderConfig:
    """Return the decoder's shape of an open checkpoint."""
    return load.validate(
        weights.decoder_config(), model_config.DecoderConfig, where=str(weights.path)
    )


def open_reader(path: Path) -> readers.FileReader:
    """Open a checkpoint for streaming."""
    opened = detect.open_weights(path)
    return readers.FileReader(opened, config_of(opened))


def load_params(
    definition: definition_lib.Definition,
    path: Path,
    mesh: Mesh,
    *,
    dtype: str = "float32",
) -> definition_lib.Params:
    """Load every base parameter of a checkpoint.

    Kernels that the definition stores quantised are quantised on the host, one at a time; `dtype`
    is the others'.

    Args:
        definition: the model; its adapters' parameters are not in a base checkpoint.
        path: folder or file.
        mesh: where each shard goes.
        dtype: "float32", "bfloat16", or "checkpoint" for the file's own (block-quantised files
            are stored in the compute dtype).

    Raises:
        ValueError: a tensor is missing, or its shape is not the model's; the message names it.
    """
    source = detect.open_weights(path)
    table = source.entries(definition.config)
    shardings = definition.shardings(mesh)
    params: definition_lib.Params = {}
    quantised_kernels = set(definition.quantised_modules())
    for parameter, entries in _by_path(table).items():
        read = functools.partial(_read, source)
        if parameter in quantised_kernels:
            params |= _place_quantised(read, entries, parameter, definition, shardings)
            continue
        target = _target_dtype(source, entries[0], dtype, definition.runtime.compute_dtype)
        if parameter in names.FLOAT32_PATHS:
            target = np.dtype(np.float32)
        shape = definition.shapes[parameter].shape
        params[parameter] = _place(read, entries, shape, target, shardings[parameter])
    return params


def check(definition: definition_lib.Definition, path: Path) -> None:
    """Check that a checkpoint has every tensor of the model in its shape; reads headers only.

    Raises:
        ValueError: as load_params, before anything else is done.
    """
    detect.open_weights(path).entries(definition.config)


def _by_path(table: list[names.Entry]) -> dict[str, list[names.Entry]]:
    grouped: dict[str, list[names.Entry]] = {}
    for entry in table:
        grouped.setdefault(entry.path, []).append(entry)
    return grouped


def _read(source: detect.WeightsFile, entry: names.Entry) -> Shaped[np.ndarray, "..."]:
    return names.from_foreign(source.tensor(entry.foreign_name), entry)


def _target_dtype(
    source: detect.WeightsFile, entry: names.Entry, dtype: str, compute_dtype: np.dtype
) -> np.dtype:
    if dtype != "checkpoint":
        return precision.dtype_of(dtype)
    name = source.dtype_name(entry.foreign_name)
    if name in FLOAT_NAMES and source.kind != "gguf":
        return precision.dtype_of(name)
    return np.dtype(compute_dtype)


def _place(
    read: Callable[[names.Entry], np.ndarray],
    entries: list[names.Entry],
    shape: tuple[int, ...],
    dtype: np.dtype,
    target: NamedSharding,
) -> Shaped[Array, "..."]:
    if not entries[0].index:
        return _on_devices(read(entries[0]), dtype, target)
    stacked = _zeros(jax.ShapeDtypeStruct(shape, dtype), target)
    for entry in entries:
        part = _on_devices(read(entry), dtype, sharding.of_slice(target, len(entry.index)))
        stacked = _set_part(stacked, part, np.asarray(entry.index, np.int32))
    return stacked


def _place_quantised(
    read: Callable[[names.Entry], np.ndarray],
    entries: list[names.Entry],
    parameter: str,
    definition: definition_lib.Definition,
    shardings: dict[str, NamedSharding],
) -> definition_lib.Params:
    """Return a kernel's codes and scales by path; each layer's (or expert's) weight is apart."""
    kind = definition.frozen_kind
    assert kind is not None
    prefix = f"{parameter}/"
    paths = [path for path in definition.shapes if path.startswith(prefix)]
    placed: definition_lib.Params = {
        path: _zeros(definition.shapes[path], shardings[path]) for path in paths
    }
    for entry in entries:
        kernels = read(entry)
        for inner in np.ndindex(kernels.shape[:-2]):
            index = (*entry.index, *inner)
            found = quantised.from_host(kernels[inner].T, kind, name=f"{parameter} {index}")
            for path in paths:
                array = np.asarray(found[path.removeprefix(prefix)])
                target = sharding.of_slice(shardings[path], len(index))
                part = _on_devices(array, array.dtype, target)
                placed[path] = _set_part(placed[path], part, np.asarray(index, np.int32))
    return placed


def _zeros(shape: jax.ShapeDtypeStruct, target: NamedSharding) -> Shaped[Array, "..."]:
    return _zeros_program(shape, target)()


@functools.lru_cache
def _zeros_program(shape: jax.ShapeDtypeStruct, target: NamedSharding) -> Callable[[], Array]:
    """Return what fills on the devices; layers of one shape share its compilation."""
    return jax.jit(lambda: jnp.zeros(shape.shape, shape.dtype), out_shardings=target)


def _on_devices(
    array: Shaped[np.ndarray, "..."], dtype: np.dtype, target: NamedSharding
) -> Shaped[Array, "..."]:
    """Copy to each device its own shard of a mapped array; the rest of the file is not read."""

    def shard(index: tuple[slice, ...]) -> Shaped[np.ndarray, "..."]:
        # Always a copy: a device buffer must not live on a file that somebody may replace.
        return np.array(array[index], dtype=dtype, order="C")

    return jax.make_array_from_callback(array.shape, target, shard)  # pyright: ignore[reportArgumentType]


@functools.partial(jax.jit, donate_argnums=0)
def _set_part(
    stacked: Shaped[Array, "..."], part: Shaped[Array, "..."], index: Int[Array, " axes"]
) -> Shaped[Array, "..."]:
    """Write a slice at an index on the leading axes."""
    num_axes = index.shape[0]
    starts = [*index, *[0] * (stacked.ndim - num_axes)]
    return jax.lax.dynamic_update_slice(stacked, part[(None,) * num_axes], starts)
