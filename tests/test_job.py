"""Whole runs in their directory: what is written, found again, refused and started beside."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data_pipelines import batches
from launch import target
from mistral_jax import checkpoint
from mistral_jax import job
from mistral_jax import metrics
from mistral_jax import run_directory
from mistral_jax.config import load
from mistral_jax.train import loop

CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "dense.yaml"
NUM_STEPS = 4
TINY = [
    "model.num_layers=1", "model.width=32", "model.head_width=8", "model.ffn.width=64",
    "data.sequence_length=32", "data.global_batch_sequences=2", "data.eval_fraction=0.3",
    f"optimizer.max_steps={NUM_STEPS}", "optimizer.warmup_steps=1", "evaluate.every_steps=2",
    "evaluate.max_rows=4", "checkpoint.every_steps=2", "checkpoint.keep_last=3",
]  # fmt: skip
EPOCHS = ("optimizer.max_steps=null", "data.epochs=0.5")


def train(
    folder: Path, *overrides: str, fresh: bool = False, target: str = "local_cpu"
) -> tuple[job.Result, list[str]]:
    """Train by the Python API; return the result and what was said."""
    said: list[str] = []
    run = load.load_run(CONFIG, [*TINY, f"data.train={folder}/docs", *overrides])
    return job.train(run, target=target, fresh=fresh, say=said.append), said


def hex_losses(directory: Path) -> dict[int, str]:
    """Return every step's loss, in hex."""
    log = metrics.read_metrics(directory / metrics.METRICS_FILE)
    found = {line["step"]: line["loss_hex"] for line in log.steps}
    assert len(found) == len(log.steps), "a step stands in the log twice"
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with documents and one run that was never stopped, at `run`."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "docs").mkdir()
    for number in range(8):
        text = f"Document {number} tells of rivers, lakes and {number * 37} boats. " * 6
        (folder / "docs" / f"{number}.txt").write_text(text)
    result, _ = train(folder, f"output={folder}/run")
    assert (result.reason, result.step) == ("done", NUM_STEPS)
    return folder


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of the run as a kill after step 3 leaves it: step 2 is the last checkpoint."""
    run = Path(shutil.copytree(whole / "run", tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / str(NUM_STEPS))
    (run / "measured.json").unlink()
    lines = (run / metrics.METRICS_FILE).read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= 3]
    (run / metrics.METRICS_FILE).write_text("\n".join(kept) + "\n" + '{"step": 4, "lo')
    return run


def test_run_directory_holds_everything(whole: Path) -> None:
    run = whole / "run"
    for name in ("config.yaml", "manifest.json", "metrics.jsonl", "plan.json", "report.html"):
        assert (run / name).stat().st_size > 0, name
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["seed"] == 0
    assert manifest["config"]["optimizer"]["max_steps"] == NUM_STEPS
    assert {source["role"] for source in manifest["data"]} == {"train", "eval"}
    assert manifest["trainable_parameters"] == manifest["parameters"]
    assert sorted(hex_losses(run)) == [1, 2, 3, 4]
    again = load.load_run(run / "config.yaml")
    assert again.science_hash() == manifest["config_hash"]


def test_stopped_run_goes_on_with_the_same_bits(whole: Path, stopped: Path) -> None:
    result, said = train(whole, f"output={stopped}")
    assert (result.reason, result.step) == ("done", NUM_STEPS)
    assert f"going on at step 2 of {NUM_STEPS}" in said
    assert hex_losses(stopped) == hex_losses(whole / "run")


@pytest.fixture(scope="module")
def by_epochs(whole: Path) -> Path:
    """Return a finished run of half an epoch."""
    train(whole, *EPOCHS, f"output={whole}/epochs")
    return whole / "epochs"


def test_epochs_become_steps_that_schedule_plan_and_manifest_know(
    whole: Path, by_epochs: Path
) -> None:
    manifest = json.loads((by_epochs / "manifest.json").read_text())
    steps = manifest["max_steps"]
    run = load.load_run(by_epochs / "config.yaml")
    assert (run.data.epochs, run.optimizer.max_steps) == (0.5, None)
    assert run.science_hash() == manifest["config_hash"]
    assert json.loads((by_epochs / "plan.json").read_text())["max_steps"] == steps
    assert sorted(hex_losses(by_epochs)) == list(range(1, steps + 1))
    result, _ = train(whole, f"optimizer.max_steps={steps}", f"output={whole}/steps")
    assert result.step == steps
    assert hex_losses(whole / "steps") == hex_losses(by_epochs)


def test_a_stopped_run_of_epochs_goes_on_to_the_same_step(
    whole: Path, by_epochs: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(by_epochs, tmp_path / "run"))
    steps = json.loads((run / "manifest.json").read_text())["max_steps"]
    shutil.rmtree(run / "checkpoints" / str(steps))
    (run / "measured.json").unlink()
    other = Path(shutil.copytree(run, tmp_path / "other"))
    result, said = train(whole, *EPOCHS, f"output={run}")
    assert (result.reason, result.step) == ("done", steps)
    assert any(line.endswith(f" of {steps}") for line in said)
    assert hex_losses(run) == hex_losses(by_epochs)
    began = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**began, "max_steps": steps + 1}))
    told = f"data.epochs made {steps + 1} steps when the run began and makes {steps} now"
    with pytest.raises(run_directory.ResumeRefused, match=told):
        train(whole, *EPOCHS, f"output={other}")


def test_another_plan_is_said_and_recorded_and_refused_where_dropout_draws_by_it(
    whole: Path, stopped: Path, tmp_path: Path
) -> None:
    machine = tmp_path / "one_row.yaml"
    local = (target.TARGETS / "local_cpu.yaml").read_text()
    machine.write_text(f"{local}\nmicro_batch_sequences: 1\n")
    result, said = train(whole, f"output={stopped}", target=str(machine))
    assert result.reason == "done"
    (line,) = [line for line in said if line.startswith("not as the run began")]
    assert "plan.accumulation: 1 -> 2" in line
    (record,) = [json.loads(text) for text in (stopped / "resumes.jsonl").read_text().splitlines()]
    assert record["step"] == 2
    assert "plan.accumulation: 1 -> 2" in record["differences"]
    assert record["versions"]["jax"] == jax.__version__
    plan = {**json.loads((stopped / "plan.json").read_text()), "accumulation": 2}
    with pytest.raises(run_directory.ResumeRefused, match="micro_batch_sequences: 2") as caught:
        run_directory.check_resume(
            stopped, weights_digest=None, plan=plan, has_dropout=True, num_steps=NUM_STEPS
        )
    assert caught.value.exit_code == 3


def test_other_base_weights_are_refused(whole: Path, stopped: Path) -> None:
    path = stopped / "manifest.json"
    began = json.loads(path.read_text()) | {"start_checkpoint_digest": "model.safetensors:12"}
    path.write_text(json.dumps(began))
    with pytest.raises(run_directory.ResumeRefused, match=r"model\.safetensors:12 -> None"):
        train(whole, f"output={stopped}")
    path.unlink()
    with pytest.raises(run_directory.ResumeRefused, match=r"manifest\.json: cannot be read"):
        train(whole, f"output={stopped}")


def test_a_second_trainer_is_refused_while_the_first_one_runs(whole: Path, stopped: Path) -> None:
    with (
        run_directory.claimed(stopped, stopped / "data"),
        pytest.raises(run_directory.InUse, match="another process trains this run now") as caught,
    ):
        train(whole, f"output={stopped}")
    assert caught.value.exit_code == 3
    assert train(whole, f"output={stopped}")[0].reason == "done"


def test_report_that_a_kill_prevented_is_written_by_the_next_call(
    whole: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(whole / "run", tmp_path / "run"))
    for name in ("report.html", "eval.json"):
        (run / name).unlink()
    result, _ = train(whole, f"output={run}")
    assert (result.reason, result.report) == ("finished_before", run / "report.html")
    assert (run / "report.html").is_file() and (run / "eval.json").is_file()


def test_interrupted_fresh_run_says_where_it_goes_on_and_does(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    fit = loop.fit

    def fit_with_signal(parts: loop.Parts, *arguments: Any, **named: Any) -> loop.Outcome:
        def train_step(*inputs: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return parts.train_step(*inputs)

        return fit(dataclasses.replace(parts, train_step=train_step), *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "fit", fit_with_signal)
        result, said = train(whole, f"output={tmp_path}/run", fresh=True)
    where = tmp_path / "run-2"
    assert (result.reason, result.step, result.directory) == ("SIGTERM", 1, where)
    assert f"output={where} in place of fresh=true" in said[-1]
    result, said = train(whole, f"output={where}")
    assert f"going on at step 1 of {NUM_STEPS}" in said
    assert hex_losses(where) == hex_losses(whole / "run")


def test_checkpoint_that_an_error_names_is_on_disk(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = loop.fit

    def fit_with_nan(parts: loop.Parts, *arguments: Any, **named: Any) -> loop.Outcome:
        def train_step(state: Any, *inputs: Any) -> Any:
            is_third = int(state.step) == 2
            state, values = parts.train_step(state, *inputs)
            if is_third:
                values["loss"] = np.float32(np.nan)
            return state, values

        return fit(dataclasses.replace(parts, train_step=train_step), *arguments, **named)

    monkeypatch.setattr(loop, "fit", fit_with_nan)
    with pytest.raises(loop.LossNotFinite, match="the last checkpoint is step 2"):
        train(whole, f"output={tmp_path}/run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]


def test_finished_run_says_so_and_changes_nothing(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "run").rglob("*")}
    result, said = train(whole, f"output={whole}/run")
    assert (result.reason, result.step, said) == ("finished_before", NUM_STEPS, [])
    assert result.report == whole / "run" / "report.html"
    assert {path: path.stat().st_mtime_ns for path in (whole / "run").rglob("*")} == before


def test_fresh_starts_beside_with_the_same_numbers(whole: Path) -> None:
    result, _ = train(whole, f"output={whole}/run", fresh=True)
    assert result.reason == "done"
    assert result.directory == whole / "run-2"
    assert hex_losses(result.directory) == hex_losses(whole / "run")
    shutil.rmtree(result.directory)


@pytest.mark.parametrize("has_finished", [True, False])
def test_another_seed_or_learning_rate_is_refused_by_name(
    whole: Path, stopped: Path, has_finished: bool
) -> None:
    output = whole / "run" if has_finished else stopped
    changed = ["seed=1", "optimizer.learning_rate=1e-4"]
    with pytest.raises(run_directory.ResumeRefused) as caught:
        train(whole, f"output={output}", *changed)
    assert "seed: 0 -> 1" in str(caught.value)
    assert "optimizer.learning_rate: 0.001 -> 0.0001" in str(caught.value)
    assert "fresh=true" in str(caught.value)
    assert caught.value.exit_code == 3


def test_what_is_not_science_may_change_on_the_way(whole: Path, stopped: Path) -> None:
    result, _ = train(whole, f"output={stopped}", "evaluate.max_rows=2", "checkpoint.keep_last=1")
    assert result.reason == "done"
    assert hex_losses(stopped) == hex_losses(whole / "run")


def test_changed_documents_are_refused_and_the_run_can_still_go_on(
    whole: Path, stopped: Path
) -> None:
    document = whole / "docs" / "3.txt"
    text = document.read_text()
    document.write_text(text + "One more sentence.")
    try:
        with pytest.raises(batches.ResumeMismatch) as caught:
            train(whole, f"output={stopped}")
    finally:
        document.write_text(text)
    assert "docs" in str(caught.value)
    assert caught.value.exit_code == 3
    kept = json.loads((stopped / "data" / "train" / "docs" / "manifest.json").read_text())
    began = json.loads((whole / "run" / "data" / "train" / "docs" / "manifest.json").read_text())
    assert kept == began
    result, _ = train(whole, f"output={stopped}")
    assert result.reason == "done"
    assert hex_losses(stopped) == hex_losses(whole / "run")


def test_damaged_newest_checkpoint_is_set_aside_and_said(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole / "run", tmp_path / "run"))
    (run / "measured.json").unlink()
    newest = run / "checkpoints" / str(NUM_STEPS)
    data = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    result, said = train(whole, f"output={run}")
    assert result.reason == "done"
    assert any("set aside a damaged checkpoint" in line for line in said), said
    assert f"going on at step 2 of {NUM_STEPS}" in said
    assert (run / "checkpoints-damaged" / str(NUM_STEPS)).is_dir()
    assert hex_losses(run) == hex_losses(whole / "run")


def test_run_without_a_sound_checkpoint_is_refused(whole: Path, stopped: Path) -> None:
    for step in (stopped / "checkpoints").iterdir():
        for path in step.rglob("*"):
            if path.is_file() and path.stat().st_size > 64:
                path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(checkpoint.CheckpointCorrupt, match="no sound checkpoint is left"):
        train(whole, f"output={stopped}")


def test_samples_that_do_not_fit_are_refused_before_data_is_prepared(
    whole: Path, tmp_path: Path
) -> None:
    samples = ["evaluate.sample_prompts=[hello]", "evaluate.sample_max_tokens=256"]
    with pytest.raises(ValueError, match=r"evaluate\.sample_max_tokens 256 exceed .* 256 position"):
        train(whole, f"output={tmp_path}/run", *samples)
    assert not (tmp_path / "run").exists()


def test_weights_are_checked_before_data_is_prepared(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        train(whole, f"output={tmp_path}/run", "model.weights=nowhere")
    assert not (tmp_path / "run").exists()
