"""The seam of all launchers: what a launch would run, as data; shown by --dry-run, else executed.

A launcher module turns a Request into steps. Every program gets an argument list, never a shell
string; the one string that ssh hands to the far shell is made by `remote`. Values that a user
gives pass `check_host`, `check_name` or `check_path` before they stand in a step.
"""

import collections
import dataclasses
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

import yaml

from launch import target as target_lib
from launch.plan import Plan
from launch.target import Target
from mistral_jax.config import load
from mistral_jax.config.run import RunConfig

ROOT = Path(__file__).resolve().parent.parent
MAX_PATH = 4096
KEPT_LINES = 12
EXIT_GATE = 3
EXIT_NOT_FOUND = 127

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_ADDRESS6 = re.compile(r"[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Command:
    """One program to run.

    Attributes:
        argv: the program and its arguments, each as it arrives there.
        purpose: what for, in a few words.
        stdin: what it reads; None gives it nothing.
        always: it runs even where the step right before it failed, as fetching what there is.
        fixes: what to do where it fails, by a part of its output; the first that is found is told.
        attach_line: this line of its output tells that the run is under way already.
        prepares: it is left out where a step before it has told so.
    """

    argv: tuple[str, ...]
    purpose: str
    stdin: str | None = None
    always: bool = False
    fixes: tuple[tuple[str, str], ...] = ()
    attach_line: str | None = None
    prepares: bool = False


@dataclasses.dataclass(frozen=True)
class WriteFile:
    """One file to write, whole.

    Attributes:
        path: relative to the project, or absolute.
        content: of the file.
        purpose: what for, in a few words.
        is_secret: it is readable by its owner alone.
        shown_lines: how many of its lines --dry-run shows; None shows all.
    """

    path: Path
    content: str
    purpose: str
    is_secret: bool = False
    shown_lines: int | None = None


Step = Command | WriteFile


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be launched, resolved and planned.

    Attributes:
        run: the config with the overrides in it.
        config: the file that it came from, as given.
        overrides: `key=value` of the run, as given; none of the target's.
        target, plan: the machine, its launcher, and how the run sits on it.
        folder: where launch keeps its files here, runs/<name>/launch, relative to the project.
    """

    run: RunConfig
    config: Path
    overrides: tuple[str, ...]
    target: Target
    plan: Plan
    folder: Path


class CommandFailed(ValueError):
    """A program of a step failed; `exit_code` is 3 where it was refused by a gate, else 1."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def check_host(text: str) -> str:
    """Return a host name, alias or address unchanged.

    Raises:
        ValueError: it is none; ssh would read `-o...` as an option.
    """
    if _HOST.fullmatch(text) or (len(text) <= 45 and _ADDRESS6.fullmatch(text)):
        return text
    raise ValueError(
        f"host {text!r}: expected a name or an address of letters, digits, dots and hyphens that "
        "begins with a letter or digit; correct launcher.host (a user goes to launcher.user)"
    )


def check_name(text: str, what: str = "name") -> str:
    """Return a name (of a run, user, partition, ...) unchanged.

    Raises:
        ValueError: it holds more than letters, digits, `_`, `.`, `-`, or begins with `.` or `-`.
    """
    if _NAME.fullmatch(text):
        return text
    raise ValueError(
        f"{what} {text!r}: expected letters, digits, '_', '.' and '-', beginning with a letter, "
        "a digit or '_', at most 128; choose another"
    )


def check_path(text: str, what: str = "path") -> str:
    """Return a path or URI unchanged; spaces and signs may stand in it, they are always quoted.

    Raises:
        ValueError: it is empty or too long, begins with `-`, or holds control characters.
    """
    if text and len(text) <= MAX_PATH and text[0] != "-" and not _CONTROL.search(text):
        return text
    raise ValueError(
        f"{what} {text[:200]!r}: expected 1 to {MAX_PATH} characters without line breaks or "
        "control characters that do not begin with '-'; rename it (./-x for a name like -x)"
    )


def check_override(text: str) -> str:
    """Return a `key=value` unchanged.

    Raises:
        ValueError: it is none, or holds control characters.
    """
    if re.match(r"[A-Za-z_][A-Za-z0-9_.\[\]-]*=", text) and not _CONTROL.search(text):
        return text
    raise ValueError(
        f"override {text[:200]!r}: expected key.path=value on one line; correct it or write it "
        "into the config file"
    )


def remote(words: Sequence[str]) -> str:
    """Return the one string that ssh hands to the far login shell (a POSIX one), words quoted."""
    return shlex.join(words)


def launch_folder(run: RunConfig) -> Path:
    """Return where launch keeps its files, here and on the host, relative to the project.

    Raises:
        ValueError: the run's name could not be part of a path.
    """
    name = f"{check_name(run.name, 'run name')}-{run.science_hash()[:8]}"
    return Path("runs") / name / "launch"


def config_word(request: Request) -> str:
    """Return how the far side names the config: by its path in the project, or in `folder`."""
    inside = _inside(request.config)
    return check_path(str(inside or request.folder / "config.yaml"), "config")


def target_word(request: Request) -> str:
    """Return how the far side names the target: by name, or by a file in `folder`."""
    name = request.target.name
    if name in target_lib.target_names():
        known = target_lib.load_target(name)
        if known.model_copy(update={"launcher": request.target.launcher}) == request.target:
            return name
    return str(request.folder / "target.yaml")


def verb_words(request: Request, verb: str) -> list[str]:
    """Return `VERB CONFIG --target T key=value ...` as the far side runs it in the project."""
    overrides = [check_override(text) for text in request.overrides]
    if _inside(request.config) is None:  # the resolved config holds them already
        overrides = [text for text in overrides if text.startswith("fresh=")]
    return [verb, config_word(request), "--target", target_word(request), *overrides]


def own_files(request: Request) -> list[WriteFile]:
    """Return the config and the target as files in `folder`, where the far side has no other."""
    files = []
    if _inside(request.config) is None:
        content = load.dump_yaml(request.run)
        files.append(WriteFile(request.folder / "config.yaml", content, "the resolved config"))
    if target_word(request) != request.target.name:
        content = yaml.safe_dump(request.target.model_dump(mode="json"), sort_keys=False)
        files.append(WriteFile(request.folder / "target.yaml", content, "the target"))
    return files


def _inside(path: Path) -> Path | None:
    """Return a path relative to the project, None where it lies outside."""
    whole = path.expanduser().absolute()
    return whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else None


def show(steps: Iterable[Step]) -> str:
    """Return exactly what would run and be written, for reading; one block for each step."""
    blocks = []
    for step in steps:
        if isinstance(step, Command):
            lines = [f"# {step.purpose}", shlex.join(step.argv)]
            content = step.stdin
        else:
            lines, content = [f"# {step.purpose}: file {step.path}"], step.content
        if content is not None:
            inner = content.splitlines()
            limit = step.shown_lines if isinstance(step, WriteFile) else None
            lines += [f"    {line}" for line in inner[:limit]]
            if limit is not None and len(inner) > limit:
                lines.append(f"    ... {len(inner) - limit} lines more")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def execute(steps: Iterable[Step], say: Callable[[str], None] = print) -> None:
    """Run the steps in order until one fails; steps right after it that always run still do.

    Raises:
        CommandFailed: the first failure, with the program, its exit code, its last lines, a fix.
    """
    failure: CommandFailed | None = None
    is_under_way = False
    for step in steps:
        if failure is not None and not (isinstance(step, Command) and step.always):
            break
        if isinstance(step, WriteFile):
            write_file(step)
            continue
        if is_under_way and step.prepares:
            continue
        say(f"launch: {step.purpose}")
        try:
            is_under_way |= step.attach_line in run_command(step, say)
        except CommandFailed as error:
            if failure is not None:
                say(f"launch: {error}")
            failure = failure or error
    if failure is not None:
        raise failure


def write_file(step: WriteFile) -> None:
    """Write a step's file whole or not at all; relative to the project, as commands run there."""
    path = ROOT / step.path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    mode = 0o600 if step.is_secret else 0o644
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "w", encoding="utf-8", newline="") as file:
        file.write(step.content)
    partial.replace(path)


def run_command(command: Command, say: Callable[[str], None]) -> list[str]:
    """Run one program, each line of its output said as it comes; return the last lines.

    Raises:
        CommandFailed: it is not there, or ended with another code than 0.
    """
    kept: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
    try:
        process = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL if command.stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            bufsize=1,
            cwd=ROOT,
        )
    except FileNotFoundError:
        raise CommandFailed(
            f"{command.purpose}: there is no program {command.argv[0]!r} on PATH; install it and "
            "launch again"
        ) from None
    with process:
        if command.stdin is not None and process.stdin is not None:
            process.stdin.write(command.stdin)
            process.stdin.close()
        for line in process.stdout or ():
            kept.append(line.rstrip("\n"))
            say(kept[-1])
    if process.returncode:
        raise _failed(command, process.returncode, list(kept))
    return list(kept)


def _failed(command: Command, code: int, lines: list[str]) -> CommandFailed:
    output = "\n".join(lines)
    fixes = [fix for part, fix in command.fixes if part in output]
    fix = fixes[0] if fixes else "correct what its last lines say and launch again"
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    shown = "".join(f"\n    {line}" for line in lines)
    message = f"{command.purpose}: {command.argv[0]} {how}; {fix}{shown}"
    return CommandFailed(message, EXIT_GATE if code == EXIT_GATE else 1)
