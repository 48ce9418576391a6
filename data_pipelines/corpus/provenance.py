"""Where each document of a split comes from: provenance.jsonl, and an index to find a line at once.

Line i tells of document i. provenance.idx.npy holds where each line begins, and the size of the
file behind the last, int64: any one of millions is two small reads away. Equal facts give equal
bytes.
"""

import array
import hashlib
import json
import mmap
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.sources import DamagedShard
from mistral_jax import storage

PROVENANCE = "provenance.jsonl"
INDEX = "provenance.idx.npy"
# In this order in every line; what is None or empty is left out.
KEYS = (
    "id", "source_name", "kind", "licence", "made_by", "span", "page_first", "page_last", "level",
    "difficulty", "digest", "made_from",
)  # fmt: skip
REQUIRED = ("id", "source_name")
EMPTY = (None, "", [], ())


class ProvenanceWriter:
    """Writes the two files of a split, document by document.

    Raises:
        DiskSpaceError: by `add` and `close`: the disk, or the user's quota, is full.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / PROVENANCE
        self._file = self._path.open("wb")
        self._offsets = array.array("q", [0])
        self._sha256 = hashlib.sha256()

    def __enter__(self) -> "ProvenanceWriter":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file; what `close` was not called for is not whole."""
        self._file.close()

    def add(self, facts: Mapping[str, Any]) -> None:
        """Append the next document's facts.

        Args:
            facts: some of KEYS as JSON values; "id" and "source_name" at least.

        Raises:
            ValueError: a key that is not one of KEYS, or a required one is missing.
        """
        if unknown := facts.keys() - set(KEYS):
            raise ValueError(
                f"provenance: expected the keys {', '.join(KEYS)}, got {', '.join(sorted(unknown))}"
            )
        if missing := [key for key in REQUIRED if not facts.get(key)]:
            raise ValueError(f"provenance: {', '.join(missing)} must be given, got {dict(facts)}")
        kept = {key: facts[key] for key in KEYS if key in facts and facts[key] not in EMPTY}
        line = (json.dumps(kept, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")
        try:
            self._file.write(line)
        except OSError as error:
            storage.raise_if_disk_full(error, self._path)
            raise
        self._sha256.update(line)
        self._offsets.append(self._offsets[-1] + len(line))

    def close(self) -> list[dict[str, Any]]:
        """Finish both files and return their entries for the manifest."""
        index = self._folder / INDEX
        try:
            self._file.close()
            np.save(index, np.frombuffer(self._offsets, np.int64), allow_pickle=False)
        except OSError as error:
            storage.raise_if_disk_full(error, self._path)
            raise
        return [
            {
                "file": PROVENANCE,
                "size_bytes": self._offsets[-1],
                "sha256": self._sha256.hexdigest(),
            },
            {
                "file": INDEX,
                "size_bytes": index.stat().st_size,
                "sha256": storage.digest(index),
            },
        ]


def count(folder: str | Path) -> int:
    """Return how many documents the split's provenance tells of.

    Raises:
        ValueError: the folder has no provenance.
        DamagedShard: the index and the lines do not belong together.
    """
    return len(_offsets(Path(folder))) - 1


def locate(folder: str | Path, index: int) -> dict[str, Any]:
    """Return the facts of one document.

    Args:
        folder: a split, such as OUT/code/train.
        index: the document, from 0.

    Raises:
        ValueError: the folder has no provenance, or not so many documents.
        DamagedShard: the index and the lines do not belong together.
    """
    folder = Path(folder)
    offsets = _offsets(folder)
    if not 0 <= index < len(offsets) - 1:
        raise ValueError(
            f"{folder}: expected a document from 0 to {len(offsets) - 2}, got {index}; the split "
            f"has {len(offsets) - 1}"
        )
    start, stop = int(offsets[index]), int(offsets[index + 1])
    with (folder / PROVENANCE).open("rb") as file:
        file.seek(start)
        return _parse(file.read(stop - start), folder, index)


def find(folder: str | Path, wanted: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index, facts) of the documents with this id, or whose digest begins with it.

    The file is searched as bytes, without parsing lines that do not hold what is wanted.

    Args:
        folder: a split.
        wanted: an id as in the lines, or 8 or more characters of a digest.
    """
    folder = Path(folder)
    offsets = _offsets(folder)
    if len(offsets) == 1:
        return
    needle = json.dumps(wanted)[1:-1].encode("ascii")
    is_digest = len(wanted) >= 8
    with (
        (folder / PROVENANCE).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines,
    ):
        at = lines.find(needle)
        while at >= 0:
            index = int(np.searchsorted(offsets, at, "right")) - 1
            stop = int(offsets[index + 1])
            facts = _parse(lines[int(offsets[index]) : stop], folder, index)
            is_it = is_digest and str(facts.get("digest", "")).startswith(wanted)
            if is_it or facts.get("id") == wanted:
                yield index, facts
            at = lines.find(needle, stop)


def _offsets(folder: Path) -> np.ndarray:
    path, lines = folder / INDEX, folder / PROVENANCE
    if not path.is_file() or not lines.is_file():
        raise ValueError(
            f"{folder}: expected {PROVENANCE} and {INDEX} there, found none; give a split of a "
            "prepared corpus, such as OUT/code/train"
        )
    try:
        offsets = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DamagedShard(f"{path}: cannot be read ({error}); prepare the corpus again") from None
    size_bytes = lines.stat().st_size
    if offsets.dtype != np.int64 or not offsets.size or offsets[-1] != size_bytes:
        raise DamagedShard(
            f"{lines}: has {size_bytes} bytes, which is not what {INDEX} says; prepare the corpus "
            "again or copy it again"
        )
    return offsets


def _parse(line: bytes, folder: Path, index: int) -> dict[str, Any]:
    try:
        facts = json.loads(line)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise DamagedShard(
            f"{folder / PROVENANCE}: line {index + 1} is damaged; prepare the corpus again"
        )
    return facts
