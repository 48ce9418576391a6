"""Linear + cross-entropy, value and both gradients: chunked against materialised logits and torch.

FLOPs are 6 N D V: three matmuls.
"""

import functools
import statistics
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array

from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import hashed
from mistral_jax.nn import loss as loss_lib

SCRIPT = "gpu_kernels.py"
VOCABULARIES = (32768, 131072)
# Whole float32 logits, their exponentials and their gradient.
BYTES_OF_LOGIT = 12


def chunked(hidden: Array, kernel: Array, targets: Array) -> Array:
    """Return the product's mean loss."""
    weights = jnp.ones(targets.shape, jnp.float32)
    return loss_lib.linear_cross_entropy(hidden, kernel, targets, weights) / targets.size


def materialised(hidden: Array, kernel: Array, targets: Array) -> Array:
    """Return the same from whole logits."""
    logits = jnp.einsum("nd,dv->nv", hidden, kernel, preferred_element_type=jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


def measured(machine: device.Machine, peer: device.Peer, vocabulary: int) -> device.Line:
    """Check against whole logits, then time beside them and beside torch."""
    num_tokens, width = machine.pick((16384, 4096), (96, 32))
    shapes = {"num_tokens": num_tokens, "width": width, "vocabulary": vocabulary}
    hidden = hashed.array("hidden", (num_tokens, width), dtype=machine.dtype)
    kernel = hashed.array("head", (width, vocabulary), scale=width**-0.5, dtype=machine.dtype)
    targets = (jnp.arange(num_tokens, dtype=jnp.int32) * 7919) % vocabulary
    arguments = (hidden, kernel, targets)
    ours = device.Program(jax.value_and_grad(chunked, argnums=(0, 1)), *arguments)
    whole = device.Program(jax.value_and_grad(materialised, argnums=(0, 1)), *arguments)
    expected = whole()
    apart = max(
        device.check(name, left, right, machine.tolerance)
        for name, left, right in zip(
            ("loss", "hidden gradient", "kernel gradient"),
            jax.tree.leaves(ours()),
            jax.tree.leaves(expected),
            strict=True,
        )
    )
    beside = device.race(device.timer(ours), device.timer(whole), num_rounds=machine.rounds)
    answer = peer.ask("loss", **shapes)
    if "error" not in answer:
        device.check("loss, torch", [answer["loss"]], [expected[0]], machine.tolerance)
        device.check(
            "gradient, torch", answer["sample"], device.sample(expected[1][0]), machine.tolerance
        )
    rounds = device.race(
        device.timer(ours),
        None if "error" in answer else peer.timer("forward+backward"),
        num_rounds=machine.rounds,
    )
    return device.flops_line(
        machine,
        f"linear cross-entropy {num_tokens}x{width}x{vocabulary}, value and gradients",
        rounds,
        flops=6 * num_tokens * width * vocabulary,
        peer=answer.get("error") or answer["name"],
        check=apart,
        of_materialised_time=round(1 / beside.speedup, 3),
        materialised_ms=round(1e3 * statistics.median(beside.peer), 3),
        temporary_mib=ours.temporary_mib,
        materialised_temporary_mib=whole.temporary_mib,
        memory_ratio=round(ours.temporary_bytes / max(whole.temporary_bytes, 1), 3),
        shapes=shapes,
    )


def lines(machine: device.Machine, peer: device.Peer) -> Iterator[device.Line]:
    """Yield a line for each vocabulary."""
    for vocabulary in machine.pick(VOCABULARIES, (384,)):
        num_tokens = machine.pick(16384, 96)
        metric = f"linear cross-entropy, vocabulary {vocabulary}"
        needed = num_tokens * vocabulary * BYTES_OF_LOGIT / 2**30
        if 2 * needed > machine.memory_gib:  # torch has its own whole logits
            reason = f"whole logits, ours and torch's, need {2 * needed:.0f} GiB"
            yield device.skipped(metric, reason)
            continue
        yield device.guarded(metric, functools.partial(measured, machine, peer, vocabulary))


if __name__ == "__main__":
    sys.exit(device.main(lines, SCRIPT))
