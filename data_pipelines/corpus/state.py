"""pipeline_state.json: which tasks of which stage are done, with the digests of what they left.

A task's files come into being in a folder of their own that is renamed when it is whole; the state
names it after that. A run that was killed therefore finds whole tasks and does only the others.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from data_pipelines import sources
from mistral_jax import storage

STATE = "pipeline_state.json"
VERSION = 1
WRITE_EVERY_S = 1.0
WRITE_SHARE = 0.05  # of the time


class State:
    """The tasks that are done, of one job in one folder."""

    def __init__(self, folder: Path, fingerprint: str):
        """Read the state of an earlier run of the same job, or begin.

        Args:
            folder: the output.
            fingerprint: of everything that decides the result.
        """
        self.path = folder / STATE
        found = sources.read_json(self.path)
        self.is_resumed = found.get("fingerprint") == fingerprint
        self.stages: dict[str, dict[str, Any]] = found["stages"] if self.is_resumed else {}
        self._fingerprint = fingerprint
        self._written_s, self._every_s = 0.0, WRITE_EVERY_S

    def done(self, stage: str) -> dict[int, Any]:
        """Return what each finished task of a stage said, by its number."""
        return {int(number): entry for number, entry in self.stages.get(stage, {}).items()}

    def mark(self, stage: str, number: int, entry: Any) -> None:
        """Note that a task is done; on disk soon, or at `write`.

        Soon is a second, or as long as keeps the writing of many tasks below WRITE_SHARE.
        """
        self.stages.setdefault(stage, {})[str(number)] = entry
        if time.monotonic() - self._written_s > self._every_s:
            self.write()

    def forget(self, stage: str, number: int) -> None:
        """Note that a task has to be done again."""
        self.stages.get(stage, {}).pop(str(number), None)

    def write(self) -> None:
        """Write the state whole or not at all."""
        began_s = time.monotonic()
        storage.write_bytes(self.path, content(self._fingerprint, self.stages))
        self._written_s = time.monotonic()
        self._every_s = max(WRITE_EVERY_S, (self._written_s - began_s) / WRITE_SHARE)


def content(fingerprint: str, stages: dict[str, dict[str, Any]], **more: str) -> bytes:
    """Return what pipeline_state.json holds."""
    ordered = {
        stage: dict(sorted(entries.items(), key=lambda entry: int(entry[0])))
        for stage, entries in sorted(stages.items())
    }
    value = {"version": VERSION, "fingerprint": fingerprint, **more, "stages": ordered}
    return json.dumps(value, indent=1).encode() + b"\n"


def folder_digest(folder: Path) -> str | None:
    """Return the sha256 of a task's files with their names; None if there is no such folder."""
    if not folder.is_dir():
        return None
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(folder).as_posix()} {storage.digest(path)}\n".encode())
    return total.hexdigest()
