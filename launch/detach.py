"""A supervised run in the background of this machine: start it once, follow it, stop it.

    python -m launch.detach start --folder F [supervise's options] -- COMMAND...
    python -m launch.detach follow --folder F     (reads from where on stdin: bytes seen before)
    python -m launch.detach stop --folder F

The folder holds `lock` (held while a supervisor lives), `pid`, `log` and `state.jsonl`. Starting
a second time attaches to the first. Standard library only, as supervise.py.
"""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from launch import supervise

LOCK, PID, LOG, OLD_LOG = "lock", "pid", "log", "log.before"
POLL_S = 0.2
START_S = 30.0
STOP_S = supervise.GRACE_S + 15.0
EXIT_FAILED = 1


def start(options: argparse.Namespace) -> int:
    """Start a supervisor that outlives this process and its connection, unless one lives."""
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK).open("a+b")
    if not _take(lock):
        print(f"launch: it runs already, pid {_pid(folder)}; attaching to it", flush=True)
        return 0
    with contextlib.suppress(FileNotFoundError):
        (folder / LOG).replace(folder / OLD_LOG)
    (folder / supervise.STATE).unlink(missing_ok=True)
    (folder / PID).unlink(missing_ok=True)
    if os.fork():  # the child keeps the lock
        lock.close()
        return _wait_for_pid(folder)
    os.setsid()
    _redirect(folder / LOG)
    (folder / PID).write_text(f"{os.getpid()}\n", encoding="utf-8")
    sys.stdout.flush()
    os._exit(supervise.supervise(options))


def follow(folder: Path, seen_bytes: int = 0) -> int:
    """Print the log from a byte on until the supervisor has ended; return the run's exit code."""
    if not (folder / LOCK).exists():
        print(f"launch: nothing was started in {folder}; launch the run", file=sys.stderr)
        return EXIT_FAILED
    while True:
        has_ended = not is_running(folder)  # asked first: what it wrote before is read after
        seen_bytes += _copy(folder / LOG, seen_bytes)
        if has_ended:
            return _exit_code(folder)
        time.sleep(POLL_S)


def stop(folder: Path) -> int:
    """Ask the supervisor to end the run; wait until it has."""
    pid = _pid(folder)
    if pid is None or not is_running(folder):
        print(f"launch: nothing runs in {folder}")
        return 0
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_S
    while is_running(folder):
        if time.monotonic() > end:
            print(f"launch: pid {pid} did not end in {STOP_S:.0f} s", file=sys.stderr)
            return EXIT_FAILED
        time.sleep(POLL_S)
    print(f"launch: the run in {folder} has stopped; launch it again to go on")
    return 0


def is_running(folder: Path) -> bool:
    """Tell whether a supervisor holds the folder."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open("a+b") as lock:
        return not _take(lock)


def _take(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid(folder: Path) -> int | None:
    try:
        return int((folder / PID).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _wait_for_pid(folder: Path) -> int:
    end = time.monotonic() + START_S
    while (pid := _pid(folder)) is None:
        if time.monotonic() > end:
            print(f"launch: no supervisor started in {folder}; see its log", file=sys.stderr)
            return EXIT_FAILED
        time.sleep(POLL_S / 4)
    print(f"launch: started, pid {pid}, log {folder / LOG}", flush=True)
    return 0


def _redirect(log: Path) -> None:
    """Let this process read nothing and write to the log."""
    for path, flags, number in (
        (os.devnull, os.O_RDONLY, 0),
        (str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    os.dup2(1, 2)


def _copy(log: Path, start_byte: int) -> int:
    """Write what a log holds beyond a byte to stdout; return how much that was."""
    copied = 0
    for block in _blocks(log, start_byte):
        sys.stdout.buffer.write(block)
        copied += len(block)
    sys.stdout.buffer.flush()
    return copied


def _blocks(log: Path, start_byte: int) -> Iterator[bytes]:
    try:
        file = log.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start_byte)
        yield from iter(lambda: file.read(1 << 16), b"")


def _exit_code(folder: Path) -> int:
    try:
        lines = (folder / supervise.STATE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    ends = [event for event in map(json.loads, lines) if event["event"] == "ended"]
    if not ends:
        print("launch: the supervisor was killed; launch again to go on", file=sys.stderr)
        return EXIT_FAILED
    return ends[-1]["code"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the three verbs."""
    parser = argparse.ArgumentParser(prog="python -m launch.detach", description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb")
    verbs.add_parser(
        "start", parents=[supervise.parser()], add_help=False, conflict_handler="resolve"
    )
    for verb in ("follow", "stop"):
        verbs.add_parser(verb).add_argument("--folder", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.verb == "start":
        if options.folder is None:
            parser.error("start needs --folder")
        return start(options)
    if options.verb == "stop":
        return stop(options.folder)
    return follow(options.folder, int(sys.stdin.readline() or 0))


if __name__ == "__main__":
    sys.exit(main())
