"""A QLoRA step of Mistral 7B (NF4 base, r=64), 4x1024, beside transformers, PEFT and bitsandbytes.

Both sides run as on a 24 GB GPU: neither may take more than 22 GiB, and nothing else is loaded.
"""

import sys
from collections.abc import Iterator

from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import shapes
from benchmarks.gpu_rows import training

SCRIPT = "gpu_model.py"
CAP_GIB = 22.0


def job(machine: device.Machine) -> training.Job:
    """Return the step."""
    return training.Job(
        name="QLoRA step, Mistral 7B, r=64",
        config=machine.pick(shapes.SEVEN_B, shapes.TINY),
        adapter=shapes.QLORA,
        num_rows=machine.pick(4, 2),
        length=machine.pick(1024, 64),
        remat="full",
        both_gib=machine.pick(2 * CAP_GIB, 0),
        peer="transformers",
        frozen="nf4",
        cap_gib=machine.pick(CAP_GIB, None),
    )


def lines(machine: device.Machine, peer: device.Peer) -> Iterator[device.Line]:
    """Yield the line."""
    step = job(machine)
    yield device.guarded(step.name, lambda: training.measured(machine, peer, step))


if __name__ == "__main__":
    sys.exit(device.main(lines, SCRIPT))
