"""A mixture layer, forward and backward, on CPU: how near the dispatch comes to plain matmuls.

`blocks` against (i) three plain matmuls over as many rows as there are (token, expert) pairs and
(ii) every expert on every token, in turns, by process CPU seconds; values and all gradients agree
with (ii) first. `python -m benchmarks.moe_step [--experts 8] [--top-k 2] [--hidden 512]`.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from mistral_jax.nn import experts
from mistral_jax.nn import routing

TOKENS, WIDTH = 4096, 512
# Forward only, as in decoding and short prompts.
FEW_TOKENS = (1, 16, 128)
ROUNDS, ALL_ROUNDS = 7, 3
TOLERANCE = 1e-5
GOALS = {8: 0.60, 64: 0.40}
ALL_EXPERTS_GOAL = 1.2


@dataclasses.dataclass
class Timed:
    """A compiled call; calling it returns its process CPU seconds and notes the wall's."""

    function: Callable
    arguments: tuple
    wall_seconds: list[float] = dataclasses.field(default_factory=list)

    def __call__(self) -> float:
        """Run once."""
        started, started_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(self.function(*self.arguments))
        cpu_seconds = time.process_time() - started_cpu
        self.wall_seconds.append(time.perf_counter() - started)
        return cpu_seconds


def draw(num_experts: int, top_k: int, hidden: int) -> tuple:
    """Return tokens, choice, kernels and the gradient of the outputs."""
    generator = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(generator.normal(size=shape) * scale, jnp.float32)

    logits = generator.normal(size=(TOKENS, num_experts))
    chosen = np.argsort(-logits, axis=1)[:, :top_k]
    weights = jax.nn.softmax(jnp.asarray(np.take_along_axis(logits, chosen, 1), jnp.float32))
    kernels = experts.Kernels(
        gate=normal(num_experts, WIDTH, hidden, scale=WIDTH**-0.5),
        up=normal(num_experts, WIDTH, hidden, scale=WIDTH**-0.5),
        down=normal(num_experts, hidden, WIDTH, scale=hidden**-0.5),
    )
    choice = routing.Choice(jnp.asarray(chosen, jnp.int32), weights)
    return normal(TOKENS, WIDTH), choice, kernels, normal(TOKENS, WIDTH)


def plain(x: jax.Array, kernels: experts.Kernels) -> jax.Array:
    """Return three matmuls of one expert over all rows, and nothing else."""
    return (x @ kernels.gate + x @ kernels.up) @ kernels.down


def mixture(
    x: jax.Array,
    weights: jax.Array,
    kernels: experts.Kernels,
    chosen: jax.Array,
    implementation: str,
) -> jax.Array:
    """Return the layer's outputs."""
    choice = routing.Choice(chosen, weights)
    return experts.run_experts(x, choice, kernels, implementation=implementation)


def forward_backward(implementation: str, example: tuple) -> Timed:
    """Return the layer's outputs and gradients by tokens, weights and kernels, compiled."""
    x, choice, kernels, gradient = example

    def run(x, weights, kernels, chosen, gradient):
        def layer(x, weights, kernels):
            return mixture(x, weights, kernels, chosen, implementation)

        out, pull = jax.vjp(layer, x, weights, kernels)
        return out, *pull(gradient)

    arguments = (x, choice.weights, kernels, choice.experts, gradient)
    return Timed(jax.jit(run).lower(*arguments).compile(), arguments)


def forward(implementation: str, example: tuple, num_tokens: int) -> Timed:
    """Return the layer's outputs for the first tokens, compiled."""
    x, choice, kernels, _ = example
    arguments = (x[:num_tokens], choice.weights[:num_tokens], kernels, choice.experts[:num_tokens])
    run = jax.jit(mixture, static_argnums=4).lower(*arguments, implementation).compile()
    return Timed(run, arguments)


def ideal(example: tuple, *, has_gradient: bool) -> Timed:
    """Return plain matmuls of the same active FLOPs, compiled."""
    x, choice, kernels, gradient = example
    times = choice.experts.shape[1]
    rows, row_gradient = jnp.tile(x, (times, 1)), jnp.tile(gradient, (times, 1))
    one = jax.tree.map(lambda kernel: kernel[0], kernels)

    def run(rows, kernels, row_gradient):
        out, pull = jax.vjp(plain, rows, kernels)
        return (out, *pull(row_gradient)) if has_gradient else out

    arguments = (rows, one, row_gradient)
    return Timed(jax.jit(run).lower(*arguments).compile(), arguments)


def check(ours: Timed, oracle: Timed) -> None:
    """Compare value and gradients, each by its norm.

    Raises:
        SystemExit: they differ.
    """
    found, expected = (jax.tree.leaves(call.function(*call.arguments)) for call in (ours, oracle))
    names = ("outputs", "tokens", "weights", "gate", "up", "down")
    for name, left, right in zip(names, found, expected, strict=True):
        norm = float(jnp.linalg.norm(right))
        measure.check_close(name, norm + float(jnp.linalg.norm(left - right)), norm, TOLERANCE)


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description="A mixture layer against plain matmuls.")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=512)
    options = parser.parse_args()
    example = draw(options.experts, options.top_k, options.hidden)
    ours, oracle = forward_backward("blocks", example), forward_backward("all", example)
    check(ours, oracle)
    against_all = measure.interleave(ours, oracle, num_rounds=ALL_ROUNDS)
    peer = ideal(example, has_gradient=True)
    ours.wall_seconds.clear()
    rounds = measure.interleave(ours, peer, num_rounds=ROUNDS)
    wall = [p / o for o, p in zip(ours.wall_seconds, peer.wall_seconds, strict=True)][1:]
    ahead = measure.interleave(
        forward("blocks", example, TOKENS), ideal(example, has_gradient=False), num_rounds=ROUNDS
    )
    few = {
        num_tokens: 1
        / measure.interleave(
            measure.burst(forward("blocks", example, num_tokens), num_steps=9),
            measure.burst(forward("all", example, num_tokens), num_steps=9),
            num_rounds=ROUNDS,
        ).speedup
        for num_tokens in FEW_TOKENS
    }
    memory = [c.function.memory_analysis().temp_size_in_bytes / 2**20 for c in (ours, oracle)]
    measure.report(
        f"mixture layer, {options.experts} experts top-{options.top_k}, forward and backward, "
        "float32",
        value=round(statistics.median(rounds.ours), 3),
        unit="CPU seconds",
        peer="plain matmuls of the same active FLOPs",
        peer_value=round(statistics.median(rounds.peer), 3),
        ratio=round(rounds.speedup, 3),
        goal=GOALS.get(options.experts),
        wall_ratio=round(statistics.median(wall), 3),
        forward_ratio=round(ahead.speedup, 3),
        of_all_experts=round(1 / against_all.speedup, 3),
        of_all_experts_goal=ALL_EXPERTS_GOAL,
        of_all_experts_forward={str(tokens): round(ratio, 3) for tokens, ratio in few.items()},
        memory_mib=round(memory[0]),
        all_experts_memory_mib=round(memory[1]),
        shapes={
            "tokens": TOKENS,
            "width": WIDTH,
            "hidden": options.hidden,
            "experts": options.experts,
            "top_k": options.top_k,
        },
        n=ROUNDS,
        spread=measure.spread(rounds.ours),
    )


if __name__ == "__main__":
    sys.exit(main())
