"""launch/supervise.py, launch/detach.py, launch/follow.py: real processes, killed for real."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import commands
from launch import detach
from launch import follow
from launch import supervise

FAST = supervise.Policy(restarts=2, grace_s=2.0, first_wait_s=0.05)


def python(text, *words):
    return (sys.executable, "-c", text, *map(str, words))


def wait_for(condition, limit_s=15.0):
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def events(folder):
    return [json.loads(line) for line in (folder / supervise.STATE).read_text().splitlines()]


# Counts its starts in a file, says so, and ends as a list of codes wants: negative is a signal.
COUNTED = """
import os, pathlib, sys
file, codes = pathlib.Path(sys.argv[1]), [int(c) for c in sys.argv[2].split(",")]
count = len(file.read_text()) if file.exists() else 0
file.write_text("x" * (count + 1))
code = codes[min(count, len(codes) - 1)]
if code < 0: os.kill(os.getpid(), -code)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("codes", "starts", "result"),
    [
        ("0", 1, 0),
        ("2", 1, 2),
        ("3", 1, 3),
        ("130", 1, 130),
        ("1,0", 2, 0),
        ("-9,-6,0", 3, 0),
        ("1", 3, 1),
        ("-9", 3, 137),
    ],
)
def test_crashes_are_tried_again_and_final_codes_are_not(tmp_path, codes, starts, result):
    file = tmp_path / "starts"
    code = supervise.run_group([python(COUNTED, file, codes)], policy=FAST)
    assert (code, len(file.read_text())) == (result, starts)


def test_a_new_step_gives_all_restarts_back(tmp_path):
    text = COUNTED.replace("code =", "(file.parent / 'metrics.jsonl').open('a').write("
                           "'{\"step\": %d}\\n' % min(count, 3))\ncode =")  # fmt: skip
    file = tmp_path / "starts"
    code = supervise.run_group([python(text, file, "1")], progress=tmp_path, policy=FAST)
    # Steps 0, 1, 2, 3 came; then two restarts without a new one.
    assert (code, len(file.read_text())) == (1, 4 + 2)


def test_the_newest_step_is_that_of_metrics_or_checkpoints(tmp_path):
    assert supervise.newest_step(None) == supervise.newest_step(tmp_path / "none") == -1
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "loss": 1}\n{"loss": 2, "step":12}\n')
    assert supervise.newest_step(tmp_path) == 12
    for name in ("20", "15", "30.partial", "best"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert supervise.newest_step(tmp_path) == 20


MEMBER = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
name = os.environ["MISTRAL_JAX_PROCESS_ID"]
assert os.environ["MISTRAL_JAX_NUM_PROCESSES"] == "3"
child = subprocess.Popen(["sleep", "1000"])
with (folder / "log").open("a") as file:
    file.write(f"{name} {os.getpid()} {child.pid} {os.environ['MISTRAL_JAX_COORDINATOR']}\\n")
signal.signal(signal.SIGTERM, signal.SIG_IGN if name == "2" else signal.SIG_DFL)
while not (folder / "finish").exists():
    time.sleep(0.02)
child.kill()
"""


def started(folder):
    lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return [line.split() for line in lines]


def test_one_death_ends_the_group_and_starts_it_anew_on_another_port(tmp_path):
    text = (
        "import sys; from pathlib import Path; from launch import supervise as s;"
        "sys.exit(s.run_group([sys.argv[2:]] * 3, environments=s.on_one_host(3),"
        " policy=s.Policy(grace_s=1.0, first_wait_s=0.05),"
        " record=s.file_record(Path(sys.argv[1]) / 'state.jsonl')))"
    )
    group = subprocess.Popen(
        python(text, tmp_path, *python(MEMBER, tmp_path)), cwd=commands.ROOT, stdout=-3
    )
    first = wait_for(lambda: len(started(tmp_path)) == 3 and started(tmp_path))
    killed = time.monotonic()
    os.kill(int(first[0][1]), signal.SIGKILL)
    second = wait_for(lambda: len(started(tmp_path)) == 6 and started(tmp_path)[3:])
    assert time.monotonic() - killed < 10
    # Also the one that ignores SIGTERM, and the children of all.
    assert not any(is_alive(int(pid)) for line in first for pid in line[1:3])
    assert {line[3] for line in first}.isdisjoint({line[3] for line in second})
    (tmp_path / "finish").touch()
    assert group.wait(10) == 0
    assert [event["event"] for event in events(tmp_path)] == [
        "started", "exited", "restarting", "started", "ended",
    ]  # fmt: skip
    assert not any(is_alive(int(pid)) for line in second for pid in line[1:3])


SLEEPER = "import os, sys, time; print('pid', os.getpid(), flush=True); time.sleep(1000)"


def supervised(*words):
    argv = (sys.executable, "-m", "launch.supervise", *map(str, words), "--", *python(SLEEPER))
    return subprocess.Popen(argv, cwd=commands.ROOT, stdout=subprocess.PIPE, text=True)


def pid_of(process):
    with process.stdout:
        return int(process.stdout.readline().split()[1])


def test_sigterm_ends_all_and_the_end_command_runs(tmp_path):
    ended = tmp_path / "the end"
    process = supervised("--folder", tmp_path, "--on-end", json.dumps(["touch", str(ended)]))
    child = pid_of(process)
    process.terminate()
    assert process.wait(10) == supervise.STOPPED_CODE
    assert not is_alive(child) and ended.exists()
    assert [event["event"] for event in events(tmp_path)][-2:] == ["ended", "on_end"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a death")
def test_the_command_dies_with_a_supervisor_that_is_killed():
    process = supervised()
    child = pid_of(process)
    process.kill()
    process.wait()
    wait_for(lambda: not is_alive(child))


def test_a_command_that_is_not_there_is_not_tried_again(tmp_path):
    record = supervise.file_record(tmp_path / supervise.STATE)
    assert supervise.run_group([["/no/such/program"]], policy=FAST, record=record) == 2
    assert "No such file" in events(tmp_path)[0]["error"]


def run_detach(*words, stdin=""):
    argv = (sys.executable, "-m", "launch.detach", *map(str, words))
    return subprocess.run(
        argv, cwd=commands.ROOT, input=stdin, capture_output=True, text=True, timeout=30
    )


def log_lines(folder):
    return (folder / detach.LOG).read_text().splitlines()


def test_a_detached_run_is_attached_to_followed_from_a_byte_and_stopped(tmp_path):
    begin = ("start", "--folder", tmp_path, "--", *python(SLEEPER))
    first, second = run_detach(*begin), run_detach(*begin)
    assert first.returncode == second.returncode == 0
    pid = int((tmp_path / detach.PID).read_text())
    assert f"started, pid {pid}" in first.stdout
    assert f"runs already, pid {pid}" in second.stdout
    (line,) = wait_for(lambda: [each for each in log_lines(tmp_path) if each.startswith("pid ")])
    child = int(line.split()[1])
    assert detach.is_running(tmp_path) and is_alive(child)
    stopped = run_detach("stop", "--folder", tmp_path)
    assert stopped.returncode == 0 and "has stopped" in stopped.stdout
    assert not detach.is_running(tmp_path) and not is_alive(child)
    log = (tmp_path / detach.LOG).read_text()
    followed = run_detach("follow", "--folder", tmp_path, stdin="5\n")
    assert (followed.returncode, followed.stdout) == (supervise.STOPPED_CODE, log[5:])
    assert run_detach("stop", "--folder", tmp_path).stdout.startswith("launch: nothing runs")


def test_the_exit_code_of_a_detached_run_arrives_and_a_killed_supervisor_is_told(tmp_path):
    run_detach("start", "--folder", tmp_path, "--", *python("print('hello'); exit(3)"))
    done = run_detach("follow", "--folder", tmp_path)
    assert done.returncode == 3 and "hello" in done.stdout
    run_detach("start", "--folder", tmp_path, "--", *python(SLEEPER))
    os.kill(int((tmp_path / detach.PID).read_text()), signal.SIGKILL)
    done = run_detach("follow", "--folder", tmp_path)
    assert done.returncode == 1 and "launch again to go on" in done.stderr
    assert "hello" not in done.stdout and (tmp_path / detach.OLD_LOG).exists()
    nothing = run_detach("follow", "--folder", tmp_path / "none")
    assert nothing.returncode == 1 and "nothing was started" in nothing.stderr


# Prints "0123456789" from the byte that stdin names on, three bytes a call, as ssh that is cut.
CUT = """
import sys
seen = int(sys.stdin.readline())
text = "0123456789"[seen:]
sys.stdout.write(text[:3])
sys.exit(255 if len(text) > 3 else 7)
"""


def test_following_goes_on_at_the_byte_where_the_connection_broke(capfdbinary):
    assert follow.follow(python(CUT), first_wait_s=0.01) == 7
    out, err = capfdbinary.readouterr()
    assert out == b"0123456789"
    assert err.count(b"connection lost") == 3


def test_following_gives_up_after_its_time(capfd):
    assert follow.follow(python("exit(255)"), first_wait_s=0.01, give_up_s=0.05) == 255
    assert "launch again to attach" in capfd.readouterr().err
