"""launch/skypilot.py: a task with SkyPilot's keys, run as SkyPilot runs it, and its commands."""

import dataclasses
import functools
import os
import re
import shlex
import subprocess
import sys

import jsonschema
import pytest
import yaml

from launch import bundle
from launch import commands
from launch import sky_queue
from launch import skypilot
from launch import target as target_lib
from launch.commands import Command
from launch.commands import WriteFile
from tests.launch import fake_cloud
from tests.launch import hostile
from tests.launch.fake_cloud import FakeCloud
from tests.launch.fake_cloud import request

CONFIG = "configs/tiny/lora.yaml"
OUTPUT = "output=s3://bucket/runs/tiny"
TEXT = {"type": "string", "minLength": 1}
# The keys of SkyPilot 0.14 that a launch uses; a task has no others.
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "workdir", "num_nodes", "resources", "setup", "run"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z][-a-z0-9]*[a-z0-9]$"},
        "workdir": TEXT,
        "num_nodes": {"type": "integer", "minimum": 1},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "required": ["accelerators"],
            "properties": {
                "infra": {"type": "string", "pattern": r"^(\*|[a-z]+)(/[^/]+)?$"},
                "accelerators": {"type": "string", "pattern": "^[A-Za-z0-9_-]+(:[0-9]+)?$"},
                "use_spot": {"type": "boolean"},
                "job_recovery": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"max_restarts_on_errors": {"type": "integer", "minimum": 0}},
                },
            },
        },
        "file_mounts": {"type": "object", "additionalProperties": TEXT},
        "setup": TEXT,
        "run": TEXT,
    },
}


@pytest.fixture(scope="module")
def asked():
    return request(CONFIG, "skypilot_a10g")


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    made = FakeCloud(tmp_path / "cloud", project="sky_workdir")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    made.program("nvidia-smi", "echo 595.42.01\n")
    return made


def with_launcher(made, **fields):
    launcher = made.target.launcher.model_copy(update=fields)
    return dataclasses.replace(made, target=made.target.model_copy(update={"launcher": launcher}))


def argv_of(steps):
    return [step.argv for step in steps if isinstance(step, Command)]


def task_of(made):
    written = [each for each in skypilot.steps(made) if isinstance(each, WriteFile)]
    task = yaml.safe_load(written[-1].content)
    jsonschema.validate(task, SCHEMA)
    assert task == skypilot.task(made)
    return task


def test_golden_task_and_steps_on_demand(asked):
    task = task_of(asked)
    directory = asked.run.run_directory()
    assert task["resources"] == {"accelerators": "A10G:1", "use_spot": False}
    assert task["num_nodes"] == 1 and task["workdir"] == str(commands.ROOT)
    assert task["setup"] == "sh launch/host.sh setup auto\n"
    assert task["run"].splitlines()[:3] == [
        f"folder={directory}/launch",
        "port=8476",
        f"set -- --progress {directory} -- ./run train {CONFIG} --target skypilot_a10g",
    ]
    name = "tiny-lora-" + asked.run.science_hash()[:8]
    assert argv_of(skypilot.steps(asked)) == [
        ("sky", "launch", "--yes", f"--cluster={name}", "--idle-minutes-to-autostop=30",
         f"{directory}/launch/task.yaml"),
        ("mkdir", "-p", "--", directory),
        ("rsync", "-a", "-s", "--exclude=/data/", "--", f"{name}:sky_workdir/{directory}/",
         f"{directory}/"),
    ]  # fmt: skip
    assert argv_of(skypilot.stop_steps(asked)) == [("sky", "down", "--yes", name)]
    assert f"sky down --yes {name}" in skypilot.stop_hint(asked)


def test_a_spot_machine_recovers_and_writes_to_a_bucket():
    with pytest.raises(ValueError, match="a spot machine's disk goes with it"):
        skypilot.steps(request(CONFIG, "skypilot_a10g", [], ["launcher.spot=true"]))
    machine = ["launcher.spot=true", "launcher.cloud=aws", "launcher.region=us-east-1"]
    made = request(CONFIG, "skypilot_a10g", [OUTPUT], machine)
    task = task_of(made)
    assert task["resources"] == {
        "infra": "aws/us-east-1", "accelerators": "A10G:1", "use_spot": True,
        "job_recovery": {"max_restarts_on_errors": 3},
    }  # fmt: skip
    assert task["setup"] == "sh launch/host.sh setup auto data\n"
    name = task["name"]
    found = argv_of(skypilot.steps(made))
    assert found[0] == (sys.executable, "-m", "launch.sky_queue", "--name", name)
    assert found[1][:5] == ("sky", "jobs", "launch", "--yes", f"--name={name}")
    assert found[3][:3] == ("aws", "s3", "sync")
    assert f"sky jobs cancel --yes --name={name}" in skypilot.stop_hint(made)


def test_a_managed_job_is_not_launched_twice(cloud):
    """Nor where SkyPilot's own lines stand before its list; a job that was cancelled hides none."""
    words = [f"name=test_twice_{os.getpid()}", OUTPUT]
    mine, said = request(CONFIG, "skypilot_a10g", words, ["launcher.spot=true"]), []
    steps = skypilot.steps(mine)
    ends = next(i for i, step in enumerate(steps) if "start the task" in step.purpose) + 1
    name = skypilot.task(mine)["name"]
    other = {"job_id": 3, "job_name": f"{name}-b", "status": "RUNNING"}
    cloud.store("sky_jobs.json", [other])
    cloud.store("sky_says.json", "[yellow] a line of the server\n")
    with fake_cloud.launched(mine):
        commands.execute(steps[:ends], said.append)
        with pytest.raises(commands.CommandFailed, match="follow that job, or cancel it") as caught:
            commands.execute(steps[:ends], said.append)
        assert caught.value.exit_code == 3
        assert f"managed job 7 (STARTING) of the name {name}" in str(caught.value)
        assert f"'sky jobs cancel --yes --name={name}' and launch again" in str(caught.value)
        commands.execute(skypilot.stop_steps(mine), said.append)
        commands.execute(steps[:ends], said.append)
    verbs = [argv[2] for argv in cloud.calls("sky")]
    assert verbs == ["queue", "launch", "queue", "cancel", "queue", "launch"]
    assert "--skip-finished" in cloud.calls("sky")[0] and "--all" in cloud.calls("sky")[0]


@pytest.mark.parametrize(
    ("script", "code", "told"),
    [
        (
            "echo 'sky.exceptions.ClusterNotUpError: No in-progress managed jobs.' >&2; exit 1",
            0,
            "",
        ),
        ("echo 'Error: No such option: --output' >&2; exit 2", 1, "No such option: --output"),
        ("echo 'Failed to connect' >&2; exit 1", 1, "does not tell which jobs there are (Failed"),
        ("echo 'ID TASK NAME'", 1, "printed no JSON list ('ID TASK NAME"),
    ],
)
def test_a_queue_that_does_not_answer_launches_nothing(cloud, script, code, told, capfd):
    cloud.program("sky", f"{script}\n")
    assert sky_queue.main(["--name", "x"]) == code
    assert told in capfd.readouterr().err


def test_the_task_runs_as_skypilot_runs_it(cloud):
    mine, said = request(CONFIG, "skypilot_a10g", [f"name=test_sky_{os.getpid()}"]), []
    with fake_cloud.launched(mine) as results:
        commands.execute(skypilot.steps(mine), said.append)
        assert (results / "launch" / "state.jsonl").exists()  # fetched
    words = f"train {CONFIG} --target skypilot_a10g {mine.overrides[0]}"
    assert cloud.runs() == [[words, "", "", "", ""]]
    assert "driver 595.42.01 takes cuda13" in "\n".join(said)


def test_two_nodes_need_a_shared_folder(asked):
    pair = asked.target.model_copy(update={"num_hosts": 2})
    made = request(CONFIG, "skypilot_a10g", [OUTPUT])
    made = dataclasses.replace(made, target=pair)
    with pytest.raises(ValueError, match=r"2 hosts work in one local folder.*give launcher.shared"):
        skypilot.steps(made)
    task = task_of(with_launcher(made, shared_folder="/mnt/shared"))
    assert task["run"].startswith("export MISTRAL_JAX_CACHE=/mnt/shared/cache\n")


def test_two_nodes_are_told_their_places(asked, tmp_path):
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "host.sh").write_text(
        'echo "$MISTRAL_JAX_COORDINATOR $MISTRAL_JAX_NUM_PROCESSES $MISTRAL_JAX_PROCESS_ID '
        '$MISTRAL_JAX_CACHE"\n'
    )
    asked = with_launcher(asked, shared_folder="/mnt/shared")
    shared = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    done = subprocess.run(
        ["bash", "-c", skypilot.task(asked)["run"]], cwd=tmp_path, capture_output=True, check=True,
        env={**os.environ, **shared, "SKYPILOT_NODE_RANK": "1"}, text=True,
    )  # fmt: skip
    assert done.stdout == "10.0.0.1:8476 2 1 /mnt/shared/cache\n"


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (["launcher.accelerators=A10G:4"], "the target has 1 chips a host"),
        (["launcher.accelerators='A10G; x'"], "SkyPilot's name and count"),
        (["launcher.cloud=-x"], "launcher.cloud"),
        (["launcher.region=a/b"], "launcher.region"),
    ],
)
def test_what_skypilot_could_not_take_is_refused(machine, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        skypilot.steps(request(CONFIG, "skypilot_a10g", [], machine))


def test_skys_refusals_come_with_what_to_do(cloud, asked):
    cloud.program("sky", "echo 'ResourcesUnavailableError: none' >&2; exit 1\n")
    launch = next(step for step in skypilot.steps(asked) if isinstance(step, Command))
    with pytest.raises(commands.CommandFailed, match=r"leave launcher\.region and"):
        commands.run_command(launch, print)


def test_hostile_strings_stay_words_of_the_task_or_are_refused(asked, monkeypatch, tmp_path):
    """The task's text goes through bash: the far words are those that were meant, nothing run."""
    for module, name in ((target_lib, "load_target"), (bundle, "project_files")):
        monkeypatch.setattr(module, name, functools.cache(getattr(module, name)))
    kept, refused = [], 0
    for text in hostile.STRINGS:
        places = [
            with_launcher(asked, **{field: text})
            for field in ("cloud", "region", "accelerators", "shared_folder")
        ]
        places.append(dataclasses.replace(asked, run=asked.run.model_copy(update={"name": text})))
        places.append(dataclasses.replace(asked, overrides=(f"data.train={text}",)))
        for made in places:
            try:
                task = skypilot.task(made)
            except ValueError:
                refused += 1
                continue
            assert re.fullmatch(r"[A-Za-z0-9:_-]+", task["resources"]["accelerators"])
            if made.overrides:
                kept.append((made.overrides[0], task["run"].partition("set -eu")[0]))
    assert refused > 2000 and len(kept) > 300
    script = "".join(f'{text}\nshift $(($# - 1))\nprintf "%s\\0" "$1"\n' for _, text in kept)
    done = subprocess.run(
        ["bash"], input=script.encode(), cwd=tmp_path, capture_output=True, check=True
    )
    assert done.stdout.decode().split("\0")[:-1] == [meant for meant, _ in kept]
    assert os.listdir(tmp_path) == []
    assert shlex.split(skypilot.task(asked)["setup"])[0] == "sh"
