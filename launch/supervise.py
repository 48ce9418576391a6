"""Keep a command, or a group of commands, running: restart it after a crash, end it whole.

    python -m launch.supervise [--processes N] [--progress RUN_FOLDER] -- COMMAND...

Every command runs in a process group of its own and dies with the supervisor. Where one of a group
dies, all of it is ended and started anew. What a user or a gate must correct (exit codes 2, 3 and
130) is not tried again, nor a crash that comes back `restarts` times without a new step. Standard
library only: it runs on hosts before anything else is known to work. What happened goes to
`state.jsonl` in `--folder`, one JSON line for each event.
"""

import argparse
import ctypes
import dataclasses
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FINAL_CODES = (0, 2, 3, 130)  # done, wrong input, refused by a gate, interrupted: see cli.py
GRACE_S = 120.0  # a large save and its upload; the run ends when they have
POLL_S = 0.1
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
RESTARTS = 10  # waits of seven minutes in all: an outage of a store ends by then
STOPPED_CODE = 128 + signal.SIGTERM
STATE = "state.jsonl"
METRICS_TAIL_BYTES = 1 << 16
PR_SET_PDEATHSIG = 1  # linux/prctl.h

Environments = Callable[[int], Sequence[dict[str, str]]]
Record = Callable[[str, dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Policy:
    """When a group is started again.

    Attributes:
        restarts: how many times in a row without a new step.
        grace_s: between SIGTERM and SIGKILL.
        first_wait_s: before the first restart; it doubles up to LONGEST_WAIT_S.
    """

    restarts: int = RESTARTS
    grace_s: float = GRACE_S
    first_wait_s: float = FIRST_WAIT_S


def run_group(
    commands: Sequence[Sequence[str]],
    *,
    environments: Environments | None = None,
    progress: Path | None = None,
    policy: Policy = Policy(),
    record: Record = lambda event, fields: None,
) -> int:
    """Run commands side by side until all have ended well, and return the exit code.

    SIGTERM and SIGINT end the group: SIGTERM to each, SIGKILL after the grace.

    Args:
        commands: argument lists, one for each process.
        environments: from the number of the attempt to what each process gets beside this
            process' environment; asked before each start, so that a port may be a new one.
        progress: run directory whose newest step tells whether a restart was worth it.
        policy: when to try again.
        record: takes each event.

    Returns:
        0; the first code of another process that is final; the code of the last crash (128 + the
        signal's number for a signal); or 143 where the supervisor was told to stop.
    """
    with _Stop() as stop:
        failures, attempt, reached = 0, 0, newest_step(progress)
        while True:
            attempt += 1
            extra = environments(attempt) if environments else [{} for _ in commands]
            code = _run_once(commands, extra, attempt, policy, record, stop)
            if stop.is_asked:
                record("ended", {"code": STOPPED_CODE, "reason": "stopped"})
                return STOPPED_CODE
            if code in FINAL_CODES:
                record("ended", {"code": code, "reason": "final exit code"})
                return code
            step = newest_step(progress)
            failures, reached = (1, step) if step > reached else (failures + 1, reached)
            if failures > policy.restarts:
                record("ended", {"code": code, "reason": f"{failures} crashes without a new step"})
                return code
            wait_s = min(LONGEST_WAIT_S, policy.first_wait_s * 2 ** (failures - 1))
            record("restarting", {"code": code, "step": step, "wait_s": wait_s})
            stop.wait(wait_s)


def newest_step(folder: Path | None) -> int:
    """Return the newest step that a run directory tells of, in metrics or checkpoints; else -1."""
    if folder is None:
        return -1
    steps = [-1]
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - METRICS_TAIL_BYTES))
            steps += [int(text) for text in re.findall(rb'"step": ?(\d+)', file.read())]
    except OSError:
        pass
    folders = (folder / "checkpoints").glob("*")
    numbers = (re.fullmatch(r"(?:step_)?(\d+)", path.name) for path in folders)
    return max(steps + [int(found[1]) for found in numbers if found])


class _Stop:
    """A context in which SIGTERM and SIGINT are remembered; main thread only, as signals are."""

    def __init__(self) -> None:
        self.is_asked = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "_Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: types.FrameType | None) -> None:
        self.is_asked = True

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond a request to stop."""
        end = time.monotonic() + seconds
        while not self.is_asked and time.monotonic() < end:
            time.sleep(min(POLL_S, max(0.0, end - time.monotonic())))


def _run_once(
    commands: Sequence[Sequence[str]],
    extra: Sequence[dict[str, str]],
    attempt: int,
    policy: Policy,
    record: Record,
    stop: _Stop,
) -> int:
    """Start every command, wait for all, or end all after the first that fails."""
    processes: list[subprocess.Popen] = []
    try:
        for command, environment in zip(commands, extra, strict=True):
            processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **environment},
                    start_new_session=True,
                    preexec_fn=functools.partial(_die_with, os.getpid()),
                )
            )
        record("started", {"attempt": attempt, "pids": [each.pid for each in processes]})
        while not stop.is_asked:
            codes = [process.poll() for process in processes]
            failed = [(i, code) for i, code in enumerate(codes) if code not in (None, 0)]
            if failed:
                index, code = failed[0]
                record("exited", {"process": index, "code": code})
                return 128 - code if code < 0 else code
            if None not in codes:
                return 0
            stop.wait(POLL_S)
        return STOPPED_CODE
    except OSError as error:  # the program is not there: no use in trying again
        record("failed", {"error": str(error)})
        return 2
    finally:
        _end(processes, policy.grace_s)


def _die_with(parent: int) -> None:
    """In the child: ask for SIGTERM at the supervisor's death; end if it is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(STOPPED_CODE)


def _end(processes: Sequence[subprocess.Popen], grace_s: float) -> None:
    """End every process group, gently at first; nothing of them is left behind."""
    for process in processes:
        if process.poll() is None:
            _signal_group(process, signal.SIGTERM)
    end = time.monotonic() + grace_s
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(POLL_S)
    for process in processes:  # the children of a process that has ended, too
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # all of it has ended
    except PermissionError:
        process.send_signal(number)  # a group that is ending: macOS answers so


def file_record(path: Path, say: Callable[[str], None] = print) -> Record:
    """Return a record that appends JSON lines to a file and says each event in a line."""

    def record(event: str, fields: dict[str, Any]) -> None:
        line = {"time": time.time(), "event": event, **fields}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = ", ".join(f"{name} {value}" for name, value in fields.items())
        say(f"supervise: {event}: {shown}")

    return record


def free_port() -> int:
    """Return a TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_one_host(num_processes: int) -> Environments:
    """Return what tells each of N processes of this machine its place; a new port each time."""

    def environments(attempt: int) -> list[dict[str, str]]:
        shared = {
            "MISTRAL_JAX_COORDINATOR": f"127.0.0.1:{free_port()}",
            "MISTRAL_JAX_NUM_PROCESSES": str(num_processes),
        }
        return [{**shared, "MISTRAL_JAX_PROCESS_ID": str(i)} for i in range(num_processes)]

    return environments


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def parser() -> argparse.ArgumentParser:
    """Return the options, for `launch.detach` too, which starts a supervisor in the background."""
    options = argparse.ArgumentParser(prog="python -m launch.supervise", description=__doc__)
    options.add_argument("--folder", type=Path, help="gets state.jsonl")
    options.add_argument("--progress", type=_folder, help="the run directory; ~ is this home")
    options.add_argument("--processes", type=int, default=1, help="on this host, one group")
    options.add_argument("--restarts", type=int, default=RESTARTS, help="without a new step")
    options.add_argument("--grace-s", type=float, default=GRACE_S)
    options.add_argument("--on-end", type=json.loads, help="argument list as JSON, run at the end")
    options.add_argument("command", nargs="+", help="after --")
    return options


def supervise(options: argparse.Namespace) -> int:
    """Run what the options say and, at the end, their last command."""
    record: Record = lambda event, fields: None  # noqa: E731
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        say = functools.partial(print, file=sys.stderr, flush=True)
        record = file_record(options.folder / STATE, say)
    several = options.processes > 1
    try:
        return run_group(
            [options.command] * options.processes,
            environments=on_one_host(options.processes) if several else None,
            progress=options.progress,
            policy=Policy(restarts=options.restarts, grace_s=options.grace_s),
            record=record,
        )
    finally:
        if options.on_end:
            done = subprocess.run(options.on_end, stdin=subprocess.DEVNULL, check=False)
            record("on_end", {"argv": options.on_end, "code": done.returncode})


if __name__ == "__main__":
    sys.exit(supervise(parser().parse_args()))
