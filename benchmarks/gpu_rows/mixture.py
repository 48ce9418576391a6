"""A mixture layer, forward + backward: each experts implementation against plain matmuls of the
same active FLOPs in the same run, and torch's grouped matmul.

Checked against `all` (every expert on every token) with a gradient that is zero but for the first
tokens, so that these alone decide every gradient. `a10g` is what a GPU without Mosaic kernels gets.
"""

import dataclasses
import functools
import importlib.util
import statistics
import sys
from collections.abc import Callable
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import hashed
from mistral_jax.nn import experts
from mistral_jax.nn import routing
from mistral_jax.nn.kernels import experts_grouped

SCRIPT = "gpu_kernels.py"
NUM_CHECKED = 256
NAMES = ("outputs", "tokens", "weights", "gate", "up", "down")
# ragged_dot on a GPU broadcasts the rows to every expert, in three products and their gradients.
RAGGED_COPIES = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer's shape."""

    num_tokens: int
    width: int
    hidden: int
    num_experts: int
    top_k: int

    @property
    def name(self) -> str:
        """Return it in words."""
        return f"{self.num_experts} experts top-{self.top_k} {self.width}->{self.hidden}"

    @property
    def num_rows(self) -> int:
        """Return how many (token, expert) pairs there are."""
        return self.num_tokens * self.top_k

    @property
    def flops(self) -> int:
        """Return the active FLOPs of both passes: three matmuls, three times each."""
        return 18 * self.num_rows * self.width * self.hidden


def cases(machine: device.Machine) -> list[Case]:
    """Return few large and many small experts."""
    if machine.is_tiny:
        return [Case(64, 32, 48, 4, 2)]
    return [Case(16384, 4096, 14336, 8, 2), Case(16384, 4096, 2048, 64, 6)]


def draw(machine: device.Machine, case: Case) -> tuple[Array, ...]:
    """Return tokens, weights, chosen experts, the three kernels, a gradient of the outputs."""
    make = functools.partial(hashed.array, dtype=machine.dtype)
    into = (case.num_experts, case.width, case.hidden)
    out_of = (case.num_experts, case.hidden, case.width)
    logits = hashed.array("router", (case.num_tokens, case.num_experts), dtype=np.dtype(np.float32))
    chosen, indices = jax.lax.top_k(logits, case.top_k)
    return (
        make("x", (case.num_tokens, case.width)),
        jax.nn.softmax(chosen, axis=-1),
        indices,
        make("gate", into, scale=case.width**-0.5),
        make("up", into, scale=case.width**-0.5),
        make("down", out_of, scale=case.hidden**-0.5),
        make("g", (case.num_tokens, case.width)),
    )


def forward_backward(run: Callable) -> Callable:
    """Return (x, weights, chosen, gate, up, down, g) to outputs and five gradients."""

    def both(x, weights, chosen, gate, up, down, gradient):
        def layer(x, weights, *kernels):
            choice = routing.Choice(chosen, weights)
            return run(x, choice, experts.Kernels(*kernels))

        out, pull = jax.vjp(layer, x, weights, gate, up, down)
        return out, *pull(gradient)

    return both


def implementations(machine: device.Machine, case: Case) -> dict[str, Callable | str]:
    """Return each implementation, or why it is not run."""
    found: dict[str, Callable | str] = {
        name: functools.partial(experts.run_experts, implementation=name)
        for name in ("blocks", "grouped", "ragged")
    }
    copied = case.num_experts * case.num_rows * max(case.width, case.hidden) * 2
    copied_gib = RAGGED_COPIES * copied / 2**30
    if machine.platform == "gpu" and copied_gib > machine.memory_gib / 2:
        found["ragged"] = f"dense on a GPU: would take about {copied_gib:.0f} GiB"
    if not experts_grouped.is_installed():
        found["grouped"] = "tokamax is not installed"
    elif machine.platform != "gpu":
        found["grouped"] = "its kernels need a GPU"
    has_triton = all(importlib.util.find_spec(name) for name in ("triton", "jax_triton"))
    if isinstance(found["grouped"], str):
        found["a10g"] = f"it would be blocks, above: {found['grouped']}"
    elif has_triton:
        found["a10g"] = functools.partial(experts_grouped.run, names=("triton",))
    else:
        found["a10g"] = "grouped without Mosaic needs triton and jax-triton; else blocks, above"
    return found


def check(machine: device.Machine, case: Case, both: Callable, arrays: tuple) -> float:
    """Return the worst distance of outputs and gradients from running every expert."""
    count = min(NUM_CHECKED, case.num_tokens)
    x, weights, chosen, *kernels, gradient = arrays
    sparse = gradient.at[count:].set(0)
    found = both(x, weights, chosen, *kernels, sparse)
    found = (*(array[:count] for array in found[:3]), *found[3:])
    oracle = forward_backward(functools.partial(experts.run_experts, implementation="all"))
    expected = jax.jit(oracle)(
        x[:count], weights[:count], chosen[:count], *kernels, gradient[:count]
    )
    return max(
        device.check(f"{case.name} {name}", left, right, machine.tolerance)
        for name, left, right in zip(NAMES, found, expected, strict=True)
    )


def ideal(case: Case, arrays: tuple) -> Callable[[], tuple]:
    """Return plain matmuls of one expert's kernels over as many rows, both passes."""
    x, _, _, *kernels, gradient = arrays

    def plain(rows: Array, gate: Array, up: Array, down: Array) -> Array:
        return (rows @ gate + rows @ up) @ down

    def both(rows: Array, row_gradient: Array, *one: Array) -> tuple:
        out, pull = jax.vjp(plain, rows, *one)
        return out, *pull(row_gradient)

    rows, row_gradient = (jnp.tile(array, (case.top_k, 1)) for array in (x, gradient))
    return device.Program(both, rows, row_gradient, *(kernel[0] for kernel in kernels))


def measured(
    machine: device.Machine, peer: device.Peer, answer: device.Line, case: Case, name: str,
    run: Callable,
) -> device.Line:  # fmt: skip
    """Check one implementation, then time it beside plain matmuls and beside torch."""
    arrays = draw(machine, case)
    call = device.Program(forward_backward(run), *arrays)
    apart = check(machine, case, call, arrays)
    if "error" not in answer:
        left = device.sample(call()[0])
        device.check(f"{case.name}, torch", answer["sample"], left, 2 * machine.tolerance)
    ours = device.timer(call)
    beside = device.race(ours, device.timer(ideal(case, arrays)), num_rounds=machine.rounds)
    rounds = device.race(
        ours,
        None if "error" in answer else peer.timer("forward+backward"),
        num_rounds=machine.rounds,
    )
    return device.flops_line(
        machine,
        f"mixture {case.name}, {name}, forward+backward",
        rounds,
        flops=case.flops,
        peer=answer.get("error") or answer["name"],
        check=apart,
        of_ideal=round(beside.speedup, 3),
        ideal_ms=round(1e3 * statistics.median(beside.peer), 3),
        temporary_mib=call.temporary_mib,
        implementation=name,
        shapes=dataclasses.asdict(case),
    )


def lines(machine: device.Machine, peer: device.Peer) -> Iterator[device.Line]:
    """Yield each case and implementation, then the share of the best that an A10G's choice gets."""
    for case in cases(machine):
        answer = peer.ask("mixture", **dataclasses.asdict(case))
        rates: dict[str, float] = {}
        for name, run in implementations(machine, case).items():
            metric = f"mixture {case.name}, {name}, forward+backward"
            if isinstance(run, str):
                yield device.skipped(metric, run)
                continue
            found = device.guarded(
                metric, functools.partial(measured, machine, peer, answer, case, name, run)
            )
            if found["value"]:
                rates[name] = found["value"]
            if name == "a10g" and found["value"]:
                found["of_best"] = round(rates["a10g"] / max(rates.values()), 3)
            yield found


if __name__ == "__main__":
    sys.exit(device.main(lines, SCRIPT))
