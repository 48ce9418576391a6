"""Prepared folders as DataSources: tokenized documents in ArrayRecord shards, read in batches.

A prepared folder holds manifest.json, and for each split the shards and lengths.npy. When a source
opens, the sizes of the shards and the sha256 of the lengths are checked; when a document is read,
its own length; the sha256 of the shards when `verify` is called. A split of a prepared corpus has
levels.npy too, checked like the lengths: the difficulty of each document.
"""

import bisect
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines import levels
from data_pipelines import records
from mistral_jax import storage
from mistral_jax.protocols import Example

MANIFEST = "manifest.json"
LENGTHS = "lengths.npy"
MANIFEST_VERSION = 1
MANIFEST_KEYS = frozenset(
    {"name", "fingerprint", "tokenizer", "token_bytes", "counts", "rejects", "splits"}
)
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class DamagedShard(ValueError):
    """A shard, or the file of lengths, is missing, cut short or changed."""


class ArrayRecordSource:
    """One split of a prepared folder: random access to its documents."""

    def __init__(self, folder: str | Path, split: str = "train", *, name: str | None = None):
        """Open a split and check its files against the manifest: all sizes, and the sha256 of
        lengths and levels.

        Args:
            folder: what `prepare` wrote.
            split: "train" or "eval".
            name: how the run calls the source; the manifest's name by default.

        Raises:
            ValueError: not a prepared folder, or it has no such split.
            DamagedShard: a file is missing or of another size, or the lengths have changed.
        """
        self.folder = Path(folder)
        self.split = split
        self.manifest = read_manifest(self.folder)
        if split not in self.manifest["splits"]:
            known = ", ".join(self.manifest["splits"])
            raise ValueError(f"{self.folder}: no split {split!r}; it has {known}")
        self._entry = self.manifest["splits"][split]
        self.name = name or self.manifest["name"]
        self.token_bytes: int = self.manifest["token_bytes"]
        self.has_masks: bool = self._entry["has_masks"]
        self.tokenizer: dict[str, Any] = self.manifest["tokenizer"]
        self._check_sizes()
        for entry in self._files[len(self._entry["shards"]) :]:
            self._check_digest(entry)
        self.lengths = np.load(self.folder / split / LENGTHS, allow_pickle=False)
        counts = [shard["documents"] for shard in self._entry["shards"]]
        if len(self.lengths) != sum(counts):
            raise DamagedShard(
                f"{self.folder / split / LENGTHS}: expected {sum(counts)} lengths, got "
                f"{len(self.lengths)}; prepare the source again"
            )
        self.levels = levels.read(self.folder / split, len(self.lengths))
        """The level of each document, 0 the easiest; None where nobody has told."""
        self._ends = np.cumsum(counts).tolist()
        self._readers: list[Any] = [None] * len(counts)

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        """Return one document."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Return several documents, in the given order, by one read per shard."""
        return [records.decode_record(record) for record in self.read_records(indices)]

    def __getstate__(self) -> dict:
        """Leave open files behind when a worker process gets a copy."""
        return {**self.__dict__, "_readers": [None] * len(self._readers)}

    @property
    def digest(self) -> str:
        """The sha256 of the split's shards, tokens and order of documents."""
        return self._entry["digest"]

    def again(self) -> "ArrayRecordSource":
        """Return the same source with open files of its own, for another thread."""
        return copy.copy(self)

    def of_level(self, level: int) -> "ArrayRecordSource":
        """Return the documents of one level as a source, named `<source>/<level's name>`."""
        assert self.levels is not None, "a source with levels"
        return _OfLevel(self, level)

    def read_records(self, indices: Sequence[int]) -> list[bytes]:
        """Return the records of several documents as bytes, in the given order.

        Raises:
            IndexError: an index is outside the split.
            DamagedShard: a shard cannot be read.
        """
        if not len(indices):
            return []
        if min(indices) < 0 or max(indices) >= len(self):
            raise IndexError(f"{self.name}: documents are 0..{len(self) - 1}, got {indices}")
        if len(self._ends) == 1:
            return self._checked(self._read_shard(0, list(indices)), indices)
        by_shard: dict[int, tuple[list[int], list[int]]] = {}
        for place, index in enumerate(indices):
            shard = bisect.bisect_right(self._ends, index)
            places, inner = by_shard.setdefault(shard, ([], []))
            places.append(place)
            inner.append(index - (self._ends[shard - 1] if shard else 0))
        found: list[bytes] = [b""] * len(indices)
        for shard, (places, inner) in by_shard.items():
            for place, record in zip(places, self._read_shard(shard, inner)):
                found[place] = record
        return self._checked(found, indices)

    def _checked(self, found: list[bytes], indices: Sequence[int]) -> list[bytes]:
        """Return records whose lengths are those that the order of rows was made from.

        Raises:
            DamagedShard: one has another length, so rows would hold another document's tokens.
        """
        lengths = self.lengths[list(indices)].tolist()
        for index, record, length in zip(indices, found, lengths, strict=True):
            if (got := records.num_tokens(record)) != length:
                raise DamagedShard(
                    f"{self.folder / self.split}: document {index} has {got} tokens, but "
                    f"{LENGTHS} says {length}; prepare the source again or copy it again"
                )
        return found

    def verify(self) -> None:
        """Compare the sha256 of every file of the split with the manifest.

        Raises:
            DamagedShard: a file has changed; the message names it.
        """
        for entry in self._files:
            self._check_digest(entry)

    @property
    def _files(self) -> list[dict[str, Any]]:
        """The manifest's entries of all files: shards, lengths, and levels where it has them."""
        small = [self._entry[name] for name in ("lengths", "levels") if name in self._entry]
        return [*self._entry["shards"], *small]

    def _check_digest(self, entry: dict[str, Any]) -> None:
        path = self.folder / self.split / entry["file"]
        got = storage.digest(path)
        if got != entry["sha256"]:
            raise DamagedShard(
                f"{path}: expected sha256 {entry['sha256']}, got {got}; prepare the source again "
                "or copy it again"
            )

    def _check_sizes(self) -> None:
        for entry in self._files:
            path = self.folder / self.split / entry["file"]
            size_bytes = path.stat().st_size if path.is_file() else None
            if size_bytes != entry["size_bytes"]:
                got = "no such file" if size_bytes is None else f"{size_bytes} bytes"
                raise DamagedShard(
                    f"{path}: expected {entry['size_bytes']} bytes, got {got}; the shard is cut "
                    "short or missing: prepare the source again or copy it again"
                )

    def _read_shard(self, shard: int, inner: list[int]) -> list[bytes]:
        path = self.folder / self.split / self._entry["shards"][shard]["file"]
        try:
            if self._readers[shard] is None:
                self._readers[shard] = array_record_module.ArrayRecordReader(
                    str(path), READER_OPTIONS
                )
            return self._readers[shard].read(inner)
        except (ValueError, RuntimeError, IndexError) as error:
            raise DamagedShard(f"{path}: cannot be read ({error}); prepare it again") from error


class _OfLevel(ArrayRecordSource):
    """The documents of one level of a source."""

    def __init__(self, source: ArrayRecordSource, level: int):
        self.__dict__.update(source.again().__dict__)
        assert source.levels is not None, "a source with levels"
        # Documents are ordered by level, so that those of one are neighbours.
        self._first, end = np.searchsorted(source.levels, [level, level + 1]).tolist()
        self._whole = source
        self._level = level
        self.name = f"{source.name}/{levels.name_of(self.manifest['name'], level)}"
        self.lengths = source.lengths[self._first : end]
        self.levels = source.levels[self._first : end]

    def again(self) -> ArrayRecordSource:
        return _OfLevel(self._whole.again(), self._level)

    @property
    def digest(self) -> str:
        """The sha256 of the whole split, and the level."""
        return f"{self._whole.digest}/{self._level}"

    def read_records(self, indices: Sequence[int]) -> list[bytes]:
        if len(indices) and (min(indices) < 0 or max(indices) >= len(self)):
            raise IndexError(f"{self.name}: documents are 0..{len(self) - 1}, got {indices}")
        return self._whole.read_records([index + self._first for index in indices])


def is_prepared(folder: str | Path) -> bool:
    """Return whether a folder is one that `prepare` has finished."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of a prepared folder.

    Raises:
        ValueError: there is none, or it is not one of ours, or of another version.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{folder}: expected a prepared folder with {MANIFEST}, found none; run `prepare`"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); prepare the data again") from None
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != MANIFEST_VERSION:
        raise ValueError(
            f"{path}: expected a data manifest of version {MANIFEST_VERSION}, got {version!r}; "
            "prepare the data again"
        )
    if missing := MANIFEST_KEYS - manifest.keys():
        raise ValueError(
            f"{path}: the data manifest lacks {', '.join(sorted(missing))}; prepare the data again"
        )
    return manifest


def manifest_summary(folder: str | Path) -> dict[str, Any]:
    """Return what the verb `prepare` prints: counts, tokens, rejects, tokenizer."""
    manifest = read_manifest(folder)
    return {
        "name": manifest["name"],
        "tokenizer": manifest["tokenizer"]["name"],
        "counts": manifest["counts"],
        "rejects_by_kind": manifest["rejects"]["by_kind"],
        "splits": {
            split: {
                "documents": entry["documents"],
                "tokens": entry["tokens"],
                "target_tokens": entry["target_tokens"],
                "shards": len(entry["shards"]),
                "size_bytes": sum(shard["size_bytes"] for shard in entry["shards"]),
            }
            for split, entry in manifest["splits"].items()
        },
    }


def read_json(path: Path) -> dict:
    """Return a JSON file's object; {} if there is none, or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
