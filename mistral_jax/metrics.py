"""What a run tells while it trains: metrics.jsonl, TensorBoard, and a panel or plain lines.

metrics.jsonl has one JSON object a line, of three kinds: `{"step", "loss", "loss_hex", ...}` for a
step, `{"step", "eval", "loss", "loss_hex"}` for a held-out source, `{"step", "text", "value"}` for
a text. Losses stand also as hexadecimal floats, so that two curves can be compared bit for bit.
"""

import dataclasses
import itertools
import json
import math
import os
import time
from pathlib import Path
from typing import Any
from typing import Protocol
from typing import SupportsFloat
from typing import runtime_checkable

import psutil
import tensorboardX
from rich.console import Console
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

METRICS_FILE = "metrics.jsonl"
SPARK_BLOCKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 48
PLAIN_LINES = 50  # about so many lines for a run that prints plain text
FALSE_WORDS = ("", "0", "false")


@dataclasses.dataclass(frozen=True)
class MetricsLog:
    """A metrics.jsonl that was read.

    Attributes:
        steps: one mapping a step, in order.
        evals: one mapping for each held-out loss.
        texts: one mapping for each text.
    """

    steps: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    texts: list[dict[str, Any]]


def read_metrics(path: str | os.PathLike) -> MetricsLog:
    """Read metrics.jsonl; a last line that a crash cut short is left out.

    Raises:
        ValueError: a line in the middle is not JSON; the message has its number.
    """
    log = MetricsLog([], [], [])
    for line in _read_lines(Path(path)):
        kind = log.evals if "eval" in line else log.texts if "text" in line else log.steps
        kind.append(line)
    return log


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            value = json.loads(line)
            int(value["step"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):  # no newline after it: cut short by a crash
                break
            raise ValueError(
                f"{path}: line {number} is not a metrics line; delete that line, or the file to "
                "start the log afresh"
            ) from None
        found.append(value)
    return found


def drop_after(path: Path, step: int) -> None:
    """Keep only lines of steps <= `step`; the file is replaced at once or not at all."""
    if not path.exists():
        return
    kept = [line for line in _read_lines(path) if line["step"] <= step]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(_encode(line) for line in kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _plain(value: SupportsFloat) -> int | float | None:
    """Return a JSON number; NaN and infinity, which JSON lacks, become null."""
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


@runtime_checkable
class Writer(Protocol):
    """Where the loop's numbers go."""

    def log(self, step: int, **values: SupportsFloat) -> None:
        """Record one step's numbers."""
        ...

    def log_eval(self, step: int, source: str, loss: SupportsFloat) -> None:
        """Record the held-out loss of a source, in nats per token."""
        ...

    def log_text(self, step: int, name: str, text: str) -> None:
        """Record a text, such as a sample."""
        ...


class Silent:
    """A Writer that writes nothing: that of every process of a run but the first."""

    def log(self, step: int, **values: SupportsFloat) -> None:
        """Do nothing."""

    def log_eval(self, step: int, source: str, loss: SupportsFloat) -> None:
        """Do nothing."""

    def log_text(self, step: int, name: str, text: str) -> None:
        """Do nothing."""


class MetricsWriter:
    """Writes a run's metrics as they come, and shows them.

    Args:
        run_directory: where metrics.jsonl and tensorboard/ go.
        total_steps: the run's last step.
        resume_step: what was saved; lines of later steps are dropped, they will come again.
        console: where to show; standard output by default.
    """

    def __init__(
        self,
        run_directory: str | os.PathLike,
        *,
        total_steps: int,
        resume_step: int = 0,
        console: Console | None = None,
    ) -> None:
        folder = Path(run_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS_FILE
        # Step 0 is evaluated anew by a run that has saved nothing yet.
        drop_after(self.path, resume_step or -1)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._board = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"), purge_step=resume_step + 1
        )
        self._console = console or Console()
        self._screen = Screen(total_steps, resume_step)
        self._plain_every = max(1, total_steps // PLAIN_LINES)
        self._live: Live | None = None
        if self._console.is_terminal and os.environ.get("CI", "").lower() in FALSE_WORDS:
            self._live = Live(
                get_renderable=self._screen.render, console=self._console, refresh_per_second=4
            )
            self._live.start()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, step: int, **values: SupportsFloat) -> None:
        """Record one step's numbers; `loss` is written in hexadecimal too.

        Known names get a place in the panel: loss, tokens_per_s, mfu, device_memory_bytes.
        """
        line: dict[str, Any] = {"step": int(step)}
        line.update({name: _plain(value) for name, value in values.items()})
        if "loss" in values:
            line["loss_hex"] = float(values["loss"]).hex()
        line["time"] = round(time.time(), 3)
        self._append(line)
        for name, value in values.items():
            self._board.add_scalar(f"train/{name}", float(value), step)
        self._screen.update(step, values)
        is_shown = step % self._plain_every == 0 or step in (1, self._screen.total_steps)
        if self._live is None and is_shown:
            self.say(self._screen.line())

    def log_eval(self, step: int, source: str, loss: SupportsFloat) -> None:
        """Record the held-out loss of a source, in nats per token."""
        number = float(loss)
        self._append(
            {"step": int(step), "eval": source, "loss": _plain(number), "loss_hex": number.hex()}
        )
        self._board.add_scalar(f"eval/{source}", number, step)
        self._screen.held_out[source] = number
        if self._live is None:
            self.say(f"step {step}: held-out loss of {source} {number:.4f}")

    def log_text(self, step: int, name: str, text: str) -> None:
        """Record a text, such as a sample."""
        self._append({"step": int(step), "text": name, "value": text})
        self._board.add_text(name, text, step)

    def say(self, text: str) -> None:
        """Print a line, above the panel where there is one."""
        self._console.print(Text(text))

    def close(self) -> None:
        """Flush and stop the panel; calling it again does nothing."""
        if self._file < 0:
            return
        if self._live is not None:
            self._live.stop()
        self._board.close()
        os.fsync(self._file)
        os.close(self._file)
        self._file = -1

    def _append(self, line: dict[str, Any]) -> None:
        # One write call: a kill leaves either the whole line or a tail that readers drop.
        os.write(self._file, _encode(line))


class Screen:
    """What the panel and the plain lines show."""

    def __init__(self, total_steps: int, resume_step: int) -> None:
        self.total_steps = total_steps
        self.stage = "start"
        self.step = resume_step
        self.held_out: dict[str, float] = {}
        self._losses: list[float] = []
        self._values: dict[str, float] = {}
        self._first: tuple[int, float] | None = None
        self._eta_s: float | None = None
        self._process = psutil.Process()

    def update(self, step: int, values: dict[str, SupportsFloat]) -> None:
        """Take a step's numbers."""
        now = time.monotonic()
        self.step = step
        self.stage = "train"
        self._values.update({name: float(value) for name, value in values.items()})
        if "loss" in values:
            self._losses.append(float(values["loss"]))
        # The clock starts after the first step, which compiles.
        if self._first is None:
            self._first = (step, now)
        elif step > self._first[0]:
            pace = (now - self._first[1]) / (step - self._first[0])
            self._eta_s = pace * (self.total_steps - step)

    def line(self) -> str:
        """Return the state as one plain line."""
        parts = [f"step {self.step}/{self.total_steps}"]
        parts += [f"{name} {value}" for name, value in self._facts() if name != "held-out"]
        return "  ".join(parts)

    def render(self) -> Panel:
        """Return the panel."""
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self.stage, style="bold cyan"),
            ProgressBar(total=max(self.total_steps, 1), completed=self.step, width=36),
            Text(f"{self.step}/{self.total_steps}"),
        )
        facts = Table.grid(padding=(0, 3))
        cells = [Text.assemble((name + " ", "dim"), value) for name, value in self._facts()]
        for start in range(0, len(cells), 4):
            facts.add_row(*cells[start : start + 4])
        curve = Text(sparkline(self._losses, SPARK_WIDTH), style="green")
        return Panel(Group(head, curve, facts), title="training", title_align="left", expand=False)

    def _facts(self) -> list[tuple[str, str]]:
        values = self._values
        facts = []
        if "loss" in values:
            facts.append(("loss", f"{values['loss']:.4f}"))
        if "tokens_per_s" in values:
            facts.append(("tok/s", f"{values['tokens_per_s']:,.0f}"))
        mfu = values.get("mfu")
        facts.append(("MFU", "n/a" if mfu is None or not math.isfinite(mfu) else f"{mfu:.1%}"))
        facts.append(("ETA", "..." if self._eta_s is None else _clock(self._eta_s)))
        if values.get("device_memory_bytes"):
            facts.append(("device", f"{values['device_memory_bytes'] / 2**30:.1f} GiB"))
        facts.append(("RSS", f"{self._process.memory_info().rss / 2**30:.1f} GiB"))
        if self.held_out:
            shown = ", ".join(f"{name} {loss:.4f}" for name, loss in self.held_out.items())
            facts.append(("held-out", shown))
        return facts


def sparkline(values: list[float], width: int) -> str:
    """Return a row of block characters, at most `width`, over means of equal runs of values."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(width, len(finite))
    edges = [round(index * len(finite) / count) for index in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(SPARK_BLOCKS) - 1) / ((high - low) or 1)
    return "".join(SPARK_BLOCKS[round((mean - low) * scale)] for mean in means)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
