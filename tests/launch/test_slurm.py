"""launch/slurm.py: the script is a shell's, runs on every node, saves at the limit, and says so."""

import dataclasses
import functools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch import commands
from launch import follow_slurm
from launch import slurm
from launch import target as target_lib
from launch.commands import WriteFile
from tests.launch import fake_cloud
from tests.launch import hostile
from tests.launch.fake_cloud import FakeCloud
from tests.launch.fake_cloud import request

CONFIG = "configs/tiny/pod.yaml"
PARTITION = ("launcher.partition=gpu", "launcher.lock=cuda13")


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Return a cluster of two nodes."""
    made = FakeCloud(tmp_path / "cloud", hosts=2)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_TESTS", "1")
    return made


@pytest.fixture(scope="module")
def asked():
    return request(CONFIG, "slurm_h100", [], PARTITION)


REAL = """#!/bin/sh
[ "$1" = doctor ] || exec {python} -m mistral_jax.cli "$@"
"""


def own_request(**launcher):
    machine = [*PARTITION, *(f"launcher.{key}={value}" for key, value in launcher.items())]
    return request(CONFIG, "slurm_h100", [f"name=test_slurm_{os.getpid()}"], machine)


def with_launcher(made, **fields):
    launcher = made.target.launcher.model_copy(update=fields)
    return dataclasses.replace(made, target=made.target.model_copy(update={"launcher": launcher}))


def faster(steps):
    """Poll more often than a cluster would like."""
    last = steps[-1]
    return [*steps[:-1], dataclasses.replace(last, argv=(*last.argv, "--poll-s", "0.05"))]


def test_golden_script_and_steps(asked):
    folder = commands.ROOT / asked.folder
    steps = slurm.steps(asked)
    files = {step.path.name: step.content for step in steps if isinstance(step, WriteFile)}
    assert set(files) == {"config.yaml", "target.yaml", "job.sh"}
    lines = files["job.sh"].splitlines()
    assert lines[0] == "#!/bin/bash"
    assert [line for line in lines if line.startswith("#SBATCH")] == [
        f"#SBATCH --{option}"
        for option in (
            f"job-name={folder.parent.name}", "nodes=2", "ntasks-per-node=1", "gpus-per-node=8",
            "exclusive", "mem=0", "time=24:00:00", "signal=B:USR1@120", "requeue",
            "open-mode=append", f"output={folder}/job-%j.log", "partition=gpu",
        )
    ]  # fmt: skip
    assert f"project={commands.ROOT}" in lines and "locks=(cuda13)" in lines
    assert (
        f"words=(--progress {asked.run.run_directory()} -- ./run train {folder}/config.yaml "
        f"--target {folder}/target.yaml)" in lines
    )
    module = (sys.executable, "-m", "launch.follow_slurm")
    assert [step.argv for step in steps[3:]] == [
        (*module, "submit", "--folder", str(folder), "--", "sbatch", "--parsable",
         f"{folder}/job.sh"),
        (*module, "follow", "--folder", str(folder)),
    ]  # fmt: skip
    stop = ("scancel", "--me", f"--name={folder.parent.name}")
    assert [step.argv for step in slurm.stop_steps(asked)] == [stop]
    assert shlex.join(stop) in slurm.stop_hint(asked)


def test_the_script_is_sound_bash(asked, tmp_path):
    path = tmp_path / "job.sh"
    path.write_text(slurm.script(asked), encoding="utf-8")
    subprocess.run(["bash", "-n", str(path)], check=True)
    path.write_text(slurm.script(asked).replace("fi\n", "", 1), encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode


def test_a_launch_runs_on_both_nodes_and_is_followed_to_its_end(cloud):
    mine, said = own_request(), []
    (cloud.base / "train.sh").write_text('echo "$MISTRAL_JAX_CACHE" >>"$base/caches"\n')
    with fake_cloud.launched(mine):
        commands.execute(faster(slurm.steps(mine)), said.append)
        log = commands.ROOT / mine.folder
        assert (log / "exit-101").read_text() == "0\n"
        assert {path.name for path in log.glob("host-*")} == {"host-0", "host-1"}
    text = "\n".join(said)
    assert "submitted job 101" in text and "job 101: RUNNING" in text
    assert text.count("mistral-jax train here") == 2
    words = f"train {log}/config.yaml --target {log}/target.yaml"
    assert sorted(cloud.runs()) == [
        [words, "", "node0:8476", "2", "0"], [words, "", "node0:8476", "2", "1"],
    ]  # fmt: skip
    assert (cloud.base / "caches").read_text() == f"{commands.ROOT}/runs/.cache\n" * 2
    assert len(cloud.runs("doctor")) == 1


@pytest.mark.sharded
def test_two_nodes_train_one_model_for_real(cloud, tmp_path, monkeypatch):
    """The batch script brings two processes of the real program together, over loopback."""
    cloud.write(cloud.base / "venv" / "bin" / "mistral-jax", REAL.format(python=sys.executable))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    cloud.store("nodes.json", ["127.0.0.1", "127.0.0.1"])
    tree = yaml.safe_load((target_lib.TARGETS / "local_cpu.yaml").read_text(encoding="utf-8"))
    tree |= {"name": "two_nodes", "num_hosts": 2, "chips_per_host": 1, "num_chips": 2}
    tree |= {"topology": [2], "launcher": {"kind": "slurm", "lock": "cuda13"}}
    path = tmp_path / "two_nodes.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    run = [f"name=test_slurm_real_{os.getpid()}", "optimizer.max_steps=2", "evaluate.max_rows=8"]
    mine, said = request("configs/tiny/dense.yaml", str(path), run), []
    with fake_cloud.launched(mine) as folder:
        commands.execute(faster(slurm.steps(mine)), said.append)
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads((folder / "plan.json").read_text())["num_hosts"] == 2
    records = [json.loads(line) for line in lines]
    losses = [each["loss"] for each in records if "loss" in each]
    assert max(each.get("step", 0) for each in records) == 2
    assert losses[-1] < losses[0]


def test_a_run_that_is_refused_ends_the_job_with_its_code(cloud):
    (cloud.base / "train.sh").write_text("echo 'error: no data' >&2; exit 2\n", encoding="utf-8")
    mine, said = own_request(), []
    with (
        fake_cloud.launched(mine),
        pytest.raises(commands.CommandFailed, match="exit code 2") as caught,
    ):
        commands.execute(faster(slurm.steps(mine)), said.append)
    assert "error: no data" in str(caught.value)
    assert not cloud.calls("scontrol") or cloud.calls("scontrol")[-1][1] != "requeue"


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_the_limit_saves_and_queues_again_and_a_cancel_only_saves(cloud, signal):
    """`train` here answers SIGTERM as the product does: it saves, and ends well."""
    (cloud.base / "train.sh").write_text(
        "trap 'echo saved >>\"$base/saved\"; exit 0' TERM\n"
        'echo x >>"$base/ready"; while :; do sleep 0.1; done\n',
        encoding="utf-8",
    )
    mine = own_request()
    ready, saved = cloud.base / "ready", cloud.base / "saved"
    with fake_cloud.launched(mine) as folder:
        commands.execute(slurm.steps(mine)[:-1], print)
        wait_for(lambda: ready.exists() and len(ready.read_text().split()) == 2)
        pid = int((cloud.base / "batch.pid").read_text())
        subprocess.run(["kill", f"-{signal}", str(pid)], check=True)
        end = folder / "launch" / "exit-101"
        wait_for(lambda: end.exists() or ["scontrol", "requeue", "101"] in cloud.calls())
        wait_for(lambda: follow_slurm._state("101") is None)
        assert saved.read_text().split() == ["saved"] * 2
        assert ["scancel", "--quiet", "--signal=TERM", "101"] in cloud.calls()
        assert end.exists() == (signal == "TERM")
        assert (["scontrol", "requeue", "101"] in cloud.calls()) == (signal == "USR1")


def test_a_job_that_is_there_is_not_submitted_again(cloud, capfd, tmp_path):
    (tmp_path / "job").write_text("77\n")
    (cloud.base / "batch.pid").write_text(str(os.getpid()))
    assert follow_slurm.main(["submit", "--folder", str(tmp_path), "--", "sbatch", "x"]) == 0
    assert "job 77 was submitted before: RUNNING" in capfd.readouterr().out
    assert cloud.calls("sbatch") == []


def test_a_squeue_that_does_not_answer_submits_no_second_job(cloud, capfd, tmp_path, monkeypatch):
    (tmp_path / "job").write_text("77\n")
    busy = tmp_path / "bin"
    busy.mkdir()
    (busy / "squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Socket timed out on send/recv' >&2\nexit 1\n"
    )
    (busy / "squeue").chmod(0o755)
    submit = ["submit", "--folder", str(tmp_path), "--", "sbatch", "--parsable", "x"]
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{busy}:{os.environ['PATH']}")
        assert follow_slurm.main(submit) == 1
    assert "Socket timed out" in capfd.readouterr().err
    assert cloud.calls("sbatch") == [] and (tmp_path / "job").read_text() == "77\n"


def test_a_job_that_vanishes_is_told(cloud, capfd, tmp_path):
    (tmp_path / "job").write_text("78\n")
    (tmp_path / "job-78.log").write_text("last words\n")
    arguments = ["follow", "--folder", str(tmp_path), "--poll-s", "0"]
    assert follow_slurm.main(arguments) == 1
    shown = capfd.readouterr()
    assert "last words" in shown.out and "sacct --jobs=78" in shown.err


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("partition", "a b", "launcher.partition"),
        ("account", "--x", "launcher.account"),
        ("time_limit", "1 day", "expected HH:MM:SS"),
        ("folder", "relative", "absolute path"),
    ],
)
def test_what_slurm_could_not_take_is_refused(asked, field, value, message):
    with pytest.raises(ValueError, match=message):
        slurm.steps(with_launcher(asked, **{field: value}))


def test_hostile_strings_stay_words_of_the_script_or_are_refused(asked, tmp_path, monkeypatch):
    """What is accepted goes through bash: the folder and the output as they are, nothing run."""
    monkeypatch.setattr(target_lib, "load_target", functools.cache(target_lib.load_target))
    accepted, refused = [], 0
    for text in hostile.STRINGS:
        places = [
            with_launcher(asked, **{field: text})
            for field in ("partition", "account", "qos", "time_limit")
        ]
        places.append(with_launcher(asked, folder=f"/shared/{text}"))
        places.append(dataclasses.replace(asked, run=asked.run.model_copy(update={"output": text})))
        places.append(
            dataclasses.replace(
                asked, run=asked.run.model_copy(update={"name": text, "output": "/out"})
            )
        )
        for made in places:
            try:
                accepted.append((made, slurm.script(made)))
            except ValueError:
                refused += 1
    assert refused > 2000 and len(accepted) > 400
    heads = [(made, text[: text.index("\ncd --")]) for made, text in accepted]
    for _, head in heads:  # directives: one word each
        for line in head.splitlines():
            if line.startswith("#SBATCH"):
                assert re.fullmatch(r"#SBATCH --[A-Za-z0-9=./_:@%+,-]+", line)
    script = "".join(f'{head}\nprintf "%s\\0" "$project" "${{words[1]}}"\n' for _, head in heads)
    done = subprocess.run(
        ["bash"], input=script.encode(), cwd=tmp_path, capture_output=True, check=True
    )
    shown = done.stdout.decode().split("\0")[:-1]
    meant = []
    for made, _ in heads:
        project = made.target.launcher.folder or str(commands.ROOT)
        meant += [project, str(Path(made.run.run_directory()))]
    assert [a for a, b in zip(shown, meant, strict=True) if a != b and ":/" not in b] == []
    assert os.listdir(tmp_path) == []
