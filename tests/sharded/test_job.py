"""Whole runs on eight devices, by a target file, against the same run on one."""

from pathlib import Path

import numpy as np
import pytest

from mistral_jax import job
from mistral_jax import metrics
from mistral_jax.config import load

pytestmark = pytest.mark.sharded

CONFIG = Path(__file__).parents[2] / "configs" / "tiny" / "dense.yaml"
TOLERANCE = 1e-5
TARGET = """
name: cpu_8
platform: cpu
accelerator_type: cpu
topology: [8]
num_chips: 8
chips_per_host: 8
hbm_gb_per_s: 20
peak_tflops: {{bfloat16: 0.3, float32: 0.15}}
assumed_utilization: 0.4
mesh: {{data: {data}, fsdp: {fsdp}, tensor: {tensor}}}
"""
OVERRIDES = [
    "model.num_layers=2", "model.width=32", "model.head_width=8", "model.ffn.width=64",
    "data.sequence_length=32", "data.eval_fraction=0.2", "optimizer.max_steps=6",
    "optimizer.warmup_steps=2", "checkpoint.every_steps=3", "evaluate.every_steps=3",
    "evaluate.max_rows=8",
]  # fmt: skip
WORDS = ["a", "mesh", "of", "devices", "holds", "every", "shard", "of", "its", "model"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with documents and two target files."""
    folder = tmp_path_factory.mktemp("sharded")
    generator = np.random.default_rng(0)
    (folder / "docs").mkdir()
    for number in range(20):
        text = " ".join(generator.choice(WORDS, 120))
        (folder / "docs" / f"{number}.txt").write_text(text)
    for name, sizes in {"mixed": (2, 2, 2), "fsdp": (1, 8, 1)}.items():
        content = TARGET.format(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
        (folder / f"{name}.yaml").write_text(content)
    return folder


def train(folder: Path, target: str, name: str) -> metrics.MetricsLog:
    """Train (or go on) on a target; return the log."""
    output = folder / name
    run = load.load_run(CONFIG, [*OVERRIDES, f"data.train={folder}/docs", f"output={output}"])
    path = target if target == "local_cpu" else str(folder / f"{target}.yaml")
    result = job.train(run, target=path, say=lambda _: None)
    assert (result.reason, result.step) == ("done", 6)
    return metrics.read_metrics(output / metrics.METRICS_FILE)


def losses(log: metrics.MetricsLog) -> list[float]:
    """Return training losses, then held-out losses."""
    assert [line["step"] for line in log.steps] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in log.evals] == [0, 3, 6]
    return [line["loss"] for line in [*log.steps, *log.evals]]


@pytest.fixture(scope="module")
def one_device(folder: Path) -> list[float]:
    return losses(train(folder, "local_cpu", "one"))


@pytest.mark.parametrize("target", ["mixed", "fsdp"])
def test_a_run_on_eight_devices_has_the_losses_of_one(
    folder: Path, one_device: list[float], target: str
) -> None:
    found = losses(train(folder, target, target))
    np.testing.assert_allclose(found, one_device, rtol=0, atol=TOLERANCE)


def test_a_run_goes_on_on_another_mesh(folder: Path, one_device: list[float]) -> None:
    train(folder, "mixed", "moved")
    # As if it had been killed after step 3: its last step and its conclusion are gone.
    (folder / "moved" / "measured.json").unlink()
    (folder / "moved" / "checkpoints" / "6").rename(folder / "lost")
    np.testing.assert_allclose(
        losses(train(folder, "fsdp", "moved")), one_device, rtol=0, atol=TOLERANCE
    )
    plan = (folder / "moved" / "plan.json").read_text()
    assert '"cpu_8"' in plan
