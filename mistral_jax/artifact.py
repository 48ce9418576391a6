"""A model to use, from a checkpoint or a run directory: definition, numbers, tokenizer.

What `generate`, `chat`, `export`, `verify` and the Python API open.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mistral_jax import checkpoint
from mistral_jax import manifest
from mistral_jax import precision
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax import tokenizers
from mistral_jax.config import load
from mistral_jax.config import model as model_config
from mistral_jax.config import run as run_config
from mistral_jax.formats import locate
from mistral_jax.formats.fields import read_json_object
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from mistral_jax.models import weights
from mistral_jax.nn import attention
from mistral_jax.nn import expert_parallel
from mistral_jax.nn import experts
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib

CONFIG_NAME = "config.yaml"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
# What config and weights must agree on; the rest is the config's own (lengths, initialisation).
COMPARED = (
    "num_layers", "width", "num_heads", "num_kv_heads", "head_width", "vocab_size", "ffn",
    "tied_head", "qkv_bias", "attention", "rope", "query_scaling", "norm_epsilon",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A model that is ready to run.

    Attributes:
        definition: its graph; adapters, if any, are part of it.
        params: all of its parameters.
        tokenizer: its tokenizer.
        run: the experiment, where it came from a run directory.
        weights_path: the base checkpoint on disk, or None for a model trained from scratch.
        adapters: further adapters on this base by name; see adapter_set.py.
        directory: the run directory, where it came from one.
    """

    definition: definition_lib.Definition
    params: definition_lib.Params
    tokenizer: tokenizers.Tokenizer
    run: run_config.RunConfig | None
    weights_path: Path | None
    adapters: Mapping[str, definition_lib.Params] = dataclasses.field(default_factory=dict)
    directory: Path | None = None

    def base_digest(self) -> str | None:
        """Return manifest.weights_digest of the files that an adapter's base came from.

        A run recorded it when it began. None: there are no files, or the run has no manifest.
        """
        if self.weights_path is None:
            return None
        if self.directory is not None:
            return recorded_base(self.directory)
        return manifest.weights_digest(self.weights_path)

    def reader(self) -> readers.ParamReader:
        """Return the parameters layer by layer, adapters folded in."""
        config, adapter = self.definition.config, self.definition.adapter
        base: readers.ParamReader = (
            readers.TreeReader(self.params, config)
            if self.weights_path is None or adapter.kind == "none"
            else weights.open_reader(self.weights_path)
        )
        if adapter.kind == "none":
            return base
        arrays = {path: np.asarray(self.params[path]) for path in self.definition.trainable_paths()}
        return readers.MergedReader(base, arrays, adapter)


def is_run(path: Path) -> bool:
    """Tell whether a folder is a run directory."""
    return (path / CONFIG_NAME).is_file() and (path / CHECKPOINTS).is_dir()


def recorded_base(folder: Path) -> str | None:
    """Return manifest.weights_digest of what a run began from; None: no weights, or no manifest."""
    path = folder / MANIFEST
    return read_json_object(path).get("start_checkpoint_digest") if path.is_file() else None


def resolve_decoder(model: model_config.Model) -> model_config.DecoderConfig:
    """Return the shape of a run's model, from the config or from the weights' header.

    Raises:
        ValueError: config and weights disagree; the message names the fields.
    """
    own = run_config.decoder_of(model)
    if model.weights is None:
        if own is None:
            raise ValueError("model.kind checkpoint needs model.weights")
        return own
    found = weights.read_config(locate.headers_path(model.weights))
    if own is None:
        return found
    wrong = manifest.differences(_compared(own), _compared(found))
    if wrong:
        raise ValueError(
            f"the config's model is not the one in {model.weights} (config -> weights): "
            f"{'; '.join(wrong)}; "
            "set these as the weights have them, or take the whole shape from the weights with "
            "model.kind=checkpoint"
        )
    return own


def _compared(config: model_config.DecoderConfig) -> dict[str, Any]:
    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: rounded(inner) for name, inner in value.items()}
        # GGUF keeps its numbers in float32.
        return float(f"{value:.6g}") if isinstance(value, float) else value

    return rounded(config.model_dump(mode="json", include=set(COMPARED)))


def find_tokenizer(run: run_config.RunConfig) -> tokenizers.Tokenizer:
    """Return the run's tokenizer; `auto` is the one beside the weights.

    Raises:
        ValueError: `auto` without weights.
    """
    name = run.data.tokenizer
    if name != "auto":
        return tokenizers.load_tokenizer(name)
    if run.model.weights is None:
        raise ValueError(
            "data.tokenizer: auto is the tokenizer beside model.weights, but there are none; "
            "write data.tokenizer=bytes, mistral-common:v3 or another, or set model.weights"
        )
    return tokenizers.load_tokenizer(locate.local_path(run.model.weights))


def default_runtime(compute: str) -> decoder_lib.Runtime:
    """Return how a model computes on this machine when no plan says otherwise."""
    dtype, platform = precision.dtype_of(compute), jax.default_backend()
    placement = expert_parallel.Placement(
        implementation=experts.choose_implementation("auto", platform, dtype)
    )
    chosen = attention.choose_implementation("auto", platform, dtype)
    return for_prompts(
        decoder_lib.Runtime(compute_dtype=dtype, attention=chosen, experts=placement)
    )


def for_prompts(runtime: decoder_lib.Runtime) -> decoder_lib.Runtime:
    """Return the runtime with an attention that takes prompts of any length, and no overflow."""
    # Splash takes rows in multiples of 128 only.
    chosen = "sdpa" if runtime.attention == "splash" else runtime.attention
    return dataclasses.replace(without_overflow(runtime), attention=chosen)


def without_overflow(runtime: decoder_lib.Runtime) -> decoder_lib.Runtime:
    """Return the runtime with room for every token on every device: nothing is dropped unseen."""
    roomy = dataclasses.replace(runtime.experts, buffer_factor=math.inf)
    return dataclasses.replace(runtime, experts=roomy)


def load_checkpoint(path: Path, *, compute: str = "bfloat16") -> Artifact:
    """Open a checkpoint of any supported format.

    Args:
        path: folder or file.
        compute: number format of weights and activations.
    """
    config = weights.read_config(path)
    definition = definition_lib.define(config, runtime=default_runtime(compute))
    params = weights.load_params(definition, path, sharding.single_device_mesh(), dtype=compute)
    return Artifact(definition, params, tokenizers.load_tokenizer(path), None, path)


def load_run(folder: Path, *, step: int | None = None, compute: str | None = None) -> Artifact:
    """Open a run directory at its best step (by held-out loss), or the newest, or a given one.

    Raises:
        ValueError: it holds no checkpoint, or not this step.
    """
    run = load.load_run(folder / CONFIG_NAME)
    mesh = sharding.single_device_mesh()
    runtime = default_runtime(compute or run.precision.compute)
    config = resolve_decoder(run.model)
    definition = definition_lib.define(
        config, adapter=run.adapter, runtime=runtime, frozen=run.precision.frozen
    )
    state = restore(folder, run, definition, mesh, step=step)
    frozen, path = load_frozen(definition, run, mesh)
    params = frozen | state.params
    if run.adapter.kind == "none":
        path = None
    return Artifact(definition, params, find_tokenizer(run), run, path, directory=folder)


def restore(
    folder: Path,
    run: run_config.RunConfig,
    definition: definition_lib.Definition,
    mesh: Mesh,
    *,
    step: int | None = None,
) -> state_lib.TrainState:
    """Return what trained in a run, at its best step, the newest, or a given one.

    Raises:
        ValueError: it holds no checkpoint, or not this step.
    """
    saved = checkpoint.Checkpointer(folder / CHECKPOINTS, run.checkpoint, is_reader=True)
    try:
        steps = saved.steps()
        chosen = step if step is not None else saved.best_step() or (steps[-1] if steps else None)
        if chosen is None or chosen not in steps:
            raise ValueError(f"{folder}: no checkpoint of step {chosen}; there are: {steps}")
        return saved.restore(abstract_state(definition, run, mesh), chosen).state
    finally:
        saved.close()


def load_frozen(
    definition: definition_lib.Definition, run: run_config.RunConfig, mesh: Mesh
) -> tuple[definition_lib.Params, Path | None]:
    """Load (or draw) the parameters that do not train, and say where they came from."""
    trained = set(definition.trainable_paths())
    if run.model.weights is None:
        path = None
        base = [p for p in definition.shapes if p not in trained]
        params = definition_lib.initialise(definition, rng.seed_key(run.seed), mesh, base)
        return params, path
    path = locate.local_path(run.model.weights)
    if not set(definition.shapes) - trained:
        return {}, path
    # What stands beside quantised kernels stays as the checkpoint has it.
    dtype = "checkpoint" if run.precision.is_quantised else run.precision.frozen
    params = weights.load_params(definition, path, mesh, dtype=dtype)
    return {name: value for name, value in params.items() if name not in trained}, path


def abstract_state(
    definition: definition_lib.Definition, run: run_config.RunConfig, mesh: Mesh
) -> state_lib.TrainState:
    """Return the training state's shapes with their shardings, for a restore."""
    optimizer = optimizers.make_optimizer(run.optimizer)
    shardings = definition.shardings(mesh)
    trained = {path: definition.shapes[path] for path in definition.trainable_paths()}

    def build(params: definition_lib.Params) -> state_lib.TrainState:
        key_data = jax.random.key_data(rng.seed_key(run.seed))
        return state_lib.TrainState(jnp.int32(0), params, optimizer.init(params), key_data)

    abstract = jax.eval_shape(build, trained)
    targets = state_lib.state_shardings(abstract, shardings, mesh)
    return jax.tree.map(
        lambda leaf, target: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=target),
        abstract,
        targets,
    )
