"""The folder of a corpus in the making: its config, its tasks, and what each task leaves.

OUT/work/job.json           config, makers, tasks
OUT/work/map/00012/         what task 12 of the stage `map` left (parts.py)
OUT/work/runs/00012...      its band keys, for the near-duplicate join
OUT/work/encode/00012/      its kept rows as records
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.corpus.row import READ
from data_pipelines.processors.resources import Resources
from mistral_jax import storage
from mistral_jax.config import corpus as corpus_config

WORK = "work"
JOB = "job.json"
RESOURCES = "resources"
NO_RESOURCES = Resources()


@dataclass(frozen=True, slots=True)
class Maker:
    """Where rows come from: a source, or a generator.

    Attributes:
        name: as the config spells it.
        kind: the source's type, or the generator's kind.
        expert: whose rows they are; "" where each row says so itself.
        licence: of rows that do not say it themselves.
        is_generator: rows are made, not read.
    """

    name: str
    kind: str
    expert: str
    licence: str
    is_generator: bool


@dataclass(frozen=True, eq=False)
class Job:
    """One corpus in the making.

    Attributes:
        folder: OUT/work.
        config: what is to be made.
        makers: sources, then generators; rows name them by index.
        resources: what processors need beside the config.
        tasks: of the stage `map` and of those after it: {"maker": i, "files": [{"uri", "name",
            "size_bytes", "sha256"}]} or {"maker": i, "start": row, "stop": row}.
    """

    folder: Path
    config: corpus_config.CorpusConfig
    makers: tuple[Maker, ...]
    tasks: tuple[dict[str, Any], ...]
    resources: Resources = NO_RESOURCES

    def part(self, stage: str, number: int) -> Path:
        """Return the folder that a task of a stage leaves."""
        return self.folder / stage / f"{number:05d}"

    @property
    def runs(self) -> Path:
        """Where the map tasks put their band keys."""
        return self.folder / "runs"

    @property
    def media(self) -> Path:
        """Where generators put the files that they make, named by content."""
        return self.folder / "media"

    @property
    def fates(self) -> Path:
        """What the join has decided, one entry for each row of all tasks."""
        return self.folder / "fates.npy"

    def write(self) -> None:
        """Write job.json."""
        value = {
            "config": self.config.model_dump(mode="json"),
            "makers": [[m.name, m.kind, m.expert, m.licence, m.is_generator] for m in self.makers],
            "tasks": self.tasks,
            "resources": self.resources.digests,
        }
        storage.write_bytes(self.folder / JOB, json.dumps(value).encode())


@functools.lru_cache(maxsize=2)
def _load(folder: Path, written_ns: int) -> Job:
    del written_ns  # part of the key: another job may come to lie in the same folder
    value = json.loads((folder / JOB).read_bytes())
    return Job(
        folder,
        corpus_config.CorpusConfig.model_validate_json(json.dumps(value["config"])),
        tuple(Maker(*each) for each in value["makers"]),
        tuple(value["tasks"]),
        Resources(folder / RESOURCES, value["resources"]) if value["resources"] else NO_RESOURCES,
    )


def load(folder: Path) -> Job:
    """Return the job of a folder."""
    return _load(folder, (folder / JOB).stat().st_mtime_ns)


def made_by_reading(made_by: str) -> bool:
    """Return whether a row was read, not made."""
    return made_by == READ
