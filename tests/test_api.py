"""The Python API of README.md, on the tiny decoder: train, load, generate, adapt, save."""

import pathlib

import pytest

import mistral_jax as mj
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
    )  # fmt: skip
    assert result.report is not None and result.report.is_file()
    return result.directory


def test_packages_with_a_verbs_name_are_the_verb() -> None:
    assert engine.__name__ == "mistral_jax.generate.engine"
    assert step.__name__ == "mistral_jax.train.step"
    assert callable(mj.train)
    assert callable(mj.generate)


def test_a_run_generates_the_same_twice_and_saves_its_adapter(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    model = mj.load(str(run), compute="float32")
    first, second = (mj.generate(model, ["Document"], max_tokens=5)[0] for _ in range(2))
    assert first.tokens == second.tokens
    assert len(first.tokens) == len(first.log_probs) <= 5
    adapted = mj.adapt(model, rank=2, alpha=4)
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
