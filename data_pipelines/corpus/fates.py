"""The stage `join`: what becomes of each row of all parts, from digests, clusters and limits.

Rows are numbered through, part after part. fates.npy holds a code for each (NAMES); who reads it
needs a part's first number, which parts.json beside it tells.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.corpus import parts
from data_pipelines.corpus.job import Job
from data_pipelines.documents import Reject
from data_pipelines.near_duplicates import assignments
from data_pipelines.near_duplicates import clusters
from data_pipelines.near_duplicates import fates
from data_pipelines.near_duplicates import join
from data_pipelines.near_duplicates import runs
from mistral_jax import storage

DOCUMENT_LEFT = len(fates.NAMES)
NAMES = (*fates.NAMES, "document_left")
ASSIGNMENTS = assignments.HEADER
EARLIER, EARLIER_DONE = "earlier", "earlier.done"
NUMBERS = "parts.json"
REASONS = {
    fates.DUPLICATE: ("duplicate", "says the same as {}"),
    fates.NEAR_DUPLICATE: ("near_duplicate", "says nearly the same as {}"),
    fates.SPLIT_BRIDGE: (
        "split_bridge", "is close to documents on both sides of the split; it joins neither",
    ),
    fates.OVER_LIMIT: ("over_limit", "max_documents rows before it were kept"),
    DOCUMENT_LEFT: ("document_left", "was made from a document that is not kept"),
}  # fmt: skip


@dataclass(frozen=True)
class Joined:
    """What the join decided.

    Attributes:
        numbers: of the parts, ascending.
        starts: number of each part's first row, and the end of the last.
        codes: of every row, an index of NAMES.
        instead: of every row, the number of the one that stays in its place; -1 for none.
        makers: of every row.
        recorded: assignments for the next run.
        num_from_before: rows that an earlier run had kept.
        clusters: what the manifest says of near-duplicate clusters.
    """

    numbers: tuple[int, ...]
    starts: np.ndarray
    codes: np.ndarray
    instead: np.ndarray
    makers: np.ndarray
    recorded: assignments.Assignments
    num_from_before: int
    clusters: dict[str, Any]

    def count(self, name: str, maker: int | None = None) -> int:
        """Return how many rows have a fate."""
        is_it = self.codes == NAMES.index(name)
        return int(np.count_nonzero(is_it if maker is None else is_it & (self.makers == maker)))

    def rejects(self, job: Job, number: int) -> Iterator[Reject]:
        """Yield the rows of one part that do not stay, with the reason."""
        at = self.numbers.index(number)
        start, stop = int(self.starts[at]), int(self.starts[at + 1])
        codes = self.codes[start:stop]
        left = np.flatnonzero(codes > fates.KEPT_EVAL)
        for row, name in zip(left.tolist(), parts.ids(job.part("map", number), left.tolist())):
            kind, reason = REASONS[int(codes[row])]
            other = int(self.instead[start + row])
            told = reason.format(self.id_of(job, other)) if other >= 0 else reason
            yield Reject(name, kind, told)

    def id_of(self, job: Job, row: int) -> str:
        """Return the id of a row by its number."""
        at = int(np.searchsorted(self.starts, row, side="right")) - 1
        part = job.part("map", self.numbers[at])
        return next(parts.ids(part, [row - int(self.starts[at])]))


def keep_earlier(job: Job, folder: Path) -> None:
    """Copy what an earlier corpus recorded to where this job, killed or not, finds it unchanged."""
    earlier = job.folder / EARLIER
    shutil.rmtree(earlier, ignore_errors=True)
    earlier.mkdir()
    assignments.write(earlier, assignments.read(folder))
    storage.write_bytes(job.folder / EARLIER_DONE, b"")


def decide(job: Job, numbers: list[int]) -> Joined:
    """Decide about every row of the parts, and write the fates for the next stage."""
    config = job.config
    features = [parts.features(job.part("map", number)) for number in numbers]
    starts = np.cumsum([0, *(len(each) for each in features)], dtype=np.int64)
    digests = _column(features, "digest", np.dtype("V32")).view(np.uint8).reshape(-1, 32)
    makers = _column(features, "maker", np.dtype("u2"))
    representatives = np.arange(len(digests), dtype=np.int64)
    if config.near_duplicates is not None and len(digests):
        all_runs = [runs.Run(job.runs, number) for number in numbers]
        representatives = join.join(all_runs, config.near_duplicates).representatives
    as_read = _column(features, "as_read", np.dtype("V16")).view(np.uint8).reshape(-1, 16)
    is_made = _column(features, "parent", np.dtype("i4")) != parts.NO_PARENT
    read, made = np.flatnonzero(~is_made), np.flatnonzero(is_made)
    decided = fates.decide(
        digests[read],
        _within(representatives, read),
        assignments.read(job.folder / EARLIER),
        eval_fraction=config.eval_fraction,
        groups=_column(features, "group", np.dtype("u8"))[read],
        as_read=as_read[read],
    )
    # What was made of documents goes where they go, and nothing of it is recorded.
    of_made = fates.decide(
        digests[made], _within(representatives, made), assignments.nothing(), eval_fraction=0.0
    )
    codes = np.empty(len(digests), np.uint8)
    instead = np.full(len(digests), fates.NOBODY, np.int64)
    for rows, each in ((read, decided), (made, of_made)):
        codes[rows] = each.codes
        instead[rows] = np.where(each.instead >= 0, rows[each.instead], fates.NOBODY)
    _leave_over_limits(job, codes, makers, _column(features, "is_pdf", np.dtype("u1")))
    _follow_documents(codes, features, starts)
    described = clusters.describe(representatives)
    joined = Joined(
        tuple(numbers),
        starts,
        codes,
        instead,
        makers,
        decided.assignments,
        decided.from_before,
        described.to_json(),
    )
    for each in joined.clusters["largest"]:
        each["kept"] = joined.id_of(job, each["kept"])
        each["members"] = [joined.id_of(job, member) for member in each["members"]]
    np.save(job.fates, codes)
    begins = dict(zip(map(str, numbers), starts[:-1].tolist(), strict=True))
    storage.write_bytes(job.folder / NUMBERS, json.dumps(begins).encode())
    return joined


def kept_rows(job: Job, number: int) -> np.ndarray:
    """Return the rows of a part that stay, ascending."""
    return np.flatnonzero(_codes(job, number) <= fates.KEPT_EVAL)


def is_eval(job: Job, number: int) -> np.ndarray:
    """Return which rows of a part are held out."""
    return _codes(job, number) == fates.KEPT_EVAL


def write_assignments(joined: Joined, folder: Path) -> None:
    """Record which side everything is on, for the next run over these documents and more."""
    assignments.write(folder, joined.recorded)


def remove_old(folder: Path) -> None:
    """Remove the assignments that a newer corpus in the folder has replaced."""
    header = json.loads((folder / ASSIGNMENTS).read_bytes())
    for old in folder.glob(f"{assignments.STEM}-*.npy"):
        if old.name != header["file"]:
            old.unlink()


def _codes(job: Job, number: int) -> np.ndarray:
    start = json.loads((job.folder / NUMBERS).read_bytes())[str(number)]
    count = len(parts.features(job.part("map", number)))
    return np.load(job.fates, mmap_mode="r")[start : start + count]


def _column(features: list[np.ndarray], name: str, dtype: np.dtype) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(each[name] for each in features)])


def _within(representatives: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the clusters among some rows: each one's first row, by its place among them."""
    _, first, which = np.unique(representatives[rows], return_index=True, return_inverse=True)
    return first.astype(np.int64)[which]


def _leave_over_limits(job: Job, codes: np.ndarray, makers: np.ndarray, is_pdf: np.ndarray) -> None:
    """Keep the first rows of each limited source, and the first PDFs of all."""
    is_kept = codes <= fates.KEPT_EVAL
    for maker, source in enumerate(job.config.sources):
        if source.max_documents is not None:
            mine = np.flatnonzero(is_kept & (makers == maker))
            codes[mine[source.max_documents :]] = fates.OVER_LIMIT
    papers = np.flatnonzero((codes <= fates.KEPT_EVAL) & (is_pdf > 0))
    codes[papers[job.config.max_documents :]] = fates.OVER_LIMIT


def _follow_documents(codes: np.ndarray, features: list[np.ndarray], starts: np.ndarray) -> None:
    """Put rows that were made from a document on its side; without it they go."""
    for each, start in zip(features, starts.tolist()):
        made = np.flatnonzero(each["parent"] != parts.NO_PARENT)
        parents = codes[start + each["parent"][made]]
        is_kept = codes[start + made] <= fates.KEPT_EVAL
        followed = np.where(parents <= fates.KEPT_EVAL, parents, DOCUMENT_LEFT)
        codes[start + made[is_kept]] = followed[is_kept]
