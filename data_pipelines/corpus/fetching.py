"""The files of a task, on this machine and unchanged while the task reads them.

Those of a bucket come past the cache into the job's folder and go when they are read, so that a
corpus may be larger than any cache and disk. Each is what the inventory saw, or the run stops; a
store that fails is asked again until `mirror.outage_s` have passed.
"""

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines import archives
from mistral_jax import storage
from mistral_jax.storage import mirror
from mistral_jax.storage import staging
from mistral_jax.storage.base import FileFacts

FOLDER = "inputs"
MAX_NAME_BYTES, KEPT_NAME_CHARACTERS = 200, 40
DAMAGED_TRIES = 3  # a file that arrives damaged as often is so in the store


@contextlib.contextmanager
def fetched(job_folder: Path, files: list[dict[str, Any]]) -> Iterator[list[Path]]:
    """Give the paths of a task's files (inventory.py) for as long as the context lasts.

    What had arrived when a process was killed is not fetched again.

    Raises:
        StorageError: a file or an object has changed since the inventory (of a file this shows when
            the context ends), or the store failed for too long.
        staging.StagingError: an object's content is not what its digest says.
    """
    far = [file for file in files if storage.is_remote(file["uri"])]
    if not far:
        yield [Path(file["uri"]) for file in files]
        _check_unchanged(files)
        return
    listed = [[each["uri"], each["version"]] for file in far for each in (file, *_beside(file))]
    folder = job_folder / FOLDER / hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
    paths, wanted = [], {}
    for index, file in enumerate(files):
        if not storage.is_remote(file["uri"]):
            paths.append(Path(file["uri"]))
            continue
        name = f"{index:04d}/{_local_name(file['uri'])}"
        paths.append(folder / name)
        wanted[name] = file["uri"], _facts(file)
        for each in _beside(file):
            wanted[f"{index:04d}/{each['path']}"] = each["uri"], _facts(each)
    fetch(wanted, folder)
    yield paths
    _check_unchanged(files)
    shutil.rmtree(folder)


def beside(file: dict[str, Any], folder: Path, max_bytes: int) -> Callable[[str], bytes | None]:
    """Return what reads other objects by their path from the folder of a file in a bucket.

    Args:
        file: of the inventory.
        folder: what is fetched already.
        max_bytes: larger ones are not read.
    """
    base = file["uri"].rpartition("/")[0]

    def read(path: str) -> bytes | None:
        if archives.name_problem(path):
            return None
        here, uri = folder / path, f"{base}/{path}"
        if not here.is_file():
            found = patiently(uri, lambda: storage.facts(uri))
            if found is None or found.size_bytes > max_bytes:
                return None
            fetch({path: (uri, found)}, folder)
        return here.read_bytes()

    return read


def fetch(wanted: Mapping[str, tuple[str, FileFacts]], folder: Path) -> None:
    """Fetch objects into a folder, as staging.fetch, for as long as it takes.

    Raises:
        StorageError: one has changed, or the store failed for too long.
        staging.StagingError: a content is not what its digest says.
    """
    first = next(iter(wanted.values()))[0]
    for attempt in range(1, DAMAGED_TRIES + 1):
        try:
            patiently(first, lambda: staging.fetch(wanted, folder))
            return
        except staging.StagingError as error:
            if attempt == DAMAGED_TRIES:
                raise
            _say(f"fetched again: {error}")


def patiently[T](uri: str, action: Callable[[], T]) -> T:
    """Ask a store again and again while it does not answer.

    Raises:
        StorageError: it did not for too long.
    """
    try:
        return mirror.until_it_answers(
            action,
            say=_say,
            begins="waiting for the store",
            ends="reading goes on",
            failed=f"{uri}: cannot be read",
            advice="run the same command again, it goes on where it was",
            passing=(storage.StorageUnreachable,),
        )
    except mirror.Outage as error:
        raise storage.StorageError(str(error)) from error


def _check_unchanged(files: list[dict[str, Any]]) -> None:
    """Compare local files, and those beside them, with what the inventory saw."""
    known = {each["uri"]: each["version"] for file in files for each in (file, *_beside(file))}
    for uri, version in known.items():
        if storage.is_remote(uri) or version is None:
            continue
        try:
            found = storage.digest(uri)
        except (OSError, storage.StorageError):  # gone, or not readable any more
            found = ""
        if found != version:
            raise storage.StorageError(
                f"{uri}: changed while the corpus was made of it; run the same command again when "
                "nobody writes there"
            )


def _beside(file: dict[str, Any]) -> list[dict[str, Any]]:
    return file.get("beside", [])


def _facts(file: dict[str, Any]) -> FileFacts:
    return FileFacts(file["size_bytes"], file["version"], file["digest"])


def _local_name(uri: str) -> str:
    name = uri.rpartition("/")[2]
    fits = len(name.encode()) <= MAX_NAME_BYTES
    return name if fits else name[-KEPT_NAME_CHARACTERS:]


def _say(line: str) -> None:
    print(line, file=sys.stderr)
