"""Runs of several training processes on this machine, for the tests of all suites.

Each process is the command line's own `train`, with one or more virtual CPU devices, and finds the
others by the environment that the supervisor gives.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from launch import supervise

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "tiny"
LONGEST_S = 400.0  # four processes on two cores that others use too
OVERRIDES = [
    "model.num_layers=2", "model.width=32", "model.head_width=8", "model.ffn.width=64",
    "data.sequence_length=32", "data.eval_fraction=0.2", "optimizer.max_steps=6",
    "optimizer.warmup_steps=2", "checkpoint.every_steps=3", "evaluate.every_steps=3",
    "evaluate.max_rows=6",
]  # fmt: skip
WORDS = ["a", "mesh", "of", "hosts", "holds", "every", "shard", "of", "its", "model"]
TARGET = """
name: {name}
platform: cpu
accelerator_type: cpu
topology: [{chips}]
num_chips: {chips}
num_hosts: {hosts}
chips_per_host: {each}
hbm_gb_per_s: 20
peak_tflops: {{bfloat16: 0.3, float32: 0.15}}
assumed_utilization: 0.4
host_memory_gib: 8
host_cores: 2
mesh: {{data: {data}, fsdp: {fsdp}, tensor: {tensor}}}
"""


class Workshop:
    """Documents, targets and the runs over them, in one folder."""

    def __init__(self, folder: Path, overrides: Sequence[str] = ()) -> None:
        self.folder = folder
        self.overrides = [*OVERRIDES, *overrides]
        generator = np.random.default_rng(0)
        (folder / "docs").mkdir()
        for number in range(20):
            text = " ".join(generator.choice(WORDS, 120))
            (folder / "docs" / f"{number}.txt").write_text(text)

    def target(self, hosts: int, each: int = 1, *, data: int = 1, tensor: int = 1) -> str:
        """Write a target of so many hosts with so many devices each; return its path."""
        chips = hosts * each
        name = f"cpu_{hosts}x{each}_d{data}_t{tensor}"
        content = TARGET.format(
            name=name, chips=chips, hosts=hosts, each=each, data=data, tensor=tensor,
            fsdp=chips // data // tensor,
        )  # fmt: skip
        path = self.folder / f"{name}.yaml"
        path.write_text(content)
        return str(path)

    def command(self, name: str, target: str, *more: str, config: str = "dense") -> list[str]:
        """Return the words that train in the directory of this name."""
        return [
            sys.executable, "-m", "mistral_jax.cli", "train", str(CONFIGS / f"{config}.yaml"),
            "--target", target, *self.overrides, f"data.train={self.folder}/docs",
            f"output={self.folder}/{name}", *more,
        ]  # fmt: skip

    def environment(self, devices: int) -> dict[str, str]:
        """Return what every process gets."""
        kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        flags = (  # programs of a few steps: not worth LLVM's time
            f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        )
        compiled = str(self.folder / "compiled")
        return kept | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
                       "JAX_COMPILATION_CACHE_DIR": compiled}  # fmt: skip

    def start(self, command: Sequence[str], processes: int, devices: int) -> list[subprocess.Popen]:
        """Start a group without a supervisor; each process writes to a file beside its run."""
        started = []
        for index, place in enumerate(supervise.on_one_host(processes)(1)):
            out, err = (self.folder / f"process_{index}.{kind}" for kind in ("out", "err"))
            with out.open("w") as said, err.open("w") as complained:
                started.append(
                    subprocess.Popen(
                        command,
                        env=self.environment(devices) | place,
                        stdout=said,
                        stderr=complained,
                    )
                )
        return started

    def train(
        self, name: str, target: str, processes: int, devices: int, *more: str,
        config: str = "dense",
    ) -> dict[tuple[int, bool], float]:  # fmt: skip
        """Train to the end as a group; return the losses."""
        command = self.command(name, target, *more, config=config)
        group = self.start(command, processes, devices)
        codes = [process.wait(timeout=LONGEST_S) for process in group]
        said = [self.said(index) for index in range(processes)]
        assert codes == [0] * processes, (said[0], self.complained(0))
        for text in said[1:]:
            others = [line for line in text.splitlines() if "[Gloo]" not in line and line.strip()]
            assert not others, "only the first process of a run says anything"
        return self.losses(name)

    def said(self, index: int) -> str:
        """Return what a process of the newest group has printed."""
        return (self.folder / f"process_{index}.out").read_text()

    def complained(self, index: int) -> str:
        """Return what it has written to standard error."""
        return (self.folder / f"process_{index}.err").read_text()

    def losses(self, name: str) -> dict[tuple[int, bool], float]:
        """Return (step, is held out) -> loss, each written once and in order."""
        text = (self.folder / name / "metrics.jsonl").read_text()
        lines = [line for line in map(json.loads, text.splitlines()) if "loss" in line]
        found = {(line["step"], "eval" in line): float.fromhex(line["loss_hex"]) for line in lines}
        assert len(found) == len(lines), "a step was written twice"
        return found

    def last_step(self, name: str) -> int:
        """Return the newest step in the log of a run that goes on; 0 before the first."""
        return max(supervise.newest_step(self.folder / name), 0)

    def without_end(self, source: str, name: str) -> Path:
        """Copy a finished run as if it had been killed after its last checkpoint but one."""
        directory = Path(shutil.copytree(self.folder / source, self.folder / name))
        (directory / "measured.json").unlink()
        *_, last = sorted((directory / "checkpoints").iterdir(), key=lambda path: int(path.name))
        shutil.rmtree(last)
        return directory
