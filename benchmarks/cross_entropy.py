"""Linear + cross-entropy, 8192 x 512 x 32768, float32, value and both gradients, one process.

Against materialised logits in the same run: time by process CPU seconds, memory by the compiler's
own analysis. Losses and gradients must agree first. `python benchmarks/cross_entropy.py`.
"""

import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from mistral_jax.nn import loss as loss_lib

TOKENS, WIDTH, VOCABULARY = 8192, 512, 32768
ROUNDS = 5
TIME_GOAL, MEMORY_GOAL = 0.85, 1 / 6


def materialised(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
    """Return the same loss from whole logits."""
    logits = hidden @ kernel
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return jnp.sum(weights * (jax.nn.logsumexp(logits, axis=-1) - chosen))


def compile_one(function: Callable, arguments: tuple) -> tuple[Callable, int]:
    """Return the compiled value-and-gradient and its temporary bytes."""
    compiled = jax.jit(jax.value_and_grad(function, argnums=(0, 1))).lower(*arguments).compile()
    return compiled, compiled.memory_analysis().temp_size_in_bytes


def cpu_seconds(function: Callable, arguments: tuple) -> float:
    """Return the process CPU seconds of one call."""
    started = time.process_time()
    jax.block_until_ready(function(*arguments))
    return time.process_time() - started


def main() -> None:
    """Check, measure, print."""
    generator = np.random.default_rng(0)
    arguments = (
        jnp.asarray(generator.normal(size=(TOKENS, WIDTH)), jnp.float32),
        jnp.asarray(generator.normal(size=(WIDTH, VOCABULARY)) / WIDTH**0.5, jnp.float32),
        jnp.asarray(generator.integers(0, VOCABULARY, TOKENS), jnp.int32),
        jnp.full((TOKENS,), 1 / TOKENS, jnp.float32),
    )
    chunked, chunked_bytes = compile_one(loss_lib.linear_cross_entropy, arguments)
    whole, whole_bytes = compile_one(materialised, arguments)
    (our_loss, our_grads), (peer_loss, peer_grads) = chunked(*arguments), whole(*arguments)
    measure.check_close("loss", float(our_loss), float(peer_loss), 1e-5)
    for name, ours, peer in zip(("hidden", "kernel"), our_grads, peer_grads, strict=True):
        measure.check_close(
            f"{name} gradient", float(jnp.linalg.norm(ours - peer)) + 1.0, 1.0, 1e-5
        )
    rounds = measure.interleave(
        lambda: cpu_seconds(chunked, arguments),
        lambda: cpu_seconds(whole, arguments),
        num_rounds=ROUNDS,
    )
    measure.report(
        "linear cross-entropy, value and both gradients, float32",
        value=round(statistics.median(rounds.ours), 3),
        unit="CPU seconds",
        peer="materialised logits, XLA",
        peer_value=round(statistics.median(rounds.peer), 3),
        ratio=round(1 / rounds.speedup, 3),
        goal=TIME_GOAL,
        memory_mib=round(chunked_bytes / 2**20),
        peer_memory_mib=round(whole_bytes / 2**20),
        memory_ratio=round(chunked_bytes / whole_bytes, 3),
        memory_goal=round(MEMORY_GOAL, 3),
        shapes={"tokens": TOKENS, "width": WIDTH, "vocabulary": VOCABULARY},
        n=ROUNDS,
        spread=measure.spread(rounds.ours),
    )


if __name__ == "__main__":
    sys.exit(main())
