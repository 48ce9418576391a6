"""What `prepare` shows while it works: a panel on a terminal, plain lines elsewhere, or nothing.

One bar for the stage's tasks; rows read, kept and rejected over all stages; speed and the time left
of the stage, measured over this run's own tasks (those of an earlier run cost nothing).
"""

import dataclasses
import os
import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_S = 10.0  # between two plain lines of a stage
FALSE_WORDS = ("", "0", "false")
BAR_WIDTH = 36


@dataclasses.dataclass(slots=True)
class _Stage:
    name: str
    total_tasks: int
    total_bytes: int  # of the tasks that are left at the start; 0 if unknown
    started_s: float
    resumed: int  # tasks that an earlier run has done
    tasks: int = 0  # all that are done
    size_bytes: int = 0  # of this run's tasks

    @property
    def own_tasks(self) -> int:
        """Tasks of this run."""
        return self.tasks - self.resumed


class Progress:
    """Shows stages and tasks; use it as a context manager, or call `close`.

    Args:
        console: where to show; standard output by default.
        is_silent: counts, but shows nothing.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        *,
        console: Console | None = None,
        is_silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.rows_read = self.rows_kept = self.rows_rejected = 0
        self._clock = clock
        self._started_s = clock()
        self._console = console or Console()
        self._is_silent = is_silent
        self._stage: _Stage | None = None
        self._shown_s = 0.0
        self._is_closed = False
        self._live: Live | None = None
        is_ci = os.environ.get("CI", "").lower() not in FALSE_WORDS
        if self._console.is_terminal and not is_silent and not is_ci:
            self._live = Live(
                get_renderable=self.render, console=self._console, refresh_per_second=4
            )
            self._live.start()

    @classmethod
    def silent(cls) -> "Progress":
        """Return one that counts and shows nothing."""
        return cls(is_silent=True)

    def __enter__(self) -> "Progress":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def stage(self, name: str, total_tasks: int, *, done: int = 0, total_bytes: int = 0) -> None:
        """Begin a stage; the one before is over.

        Args:
            name: such as "map".
            total_tasks: how many it has, finished ones included.
            done: those that an earlier run has finished.
            total_bytes: input of the tasks that are left, where known: a better measure of time.
        """
        self._end_stage()
        self._stage = _Stage(name, total_tasks, total_bytes, self._clock(), done, done)
        self._shown_s = self._clock()
        if total_tasks > 1 and self._live is None:
            resumed = f", {done:,} of them done by an earlier run" if done else ""
            self.say(f"{name}: {total_tasks:,} tasks{resumed}")

    def task_done(self, facts: Mapping[str, Any]) -> None:
        """Count a finished task of the stage.

        Args:
            facts: what the task said: `read` (by source: `accepted`, and `rejected` by kind),
                `rows` that it left, `bytes` of its input. A task that read nothing counts as a
                task only.
        """
        stage = self._stage
        assert stage is not None, "a stage has begun before its tasks end"
        if counts := facts.get("read"):
            read = sum(one["accepted"] + sum(one["rejected"].values()) for one in counts.values())
            self.rows_read += read
            self.rows_kept += facts["rows"]
            self.rows_rejected += max(read - facts["rows"], 0)
        stage.tasks += 1
        stage.size_bytes += facts.get("bytes", 0)
        is_last = stage.tasks == stage.total_tasks
        is_due = self._clock() - self._shown_s >= PLAIN_EVERY_S
        if self._live is None and is_due and not is_last:
            self._shown_s = self._clock()
            self.say(self.line())

    def say(self, text: str) -> None:
        """Print a line, above the panel where there is one."""
        if not self._is_silent:
            self._console.print(Text(text))

    def close(self) -> None:
        """End the stage and the panel; calling it again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._end_stage()
        if self._live is not None:
            self._live.stop()

    def line(self) -> str:
        """Return the state as one plain line."""
        stage = self._stage
        if stage is None:
            return ""
        parts = [f"{stage.name} {stage.tasks:,}/{stage.total_tasks:,}"]
        return "  ".join(parts + [f"{name} {value}" for name, value in self._facts(stage)])

    def render(self) -> Panel:
        """Return the panel."""
        stage = self._stage
        if stage is None:
            return Panel(Text("start"), title="preparing", title_align="left", expand=False)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(stage.name, style="bold cyan"),
            ProgressBar(total=max(stage.total_tasks, 1), completed=stage.tasks, width=BAR_WIDTH),
            Text(f"{stage.tasks:,}/{stage.total_tasks:,}"),
        )
        facts = Table.grid(padding=(0, 3))
        cells = [Text.assemble((f"{name} ", "dim"), value) for name, value in self._facts(stage)]
        for start in range(0, len(cells), 4):
            facts.add_row(*cells[start : start + 4])
        return Panel(Group(head, facts), title="preparing", title_align="left", expand=False)

    def eta_s(self) -> float | None:
        """Return the seconds left of the stage; None before its first own task ends."""
        stage = self._stage
        if stage is None:
            return None
        done, left = stage.own_tasks, stage.total_tasks - stage.tasks
        if stage.total_bytes and stage.size_bytes:
            done, left = stage.size_bytes, stage.total_bytes - stage.size_bytes
        if not done:
            return None
        return max(left, 0) * (self._clock() - stage.started_s) / done

    def _facts(self, stage: _Stage) -> list[tuple[str, str]]:
        facts = []
        for name in ("read", "kept", "rejected"):
            if rows := getattr(self, f"rows_{name}"):
                facts.append((name, f"{rows:,}"))
        spent_s = self._clock() - stage.started_s
        if stage.size_bytes and spent_s > 0:
            facts.append(("MB/s", f"{stage.size_bytes / 1e6 / spent_s:,.1f}"))
        eta_s = self.eta_s()
        facts.append(("ETA", "..." if eta_s is None else _clock_text(eta_s)))
        facts.append(("elapsed", _clock_text(self._clock() - self._started_s)))
        return facts

    def _end_stage(self) -> None:
        stage, self._stage = self._stage, None
        if stage is None:
            return
        # Limits may end a stage before its last task; inventory and joins tell of no tasks.
        tasks = f", {stage.own_tasks:,} tasks" if stage.own_tasks > 1 else ""
        spent = _clock_text(self._clock() - stage.started_s)
        self.say(f"{stage.name}: done in {spent}{tasks}")


def _clock_text(seconds: float) -> str:
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
