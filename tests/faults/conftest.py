"""What the fault tests share: a run that was never interrupted, and processes that may be."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUM_STEPS = 24
OVERRIDES = [
    "model.num_layers=1", "model.width=32", "model.head_width=8", "model.ffn.width=64",
    "data.sequence_length=32", "data.global_batch_sequences=2", "data.eval_fraction=0.2",
    f"optimizer.max_steps={NUM_STEPS}", "evaluate.every_steps=8", "evaluate.max_rows=4",
    "checkpoint.every_steps=1", "checkpoint.keep_last=3",
]  # fmt: skip
LONGEST_S = 240.0


class Workshop:
    """Starts training processes in one folder, over the same documents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "docs").mkdir()
        for number in range(12):
            text = f"Document {number} tells of rivers, lakes and {number * 37} boats. " * 6
            (folder / "docs" / f"{number}.txt").write_text(text)

    def overrides(self, name: str) -> list[str]:
        """Return the overrides of the run in the directory of this name."""
        return [*OVERRIDES, f"data.train={self.folder}/docs", f"output={self.folder}/{name}"]

    def start(self, name: str) -> subprocess.Popen:
        """Start training in the directory of this name."""
        config = str(ROOT / "configs" / "tiny" / "dense.yaml")
        command = [sys.executable, "-m", "mistral_jax.cli", "train", config]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled")}
        return subprocess.Popen(
            [*command, *self.overrides(name)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, name: str) -> str:
        """Train to the end; return what was printed."""
        out, err = self.start(name).communicate(timeout=LONGEST_S)
        assert (self.folder / name / "measured.json").is_file(), (out, err)
        return out

    def copy(self, name: str) -> Path:
        """Copy the whole run as one that has not been concluded, to be damaged."""
        directory = Path(shutil.copytree(self.folder / "whole", self.folder / name))
        (directory / "measured.json").unlink()
        return directory

    def losses(self, name: str) -> list[tuple[int, str]]:
        """Return (step, loss in hex) of a finished run, in the order of the log."""
        lines = [json.loads(line) for line in self._log(name).splitlines()]
        return [(line["step"], line["loss_hex"]) for line in lines if "eval" not in line]

    def last_step(self, name: str) -> int:
        """Return the last step that stands whole in the log of a run that goes on."""
        *whole, _ = self._log(name).split("\n")
        return max((json.loads(line)["step"] for line in whole), default=0)

    def _log(self, name: str) -> str:
        path = self.folder / name / "metrics.jsonl"
        return path.read_text() if path.exists() else ""


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen) -> bool:
    """Wait for something that a process does; return whether it came before the process ended."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        if is_so():
            return True
        if process.poll() is not None:
            return is_so()
        time.sleep(0.002)
    process.kill()
    raise AssertionError("the process took too long")


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Return a workshop in which the run `whole` has gone from start to end."""
    made = Workshop(tmp_path_factory.mktemp("faults"))
    out = made.finish("whole")
    assert "going on" not in out
    assert [step for step, _ in made.losses("whole")] == list(range(1, NUM_STEPS + 1))
    return made


@pytest.fixture
def wait() -> Callable[[Callable[[], bool], subprocess.Popen], bool]:
    """Return `wait_until`."""
    return wait_until
