"""config/run.py: the science hash covers what changes the numbers, and nothing else."""

from pathlib import Path

import pytest

from mistral_jax.config import load
from mistral_jax.config import run as run_config

DENSE = Path(__file__).parents[2] / "configs" / "tiny" / "dense.yaml"


def digest(*overrides):
    return load.load_run(DENSE, list(overrides)).science_hash()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "optimizer.learning_rate=3e-3", "data.sequence_length=128",
        "data.global_batch_sequences=16", "model.width=256", "precision.compute=bfloat16",
        "optimizer.max_steps=201", "data.shuffle=false", "stage.z_loss=1e-4", "data.train=other",
    ],
)  # fmt: skip
def test_science_changes_the_hash(override):
    assert digest(override) != digest()


@pytest.mark.parametrize(
    "override",
    [
        "output=/elsewhere", "evaluate.every_steps=7", "checkpoint.keep_last=9",
        "data.prefetch_batches=0", "data.worker_count=3", "evaluate.sample_prompts=[hello]",
    ],
)  # fmt: skip
def test_what_only_looks_on_leaves_the_hash(override):
    assert digest(override) == digest()


def test_a_stop_rule_is_science_with_what_it_looks_at():
    stop = "evaluate.stop={patience: 2}"
    assert digest(stop) != digest()
    assert digest(stop, "evaluate.every_steps=7") != digest(stop)
    assert digest(stop, "evaluate.sample_prompts=[hello]") == digest(stop)


def test_run_directory_is_the_name_and_eight_digits():
    run = load.load_run(DENSE)
    assert run.run_directory() == f"runs/tiny_dense-{run.science_hash()[:8]}"
    assert load.load_run(DENSE, ["output=here"]).run_directory() == "here"


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load.load_run(DENSE).seed = 3


def test_unknown_preset_lists_the_known_ones():
    run = load.load_run(DENSE, ["model={kind: preset, name: mistral_7b}"])
    with pytest.raises(ValueError, match=r"no preset 'mistral_7b'; known: .*mistral_7b_v0_3"):
        run_config.decoder_of(run.model)


def test_checkpoint_leaves_the_shape_to_the_weights():
    run = load.load_run(DENSE, ["model={kind: checkpoint, weights: somewhere}"])
    assert run_config.decoder_of(run.model) is None


def test_preset_keeps_the_weights():
    run = load.load_run(DENSE, ["model={kind: preset, name: smollm2_135m, weights: w.gguf}"])
    assert run_config.decoder_of(run.model).weights == "w.gguf"


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base_needs_an_adapter(kind):
    adapter = "adapter={kind: lora, rank: 4, alpha: 8}"
    run = load.load_run(DENSE, [adapter, f"precision.frozen={kind}"])
    assert run.precision.is_quantised
    assert run.science_hash() != digest(adapter)
    with pytest.raises(ValueError, match=f"precision.frozen is {kind}, but without an adapter"):
        load.load_run(DENSE, [f"precision.frozen={kind}"])


@pytest.mark.parametrize(
    ("overrides", "got"),
    [
        (["optimizer.max_steps=null"], "neither"),
        (["data.epochs=3"], "200 steps and 3 epochs"),
    ],
)
def test_a_run_is_as_long_as_its_steps_or_its_epochs_say(overrides, got):
    told = f"exactly one of optimizer.max_steps and data.epochs, got {got}"
    with pytest.raises(load.ConfigError, match=told):
        load.load_run(DENSE, overrides)


@pytest.mark.parametrize("epochs", ["0", "-1", "three", ".inf", "true"])
def test_epochs_are_a_number_above_zero(epochs):
    with pytest.raises(load.ConfigError, match=r"data\.epochs: should be"):
        load.load_run(DENSE, ["optimizer.max_steps=null", f"data.epochs={epochs}"])


def test_a_curriculum_is_science_with_what_it_looks_at_and_none_is_as_before_it_was_known():
    adaptive = "data.curriculum={kind: adaptive}"
    assert digest("data.curriculum={kind: none}") == digest()
    assert "curriculum" not in load.load_run(DENSE).science()["data"]
    assert digest(adaptive) != digest()
    assert digest(adaptive, "evaluate.every_steps=7") != digest(adaptive)
    plan = "data.curriculum={kind: schedule, plan: [{level: 1, at_step: 5}]}"
    assert digest(plan, "evaluate.every_steps=7") == digest(plan) != digest()


def test_epochs_and_the_cap_are_science_and_null_is_as_before_they_were_known():
    by_epochs = ["optimizer.max_steps=null", "data.epochs=3"]
    assert len({digest(), digest(*by_epochs), digest(*by_epochs, "data.epochs=2.5")}) == 3
    assert digest("data.max_examples_per_document=20") != digest()
    assert (
        not {"epochs", "max_examples_per_document"} & load.load_run(DENSE).science()["data"].keys()
    )
    run = load.load_run(DENSE, by_epochs)
    assert run.with_steps(7).optimizer.num_steps == 7
    assert run.optimizer.max_steps is None
