"""A LoRA step of Mistral 7B (r=16, seven projections), 4x1024, bf16, beside transformers + PEFT."""

import sys
from collections.abc import Iterator

from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import shapes
from benchmarks.gpu_rows import training

SCRIPT = "gpu_model.py"
# All activations of 4096 tokens beside 14.5 GB of weights.
NO_REMAT_GIB = 60


def job(machine: device.Machine) -> training.Job:
    """Return the step."""
    return training.Job(
        name="LoRA step, Mistral 7B, r=16",
        config=machine.pick(shapes.SEVEN_B, shapes.TINY),
        adapter=shapes.LORA,
        num_rows=machine.pick(4, 2),
        length=machine.pick(1024, 64),
        remat="none" if machine.memory_gib > NO_REMAT_GIB else "full",
        both_gib=machine.pick(110, 0),
        peer="transformers",
    )


def lines(machine: device.Machine, peer: device.Peer) -> Iterator[device.Line]:
    """Yield the line."""
    step = job(machine)
    yield device.guarded(step.name, lambda: training.measured(machine, peer, step))


if __name__ == "__main__":
    sys.exit(device.main(lines, SCRIPT))
