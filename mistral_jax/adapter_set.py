"""Several adapters on one base in memory: chosen by name, or added up with weights.

All of a set get one shape and one scale, so that a switch replaces arrays and compiles nothing:
lower ranks are filled up with zeros, other scales go into B, absent modules get an update of zero.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from mistral_jax import adapter_source
from mistral_jax import artifact
from mistral_jax import export
from mistral_jax import sharding
from mistral_jax.adapters import lora
from mistral_jax.adapters import merging
from mistral_jax.config import model as model_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from mistral_jax.models import weights

Opened = tuple[model_config.LowRankAdapter, dict[str, np.ndarray]]


def open_adapters(
    model: artifact.Artifact, adapters: Mapping[str, str | Path]
) -> artifact.Artifact:
    """Return the model with these adapters; the first is in use.

    Args:
        model: a base without adapters.
        adapters: PEFT folders or runs by name; paths or URIs.

    Raises:
        ValueError: the model has adapters, none is given, one is of another base, or the kinds
            differ.
    """
    if model.definition.adapter.kind != "none":
        raise ValueError("the model has adapters already; load its base to put others on it")
    if not adapters:
        raise ValueError("adapters is empty; name at least one: adapters={'name': 'folder'}")
    config = model.definition.config
    # A checkpoint of this machine tells how its files order rotating rows; ours are in pairs.
    is_interleaved = (
        True
        if model.weights_path is None
        else export.has_interleaved_rows(weights.open_reader(model.weights_path))
    )
    base = adapter_source.Base(config, model.weights_path, is_interleaved)
    opened = {name: _open(uri, base) for name, uri in adapters.items()}
    common = _common(opened)
    definition = definition_lib.define(config, adapter=common, runtime=model.definition.runtime)
    shapes = {path: definition.shapes[path].shape for path in definition.trainable_paths()}
    shardings = definition.shardings(sharding.single_device_mesh())
    placed = {
        name: {
            path: jax.device_put(array, shardings[path])
            for path, array in _in_shape(own, common, shapes).items()
        }
        for name, own in opened.items()
    }
    loaded = dataclasses.replace(model, definition=definition, adapters=placed)
    return use(loaded, next(iter(adapters)))


def use(model: artifact.Artifact, name: str) -> artifact.Artifact:
    """Return the model with another of its adapters in use; nothing is copied or compiled.

    Raises:
        ValueError: it has none of this name; the message lists those that it has.
    """
    if name not in model.adapters:
        known = ", ".join(sorted(model.adapters)) or "none"
        raise ValueError(f"the model has no adapter {name!r}; it has: {known}")
    return dataclasses.replace(model, params={**model.params, **model.adapters[name]})


def blend(model: artifact.Artifact, weights: Mapping[str, float]) -> artifact.Artifact:
    """Return the model with the weighted sum of some of its adapters as its only one.

    The sum is exact and its rank is the ranks' together; `save` merges it, or writes it as PEFT.

    Raises:
        ValueError: an unknown name, no weight, a weight that is not finite, or adapters with
            magnitudes, of which there is no sum.
    """
    adapter = model.definition.adapter
    if adapter.kind != "lora":
        raise ValueError(f"a weighted sum is of LoRA adapters; this model has kind {adapter.kind}")
    unknown = sorted(set(weights) - set(model.adapters))
    if unknown or not weights or not all(math.isfinite(weight) for weight in weights.values()):
        raise ValueError(
            f"weights {dict(weights)}: expected a finite number for one or more of "
            f"{', '.join(sorted(model.adapters))}"
        )
    rank = adapter.rank * len(weights)
    # The scale stays what it was, alpha with the rank.
    alpha = adapter.scale * (rank if adapter.scaling == "rank" else math.sqrt(rank))
    summed = adapter.model_copy(update={"rank": rank, "alpha": alpha})
    arrays = merging.weighted_sum(
        [_on_host(model.adapters[name]) for name in weights], list(weights.values())
    )
    old = model.definition
    definition = definition_lib.define(old.config, adapter=summed, runtime=old.runtime)
    shardings = definition.shardings(sharding.single_device_mesh())
    placed = {path: jax.device_put(array, shardings[path]) for path, array in arrays.items()}
    return dataclasses.replace(
        model, definition=definition, params={**model.params, **placed}, adapters={}
    )


def _open(uri: str | Path, base: adapter_source.Base) -> Opened:
    adapter, arrays = adapter_source.open_adapter(adapter_source.find(uri), base)
    if isinstance(arrays, readers.AdapterReader):
        return adapter, {path: arrays.read(path, ()) for path in arrays.paths()}
    return adapter, dict(arrays)


def _on_host(params: definition_lib.Params) -> dict[str, np.ndarray]:
    return {path: np.asarray(value) for path, value in params.items()}


def _common(opened: Mapping[str, Opened]) -> model_config.LowRankAdapter:
    """Return the settings that all of a set get."""
    settings = [adapter for adapter, _ in opened.values()]
    first = settings[0]
    plain = [adapter.model_copy(update={"dropout": 0.0}) for adapter in settings]
    if all(adapter == plain[0] for adapter in plain):
        return plain[0]
    kinds = {name: adapter.kind for name, (adapter, _) in opened.items()}
    modules = {name: set(adapter.target_modules) for name, (adapter, _) in opened.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"adapters of one set are of one kind, got {kinds}; load them apart")
    if first.kind == "dora" and any(own != set(first.target_modules) for own in modules.values()):
        raise ValueError(
            "DoRA adapters of one set have the same target_modules, got "
            f"{ {name: sorted(own) for name, own in modules.items()} }; load them apart"
        )
    known = [*model_config.ALL_TARGET_MODULES, "q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj"]
    rank = max(adapter.rank for adapter in settings)
    wanted = set().union(*modules.values())
    update = {
        "rank": rank,
        "alpha": first.scale * rank,
        "scaling": "rank",
        "dropout": 0.0,
        "target_modules": tuple(module for module in known if module in wanted),
    }
    return first.model_copy(update=update)


def _in_shape(
    own: Opened, common: model_config.LowRankAdapter, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Return an adapter's arrays in the set's shape and scale."""
    adapter, arrays = own
    out = {}
    for path, shape in shapes.items():
        if path not in arrays:
            out[path] = np.zeros(shape, np.float32)
            continue
        out[path] = merging.with_rank(path, arrays[path], common.rank)
        if path.endswith(lora.B):
            out[path] = out[path] * np.float32(adapter.scale / common.scale)
    return out
