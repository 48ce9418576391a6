"""A model without its numbers: the graph, every parameter's shape and logical axes.

Parameters travel as a flat dict from path ("layers/attention/q_proj/kernel") to array: easy to
split into trained and frozen, to shard, to digest and to name in a message.
"""

import dataclasses

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jaxtyping import Array
from jaxtyping import PRNGKeyArray
from jaxtyping import Shaped

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.adapters import attach
from mistral_jax.adapters import lora
from mistral_jax.config import model as model_config
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.nn import quantised

Params = dict[str, Shaped[Array, "..."]]
# Parameters with a leading layer axis; the first are a mixture's dense first layers.
STACKED_PREFIXES = ("dense_layers/", "layers/")


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: a static jit argument
class Definition:
    """What is known of a model before any number exists.

    Attributes:
        config: the decoder's shape.
        adapter: the adapter's configuration.
        runtime: how it computes.
        graph: the static half of `nnx.split`.
        shapes: abstract arrays by path: float32, or the codes and scales of a quantised kernel.
        axes: logical axes by path, the stacked `layer` axis included.
        frozen_kind: how the projections of an adapter's base are stored, or None.
    """

    config: model_config.DecoderConfig
    adapter: model_config.Adapter
    runtime: decoder_lib.Runtime
    graph: nnx.GraphDef
    shapes: dict[str, jax.ShapeDtypeStruct]
    axes: dict[str, tuple[str | None, ...]]
    frozen_kind: quantised.Kind | None = None

    def bind(self, params: Params) -> decoder_lib.Decoder:
        """Return the decoder with these numbers; inside jit this costs nothing at run time."""
        nested: dict = {}
        for path, value in params.items():
            node = nested
            *parents, last = path.split("/")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        return nnx.merge(self.graph, nnx.State(nested))

    def trainable_paths(self) -> list[str]:
        """Return the paths that train: the adapters' where there are any, else all."""
        if self.adapter.kind == "none":
            return list(self.shapes)
        return [path for path in self.shapes if lora.is_adapter_path(path)]

    def num_parameters(self, paths: list[str] | None = None) -> int:
        """Return how many of the model's weights these paths hold, or all of them."""
        chosen = self.shapes if paths is None else paths
        return sum(
            quantised.num_weights(path, self.shapes[path].shape, self.shapes[path].dtype)
            for path in chosen
        )

    def quantised_modules(self) -> list[str]:
        """Return the paths of kernels that are stored quantised, ".../kernel"."""
        suffix = "/kernel/codes"
        return [path.removesuffix("/codes") for path in self.shapes if path.endswith(suffix)]

    def shardings(self, mesh: Mesh) -> dict[str, NamedSharding]:
        """Return each parameter's sharding on a mesh."""
        return {
            path: sharding.named(self.axes[path], shape.shape, mesh)
            for path, shape in self.shapes.items()
        }


def define(
    config: model_config.DecoderConfig,
    *,
    adapter: model_config.Adapter | None = None,
    runtime: decoder_lib.Runtime | None = None,
    frozen: str = "float32",
) -> Definition:
    """Return the definition of a decoder; no number is made.

    Args:
        config: the decoder's shape.
        adapter: low-rank adapters beside it.
        runtime: how it computes.
        frozen: a run's `precision.frozen`; nf4 and int8 store the projections so.

    Raises:
        ValueError: an adapter names a module that the model does not have, or a projection has no
            whole blocks of 64 for nf4; the message names it.
    """
    adapter = adapter or model_config.NoAdapter()
    runtime = runtime or decoder_lib.Runtime()
    kind = quantised_kind(frozen)
    abstract = jax.eval_shape(lambda: _build(config, adapter, runtime, kind, rng.seed_key(0)))
    graph, state = nnx.split(abstract)
    shapes, axes = {}, {}
    for parts, variable in nnx.to_flat_state(state):
        path = "/".join(str(part) for part in parts)
        shapes[path] = jax.ShapeDtypeStruct(variable.shape, variable.dtype)
        own = tuple(variable.get_metadata()["axes"])
        axes[path] = ("layer", *own) if path.startswith(STACKED_PREFIXES) else own
    return Definition(config, adapter, runtime, graph, shapes, axes, kind)


def quantised_kind(frozen: str) -> quantised.Kind | None:
    """Return how a run's `precision.frozen` stores projections; None as plain numbers."""
    return frozen if frozen in quantised.FORMS else None  # pyright: ignore[reportReturnType]


def initialise(
    definition: Definition, key: PRNGKeyArray, mesh: Mesh, paths: list[str] | None = None
) -> Params:
    """Draw parameters, each shard on its device; all of them, or only the given paths.

    The numbers depend on the key and the path, not on which other paths are asked for.
    """
    chosen = list(definition.shapes) if paths is None else paths
    shardings = definition.shardings(mesh)

    def draw(key: PRNGKeyArray) -> Params:
        known = (definition.config, definition.adapter, definition.runtime, definition.frozen_kind)
        model = _build(*known, key)
        state = nnx.to_flat_state(nnx.split(model)[1])
        flat = {"/".join(str(part) for part in parts): value for parts, value in state}
        return {path: flat[path][...] for path in chosen}

    # LLVM's last level takes 24 s instead of 3 for the draws of a tiny model and changes no bit.
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 2} if is_cpu else None
    outputs = {path: shardings[path] for path in chosen}
    with jax.set_mesh(mesh):
        return jax.jit(draw, out_shardings=outputs, compiler_options=options)(key)


def _build(
    config: model_config.DecoderConfig,
    adapter: model_config.Adapter,
    runtime: decoder_lib.Runtime,
    kind: quantised.Kind | None,
    key: PRNGKeyArray,
) -> decoder_lib.Decoder:
    rngs = nnx.Rngs(rng.purpose_key(key, "parameters"))
    decoder = decoder_lib.Decoder(config, runtime, rngs=rngs)
    named = {"layers": decoder.layers, "dense_layers": decoder.dense_layers}
    stacks = {name: stack for name, stack in named.items() if stack is not None}
    if adapter.kind != "none":
        attach.adapt(list(stacks.values()), adapter, key=rng.purpose_key(key, "adapter"))
    if kind is not None:
        quantised.replace_kernels(stacks, kind)
    return decoder
