"""A pretraining step of a dense 1.3B model, 8x4096, bf16 on float32 parameters, AdamW."""

import sys
from collections.abc import Iterator

from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import shapes
from benchmarks.gpu_rows import training

SCRIPT = "gpu_model.py"


def job(machine: device.Machine) -> training.Job:
    """Return the step."""
    return training.Job(
        name="dense pretraining step, 1.3B",
        config=machine.pick(shapes.PRETRAINED, shapes.TINY),
        adapter=None,
        num_rows=machine.pick(8, 2),
        length=machine.pick(4096, 64),
        remat="dots",
        both_gib=machine.pick(160, 0),
        peer="plain",
    )


def lines(machine: device.Machine, peer: device.Peer) -> Iterator[device.Line]:
    """Yield the line."""
    step = job(machine)
    yield device.guarded(step.name, lambda: training.measured(machine, peer, step))


if __name__ == "__main__":
    sys.exit(device.main(lines, SCRIPT))
