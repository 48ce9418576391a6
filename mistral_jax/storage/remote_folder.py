"""A run's folder in a bucket: what is there, and a copy of what one needs of it on this machine.

A step of `checkpoints/` exists when its list of files says that it is complete. The small files
(config, manifest, metrics, report) are single objects that carry their sha256.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from mistral_jax import storage
from mistral_jax.storage import owner
from mistral_jax.storage import staging
from mistral_jax.storage import upload

CONFIG = "config.yaml"
MANIFEST = "manifest.json"
FINISHED = "measured.json"
CHECKPOINTS = "checkpoints"
LOSS = "metrics/metrics"  # where a step keeps its held-out loss, if it has one
SMALL_FOLDERS = ("evals", "samples", "tensorboard")


@dataclasses.dataclass(frozen=True)
class RemoteFolder:
    """What lies under a run's prefix.

    Attributes:
        uri: the prefix.
        small: names of the small files.
        others: names of everything else but the owner's objects.
        steps: the complete steps, oldest first.
        loss: held-out loss by step, where one was measured.
    """

    uri: str
    small: tuple[str, ...]
    others: tuple[str, ...]
    steps: tuple[int, ...]
    loss: dict[int, float]

    @property
    def is_run(self) -> bool:
        """Whether a run has begun there."""
        return CONFIG in self.small

    @property
    def best_step(self) -> int | None:
        """The step with the lowest held-out loss, else the newest."""
        if self.loss:
            return min(self.loss, key=lambda step: (self.loss[step], step))
        return self.steps[-1] if self.steps else None

    def best_steps(self, count: int) -> set[int]:
        """Return the steps with the lowest held-out losses."""
        return set(sorted(self.loss, key=lambda step: (self.loss[step], step))[:count])


def is_small(name: str) -> bool:
    """Tell whether a path inside a run's folder is one of the small files that it leaves."""
    first, _, rest = name.partition("/")
    is_hidden = any(part.startswith(".") for part in name.split("/"))
    return not is_hidden and (not rest or first in SMALL_FOLDERS)


def look(uri: str) -> RemoteFolder:
    """List what is there; nothing at all is an empty one."""
    base = uri.rstrip("/")
    kind = storage.storage_for(base)
    names = [name.removeprefix(f"{base}/") for name in kind.list_files(base)]
    small = [name for name in names if is_small(name)]
    others = [n for n in names if not is_small(n) and not n.startswith(f"{owner.FOLDER}/")]
    found = set(names)
    steps, loss = [], {}
    for step in _steps_named(names):
        if not upload.read_list(f"{base}/{CHECKPOINTS}/{step}/{upload.LIST_NAME}").is_complete:
            continue
        steps.append(step)
        name = f"{CHECKPOINTS}/{step}/{LOSS}"
        if name in found:
            known = _loss(storage.read_bytes(f"{base}/{name}"))
            loss |= {} if known is None else {step: known}
    return RemoteFolder(base, tuple(small), tuple(others), tuple(steps), loss)


def is_run(uri: str) -> bool:
    """Tell whether a prefix is a run's."""
    base = uri.rstrip("/")
    return storage.exists(f"{base}/{CONFIG}") and storage.exists(f"{base}/{MANIFEST}")


def fetch_small(there: RemoteFolder, folder: Path) -> None:
    """Copy the small files into a folder, over what is there."""
    _copy(staging.Prefix(there.uri, is_deep=True).stage(list(there.small)), folder, there.small)


def fetch_steps(there: RemoteFolder, steps: set[int], folder: Path) -> None:
    """Copy whole steps, checked, into a folder's checkpoints; one appears when it is whole."""
    for step in sorted(steps):
        prefix = staging.Prefix(f"{there.uri}/{CHECKPOINTS}/{step}", is_deep=True)
        staged = prefix.stage(prefix.content)
        temporary = folder / CHECKPOINTS / f".{step}.fetched"
        shutil.rmtree(temporary, ignore_errors=True)
        _copy(staged, temporary, prefix.content, is_linked=True)
        temporary.rename(folder / CHECKPOINTS / str(step))


def stage_to_read(uri: str) -> Path:
    """Return a local folder with a run's small files and its best (else newest) step.

    Raises:
        StorageError: no step of it is complete.
    """
    there = look(uri)
    step = there.best_step
    if step is None:
        raise storage.StorageError(f"{uri}: a run without a complete checkpoint; let it go on")
    prefix = staging.Prefix(there.uri, is_deep=True)
    above = f"{CHECKPOINTS}/{step}/"
    names = [n for n in prefix.names if n.startswith(above) and not n.endswith(upload.LIST_NAME)]
    return prefix.stage([*there.small, *names])


def _steps_named(names: list[str]) -> list[int]:
    marks = (name.split("/") for name in names if name.startswith(f"{CHECKPOINTS}/"))
    return sorted(
        int(parts[1])
        for parts in marks
        if len(parts) == 3 and parts[2] == upload.LIST_NAME and parts[1].isdigit()
    )


def _loss(raw: bytes) -> float | None:
    try:
        loss = json.loads(raw)["loss"]
    except (ValueError, KeyError, TypeError):
        return None
    return float(loss) if isinstance(loss, int | float) else None


def _copy(source: Path, folder: Path, names: Sequence[str], *, is_linked: bool = False) -> None:
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_linked:
            link_or_copy(source / name, target)
        else:
            temporary = target.with_name(f".{target.name}.fetched")
            shutil.copyfile(source / name, temporary)
            os.replace(temporary, target)


def link_or_copy(source: Path, target: Path) -> None:
    """Link a file that nobody changes in place; copy it where links are not known."""
    try:
        os.link(source, target)
    except OSError as error:
        if isinstance(error, FileNotFoundError | FileExistsError):
            raise
        shutil.copy2(source, target)
