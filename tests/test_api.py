"""The Python API of README.md, on the tiny decoder: train, load, generate, adapt, save."""

import json
import pathlib
import threading

import pytest

import mistral_jax as mj
from mistral_jax import artifact
from mistral_jax import job
from mistral_jax import metrics
from mistral_jax.config import load
from mistral_jax.generate import engine
from mistral_jax.train import step

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "tiny" / "dense.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return the directory of a short run."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "docs").mkdir()
    for number in range(40):
        (folder / "docs" / f"{number}.txt").write_text(f"Document {number}. " * (20 + number))
    result = mj.train(
        CONFIG, f"data.train={folder / 'docs'}", f"output={folder / 'run'}",
        "optimizer.max_steps=2", "evaluate.every_steps=2", "data.eval_fraction=0.2",
        "model.num_layers=2", "data.sequence_length=64", "data.global_batch_sequences=2",
        "evaluate.sample_prompts=[Docu]", "evaluate.sample_max_tokens=4",
    )  # fmt: skip
    assert result.report is not None and result.report.is_file()
    return result.directory


def test_packages_with_a_verbs_name_are_the_verb() -> None:
    assert engine.__name__ == "mistral_jax.generate.engine"
    assert step.__name__ == "mistral_jax.train.step"
    assert callable(mj.train)
    assert callable(mj.generate)


def test_samples_reach_the_metrics(run: pathlib.Path) -> None:
    texts = metrics.read_metrics(run / metrics.METRICS_FILE).texts
    assert [(line["step"], line["text"]) for line in texts] == [(0, "sample/0"), (2, "sample/0")]
    sample = json.loads((run / "samples" / "step_000002.json").read_text())["samples"][0]
    assert texts[1]["value"] == sample["text"]


def test_a_thread_may_train_beside_a_finished_run(run: pathlib.Path) -> None:
    overrides = load.dump_yaml(load.load_run(run / "config.yaml"))
    config = run.with_name("again.yaml")
    config.write_text(overrides)
    results: list[job.Result] = []
    thread = threading.Thread(
        target=lambda: results.append(mj.train(config, "evaluate.sample_prompts=[]", "fresh=true"))
    )
    thread.start()
    thread.join()
    (result,) = results
    assert (result.reason, result.directory) == ("done", run.with_name("run-2"))
    assert load.load_run(result.directory / "config.yaml").output == str(result.directory)


def test_weights_of_another_rope_or_norm_are_refused(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    mj.save(mj.load(str(run), compute="float32"), tmp_path / "hf", format="hf", dtype="float32")
    same = [f"model.weights={tmp_path / 'hf'}", "model.num_layers=2"]
    weights = load.load_run(CONFIG, same).model
    assert artifact.resolve_decoder(weights) == weights
    changes = ["model.rope.theta=1e6", "model.norm_epsilon=1e-2", "model.attention.window=3"]
    model = load.load_run(CONFIG, [*same, *changes]).model
    with pytest.raises(ValueError, match="is not the one in") as caught:
        artifact.resolve_decoder(model)
    for part in (
        "rope.theta: 1000000.0 -> 10000.0", "norm_epsilon: 0.01 -> 1e-05", "window: 3 -> 64"
    ):  # fmt: skip
        assert part in str(caught.value)


def test_seeds_that_would_wrap_around_are_refused(run: pathlib.Path) -> None:
    model = mj.load(str(run), compute="float32")
    for seed in (-1, 2**32, 2**32 - 1):
        with pytest.raises(ValueError, match=f"seed must be 0 to .* got {seed}"):
            mj.generate(model, ["a", "b"], seed=seed)
    with pytest.raises(ValueError, match="seed must be"):
        mj.adapt(model, rank=2, alpha=4, seed=2**32)


def test_a_run_generates_the_same_twice_and_saves_its_adapter(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    model = mj.load(str(run), compute="float32")
    first, second = (mj.generate(model, ["Document"], max_tokens=5)[0] for _ in range(2))
    assert first.tokens == second.tokens
    assert len(first.tokens) == len(first.log_probs) <= 5
    adapted = mj.adapt(model, rank=2, alpha=4, target_modules=["q_proj", "down_proj"])
    assert mj.generate(adapted, ["Document"], max_tokens=5)[0].tokens == first.tokens
    saved = mj.save(adapted, tmp_path / "adapter", format="peft")
    assert saved.largest_logit_difference == 0.0
    with pytest.raises(ValueError, match="adapters already"):
        mj.adapt(adapted, rank=2, alpha=4)


def test_a_model_without_an_adapter_saves_whole_only(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    model = mj.load(str(run), compute="float32")
    with pytest.raises(ValueError, match="no adapter"):
        mj.save(model, tmp_path / "adapter", format="peft")
    assert mj.save(model, tmp_path / "hf", format="hf", dtype="float32").size_bytes > 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_verb'"):
        mj.no_such_verb  # noqa: B018
