"""The fine-tuning flow whole, on any two stores: documents in two buckets to an adapter's answers.

Every step is a command line, in a process of its own where `how` says so.
"""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import yaml

from mistral_jax import storage
from mistral_jax.corpus import write_pdf
from mistral_jax.storage import remote_folder
from tests import checkpoint_on_disk

NAME = "lakes"
NUM_ROWS, NUM_PAGES = 40, 5
CONFIG = {
    "name": NAME,
    "adapter": {"kind": "lora", "rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "data": {"eval_fraction": 0.0, "sequence_length": 32, "global_batch_sequences": 2},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1, "max_steps": 4},
    "precision": {"compute": "float32"},
    "evaluate": {"every_steps": 2, "max_rows": 4},
    "checkpoint": {"every_steps": 2},
}


@dataclasses.dataclass(frozen=True)
class Flow:
    """Where things lie.

    Attributes:
        texts, papers, out: URIs of buckets.
        weights: the base model's URI.
        folder: a local one, for the config and the caches of the machines.
    """

    texts: str
    papers: str
    out: str
    weights: str
    folder: Path

    @property
    def model(self) -> str:
        """Where the run goes."""
        return f"{self.out}/models/{NAME}"

    def fill(self) -> None:
        """Put the corpus and the archive of PDFs into their buckets."""
        lines = [
            json.dumps({"text": f"Row {number} speaks of {number * 17} ships on the lake."})
            for number in range(NUM_ROWS)
        ]
        storage.write_bytes(f"{self.texts}/raw/corpus.jsonl", "\n".join(lines).encode())
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for number in range(NUM_PAGES):
                archive.writestr(f"{number}.pdf", write_pdf(f"Page {number} of the lake atlas."))
        storage.write_bytes(f"{self.papers}/archives/pages.zip", packed.getvalue())

    def fill_weights(self) -> None:
        """Put the tiny checkpoint where the flow takes its base from."""
        for name, raw in checkpoint_on_disk.files().items():
            storage.write_bytes(f"{self.weights}/{name}", raw)

    def prepare_words(self, tokenizer: str) -> list[str]:
        """Return the command that splits the documents 80/20."""
        return [
            "prepare", f"{self.texts}/raw/corpus.jsonl", f"{self.papers}/archives",
            f"{self.out}/shards/{NAME}", "--jsonl", f"{self.out}/datasets/{NAME}",
            "--eval-fraction", "0.2", "--tokenizer", tokenizer, "--name", NAME,
        ]  # fmt: skip

    def train_words(self, *overrides: str) -> list[str]:
        """Return the command that trains."""
        config = self.folder / "config.yaml"
        data = f"{self.out}/datasets/{NAME}"
        places = {
            "model": {"kind": "checkpoint", "weights": self.weights},
            "output": self.model,
            "data": CONFIG["data"]
            | {"train": f"{data}/train_dataset.jsonl", "eval": f"{data}/val_dataset.jsonl"},
        }
        config.write_text(yaml.safe_dump(CONFIG | places), encoding="utf-8")
        return ["train", str(config), *overrides]

    def export_words(self, format: str) -> list[str]:
        """Return the command that exports beside the run."""
        target = f"{self.model}/{'adapter' if format == 'peft' else 'merged'}"
        return ["export", self.model, target, "--format", format, "--dtype", "float32"]


def environment(cache: Path) -> dict[str, str]:
    """Return the environment of a machine with a cache of its own."""
    return {
        **os.environ, "MISTRAL_JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip


def start(words: list[str], cache: Path) -> subprocess.Popen:
    """Start a command as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "mistral_jax.cli", *words],
        env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(words: list[str], cache: Path) -> str:
    """Run a command to its end, which must be a good one; return what it said."""
    process = start(words, cache)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return out


def kill_when(is_so: Callable[[], bool], words: list[str], cache: Path) -> str:
    """Start a command, and kill it without warning when something is so."""
    process = start(words, cache)
    end = time.monotonic() + 300
    while not is_so():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    return out


def losses(uri: str) -> dict[int, str]:
    """Return every step's loss, in hex, of a run in a bucket."""
    lines = storage.read_bytes(f"{uri}/metrics.jsonl").decode().splitlines()
    found = [json.loads(line) for line in lines]
    steps = [line for line in found if "loss_hex" in line and "eval" not in line]
    assert len({line["step"] for line in steps}) == len(steps), "a step stands there twice"
    return {line["step"]: line["loss_hex"] for line in steps}


def steps(uri: str) -> tuple[int, ...]:
    """Return the complete steps of a run in a bucket."""
    return remote_folder.look(uri).steps
