"""Groups of processes of which one is killed, stopped, or asked to end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from launch import supervise
from tests import processes

pytestmark = pytest.mark.faults

NUM_STEPS = 20
KILLED_AFTER, STOPPED_AFTER = 4, 10
KILL_NOTICED_S, HANG_NOTICED_S = 15.0, 30.0
OVERRIDES = [
    f"optimizer.max_steps={NUM_STEPS}", "checkpoint.every_steps=2", "evaluate.every_steps=10",
    "evaluate.max_rows=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> processes.Workshop:
    """Return a workshop in which four processes have trained the run `whole` undisturbed."""
    made = processes.Workshop(tmp_path_factory.mktemp("four"), OVERRIDES)
    made.train("whole", made.target(4), 4, 1)
    return made


class Supervised:
    """A group under the supervisor, as `launch` starts it, and what the supervisor wrote down."""

    def __init__(self, workshop: processes.Workshop, name: str) -> None:
        self.folder = workshop.folder / f"{name}_supervised"
        self.folder.mkdir()
        command = workshop.command(name, workshop.target(4))
        options = ["--processes", "4", "--folder", str(self.folder), "--grace-s", "3"]
        progress = ["--progress", str(workshop.folder / name)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch.supervise", *options, *progress, "--", *command],
            env=workshop.environment(1),
            cwd=processes.ROOT,
            stdout=(self.folder / "said.txt").open("w"),
            stderr=subprocess.STDOUT,
        )

    def events(self, kind: str) -> list[dict]:
        """Return the events of a kind."""
        path = self.folder / supervise.STATE
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]


def wait_for(is_so: Callable[[], bool], *processes_: subprocess.Popen) -> None:
    """Wait for something that processes do, which goes on until it has come."""
    deadline = time.monotonic() + processes.LONGEST_S
    while not is_so():
        assert time.monotonic() < deadline, "it took too long"
        assert all(process.poll() is None for process in processes_), "ended before it came"
        time.sleep(0.01)


def test_killed_and_hung_processes_are_noticed_and_the_run_ends_with_the_same_bits(four) -> None:
    group = Supervised(four, "disturbed")
    wait_for(lambda: four.last_step("disturbed") >= KILLED_AFTER, group.process)
    first = group.events("started")[0]["pids"]
    killed = time.time()
    psutil.Process(first[2]).kill()
    wait_for(lambda: len(group.events("exited")) == 1, group.process)
    assert group.events("exited")[0]["time"] - killed < KILL_NOTICED_S

    wait_for(lambda: len(group.events("started")) == 2, group.process)
    assert not any(psutil.pid_exists(pid) for pid in first), "a process was left behind"
    wait_for(lambda: four.last_step("disturbed") >= STOPPED_AFTER, group.process)
    second = group.events("started")[1]["pids"]
    stopped = time.time()
    psutil.Process(second[1]).suspend()
    wait_for(lambda: len(group.events("exited")) == 2, group.process)
    noticed = group.events("exited")[1]
    assert noticed["process"] != 1, "it was not the stopped process that ended"
    assert noticed["time"] - stopped < HANG_NOTICED_S

    assert group.process.wait(timeout=processes.LONGEST_S) == 0
    assert len(group.events("started")) == 3
    assert four.losses("disturbed") == four.losses("whole")


def test_sigterm_to_one_process_stops_all_at_one_saved_step(four) -> None:
    group = four.start(four.command("asked", four.target(4)), 4, 1)
    wait_for(lambda: four.last_step("asked") >= 3, *group)
    group[3].send_signal(signal.SIGTERM)
    codes = [process.wait(timeout=60) for process in group]
    assert codes == [130] * 4, four.said(0)
    step = four.last_step("asked")
    assert 3 <= step < NUM_STEPS, "the run ended before the signal came"
    assert f"SIGTERM: saved at step {step}; run the same command" in four.said(0)
    assert (four.folder / "asked" / "checkpoints" / str(step)).is_dir()
    assert not (four.folder / "asked" / "report.html").exists()
    assert four.train("asked", four.target(4), 4, 1) == four.losses("whole")
    assert f"going on at step {step} of {NUM_STEPS}" in four.said(0)


def test_others_wait_for_what_takes_process_0_long(tmp_path: Path) -> None:
    """As a checkpoint that comes from a bucket, or documents that are prepared."""
    code = """
import time
from mistral_jax import distributed
with distributed.group():
    print(distributed.on_main(lambda: time.sleep(35) or "done"))
"""
    shared = {
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(processes.ROOT),
        **supervise.on_one_host(2)(1)[0],
    }  # fmt: skip
    group = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **shared, "MISTRAL_JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        )
        for index in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=processes.LONGEST_S)[0] for process in group]
    assert [process.returncode for process in group] == [0, 0], said
    assert all(text.splitlines()[-1] == "done" for text in said), said


@pytest.mark.parametrize("victim", [0, 1])
def test_without_a_supervisor_the_others_end_too(tmp_path: Path, victim: int) -> None:
    workshop = processes.Workshop(tmp_path, [*OVERRIDES, "optimizer.max_steps=100000"])
    group = workshop.start(workshop.command("lost", workshop.target(2)), 2, 1)
    wait_for(lambda: workshop.last_step("lost") >= 2, *group)
    killed = time.monotonic()
    group[victim].kill()
    group[victim].wait()
    code = group[1 - victim].wait(timeout=processes.LONGEST_S)
    assert time.monotonic() - killed < KILL_NOTICED_S
    assert code not in supervise.FINAL_CODES, "a supervisor would not start it again"
