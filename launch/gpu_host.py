"""Launch on a GPU host over ssh and rsync: send, set up, check, start, follow, fetch.

The run goes on without the connection, under a supervisor (detach.py); launching again attaches
to it and changes nothing on the host: after a crash it goes on with the code it began with.
Everything that differs reaches the far side as one quoted argument of host.sh.
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from pathlib import PurePosixPath

from launch import bundle
from launch import commands
from launch.commands import Command
from launch.commands import Request
from launch.commands import Step
from launch.commands import WriteFile
from launch.launcher import Ec2
from launch.launcher import Ssh
from mistral_jax.config import load
from mistral_jax.config.run import RunConfig
from mistral_jax.storage import cache

SSH_OPTIONS = (
    "BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4",
    "StrictHostKeyChecking=accept-new",
)  # fmt: skip
UNDER_WAY = "launch: the run is under way; nothing is sent or set up, attaching to it"
# Reads FOLDER RUN as tpu_host.sh does: the project's folder, the run's launch folder in it.
REACH = f"""set -eu
cd
own=$1/$2/lock
if [ -e "$own" ] && ! flock -n "$own" true; then
    echo '{UNDER_WAY}'
    exit 0
fi
for lock in "$1"/runs/*/launch/lock; do
    [ -e "$lock" ] && ! flock -n "$lock" true || continue
    echo "another run is under way here: $lock" >&2
    exit 3
done
mkdir -p -- "$1"
"""
FIXES = (
    ("another run is under way", "wait for it, or stop it: its own launch command with --stop"),
    ("UNPROTECTED PRIVATE KEY", "others may read the key: chmod 600 on it and launch again"),
    ("bad permissions", "others may read the key: chmod 600 on it and launch again"),
    ("Permission denied", "the host refused user and key: correct launcher.user and launcher.key"),
    ("Could not resolve", "there is no such host: correct launcher.host"),
    ("Connection refused", "no sshd answers: wait until the host is up, or correct launcher.port"),
    ("timed out", "the host does not answer: is it running, may this address reach its port 22?"),
    ("No route to host", "the host cannot be reached: check network and launcher.host"),
    ("HOST IDENTIFICATION HAS CHANGED", "another host answers: if it should, ssh-keygen -R HOST"),
    ("No space left", "the host's disk is full: free some of it and launch again"),
    ("rsync: command not found", "install rsync on the host: sudo apt-get install -y rsync"),
    ("rsync: not found", "install rsync on the host: sudo apt-get install -y rsync"),
)  # fmt: skip
STORES = ("s3://", "gs://")


def steps(request: Request) -> list[Step]:
    """Return what launches the run on the host.

    Raises:
        ValueError: the host is not given, or a value could not be passed on.
    """
    folder, launcher = request.folder, _launcher(request)
    root = _far_folder(launcher)
    own = commands.own_files(request)
    listing = folder / "files.txt"
    names = [*map(str, _project_files(request)), *(str(file.path) for file in own)]
    follow = ["python", "-m", "launch.detach", "follow", "--folder", str(folder)]
    return [
        WriteFile(listing, "".join(f"{name}\n" for name in names), "what is sent", shown_lines=5),
        *own,
        _reach(request, launcher, root),
        *(dataclasses.replace(step, prepares=True) for step in _prepare(request, launcher, root)),
        _follow(launcher, root, follow),
        _fetch(request, launcher, root),
    ]


def _reach(request: Request, launcher: Ssh, root: str) -> Command:
    """Return what makes the project's folder, unless a run there would lose its code to ours."""
    words = ["sh", "-s", "--", root, str(request.folder)]
    command = _ssh(launcher, words, "reach the host and make its folder")
    return dataclasses.replace(command, stdin=REACH, attach_line=UNDER_WAY)


def _prepare(request: Request, launcher: Ssh, root: str) -> list[Command]:
    """Return what brings the run onto the host and starts it."""
    files = f"--files-from={request.folder / 'files.txt'}"
    project = [files, "--", "./", f"{_rsync_host(launcher)}:{root}/"]
    start = ["python", "-m", "launch.detach", "start", "--folder", str(request.folder)]
    return [
        _rsync(launcher, project, "send the project"),
        *_send_inputs(request.run, launcher, root),
        _far(launcher, root, _setup_words(request), "set the environment up from its lock"),
        *_preflight(request, launcher, root),
        _far(launcher, root, [*start, *_supervised(request)], "start the run"),
    ]


def _project_files(request: Request) -> list[Path]:
    """Return what is sent of the project: nothing of the run's results, an older copy of them."""
    results, config = results_folder(request), request.config.expanduser().absolute()
    return [
        path
        for path in bundle.project_files(commands.ROOT)
        if not (results.parts and path.is_relative_to(results)) or commands.ROOT / path == config
    ]


def stop_steps(request: Request) -> list[Step]:
    """Return what ends the run on the host; it can go on later."""
    words = ["python", "-m", "launch.detach", "stop", "--folder", str(request.folder)]
    return [far_step(request, words, "stop the run")]


def stop_hint(request: Request) -> str:
    """Return how to stop the run, and that the host itself is not ours to stop."""
    host = request.target.launcher.host if isinstance(request.target.launcher, Ssh) else None
    return (
        "to stop the run: the same command with --stop; the host "
        f"{host} is yours and costs what it costs until you stop it yourself"
    )


def _launcher(request: Request) -> Ssh:
    launcher = request.target.launcher
    assert isinstance(launcher, Ssh)
    if launcher.host is None:
        raise ValueError(
            f"target {request.target.name}: no host is given; add launcher.host=NAME "
            "(and launcher.user=, launcher.key= where ~/.ssh/config does not tell them)"
        )
    commands.check_host(launcher.host)
    if launcher.user is not None:
        commands.check_name(launcher.user, "launcher.user")
    if launcher.key is not None:
        _check_key(launcher.key)
    return launcher


def _check_key(key: str) -> None:
    commands.check_path(key, "launcher.key")
    if any(sign in key for sign in "'\"\\%$"):  # rsync and ssh read these themselves
        raise ValueError(f"launcher.key {key!r}: quotes, \\, % and $ cannot be passed; rename it")


def _far_folder(launcher: Ssh) -> str:
    commands.check_path(launcher.folder, "launcher.folder")
    path = PurePosixPath(launcher.folder)
    if path.is_absolute() or ".." in path.parts or launcher.folder[0] == "~" or not path.name:
        raise ValueError(
            f"launcher.folder {launcher.folder!r}: expected a folder below the user's home on the "
            "host, such as mistral_jax"
        )
    return str(path)


def _connection(launcher: Ssh) -> list[str]:
    words = ["ssh", *(word for option in SSH_OPTIONS for word in ("-o", option))]
    if launcher.port is not None:
        words += ["-p", str(launcher.port)]
    if launcher.key is not None:
        words += ["-i", os.path.expanduser(launcher.key)]
    return words + ([] if launcher.user is None else ["-l", launcher.user])


def far_step(request: Request, words: list[str], purpose: str) -> Command:
    """Return what runs a verb of host.sh with its arguments on the host."""
    launcher = _launcher(request)
    return _far(launcher, _far_folder(launcher), words, purpose)


def _ssh(launcher: Ssh, words: list[str], purpose: str) -> Command:
    assert launcher.host is not None
    argv = (*_connection(launcher), "--", launcher.host, commands.remote(words))
    return Command(argv, purpose, fixes=_fixes(launcher))


def _far(launcher: Ssh, root: str, words: list[str], purpose: str) -> Command:
    return _ssh(launcher, ["sh", f"{root}/launch/host.sh", *words], purpose)


def _fixes(launcher: Ssh) -> tuple[tuple[str, str], ...]:
    return tuple((part, fix.replace("HOST", str(launcher.host))) for part, fix in FIXES)


def _rsync_host(launcher: Ssh) -> str:
    assert launcher.host is not None
    return f"[{launcher.host}]" if ":" in launcher.host else launcher.host


def _rsync(launcher: Ssh, words: list[str], purpose: str, *, always: bool = False) -> Command:
    # -s: the far shell sees no path. The transport is split by rsync itself, at quoted words.
    transport = shlex.join(_connection(launcher))
    argv = ("rsync", "-a", "-s", "--partial", "--stats", "-h", "-e", transport, *words)
    return Command(argv, purpose, always=always, fixes=_fixes(launcher))


def _send_inputs(run: RunConfig, launcher: Ssh, root: str) -> Iterator[Command]:
    """Send what the config names of this machine: relative paths, and those below `~`."""
    host = _rsync_host(launcher)
    for text in input_paths(run):
        commands.check_path(text, "a path of the config")
        below_home = text.startswith("~/")
        base, tail = (Path.home(), text[2:]) if below_home else (Path.cwd(), text)
        if not (base / tail).exists() or PurePosixPath(tail).is_absolute():
            continue  # a preset's name, or a place that only the host has: its pre-flight tells
        if ".." in PurePosixPath(tail).parts:
            raise ValueError(f"{text}: a path with '..' cannot be sent; name it from its top")
        goal = f"{host}:" + ("./" if below_home else f"{root}/")
        source = f"{base}/./{PurePosixPath(tail)}"  # -R sends what stands behind /./
        yield _rsync(launcher, ["-R", "--", source, goal], f"send {text}")


def input_paths(run: RunConfig) -> list[str]:
    """Return the places of this machine or of none that the config names; no URIs."""
    found = [run.model.weights, run.data.tokenizer]
    for side in (run.data.train, run.data.eval):
        found += [side] if isinstance(side, str) else [each.path for each in side or ()]
    kept = [text for text in found if text and "://" not in text]
    return list(dict.fromkeys(kept))


def _setup_words(request: Request) -> list[str]:
    launcher = _launcher(request)
    lock = launcher.lock or ("none" if request.target.platform == "cpu" else "auto")
    resolved = load.dump_yaml(request.run)
    return ["setup", lock, *(["data"] if any(store in resolved for store in STORES) else [])]


def _preflight(request: Request, launcher: Ssh, root: str) -> list[Command]:
    words = ["run", *commands.verb_words(request, "preflight"), "--on-host"]
    return [_far(launcher, root, words, "check on the host what can be checked before the run")]


def _supervised(request: Request) -> list[str]:
    """Return the supervisor's options and the run's command."""
    words = ["--progress", progress_folder(request)]
    launcher = request.target.launcher
    if isinstance(launcher, Ec2):
        halt = ["sudo", "-n", "shutdown", "-h", f"+{launcher.idle_minutes}"]
        words += ["--on-end", json.dumps(halt)]
    return [*words, "--", "./run", *commands.verb_words(request, "train")]


def _follow(launcher: Ssh, root: str, words: list[str]) -> Command:
    inner = _far(launcher, root, words, "")
    argv = (sys.executable, "-m", "launch.follow", "--", *inner.argv)
    return Command(argv, "follow the run (Ctrl-C leaves it running)", fixes=inner.fixes)


def results_folder(request: Request) -> Path:
    """Return where the run's files lie, relative to the project: `output`, or beside `folder`."""
    output = request.run.output
    if output is None or "://" in output:
        return request.folder.parent
    return Path(commands.check_path(output, "output"))


def progress_folder(request: Request) -> str:
    """Return where the host finds the run's newest step; `~` is its own home.

    A run into a bucket works below the cache: below the usual one, unless the host's environment
    names another.
    """
    output = request.run.run_directory()
    if "://" not in output:
        return str(results_folder(request))
    folder = cache.run_folder(output).relative_to(cache.root())
    return str(PurePosixPath(cache.USUAL) / folder)


def _fetch(request: Request, launcher: Ssh, root: str) -> Command:
    folder = results_folder(request)
    far = folder if folder.is_absolute() else PurePosixPath(root) / folder
    source = f"{_rsync_host(launcher)}:{far}/"
    words = ["--exclude=/data/", "--exclude=/launch/lock", "--", source, f"{folder}/"]
    return _rsync(launcher, words, f"fetch the results into {folder}", always=True)
