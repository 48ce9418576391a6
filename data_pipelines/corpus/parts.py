"""What one task of the stage `map` leaves: rows, their numbers, rejects, batches' scores.

rows.jsonl        a row a line (row.py)
features.npy      a FEATURES entry for each row
difficulty.npy    float32 [rows, features of difficulty.py]
rejects.jsonl     what was kept out, and why
batches.jsonl     a line for each batch that went through the gate
set_aside.jsonl   the rows of batches that failed
"""

import functools
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from typing import NamedTuple

import numpy as np

from data_pipelines import difficulty as difficulty_of
from data_pipelines.corpus import row as rows
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Reject
from data_pipelines.export_jsonl import row_of

ROWS, REJECTS = "rows.jsonl", "rejects.jsonl"
BATCHES, SET_ASIDE = "batches.jsonl", "set_aside.jsonl"
FEATURE_FILE, DIFFICULTY_FILE = "features.npy", "difficulty.npy"
SET_ASIDE_KIND = "set_aside"
NO_LEVEL = -1
NO_PARENT = -1
HEAD_BYTES = 4096
ID_STARTS = len('{"id": ')

FEATURES = np.dtype(
    [
        ("digest", "V32"),  # sha256 of what the row says
        ("as_read", "V16"),  # the same of what it said before the processors, cut short
        ("group", "<u8"),  # rows of one group go to the same side of the split; 0 for none
        ("line", "<i8"),  # where the row's line begins in rows.jsonl
        ("parent", "<i4"),  # the row of this task that it was made from; NO_PARENT for none
        ("maker", "<u2"),
        ("expert", "u1"),  # index in row.EXPERTS
        ("level", "i1"),  # where the maker knows it; else NO_LEVEL
        ("is_pdf", "u1"),
    ]
)


def content_digest(row: Row) -> bytes:
    """Return the sha256 of what a row says: equal ones are exact duplicates."""
    document = row.document
    if document.kind == "text":
        return hashlib.sha256(document.text.encode()).digest()
    shape = {key: value for key, value in row_of(document).items() if key != "document"}
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).digest()


class Digests(NamedTuple):
    """`content_digest` of a row, and of what it was before the processors."""

    content: bytes
    as_read: bytes


class PartWriter:
    """Writes a part beside its place; `close` puts it there whole."""

    def __init__(self, folder: Path, num_difficulty: int):
        self._folder = folder
        self._making = folder.with_name(f"{folder.name}.making")
        shutil.rmtree(self._making, ignore_errors=True)
        self._making.mkdir(parents=True)
        self._files = {
            name: (self._making / name).open("wb") for name in (ROWS, REJECTS, BATCHES, SET_ASIDE)
        }
        self._features: list[tuple] = []
        self._difficulty: list[np.ndarray] = []
        self._num_difficulty = num_difficulty
        self._at = 0
        self.rejected: dict[int, Counter[str]] = {}

    @property
    def num_rows(self) -> int:
        """Rows so far."""
        return len(self._features)

    def add(
        self, row: Row, digests: Digests, difficulty: np.ndarray, *, maker: int, parent: int
    ) -> None:
        """Append a row."""
        line = rows.to_line(row).encode()
        level = difficulty_of.known_level(row)
        made_from = row.document.made_from
        group = hashlib.sha256(made_from.encode()).digest()[:8] if made_from else bytes(8)
        self._features.append(
            (
                digests.content,
                digests.as_read[:16],
                int.from_bytes(group, "little"),
                self._at,
                parent,
                maker,
                rows.EXPERTS.index(row.expert),
                NO_LEVEL if level is None else level,
                bool(row.document.pages),
            )
        )
        self._difficulty.append(difficulty)
        self._files[ROWS].write(line)
        self._at += len(line)

    def reject(self, reject: Reject, maker: int) -> None:
        """Append a reject."""
        self.rejected.setdefault(maker, Counter())[reject.kind] += 1
        # A reason may quote half of a surrogate pair, which no file of UTF-8 can hold.
        told = {key: _spelled(value) for key, value in asdict(reject).items()}
        self._write(REJECTS, told)

    def batch(self, scores: dict[str, Any]) -> None:
        """Append a batch's scores."""
        self._write(BATCHES, scores)

    def set_aside(self, batch: Sequence[Row], why: str, maker: int) -> None:
        """Append the rows of a batch that failed."""
        self.rejected.setdefault(maker, Counter())[SET_ASIDE_KIND] += len(batch)
        for row in batch:
            self._write(SET_ASIDE, {"set_aside": why, **rows.to_json(row)})

    def leave(self) -> None:
        """Close the files, whatever is in them."""
        for file in self._files.values():
            file.close()

    def close(self) -> None:
        """Finish the files and put the part in its place."""
        self.leave()
        np.save(self._making / FEATURE_FILE, np.array(self._features, FEATURES))
        shape = (len(self._difficulty), self._num_difficulty)
        difficulty = np.array(self._difficulty, np.float32).reshape(shape)
        np.save(self._making / DIFFICULTY_FILE, difficulty)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._making.rename(self._folder)

    def _write(self, name: str, value: dict[str, Any]) -> None:
        self._files[name].write(json.dumps(value, ensure_ascii=False).encode() + b"\n")


def _spelled(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def features(folder: Path) -> np.ndarray:
    """Return a part's FEATURES."""
    return np.load(folder / FEATURE_FILE, mmap_mode="r")


def difficulty(folder: Path) -> np.ndarray:
    """Return a part's numbers of difficulty, float32 [rows, features]."""
    return np.load(folder / DIFFICULTY_FILE, mmap_mode="r")


def lines(folder: Path, wanted: Iterable[int]) -> Iterator[bytes]:
    """Yield the lines of some rows, given in rising order."""
    starts = _starts(folder)
    with (folder / ROWS).open("rb") as file:
        for index in wanted:
            file.seek(int(starts[index]))
            yield file.readline()


def _starts(folder: Path) -> np.ndarray:
    """Return where each line begins; kept, for single rows of many parts are asked for."""
    path = folder / FEATURE_FILE
    return _opened_starts(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _opened_starts(path: Path, written_ns: int) -> np.ndarray:
    del written_ns  # part of the key: a part may be made again
    return np.load(path, mmap_mode="r")["line"]


def ids(folder: Path, wanted: Sequence[int]) -> Iterator[str]:
    """Yield the ids of some rows, given in rising order; a line begins with its id."""
    decode = json.JSONDecoder().raw_decode
    starts = _starts(folder)
    with (folder / ROWS).open("rb") as file:
        for index in wanted:
            file.seek(int(starts[index]))
            head = file.readline(HEAD_BYTES)  # a line may be a book; its id is not
            try:
                yield decode(head.decode(errors="ignore"), ID_STARTS)[0]
            except json.JSONDecodeError:
                yield decode((head + file.readline()).decode(), ID_STARTS)[0]


def rejects(folder: Path) -> Iterator[Reject]:
    """Yield a part's rejects."""
    with (folder / REJECTS).open(encoding="utf-8") as file:
        for line in file:
            yield Reject(**json.loads(line))
