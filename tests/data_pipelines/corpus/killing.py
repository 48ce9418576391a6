"""Corpora whose making is killed, with SIGKILL, at any instant; then made on, with the same bytes.

Processes are forked from one that has imported everything already: a start takes no time.
"""

import collections
import json
import multiprocessing
import random
import time
from pathlib import Path

from data_pipelines.corpus import build
from data_pipelines.corpus import fates
from data_pipelines.corpus import job as jobs
from data_pipelines.corpus import progress
from data_pipelines.corpus import state
from mistral_jax.config import corpus as corpus_config
from tests.data_pipelines.corpus import test_build

LONGEST_S = 240.0
POLL_S = 0.001
PRELOADED = [
    "tests.data_pipelines.corpus.killing", "data_pipelines.corpus.map_task", "profanity_check",
]  # fmt: skip


class Clock(progress.Progress):
    """Writes down which stage the process is in."""

    def __init__(self, path: Path):
        super().__init__(is_silent=True)
        self._path = path

    def stage(self, name: str, *arguments, **options) -> None:
        super().stage(name, *arguments, **options)
        self._path.write_text(name)


def make(config: str, folder: str, stage: str, write_every_s: float) -> None:
    """Make a corpus: what a process does."""
    state.WRITE_EVERY_S = write_every_s
    read = corpus_config.CorpusConfig.model_validate_json(config)
    build.build(read, Path(folder), progress=Clock(Path(stage)))


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
        self._spans = self._measured()
        self.whole = test_build.tree(folder / "whole")

    def round(self, *, kills: int, workers: int = 1) -> None:
        """Make a corpus, killed up to so often, and compare it with the whole one."""
        name = f"round-{sum(self.kills.values())}"
        folder = self._folder / name
        known: dict[str, tuple[int, int]] = {}
        for number in range(kills + 1):
            process = self._start(folder, workers)
            if number < kills:
                self._kill(process, folder)
            process.join(LONGEST_S)
            self._check_parts(folder, known)
            if process.exitcode == 0:
                break
            assert process.exitcode == -9, f"{name}: the process ended with {process.exitcode}"
        assert process.exitcode == 0
        found = test_build.tree(folder)
        different = found.items() ^ self.whole.items()
        assert not different, sorted(name for name, _ in different)

    def _start(self, folder: Path, workers: int):
        self._stage.write_text("start")
        executor = {"kind": "local", "workers": workers}
        config = test_build.config_of(self._folder, executor=executor).model_dump_json()
        # As short as these stages are, the state would be written at their ends alone.
        arguments = (config, str(folder), str(self._stage), self._draw.choice((0.0, 0.1)))
        process = self._context.Process(target=make, args=arguments)
        process.start()
        return process

    def _measured(self) -> dict[str, float]:
        """Make the corpus in one go; return how long each stage took."""
        process = self._start(self._folder / "whole", 1)
        begun: dict[str, float] = {}
        while process.is_alive():
            begun.setdefault(self._stage.read_text(), time.monotonic())
            time.sleep(POLL_S)
        assert process.exitcode == 0
        ends = [*list(begun.values())[1:], time.monotonic()]
        return {stage: end - at for (stage, at), end in zip(begun.items(), ends) if stage}

    def _kill(self, process, folder: Path) -> None:
        """Kill a process at a random instant of a random stage; it may have ended before."""
        stage = self._draw.choice([name for name in self._spans if name != "start"])
        span_s = self._draw.uniform(0, self._spans[stage])
        end = time.monotonic() + LONGEST_S
        stages = list(self._spans)
        while process.is_alive() and time.monotonic() < end:
            now = self._stage.read_text()
            if now and stages.index(now) >= stages.index(stage):
                time.sleep(span_s)
                break
            time.sleep(POLL_S)
        process.kill()
        process.join(LONGEST_S)
        if process.exitcode == -9:
            self.kills[self._stage.read_text()] += 1

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
