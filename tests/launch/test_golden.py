"""Golden plans: every shipped config resolves as it was committed; drift names the field."""

import json
from pathlib import Path

import pytest

from launch import golden
from mistral_jax import cli
from mistral_jax.config import load
from mistral_jax.config import presets
from tests import shipped

ROOT = Path(__file__).parents[2]
CONFIGS = {load.load_run(path).name: path for path in shipped.RUN_CONFIGS}
LORA = str(ROOT / "configs/mistral_7b/lora.yaml")


def shape_of(run):
    return presets.PRESETS["smollm2_135m"] if run.model.kind == "checkpoint" else None


@pytest.mark.parametrize(("name", "machine"), golden.names())
def test_a_plan_is_as_its_golden_one(name, machine):
    run = load.load_run(CONFIGS[name])
    assert golden.check(run, machine, decoder=shape_of(run)) == []


def test_every_config_has_a_golden_plan():
    missing = set(CONFIGS) - {name for name, _ in golden.names()}
    assert not missing, "write them with: plan CONFIG --target TARGET --update"


def test_the_presets_train_what_their_ranks_say():
    for name, count in (("mistral_7b_lora", 41_943_040), ("mistral_7b_lora_r64", 167_772_160)):
        held = json.loads((golden.GOLDENS / f"{name}@g5_2xlarge.json").read_text())
        assert held["plan"]["trainable_parameters"] == count


def test_drift_is_named_and_fails(capsys):
    arguments = ["plan", LORA, "--target", "g5_2xlarge", "--check"]
    assert cli.main(arguments) == cli.EXIT_DONE
    assert cli.main([*arguments, "adapter.rank=8"]) == cli.EXIT_FAILED
    said = capsys.readouterr().out
    assert "trainable_parameters: 41,943,040 -> 20,971,520" in said
    assert "memory.gradients" in said
    assert "memory.frozen_parameters" not in said


def test_a_missing_golden_plan_names_the_runs_others(capsys):
    assert cli.main(["plan", LORA, "--target", "local_cpu", "--check"]) == cli.EXIT_INPUT
    assert "there is one on g5_2xlarge" in capsys.readouterr().err


def test_update_writes_what_check_accepts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(golden, "GOLDENS", tmp_path / "goldens")
    config = str(ROOT / "configs/tiny/dense.yaml")
    assert cli.main(["plan", config, "--update", "optimizer.moments=int8"]) == cli.EXIT_DONE
    (path,) = (tmp_path / "goldens").iterdir()
    assert json.loads(path.read_text())["machine"] == golden.MACHINE
    assert cli.main(["plan", config, "--check", "optimizer.moments=int8"]) == cli.EXIT_DONE
    assert cli.main(["plan", config, "--check"]) == cli.EXIT_FAILED
    assert "optimizer_bytes_per_parameter" in capsys.readouterr().out
