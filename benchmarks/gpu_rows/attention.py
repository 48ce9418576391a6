"""Attention kernels, forward and forward + backward: B1, 32 query and 8 key heads of 128.

Checked first against the definition in float32 at some queries, gradients too: the output's
gradient is zero elsewhere, so that those queries alone decide dK and dV. FLOPs count visible pairs:
4 a pair and channel forward, 12 with the backward pass.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Bool

from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import hashed
from launch import arithmetic
from mistral_jax.nn import attention
from mistral_jax.nn import masks

SCRIPT = "gpu_kernels.py"
FORWARD, BOTH = "forward", "forward+backward"
NUM_CHECKED = 64
NUM_DOCUMENTS = 4
# Bytes of an operator's whole score matrix in float32 and what its gradient keeps beside it.
BYTES_OF_SCORE = 10


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of tokens and who sees whom."""

    num_tokens: int
    mask: str  # causal, window or packed
    window: int | None = None

    @property
    def name(self) -> str:
        """Return it in words."""
        return f"S {self.num_tokens} {self.mask}"

    @property
    def reach(self) -> int | None:
        """Return how many keys a query sees at most."""
        return self.window if self.mask == "window" else None

    @property
    def documents(self) -> np.ndarray | None:
        """Return [S] the document of each token, from 1; None where the row is one."""
        if self.mask != "packed":
            return None
        return np.arange(self.num_tokens, dtype=np.int32) * NUM_DOCUMENTS // self.num_tokens + 1

    @property
    def num_pairs(self) -> float:
        """Return how many (query, key) pairs are visible."""
        if self.mask == "packed":
            length = self.num_tokens // NUM_DOCUMENTS
            return self.num_tokens * arithmetic.mean_visible_keys(length, None)
        return self.num_tokens * arithmetic.mean_visible_keys(self.num_tokens, self.reach)


def cases(machine: device.Machine) -> list[tuple[Case, tuple[str, ...]]]:
    """Return each case and the implementations that are worth running on it."""
    if machine.is_tiny:
        window = 48
        return [
            (Case(128, "causal"), ("sdpa",)),
            (Case(128, "window", window), ("banded",)),
            (Case(128, "packed"), ("sdpa",)),
        ]
    return [
        (Case(4096, "causal"), ("cudnn", "sdpa", "banded")),
        (Case(8192, "causal"), ("cudnn", "sdpa", "banded")),
        (Case(32768, "causal"), ("cudnn", "sdpa", "banded")),
        (Case(8192, "window", 4096), ("cudnn", "banded")),
        (Case(32768, "window", 4096), ("cudnn", "banded")),
        (Case(8192, "packed"), ("cudnn", "banded")),
    ]


def score_gib(case: Case, implementation: str, num_heads: int) -> float:
    """Return about what an implementation holds of the scores."""
    if implementation == "cudnn":
        return 0.0
    # Banded blocks end at the query; they do not skip other documents.
    banded = arithmetic.mean_visible_keys(case.num_tokens, case.reach)
    width = case.num_tokens if implementation == "sdpa" else banded
    return num_heads * case.num_tokens * width * BYTES_OF_SCORE / 2**30


def inputs(machine: device.Machine, case: Case) -> tuple[Array, Array, Array, Array]:
    """Return queries, keys, values and a gradient of the outputs."""
    num_heads, num_kv_heads, width = machine.pick((32, 8, 128), (4, 2, 16))
    shape, kv_shape = ((1, case.num_tokens, heads, width) for heads in (num_heads, num_kv_heads))
    make = functools.partial(hashed.array, dtype=machine.dtype)
    return make("q", shape), make("k", kv_shape), make("v", kv_shape), make("g", shape)


def attend(case: Case, implementation: str) -> Callable[[Array, Array, Array], Array]:
    """Return the product's attention under the case's mask."""

    def run(q: Array, k: Array, v: Array) -> Array:
        positions = jnp.arange(case.num_tokens, dtype=jnp.int32)[None]
        documents = None if case.documents is None else jnp.asarray(case.documents)[None]
        spec = masks.row_spec(positions, documents, reach=case.reach)
        scale = q.shape[-1] ** -0.5
        return attention.attend(q, k, v, spec, scale=scale, implementation=implementation)[0]

    return run


def forward_backward(run: Callable) -> Callable:
    """Return (q, k, v, g) to outputs and the three gradients."""

    def both(q: Array, k: Array, v: Array, gradient: Array) -> tuple[Array, ...]:
        out, pull = jax.vjp(run, q, k, v)
        return out, *pull(gradient)

    return both


def visible(case: Case, rows: np.ndarray) -> Bool[np.ndarray, "n S"]:
    """Return which keys some queries see."""
    distance = rows[:, None] - np.arange(case.num_tokens)[None]
    seen = (distance >= 0) & (distance < (case.reach or case.num_tokens))
    if case.documents is not None:
        seen &= case.documents[rows][:, None] == case.documents[None]
    return seen


def by_definition(case: Case, rows: np.ndarray) -> Callable[[Array, Array, Array], Array]:
    """Return attention of some queries [1, n, H, Q] over all keys, in float32."""
    seen = jnp.asarray(visible(case, rows))

    def run(q: Array, k: Array, v: Array) -> Array:
        q, k, v = (array.astype(jnp.float32) for array in (q, k, v))
        grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
        with jax.default_matmul_precision("highest"):
            scores = jnp.einsum("bnkgq,bskq->bkgns", grouped, k) * q.shape[-1] ** -0.5
            weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
            return jnp.einsum("bkgns,bskq->bnkgq", weights, v).reshape(q.shape)

    return run


def check(
    machine: device.Machine, case: Case, program: Callable, arrays: tuple, pass_name: str
) -> float:
    """Return the worst distance of a pass's outputs and gradients from the definition."""
    q, k, v, gradient = arrays
    count = min(NUM_CHECKED, case.num_tokens)
    rows = np.linspace(0, case.num_tokens - 1, count).astype(np.int64)
    oracle = jax.jit(forward_backward(by_definition(case, rows)))
    expected = oracle(q[:, rows], k, v, gradient[:, rows].astype(jnp.float32))
    if pass_name == FORWARD:
        found = {"out": program(q, k, v)[:, rows]}
    else:
        sparse = jnp.zeros_like(gradient).at[:, rows].set(gradient[:, rows])
        out, d_q, d_k, d_v = program(q, k, v, sparse)
        found = {"out": out[:, rows], "dq": d_q[:, rows], "dk": d_k, "dv": d_v}
    return max(
        device.check(f"{case.name} {name}", array, right, machine.tolerance)
        for (name, array), right in zip(found.items(), expected, strict=False)
    )


def measured(
    machine: device.Machine,
    peer: device.Peer,
    answer: device.Line,
    case: Case,
    implementation: str,
    pass_name: str,
) -> device.Line:
    """Check one implementation's pass, then time it beside torch."""
    arrays = inputs(machine, case)
    run = attend(case, implementation)
    is_forward = pass_name == FORWARD
    call = (
        device.Program(run, *arrays[:3])
        if is_forward
        else device.Program(forward_backward(run), *arrays)
    )
    apart = check(machine, case, call, arrays, pass_name)
    if "error" not in answer:
        left = device.sample(call() if is_forward else call()[0])
        device.check(f"{case.name}, torch", answer["sample"], left, machine.tolerance)
    rounds = device.race(
        device.timer(call),
        None if "error" in answer else peer.timer(pass_name),
        num_rounds=machine.rounds,
    )
    num_heads, width = arrays[0].shape[2:]
    return device.flops_line(
        machine,
        f"attention {case.name}, {implementation}, {pass_name}",
        rounds,
        flops=(4 if is_forward else 12) * case.num_pairs * num_heads * width,
        peer=answer.get("error") or answer["name"],
        check=apart,
        temporary_mib=call.temporary_mib,
        shapes={"q": arrays[0].shape, "k": arrays[1].shape, "window": case.reach},
    )


def lines(machine: device.Machine, peer: device.Peer) -> Iterator[device.Line]:
    """Yield each case, implementation and pass."""
    for case, implementations in cases(machine):
        q, k, *_ = inputs(machine, case)
        answer = peer.ask(
            "attention", q=q.shape, k=k.shape, mask=case.mask, window=case.reach or 0,
            documents=NUM_DOCUMENTS,
        )  # fmt: skip
        for implementation, pass_name in itertools.product(implementations, (FORWARD, BOTH)):
            metric = f"attention {case.name}, {implementation}, {pass_name}"
            needed = score_gib(case, implementation, q.shape[2])
            if needed > machine.memory_gib / 2:
                yield device.skipped(metric, f"scores need about {needed:.0f} GiB")
                continue
            yield device.guarded(
                metric,
                functools.partial(measured, machine, peer, answer, case, implementation, pass_name),
            )


if __name__ == "__main__":
    sys.exit(device.main(lines, SCRIPT))
