"""LoRA steps of Mistral 7B (r=16, seven projections) in bf16, beside transformers + PEFT."""

import functools
import sys
from collections.abc import Iterator

from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import shapes
from benchmarks.gpu_rows import training

SCRIPT = "gpu_model.py"
# All activations of 4096 tokens beside 14.5 GB of weights.
NO_REMAT_GIB = 60


def job(machine: device.Machine, num_rows: int = 4, length: int = 1024) -> training.Job:
    """Return a step; at toy shapes a short one."""
    return training.Job(
        name=f"LoRA step, Mistral 7B, r=16, {num_rows}x{length}",
        config=machine.pick(shapes.SEVEN_B, shapes.TINY),
        adapter=shapes.LORA,
        num_rows=machine.pick(num_rows, 2),
        length=machine.pick(length, 64),
        remat="none" if machine.memory_gib > NO_REMAT_GIB else "full",
        both_gib=machine.pick(110, 0),
        peer="transformers",
    )


def lines(machine: device.Machine, peer: device.Peer) -> Iterator[device.Line]:
    """Yield a line for short rows and one for long ones."""
    for num_rows, length in machine.pick(((4, 1024), (2, 4096)), ((4, 1024),)):
        step = job(machine, num_rows, length)
        yield device.guarded(step.name, functools.partial(training.measured, machine, peer, step))


if __name__ == "__main__":
    sys.exit(device.main(lines, SCRIPT))
