"""Launch on this machine: in the background, supervised, as one process or several.

Several processes find each other on loopback (supervise.on_one_host) and train one model.
"""

import sys
from pathlib import Path

from launch import commands
from launch import gpu_host
from launch.commands import Command
from launch.commands import Request
from launch.commands import Step
from launch.launcher import Local


def steps(request: Request) -> list[Step]:
    """Return what starts the run here, or attaches to it, and follows it."""
    launcher = request.target.launcher
    assert isinstance(launcher, Local)
    words = ["--processes", str(launcher.processes), "--progress"]
    words += [gpu_host.progress_folder(request), "--"]
    train = (sys.executable, "-m", "mistral_jax.cli", *commands.verb_words(request, "train"))
    return [
        *commands.own_files(request),
        _detach(request.folder, "start", "start the run", *words, *train),
        _detach(request.folder, "follow", "follow the run (Ctrl-C leaves it running)"),
    ]


def stop_steps(request: Request) -> list[Step]:
    """Return what ends the run; it can go on later."""
    return [_detach(request.folder, "stop", "stop the run")]


def stop_hint(_: Request) -> str:
    """Return how to stop the run."""
    return "to stop the run: the same command with --stop"


def _detach(folder: Path, verb: str, purpose: str, *words: str) -> Command:
    argv = (sys.executable, "-m", "launch.detach", verb, "--folder", str(folder), *words)
    return Command(argv, purpose)
