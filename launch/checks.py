"""What a pre-flight check is, what it answers, and what all of them look at.

A check looks at one thing and answers with one sentence and, where something is wrong, a command to
type. It never raises and never imports jax. The checks themselves are in checks_*.py by topic;
preflight.py runs them.
"""

import dataclasses
import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import Literal

from launch import commands
from launch import detach
from launch import passes
from launch import plan as plan_lib
from launch import shapes
from launch.plan import Plan
from launch.target import Target
from mistral_jax import storage
from mistral_jax import tokenizers
from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.run import RunConfig

GIB = 1 << 30
TOOL_TIMEOUT_S = 10.0
# RuntimeError: a path that begins with the home of a user who is not there.
UNUSABLE = (ValueError, OSError, RuntimeError)
ON_HOST = "on the host"
ON_LAUNCHER = "on the machine that launches"
UNDER_WAY = "this run is under way here: launch attaches to it"
NVIDIA_FIELDS = "name,driver_version,memory.total,memory.used,compute_cap"

Status = Literal["ok", "warning", "failed", "skipped"]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a check found.

    Attributes:
        status: `failed` where the run would not start, not end well, or cost what it must not.
        detail: one sentence.
        fix: a command to type; empty where nothing has to be done.
    """

    status: Status
    detail: str
    fix: str = ""


def ok(detail: str) -> Answer:
    """Return that all is well."""
    return Answer("ok", detail)


def warning(detail: str, fix: str) -> Answer:
    """Return that a person should look at it; the run would start."""
    return Answer("warning", detail, fix)


def failed(detail: str, fix: str) -> Answer:
    """Return that the run should not be started."""
    return Answer("failed", detail, fix)


def skipped(reason: str) -> Answer:
    """Return that it could not, or need not, be looked at."""
    return Answer("skipped", reason)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What nvidia-smi tells of one GPU; memory in MiB."""

    name: str
    driver: str
    memory_mib: float
    used_mib: float
    capability: float


@dataclasses.dataclass
class Context:
    """The run, its target, and this machine as far as several checks look at it.

    Attributes:
        run, target: the config with its overrides, and the machine.
        config, target_word, overrides: as they were typed, for the commands that mend something.
        on_host: this machine is the one that trains.
        is_fresh: the run starts beside what is there.
        remote: hosts may be asked over the network for what is theirs.
        environment: variables to look at.
        seen: what a topic's checks have found out once and use again, by name.
    """

    run: RunConfig
    target: Target
    config: Path
    target_word: str
    overrides: tuple[str, ...]
    on_host: bool
    is_fresh: bool = False
    remote: bool = False
    environment: Mapping[str, str] = dataclasses.field(default_factory=lambda: os.environ)
    seen: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def _resolved(self) -> tuple[Plan | None, ValueError | None]:
        if self.decoder is None:
            return None, self._shape[1]
        try:
            return plan_lib.resolve(self.run, self.target, decoder=self.decoder), None
        except ValueError as error:
            return None, error

    @functools.cached_property
    def _shape(self) -> tuple[DecoderConfig | None, ValueError | None]:
        try:
            return shapes.decoder_of_run(self.run), None
        except ValueError as error:
            return None, error
        except UNUSABLE as error:
            return None, ValueError(str(error))

    @property
    def decoder(self) -> DecoderConfig | None:
        """The model's shape; None where it is not known."""
        return self._shape[0]

    @property
    def decoder_error(self) -> ValueError | None:
        """Why the model's shape is not known."""
        return self._shape[1]

    @property
    def plan(self) -> Plan | None:
        """How the run sits on the target; None where it does not."""
        return self._resolved[0]

    @property
    def plan_error(self) -> ValueError | None:
        """Why there is no plan."""
        return self._resolved[1]

    @property
    def is_too_large(self) -> bool:
        """Whether there is no plan because memory is too small."""
        return isinstance(self.plan_error, passes.MemoryTooSmall)

    @functools.cached_property
    def gpus(self) -> list[Gpu] | str:
        """This machine's NVIDIA GPUs, or what went wrong when nvidia-smi was asked."""
        return _ask_gpus()

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The run's tokenizer.

        Raises:
            ValueError, OSError: it cannot be loaded.
        """
        name, weights = self.run.data.tokenizer, self.run.model.weights
        if name != "auto":
            return tokenizers.load_tokenizer(name)
        if weights is None:
            raise ValueError("data.tokenizer is auto, the one beside model.weights, and there are "
                             "no weights")  # fmt: skip
        return tokenizers.load_tokenizer(weights)

    @functools.cached_property
    def request(self) -> commands.Request:
        """The launch, as the launchers take it.

        Raises:
            ValueError: there is no plan, or the run's name cannot be passed on.
        """
        if self.plan is None:
            raise self.plan_error or ValueError("there is no plan")
        folder = commands.launch_folder(self.run)
        return commands.Request(
            self.run, self.config, self.overrides, self.target, self.plan, folder
        )

    @functools.cached_property
    def is_under_way(self) -> bool:
        """Whether this very run goes on, on this machine: a launch attaches to its supervisor."""
        if not self.on_host:
            return False
        return detach.is_running(commands.ROOT / commands.launch_folder(self.run))

    @property
    def output(self) -> str:
        """Where the run writes."""
        return self.run.run_directory()

    @property
    def has_bucket_output(self) -> bool:
        """Whether the run writes to s3:// or gs://."""
        return storage.is_remote(self.output)

    def source_paths(self) -> dict[str, str]:
        """Return the path or URI of each source of data, by where the config names it."""
        found = {}
        for key, given in (("data.train", self.run.data.train), ("data.eval", self.run.data.eval)):
            if isinstance(given, str):
                found[key] = given
            else:
                found |= {f"{key} {source.name!r}": source.path for source in given or ()}
        return found

    def input_uris(self) -> dict[str, str]:
        """Return the bucket URIs that the run reads, by where the config names them."""
        named = {"model.weights": self.run.model.weights, "data.tokenizer": self.run.data.tokenizer}
        named |= self.source_paths()
        return {key: uri for key, uri in named.items() if uri and is_bucket(uri)}

    def command(self, *overrides: str, verb: str = "preflight", target: str | None = None) -> str:
        """Return the command line of a verb for this run, with further overrides at its end."""
        keys = {text.partition("=")[0] for text in overrides}
        kept = [text for text in self.overrides if text.partition("=")[0] not in keys]
        words = ["./run", verb, str(self.config), "--target", target or self.target_word]
        return shlex.join([*words, *kept, *overrides])


@dataclasses.dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: short, unique.
        look: what looks.
        place: `host` needs the machine that trains, `launcher` the one that launches.
    """

    name: str
    look: Callable[[Context], Answer]
    place: Literal["any", "host", "launcher"] = "any"

    def run(self, context: Context) -> Answer:
        """Look, unless this is the wrong machine for it."""
        is_local = context.target.launcher.kind == "local"
        if self.place == "host" and not context.on_host:
            return skipped(ON_HOST)
        if self.place == "launcher" and context.on_host and not is_local:
            return skipped(ON_LAUNCHER)
        try:
            return self.look(context)
        except UNUSABLE as error:
            return failed(sentence(error), context.command())


def word(text: str) -> str:
    """Return a path or URI as a shell takes it; `~/` stays what it is there."""
    head = "~/" if text.startswith("~/") else ""
    return head + shlex.quote(text.removeprefix(head))


def is_bucket(uri: str) -> bool:
    """Tell whether a URI is of an object store."""
    return uri.startswith(("s3://", "gs://"))


def sentence(error: Exception) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())


def gib(size_bytes: float) -> str:
    """Return a size, such as 13.5 GiB or 12 MiB."""
    if size_bytes >= GIB / 10:
        return f"{size_bytes / GIB:,.1f} GiB"
    return f"{size_bytes / (1 << 20):,.0f} MiB"


def ask(argv: Sequence[str], *, timeout_s: float = TOOL_TIMEOUT_S) -> tuple[int, str, str]:
    """Run a program; return its exit code, what it printed, and what it complained of.

    A program that is not there ends with 127, one that does not answer in time with 124.
    """
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, "", f"{argv[0]}: no answer within {timeout_s:g} s"
    except OSError as error:
        return 127, "", f"{argv[0]}: {error.strerror or error}"
    return done.returncode, done.stdout, done.stderr


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it says nothing"


def _ask_gpus() -> list[Gpu] | str:
    if shutil.which("nvidia-smi") is None:
        return "there is no nvidia-smi on PATH"
    argv = ["nvidia-smi", f"--query-gpu={NVIDIA_FIELDS}", "--format=csv,noheader,nounits"]
    code, output, error = ask(argv)
    if code:
        return f"nvidia-smi failed: {last_line(error or output)}"
    gpus = []
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",")]
        try:
            name, driver, total, used, capability = fields
            gpus.append(Gpu(name, driver, float(total), float(used), float(capability)))
        except ValueError:
            return f"nvidia-smi answered {line.strip()[:100]!r}"
    return gpus or "nvidia-smi lists no GPU"
