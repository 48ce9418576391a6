"""Corpora whose making is killed, with SIGKILL, at any instant; then made on, with the same bytes.

A kill falls a few milliseconds behind a drawn file operation of a drawn stage, counted and not
timed: a machine of another speed, or a busy one, is killed at the same places. Processes are forked
from one that has imported everything already: a start takes no time.
"""

import collections
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from data_pipelines.corpus import build
from data_pipelines.corpus import fates
from data_pipelines.corpus import job as jobs
from data_pipelines.corpus import progress
from data_pipelines.corpus import state
from mistral_jax.config import corpus as corpus_config
from tests.data_pipelines.corpus import test_build

LONGEST_S = 240.0
LONGEST_DELAY_S = 0.005
FILE_OPERATIONS = (
    "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.scandir",
)  # fmt: skip
PRELOADED = [
    "tests.data_pipelines.corpus.killing", "data_pipelines.corpus.map_task", "profanity_check",
]  # fmt: skip


class Kill(NamedTuple):
    """Where a process is killed: so many file operations behind a stage's begin, and a while."""

    stage: int
    operation: int
    delay_s: float


class Clock(progress.Progress):
    """Counts the file operations of each stage, writes down the stage, and kills the process."""

    def __init__(self, path: Path, kill: Kill | None):
        super().__init__(is_silent=True)
        self._path, self._kill = path, kill
        self._process = os.getpid()
        self._behind = 0
        self.operations: dict[str, int] = {}
        sys.addaudithook(self._count)

    def stage(self, name: str, *arguments, **options) -> None:
        super().stage(name, *arguments, **options)
        self._path.write_text(name)
        self.operations.setdefault(name, 0)

    def _count(self, event: str, _) -> None:
        if event not in FILE_OPERATIONS or not self.operations or os.getpid() != self._process:
            return
        self.operations[list(self.operations)[-1]] += 1
        if self._kill is not None and len(self.operations) > self._kill.stage:
            self._behind += 1
            if self._behind == self._kill.operation:
                die = threading.Timer(self._kill.delay_s, os.kill, (self._process, signal.SIGKILL))
                die.daemon = True
                die.start()


def make(config: str, folder: str, stage: str, write_every_s: float, kill: Kill | None) -> None:
    """Make a corpus: what a process does."""
    state.WRITE_EVERY_S = write_every_s
    read = corpus_config.CorpusConfig.model_validate_json(config)
    clock = Clock(Path(stage), kill)
    build.build(read, Path(folder), progress=clock)
    if kill is None:
        Path(stage).write_text(json.dumps(clock.operations))


class Workshop:
    """Sources in a folder, a corpus of them that was made in one go, and kills.

    Attributes:
        kills: how many by the stage that they met.
        checked_parts: how often a part was found as the process before had left it.
    """

    def __init__(self, folder: Path, *, seed: int, files: int = 8, rows: int = 6):
        self._folder, self._stage = folder, folder / "stage"
        self._draw = random.Random(seed)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        test_build.write_sources(folder / "in", files=files, rows=rows)
        self.kills: collections.Counter[str] = collections.Counter()
        self.checked_parts = 0
        self._num_rounds = 0
        self._operations = self._measured()
        self.whole = test_build.tree(folder / "whole")

    def round(self, *, kills: int, workers: int = 1) -> None:
        """Make a corpus, killed up to so often, and compare it with the whole one."""
        name = f"round-{self._num_rounds}"
        folder = self._folder / name
        self._num_rounds += 1
        known: dict[str, tuple[int, int]] = {}
        for number in range(kills + 1):
            process = self._start(folder, workers, self._drawn() if number < kills else None)
            process.join(LONGEST_S)
            if process.exitcode == -signal.SIGKILL:
                self.kills[self._stage.read_text()] += 1
            self._check_parts(folder, known)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, (
                f"{name}: the process ended with {process.exitcode}"
            )
        assert process.exitcode == 0
        found = test_build.tree(folder)
        different = found.items() ^ self.whole.items()
        assert not different, sorted(name for name, _ in different)

    def _start(self, folder: Path, workers: int, kill: Kill | None):
        executor = {"kind": "local", "workers": workers}
        config = test_build.config_of(self._folder, executor=executor).model_dump_json()
        # As short as these stages are, the state would be written at their ends alone.
        write_every_s = self._draw.choice((0.0, 0.1))
        arguments = (config, str(folder), str(self._stage), write_every_s, kill)
        process = self._context.Process(target=make, args=arguments)
        process.start()
        return process

    def _measured(self) -> list[int]:
        """Make the corpus in one go; return how many file operations each stage did."""
        process = self._start(self._folder / "whole", 1, None)
        process.join(LONGEST_S)
        assert process.exitcode == 0
        return list(json.loads(self._stage.read_text()).values())

    def _drawn(self) -> Kill:
        """Draw a place of a random stage; a process that finds the stage done may end before."""
        stage = self._draw.randrange(len(self._operations))
        operation = self._draw.randint(1, self._operations[stage])
        return Kill(stage, operation, self._draw.uniform(0, LONGEST_DELAY_S))

    def _check_parts(self, folder: Path, known: dict[str, tuple[int, int]]) -> None:
        """Check that what was done stands as it was, and add what has been done since."""
        work = folder / jobs.WORK
        if (folder / "manifest.json").exists():
            return  # the corpus is whole, and its parts may be going
        if not (work / fates.EARLIER_DONE).exists() or not (folder / state.STATE).exists():
            assert not known, "the work was thrown away"
            return
        for name, stamp in known.items():
            found = (work / name).stat()
            assert (found.st_ino, found.st_mtime_ns) == stamp, f"{name} was done twice"
            self.checked_parts += 1
        done = json.loads((folder / state.STATE).read_text())["stages"]
        for stage, entries in done.items():
            for number in entries:
                name = f"{stage}/{int(number):05d}"
                found = (work / name).stat()
                known[name] = (found.st_ino, found.st_mtime_ns)
