"""A whole run whose curriculum follows its held-out losses: its log, and its bits after a kill."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import levels
from data_pipelines import prepare
from data_pipelines import sources
from mistral_jax import datasets
from mistral_jax import job
from mistral_jax import metrics
from mistral_jax import tokenizers
from mistral_jax.config import load
from mistral_jax.train import loop

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "dense.yaml"
STEPS = 12
OVERRIDES = [
    "model.num_layers=1", "model.width=32", "model.head_width=8", "model.ffn.width=64",
    "data.sequence_length=32", "data.global_batch_sequences=2",
    "data.packing={kind: best_fit, block_rows: 4}", f"optimizer.max_steps={STEPS}",
    "optimizer.warmup_steps=1", "optimizer.learning_rate=1e-2", "evaluate.every_steps=2",
    "evaluate.max_rows=10", "checkpoint.every_steps=3", "checkpoint.keep_last=9",
    "data.curriculum={kind: adaptive, smoothing: 0.0, dwell_evaluations: 1,"
    " measure: {kind: loss, floor: 3.0}}",
]  # fmt: skip


def make_data(folder: Path, name: str, *, eval_fraction: float) -> Path:
    """Prepare texts in two levels: short words, then longer ones."""
    lines = [f"{'ab' * (1 + number // 30)} {number} rivers and boats" for number in range(60)]
    raw = folder / f"{name}.jsonl"
    raw.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    made = folder / name
    bytes_ = tokenizers.load_tokenizer("bytes")
    prepare.prepare(raw, made, tokenizer=bytes_, name=name, eval_fraction=eval_fraction)
    for split in ("train", "eval"):
        count = len(sources.ArrayRecordSource(made, split))
        found = (np.arange(count) >= count // 2).astype(np.uint8)
        levels.write(made / split, found)
    return made


def train(folder: Path, data: Path, *overrides: str) -> tuple[job.Result, list[str]]:
    said: list[str] = []
    source = f"data.train=[{{name: math, path: {data}}}]"
    run = load.load_run(CONFIG, [*OVERRIDES, source, f"output={folder}", *overrides])
    return job.train(run, say=said.append), said


def log_of(folder: Path) -> list[tuple]:
    log = metrics.read_metrics(folder / metrics.METRICS_FILE)
    steps = [(line["step"], line["loss_hex"], line["level/math"]) for line in log.steps]
    return steps + [(line["step"], line["eval"], line["loss_hex"]) for line in log.evals]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), "math", eval_fraction=0.3)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(folder, data)[0].step == STEPS
    return folder


def test_levels_rise_with_the_held_out_loss_and_stand_in_the_log(whole: Path) -> None:
    log = metrics.read_metrics(whole / metrics.METRICS_FILE)
    found = [line["level/math"] for line in log.steps]
    assert found[0] == 0 and found[-1] > 0
    assert {line["eval"] for line in log.evals} == {"math/arithmetic", "math/algebra"}


@pytest.mark.parametrize("kept", [3, 6])
def test_killed_after_a_checkpoint_the_run_ends_with_the_same_bits(
    whole: Path, data: Path, tmp_path: Path, kept: int
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for path in (folder / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > kept:
            shutil.rmtree(path)
    (folder / "measured.json").unlink()
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(config.replace(str(whole), str(folder)), encoding="utf-8")
    result, said = train(folder, data)
    assert result.step == STEPS and f"going on at step {kept} of {STEPS}" in said
    assert log_of(folder) == log_of(whole)


def test_a_source_without_held_out_documents_cannot_be_followed(tmp_path: Path) -> None:
    data = make_data(tmp_path, "math", eval_fraction=0.0)
    with pytest.raises(ValueError, match="has no held-out documents"):
        train(tmp_path / "run", data)


def test_a_watch_is_what_the_loop_knows() -> None:
    assert issubclass(datasets.LevelWatch, loop.Curriculum)
