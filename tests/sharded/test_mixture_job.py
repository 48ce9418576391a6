"""msem-tiny, a whole run with experts on four devices each, against the same run on one device."""

from pathlib import Path

import numpy as np
import pytest

from mistral_jax import job
from mistral_jax import metrics
from mistral_jax.config import load
from mistral_jax.train import expert_training

pytestmark = pytest.mark.sharded

CONFIG = Path(__file__).parents[2] / "configs" / "msem" / "msem_tiny.yaml"
TOLERANCE = 1e-4  # a whole model, and its biases move by the sign of a count
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
mesh: {{data: 1, fsdp: {fsdp}, expert: {expert}, tensor: {tensor}}}
"""
OVERRIDES = [
    "data.sequence_length=64", "data.eval_fraction=0.2", "optimizer.max_steps=6",
    "optimizer.warmup_steps=2", "checkpoint.every_steps=3", "evaluate.every_steps=3",
    "evaluate.max_rows=8", "stage.experts.buffer_factor=3", "data.global_batch_sequences=8",
]  # fmt: skip
WORDS = ["a", "mesh", "of", "devices", "holds", "every", "expert", "of", "its", "model"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with documents."""
    folder = tmp_path_factory.mktemp("mixture")
    generator = np.random.default_rng(0)
    (folder / "docs").mkdir()
    for number in range(20):
        text = " ".join(generator.choice(WORDS, 120))
        (folder / "docs" / f"{number}.txt").write_text(text)
    return folder


def train(folder: Path, name: str, *overrides: str, **mesh: int) -> metrics.MetricsLog:
    """Train on a mesh, or on one device; return the log."""
    output = folder / name
    run = load.load_run(
        CONFIG, [*OVERRIDES, f"data.train={folder}/docs", f"output={output}", *overrides]
    )
    target = "local_cpu"
    if mesh:
        path = folder / f"{name}.yaml"
        path.write_text(TARGET.format(**mesh))
        target = str(path)
    job.train(run, target=target, say=lambda _: None)
    return metrics.read_metrics(output / metrics.METRICS_FILE)


@pytest.fixture(scope="module")
def one_device(folder: Path) -> metrics.MetricsLog:
    return train(folder, "one")


def test_experts_on_four_devices_train_to_the_curve_of_one(
    folder: Path, one_device: metrics.MetricsLog
) -> None:
    found = train(folder, "four", fsdp=2, expert=4, tensor=1)
    names = ("loss", "grad_norm", "expert_load", "router_balance", "group_share_code")
    for ours, theirs in zip(found.steps, one_device.steps, strict=True):
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=TOLERANCE), (ours["step"], name)
        assert ours[expert_training.OVERFLOW] == 0
    held_out = [[line["loss"] for line in log.evals] for log in (found, one_device)]
    np.testing.assert_allclose(*held_out, rtol=TOLERANCE)
    losses = [line["loss"] for line in one_device.steps]
    assert losses[-1] < losses[0] - 0.1


def test_an_overrun_buffer_stops_the_run_unless_it_may_drop(folder: Path) -> None:
    tight = "stage.experts.buffer_factor=1"
    with pytest.raises(
        expert_training.ExpertOverflow, match=r"raise stage\.experts\.buffer_factor"
    ):
        train(folder, "stopped", tight, fsdp=1, expert=8, tensor=1)
    dropped = train(folder, "dropped", tight, "stage.experts.overflow=drop",
                    fsdp=1, expert=8, tensor=1)  # fmt: skip
    assert len(dropped.steps) == 6
    assert dropped.steps[0][expert_training.OVERFLOW] > 0
