"""A place for pre-flights: a tiny base model, documents and a config in a temporary folder."""

import shutil
from pathlib import Path

import yaml

from launch import preflight
from launch.checks import Answer
from launch.checks import Context
from tests import checkpoint_on_disk

CONFIG = {
    "name": "tiny_base",
    "model": {"kind": "checkpoint", "weights": "base"},
    "adapter": {"kind": "lora", "rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    "data": {"train": "texts", "sequence_length": 32, "global_batch_sequences": 2},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1, "max_steps": 4},
    "precision": {"compute": "float32"},
    "evaluate": {"every_steps": 2, "max_rows": 4},
    "checkpoint": {"every_steps": 2},
}
NOT_OF_THE_CHECKPOINT = ("params.json", "consolidated.safetensors", "pytorch_model.bin")


def fill(folder: Path) -> None:
    """Write the config, the base model and the documents."""
    write_base(folder / "base")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.md").write_text("One line of text.\n" * 50, encoding="utf-8")
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")


def write_base(folder: Path) -> None:
    """Write the checkpoint of the tests in two shards."""
    folder.mkdir(parents=True)
    for name, raw in checkpoint_on_disk.files().items():
        if name not in NOT_OF_THE_CHECKPOINT:
            (folder / name).write_bytes(raw)


def context(*overrides: str, target: str = "local_cpu", **options: bool) -> Context:
    """Return what the verb would look at, in the current folder."""
    return preflight.context_of("run.yaml", target, overrides, **options)


def look(name: str, seen: Context) -> Answer:
    """Run one check by its name."""
    (check,) = [
        each for listed in preflight.TOPICS.values() for each in listed if each.name == name
    ]
    return check.run(seen)


def fails(name: str, seen: Context, *, status: str = "failed") -> Answer:
    """Run one check that must complain, and name what to type."""
    answer = look(name, seen)
    assert answer.status == status, answer
    assert answer.detail and "\n" not in answer.detail
    assert shutil.which(answer.fix.split()[0]) or answer.fix.split()[0] in COMMANDS, answer.fix
    return answer


def passes(name: str, seen: Context) -> Answer:
    """Run one check that must be content."""
    answer = look(name, seen)
    assert answer.status == "ok" and not answer.fix, answer
    return answer


# What the fixes begin with that need not be installed here.
COMMANDS = (
    "./run", "unset", "export", "aws", "gcloud", "gsutil", "hf", "nvidia-smi", "sudo", "make", "uv",
    "rsync", "ssh", "curl", "module", "kubectl", "nproc", "MISTRAL_JAX_LOCKS=tpu",
    "MISTRAL_JAX_LOCKS=data",
)  # fmt: skip
