"""launch/local.py and start.py: a run of this machine in the background; what is refused."""

import functools
import re
from pathlib import Path

import pytest

from launch import commands
from launch import detach
from launch import start
from launch import supervise
from launch import target as target_lib
from mistral_jax import cli
from mistral_jax.config import load

CONFIG = commands.ROOT / "configs" / "tiny" / "dense.yaml"


@functools.cache
def run():
    return load.load_run(CONFIG)


def launch(*overrides, target="local_cpu", **options):
    said = []
    machine = target_lib.load_target(target, list(overrides))
    code = start.launch(run(), CONFIG, (), machine, say=said.append, **options)
    return code, "\n".join(said)


def test_a_dry_run_shows_processes_and_supervisor():
    code, said = launch("launcher.processes=4", is_dry_run=True)
    assert code == 0
    assert "launch.detach start" in said and "--processes 4" in said
    # A machine in four parts is no longer the file of that name.
    assert re.search(r"train configs/tiny/dense.yaml --target \S+/target.yaml", said)
    assert "the same command with --stop" in said
    assert "stop --folder" in launch(is_dry_run=True, stop=True)[1]


def test_create_is_for_ec2_and_says_so():
    with pytest.raises(ValueError, match="--create starts EC2 instances, and its launcher is ssh"):
        launch("launcher.kind=ssh", "launcher.host=h", create=True)
    with pytest.raises(ValueError, match=r"no host is given; add launcher\.host=NAME"):
        launch("launcher.kind=ssh")


def test_a_hostile_run_name_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    for name in ("../../x", "-x", "a b", "$(touch x)", ""):
        named = run().model_copy(update={"name": name})
        with pytest.raises(ValueError, match="run name"):
            start.launch(named, CONFIG, (), target_lib.load_target("local_cpu"), say=print)
    assert list(tmp_path.iterdir()) == []


def test_the_targets_overrides_are_parted_from_the_runs():
    given = ["seed=1", "launcher.host=h", "price_usd_per_hour=2", "data.train=launcher.x"]
    assert start.split_target(given) == (
        ["seed=1", "data.train=launcher.x"],
        ["launcher.host=h", "price_usd_per_hour=2"],
    )


def test_the_verb_reports_a_wrong_input_in_one_sentence(capsys):
    words = ["launch", str(CONFIG), "--target", "local_cpu", "launcher.kind=ssh", "--dry-run"]
    assert cli.main([*words, "launcher.host=a b"]) == 2
    assert capsys.readouterr().err.startswith("error: host 'a b': expected a name")


@pytest.mark.slow
def test_a_run_of_this_machine_trains_in_the_background_and_is_followed(tmp_path):
    output = tmp_path / "out"
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.md").write_text("One line of text for the model.\n" * 200)
    words = [
        "model.num_layers=1", "model.width=32", "model.ffn.width=32", "model.head_width=8",
        "data.sequence_length=64", "data.global_batch_sequences=2", "optimizer.max_steps=3",
        "optimizer.warmup_steps=1", f"data.train={tmp_path / 'texts'}", f"output={output}",
    ]  # fmt: skip
    made = load.load_run(CONFIG, words)
    folder = commands.ROOT / commands.launch_folder(made)
    said = []
    code = start.launch(made, CONFIG, words, target_lib.load_target("local_cpu"), say=said.append)
    assert code == 0
    assert (output / "report.html").is_file()
    assert any("parameters:" in line for line in said)
    assert not detach.is_running(folder)
    for path in sorted(folder.iterdir()):
        assert path.name in {detach.LOCK, detach.LOG, detach.PID, supervise.STATE}
        path.unlink()
    folder.rmdir()
    Path(folder.parent).rmdir()
