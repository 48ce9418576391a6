"""What this device reaches by itself: an 8192^3 matmul, a copy. The scale of all other rows."""

import statistics
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import hashed

SCRIPT = "gpu_kernels.py"
MATMUL = "matmul"
COPY = "copy"
CHECKED_ROWS = 16


def matmul(machine: device.Machine, peer: device.Peer) -> device.Line:
    """Return the rate of one square matmul."""
    size = machine.pick(8192, 128)
    left = hashed.array("left", (size, size), dtype=machine.dtype)
    right = hashed.array("right", (size, size), scale=size**-0.5, dtype=machine.dtype)
    call = device.Program(jnp.matmul, left, right)
    with jax.default_matmul_precision("highest"):
        expected = left[:CHECKED_ROWS].astype(jnp.float32) @ right.astype(jnp.float32)
    apart = device.check("matmul", call()[:CHECKED_ROWS], expected, machine.tolerance)
    answer = peer.ask("matmul", size=size)
    if "error" not in answer:
        device.check("matmul, torch", answer["sample"], device.sample(call()), machine.tolerance)
    rounds = device.race(
        device.timer(call),
        None if "error" in answer else peer.timer("forward"),
        num_rounds=machine.rounds,
    )
    shares: device.Line = machine.shares(2 * size**3 / 1e12 / statistics.median(rounds.ours))
    return device.line(
        f"matmul {size}^3, {machine.dtype.name}",
        rounds,
        work=2 * size**3 / 1e12,
        unit="TFLOP/s",
        peer=answer.get("error") or "torch.matmul",
        digits=6 if machine.is_tiny else 1,
        case=MATMUL,
        check=apart,
        shapes={"size": size},
        **shares,
    )


def copy(machine: device.Machine, peer: device.Peer) -> device.Line:
    """Return the bytes read and written in a second by a pass over a large array."""
    count = machine.pick(2**30, 2**16)  # 2 GiB of bf16
    source = hashed.array("copied", (count // 2**10, 2**10), dtype=machine.dtype)
    # A negation, so that no compiler can hand back the array itself.
    call = device.Program(jnp.negative, source)
    apart = device.check("copy", device.sample(call()), [-x for x in device.sample(source)], 0.0)
    answer = peer.ask("copy", shape=source.shape)
    rounds = device.race(
        device.timer(call),
        None if "error" in answer else peer.timer("forward"),
        num_rounds=machine.rounds,
    )
    size_bytes = 2 * count * machine.dtype.itemsize
    limit = machine.bandwidth().get("spec")
    return device.line(
        "copy, bytes read and written",
        rounds,
        work=size_bytes / 1e9,
        unit="GB/s",
        peer=answer.get("error") or "torch.neg",
        limit={"name": "specification", "value": limit} if limit else None,
        case=COPY,
        check=apart,
        shapes={"bytes": size_bytes // 2},
    )


def lines(machine: device.Machine, peer: device.Peer) -> Iterator[device.Line]:
    """Yield both."""
    yield device.guarded("matmul", lambda: matmul(machine, peer))
    yield device.guarded("copy", lambda: copy(machine, peer))


if __name__ == "__main__":
    sys.exit(device.main(lines, SCRIPT))
