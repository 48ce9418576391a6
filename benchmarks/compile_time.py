"""Compile time of a 24-layer training step: scanned layers against the same layers unrolled.

Both programs must give the same loss first. The size of the traced program is counted at 6 and 24
layers. `python benchmarks/compile_time.py`.
"""

import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import measure
from benchmarks import train_rows
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import loss as loss_lib
from mistral_jax.nn import masks
from mistral_jax.nn import rope
from mistral_jax.nn import routing

DEPTH, SHALLOW = 24, 6
ROWS, LENGTH = 2, 256
ROUNDS = 3
GOAL = 0.5


def shape(num_layers: int) -> model_config.DecoderConfig:
    """Return a narrow decoder of this depth."""
    return model_config.DecoderConfig(
        num_layers=num_layers,
        width=256,
        num_heads=4,
        num_kv_heads=2,
        head_width=64,
        vocab_size=4096,
        ffn=model_config.DenseFfn(width=704),
        rope=model_config.DefaultRope(theta=1e4),
        max_positions=1024,
    )


def scanned_loss(definition: definition_lib.Definition) -> Callable:
    """Return the loss as the product computes it."""

    def loss(params: definition_lib.Params, batch: dict) -> jax.Array:
        model = definition.bind(params)
        hidden, *_ = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
        return head_loss(model, hidden, batch)

    return loss


def unrolled_loss(definition: definition_lib.Definition) -> Callable:
    """Return the same loss with a Python loop over the layers."""

    def loss(params: definition_lib.Params, batch: dict) -> jax.Array:
        model, config = definition.bind(params), definition.config
        common = decoder_lib.Pass(
            spec=masks.row_spec(batch["positions"], batch["segment_ids"]),
            rotary=rope.rotary(
                batch["positions"], config.rope, config.query_scaling, config.rotary_width
            ),
            segment_ids=batch["segment_ids"],
            control=routing.FREE,
            dropout_key=None,
        )
        x = model.embed(batch["tokens"])
        graph, state = nnx.split(model.layers)
        for layer in range(config.num_layers):
            own = jax.tree.map(lambda leaf, index=layer: leaf[index], state)
            x, *_ = nnx.merge(graph, own)(
                x, common, cache=None, control=routing.FREE, dropout_key=None
            )
        return head_loss(model, model.final_norm(x), batch)

    return loss


def head_loss(model: decoder_lib.Decoder, hidden: jax.Array, batch: dict) -> jax.Array:
    """Return the mean loss of final hidden states."""
    total = loss_lib.linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        model.head_kernel(),
        batch["targets"].reshape(-1),
        batch["loss_weights"].reshape(-1),
    )
    return total / batch["targets"].size


def compile_seconds(loss: Callable, params: definition_lib.Params, batch: dict) -> float:
    """Return CPU seconds to trace, lower and compile value and gradient."""
    started = time.process_time()
    # A fresh lambda each time: jit would answer from its own cache.
    jax.jit(jax.value_and_grad(lambda p, b: loss(p, b))).lower(params, batch).compile()
    return time.process_time() - started


def program_size(num_layers: int) -> int:
    """Return the number of characters of the traced step's jaxpr."""
    definition = definition_lib.define(shape(num_layers))
    batch = train_rows.random_batch(ROWS, LENGTH, 4096)
    traced = jax.make_jaxpr(jax.value_and_grad(scanned_loss(definition)))(definition.shapes, batch)
    return sum(1 for _ in str(traced).splitlines())


def main() -> None:
    """Check, measure, print."""
    jax.config.update("jax_enable_compilation_cache", False)
    definition = definition_lib.define(shape(DEPTH))
    params = definition_lib.initialise(definition, rng.seed_key(0), sharding.single_device_mesh())
    batch = {
        name: jnp.asarray(array)
        for name, array in train_rows.random_batch(ROWS, LENGTH, 4096).items()
    }
    scanned, unrolled = scanned_loss(definition), unrolled_loss(definition)
    measure.check_close(
        "loss",
        float(jax.jit(scanned)(params, batch)),
        float(jax.jit(unrolled)(params, batch)),
        1e-5,
    )
    rounds = measure.interleave(
        lambda: compile_seconds(scanned, params, batch),
        lambda: compile_seconds(unrolled, params, batch),
        num_rounds=ROUNDS,
        num_warm=0,
    )
    sizes = {depth: program_size(depth) for depth in (SHALLOW, DEPTH)}
    measure.report(
        f"compile of a {DEPTH}-layer step, scanned",
        value=round(statistics.median(rounds.ours), 2),
        unit="CPU seconds",
        peer="the same layers unrolled",
        peer_value=round(statistics.median(rounds.peer), 2),
        ratio=round(1 / rounds.speedup, 3),
        goal=GOAL,
        jaxpr_lines=sizes,
        shapes={"layers": DEPTH, "width": 256, "rows": ROWS, "tokens": LENGTH},
        n=ROUNDS,
        spread=measure.spread(rounds.ours),
    )


if __name__ == "__main__":
    sys.exit(main())
