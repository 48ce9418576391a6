"""A decoder's logits with one period of its layers in memory, however deep the model is.

Export and import state a parity number with it: a 7B is compared within the memory of a laptop.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax.config import model as model_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers


def logits(
    reader: readers.ParamReader,
    config: model_config.DecoderConfig,
    tokens: Int[np.ndarray, "B T"],
    adapter: model_config.Adapter | None = None,
) -> Float[np.ndarray, "B T V"]:
    """Return float32 logits of rows of one document each, computed in float32.

    Args:
        reader: where the parameters come from; an adapter's among them where there is one.
        config: the whole model's shape.
        tokens: ids.
        adapter: run beside its base; None where it is merged or absent.
    """
    outer = {
        "final_norm/scale": reader.read("final_norm/scale", ()),
        "embed/embedding": np.zeros((1, config.width), np.float32),
    }
    table = reader.read("embed/embedding", ())
    x = jnp.asarray(table[tokens].astype(np.float32))
    period = len(config.attention.reaches)
    for stack, part in _stacks(config):
        definition, run_period, finish = _programs(part, adapter)  # pyright: ignore[reportArgumentType]
        own = [path for path in definition.shapes if path.startswith("layers/")]
        paths = {path: stack + path.removeprefix("layers") for path in own}
        for first in range(0, part.num_layers, period):
            layers = {own: _stacked(reader, at, first, period) for own, at in paths.items()}
            # Waited for, and let go: one period's copies are gone before the next one's are made.
            x = run_period(outer | layers, x).block_until_ready()
        del layers
    head = table.T if config.tied_head else reader.read("head/kernel", ())
    # The head needs the norm only, but a decoder is bound whole.
    nothing = dict.fromkeys(own, np.zeros(0, np.float32))
    return np.asarray(finish(outer | nothing, x, head))


def _stacks(
    config: model_config.DecoderConfig,
) -> list[tuple[str, model_config.DecoderConfig]]:
    """Return each stack's name and a decoder that has it alone, the dense first layers first."""
    num_dense, ffn = config.num_dense_layers, config.ffn
    if ffn.kind != "moe" or not num_dense:
        return [("layers", config)]
    assert ffn.dense_width is not None
    dense = model_config.DenseFfn(width=ffn.dense_width)
    rest = ffn.model_copy(update={"num_dense_layers": 0})
    depth = config.num_layers - num_dense
    return [
        ("dense_layers", config.model_copy(update={"num_layers": num_dense, "ffn": dense})),
        ("layers", config.model_copy(update={"num_layers": depth, "ffn": rest})),
    ]


def _stacked(reader: readers.ParamReader, path: str, first: int, period: int) -> np.ndarray:
    """Return a parameter's slices of one period; a single one as a view of the mapped file."""
    if period == 1:
        return reader.read(path, (first,))[None]
    return np.stack([reader.read(path, (first + offset,)) for offset in range(period)])


@functools.lru_cache(maxsize=4)  # an export and its reload are one program, compiled once
def _programs(
    config: model_config.DecoderConfig, adapter: model_config.Adapter | None
) -> tuple[definition_lib.Definition, Callable, Callable]:
    # One period, and the smallest embedding: looking tokens up and the head are done outside.
    period = len(config.attention.reaches)
    part = config.model_copy(update={"num_layers": period, "vocab_size": 1, "tied_head": True})
    definition = definition_lib.define(part, adapter=adapter)

    def run_period(params: definition_lib.Params, x: Array) -> Array:
        positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
        return definition.bind(params).run_layers(x, positions).hidden

    def finish(params: definition_lib.Params, x: Array, head: Array) -> Array:
        normed = definition.bind(params).final_norm(x)
        return jnp.einsum("btd,dv->btv", normed, head.astype(jnp.float32))

    return definition, jax.jit(run_period), jax.jit(finish)
