"""Parts and shards: what one task of `prepare` leaves behind, and the splits made from all parts.

A part is a task's documents in order, already as records, with the digest of each one's content.
The splits are a pure function of the parts in order: exact duplicates go, then each document's
content says whether it is held out.
"""

import array
import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines import records
from data_pipelines import sources
from data_pipelines.documents import NO_ORIGIN
from data_pipelines.documents import Reject
from mistral_jax import storage

# Uncompressed: Zipf-distributed uint16 tokens shrink by a quarter under zstd and then cost 2.3
# times the CPU to read (83 against 193 M tokens per CPU-second, array-record 0.8, 2026-11).
WRITER_OPTIONS = "group_size:1,uncompressed"
SHARD_BYTES = 256 << 20
OPEN_SHARD = "open.array_record"
READ_RECORDS = 1024
DIGEST_BYTES = 32
SPLITS = ("train", "eval")
DUPLICATE = "duplicate"
OVER_EXAMPLES = "over_examples_per_document"


class RecordFile:
    """An ArrayRecord file that is being written.

    Raises:
        DiskSpaceError: by `write` and `close`: the disk, or the user's quota, is full.
    """

    def __init__(self, path: Path):
        self._path = path
        self._writer = array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS)

    def write(self, record: bytes) -> None:
        self._call(self._writer.write, record)

    def close(self) -> None:
        self._call(self._writer.close)

    def _call(self, method: Callable[..., None], *arguments: bytes) -> None:
        try:
            method(*arguments)
        except RuntimeError as error:  # the library knows no other kind; its text tells them apart
            for number in (errno.ENOSPC, errno.EDQUOT):
                if os.strerror(number) in str(error):
                    storage.raise_if_disk_full(OSError(number, str(error)), self._path)
            raise


@dataclass(frozen=True, slots=True)
class Part:
    """The files of one finished task."""

    folder: Path
    number: int

    @property
    def records_path(self) -> Path:
        """The documents' records."""
        return self.folder / f"{self.number:05d}.array_record"

    @property
    def digests_path(self) -> Path:
        """32 bytes per document: the sha256 of its content."""
        return self.folder / f"{self.number:05d}.digests"

    @property
    def rejects_path(self) -> Path:
        """One line of JSON per reject."""
        return self.folder / f"{self.number:05d}.rejects.jsonl"

    def digests(self) -> list[bytes]:
        """Return the digest of each document's content."""
        data = self.digests_path.read_bytes()
        return [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]

    def records(self) -> Iterator[bytes]:
        """Yield the records in order."""
        count = self.digests_path.stat().st_size // DIGEST_BYTES
        if not count:
            return
        reader = array_record_module.ArrayRecordReader(
            str(self.records_path), sources.READER_OPTIONS
        )
        for start in range(0, count, READ_RECORDS):
            yield from reader.read(start, min(start + READ_RECORDS, count))
        reader.close()

    @property
    def origins_path(self) -> Path:
        """32 bytes per document, where a cap counts them: of what document it was made."""
        return self.folder / f"{self.number:05d}.origins"

    def origins(self) -> list[bytes]:
        """Return of what document each one was made, as tokenize_documents.Tokenized.origin."""
        data = self.origins_path.read_bytes()
        return [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]

    def rejects(self) -> Iterator[Reject]:
        """Yield the rejects in order."""
        with self.rejects_path.open(encoding="utf-8") as lines:
            for line in lines:
                yield Reject(**json.loads(line))


def reject_line(reject: Reject) -> str:
    """Return a reject as a line of JSON."""
    return json.dumps(asdict(reject), ensure_ascii=True) + "\n"


class PartWriter:
    """Writes a part; it counts only once its task is marked as done."""

    def __init__(self, part: Part, *, has_origins: bool = False):
        part.folder.mkdir(parents=True, exist_ok=True)
        self._records = RecordFile(part.records_path)
        self._digests = part.digests_path.open("wb")
        self._rejects = part.rejects_path.open("w", encoding="utf-8")
        self._origins = part.origins_path.open("wb") if has_origins else None
        self.num_documents = 0
        self.num_rejects = 0

    def add(self, record: bytes, digest: bytes, origin: bytes) -> None:
        """Append a document."""
        self._records.write(record)
        self._digests.write(digest)
        if self._origins is not None:
            self._origins.write(origin)
        self.num_documents += 1

    def reject(self, reject: Reject) -> None:
        """Append a reject."""
        self._rejects.write(reject_line(reject))
        self.num_rejects += 1

    def close(self) -> None:
        """Finish the files."""
        self._records.close()
        self._digests.close()
        self._rejects.close()
        if self._origins is not None:
            self._origins.close()


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of each document of all parts, in order: its split, or why it goes."""

    split: list[str | None]
    num_duplicates: int
    num_over_limit: int


@dataclass(slots=True)
class Kept:
    """Which documents are kept, told one by one, in order; counts those that are.

    Attributes:
        max_examples: rows kept of those made from one document; None for any number.
        digests: what was kept, by its content.
        num_examples: how many were kept of those made from each document.
    """

    max_examples: int | None = None
    digests: set[bytes] = field(default_factory=set)
    num_examples: Counter[bytes] = field(default_factory=Counter)

    def why_not(self, digest: bytes, origin: bytes) -> str | None:
        """Return why a document goes; None where it may stay."""
        if digest in self.digests:
            return DUPLICATE
        is_full = self.max_examples is not None and self.num_examples[origin] >= self.max_examples
        return OVER_EXAMPLES if is_full and origin != NO_ORIGIN else None

    def add(self, digest: bytes, origin: bytes) -> None:
        """Keep a document."""
        self.digests.add(digest)
        if self.max_examples is not None and origin != NO_ORIGIN:
            self.num_examples[origin] += 1

    def add_part(self, part: Part) -> int:
        """Keep of a part what may stay; return how many documents are kept in all."""
        for digest, origin in marks_of([part], self.max_examples):
            if self.why_not(digest, origin) is None:
                self.add(digest, origin)
        return len(self.digests)


def marks_of(parts: Iterable[Part], max_examples: int | None) -> Iterator[tuple[bytes, bytes]]:
    """Yield digest and origin of each document; no origin where no cap asks for it."""
    for part in parts:
        if max_examples is None:
            yield from ((digest, NO_ORIGIN) for digest in part.digests())
        else:
            yield from zip(part.digests(), part.origins(), strict=True)


def choose_splits(
    marks: Iterable[tuple[bytes, bytes]],
    eval_fraction: float,
    max_documents: int | None,
    max_examples: int | None = None,
) -> Choice:
    """Drop exact duplicates and examples over the cap, then hold documents out by their content.

    The first examples of a document stay, duplicates not counted.

    The choice of a document depends on nothing but its content, except that of two or more
    documents one at least is held out (if a fraction is asked for) and one at least is not.
    """
    seen = Kept(max_examples)
    split: list[str | None] = []
    kept: list[tuple[bytes, int]] = []
    num_duplicates = num_over_limit = 0
    threshold = int(eval_fraction * (1 << 64))
    for number, (digest, origin) in enumerate(marks):
        reason = seen.why_not(digest, origin)
        if reason is not None:
            num_duplicates += reason == DUPLICATE
            split.append(reason)
        elif max_documents is not None and len(seen.digests) >= max_documents:
            num_over_limit += 1
            split.append(None)
        else:
            seen.add(digest, origin)
            kept.append((digest, number))
            is_held_out = int.from_bytes(digest[:8], "big") < threshold
            split.append("eval" if is_held_out else "train")
    held_out = sum(each == "eval" for each in split)
    if eval_fraction > 0 and len(kept) >= 2 and held_out == 0:
        split[min(kept)[1]] = "eval"
    if kept and held_out == len(kept):
        split[max(kept)[1]] = "train"
    return Choice(split, num_duplicates, num_over_limit)


class SplitWriter:
    """Writes one split: shards of bounded size, and the lengths beside them."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._writer: RecordFile | None = None
        self._size = 0
        self._shards: list[dict[str, Any]] = []
        self._lengths = array.array("i")  # 4 bytes a document, of which there may be billions
        self._has_masks = False
        self._num_targets = 0

    def add(self, record: bytes) -> None:
        """Append a document's record."""
        if self._writer is not None and self._size + len(record) > SHARD_BYTES:
            self.end_shard()
        if self._writer is None:
            self._writer = RecordFile(self._folder / OPEN_SHARD)
            self._shards.append({"documents": 0, "tokens": 0})
        self._writer.write(record)
        self._size += len(record)
        example = records.decode_record(record)
        self._lengths.append(len(example.tokens))
        self._has_masks |= records.record_has_mask(record)
        self._num_targets += int(np.count_nonzero(example.loss_mask[1:]))
        self._shards[-1]["documents"] += 1
        self._shards[-1]["tokens"] += len(example.tokens)

    def close(self) -> dict[str, Any]:
        """Finish the files and return the split's entry in the manifest."""
        self.end_shard()
        lengths_path = self._folder / sources.LENGTHS
        np.save(lengths_path, np.asarray(self._lengths, np.int32), allow_pickle=False)
        lengths = file_entry(lengths_path)
        files = "\n".join(each["sha256"] for each in [*self._shards, lengths])
        return {
            "documents": len(self._lengths),
            "tokens": sum(self._lengths),
            "target_tokens": self._num_targets,
            "has_masks": self._has_masks,
            "digest": hashlib.sha256(files.encode()).hexdigest(),
            "shards": self._shards,
            "lengths": lengths,
        }

    def end_shard(self) -> None:
        """Finish the shard that is being written, if there is one, and name it by its content."""
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        self._size = 0
        made = self._folder / OPEN_SHARD
        digest = storage.digest(made)
        named = made.with_name(f"{len(self._shards) - 1:05d}-{digest[:12]}.array_record")
        made.rename(named)
        size_bytes = named.stat().st_size
        self._shards[-1] |= {"file": named.name, "size_bytes": size_bytes, "sha256": digest}


def file_entry(path: Path) -> dict[str, Any]:
    """Return a file's entry in a manifest."""
    return {
        "file": path.name,
        "size_bytes": path.stat().st_size,
        "sha256": storage.digest(path),
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; equal values give equal bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True)
    storage.write_bytes(path, text.encode() + b"\n")
