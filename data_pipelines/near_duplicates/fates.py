"""What becomes of each document: kept for training or evaluation, or why it goes.

One document of a cluster stays, the one that was kept before, else the one of the smallest number;
the side of a new cluster is decided by a hash of what stays. Whatever an earlier run decided holds:
a document that was kept stays on its side; a cluster of which anything was seen before belongs to
that side, also when the document that stayed then is gone; and a newcomer whose cluster touches
both sides is set aside as a bridge, for good. Two documents on different sides can thus be near
each other only where the one came, without the other in the corpus, after the other had gone.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from jaxtyping import Int64
from jaxtyping import UInt8
from jaxtyping import UInt64

from data_pipelines.near_duplicates import assignments
from data_pipelines.near_duplicates.assignments import BRIDGE
from data_pipelines.near_duplicates.assignments import EVAL
from data_pipelines.near_duplicates.assignments import KEPT
from data_pipelines.near_duplicates.assignments import TRAIN
from data_pipelines.near_duplicates.assignments import Assignments

KEPT_TRAIN, KEPT_EVAL, DUPLICATE, NEAR_DUPLICATE, SPLIT_BRIDGE, OVER_LIMIT = range(6)
NAMES = ("kept:train", "kept:eval", "duplicate", "near_duplicate", "split_bridge", "over_limit")
NOBODY = -1


@dataclass(frozen=True, slots=True)
class Fates:
    """The fate of every document.

    Attributes:
        codes: per document, an index of NAMES.
        instead: per duplicate, the number of the document that it is a copy of; per near-duplicate,
            that of the document of its cluster that stays; else NOBODY.
        assignments: what the next run has to be given.
        from_before: documents that an earlier run had kept already.
    """

    codes: UInt8[np.ndarray, "N"]
    instead: Int64[np.ndarray, "N"]
    assignments: Assignments
    from_before: int

    def counts(self) -> dict[str, int]:
        """Return how many documents have each fate."""
        counts = np.bincount(self.codes, minlength=len(NAMES))
        return dict(zip(NAMES, counts.tolist(), strict=True))


def decide(
    digests: UInt8[np.ndarray, "N D"],
    representatives: Int64[np.ndarray, "N"],
    earlier: Assignments,
    *,
    eval_fraction: float,
    max_documents: int | None = None,
    groups: UInt64[np.ndarray, "N"] | None = None,
    as_read: UInt8[np.ndarray, "N D"] | None = None,
) -> Fates:
    """Decide about all documents of a corpus.

    Args:
        digests: of the documents' content, 16 bytes or more each, in the order of their numbers.
        representatives: of each document's cluster of near-duplicates; arange without any.
        earlier: assignments of earlier runs.
        eval_fraction: share of new clusters that is held out.
        max_documents: how many stay at most; those kept before come first, then the smallest
            numbers. What goes over the limit is not recorded.
        groups: documents of one group, which is a hash, are drawn for the same side, that of the
            ones kept before; 0 for none.
        as_read: digests of what the documents were before their processing: one that was seen
            before and is processed in another way now belongs to its side.

    Raises:
        ValueError: the two arrays differ in length.
    """
    if len(digests) != len(representatives):
        raise ValueError(
            f"expected a digest for each of {len(representatives)} documents, got {len(digests)}"
        )
    copies_of, marks = _known(digests, earlier)
    if as_read is not None:
        _, marks_as_read = _known(as_read, earlier)
        marks = np.where(marks == 0, marks_as_read & BRIDGE, marks)
    numbers = np.arange(len(digests))
    is_first = copies_of == numbers
    sides = np.zeros(len(digests), np.uint8)  # per cluster, at its representative
    np.bitwise_or.at(sides, representatives[is_first], marks[is_first])
    of_cluster = sides[representatives]
    was_kept = is_first & (marks & KEPT > 0)
    is_bridge = is_first & ~was_kept & (of_cluster & BRIDGE == BRIDGE)
    # Where nothing of the cluster was kept before, its first document stays.
    is_open = is_first & ~is_bridge & (of_cluster & KEPT == 0)
    first_of = _first_of_cluster(representatives, is_open)
    stays = was_kept | (is_open & (first_of == numbers))
    side = np.where(was_kept, marks & BRIDGE, of_cluster & BRIDGE)
    if groups is not None:
        side = np.where(side == 0, _side_of_group(groups, np.where(was_kept, marks, 0)), side)
    side = np.where(side == 0, _drawn_side(digests, eval_fraction, groups), side).astype(np.uint8)

    codes = np.full(len(digests), NEAR_DUPLICATE, np.uint8)
    codes[stays] = np.where(side[stays] == EVAL, KEPT_EVAL, KEPT_TRAIN)
    codes[is_bridge] = SPLIT_BRIDGE
    codes[~is_first] = DUPLICATE
    codes[_over(stays, was_kept, max_documents)] = OVER_LIMIT

    keeper = _first_of_cluster(representatives, stays)
    instead = np.where(codes == NEAR_DUPLICATE, keeper, NOBODY)
    instead = np.where(is_first, instead, copies_of)
    new_marks = _marks(codes, side, keeper)
    recorded = assignments.merge(earlier, digests, new_marks)
    if as_read is not None:
        recorded = assignments.merge(recorded, as_read, new_marks & BRIDGE)
    return Fates(
        codes=codes,
        instead=instead,
        assignments=recorded,
        from_before=int(was_kept.sum()),
    )


def _known(
    digests: UInt8[np.ndarray, "N D"], earlier: Assignments
) -> tuple[Int64[np.ndarray, "N"], UInt8[np.ndarray, "N"]]:
    """Return of which document each one is a copy (the first with its digest), and its mark."""
    num_earlier = len(earlier)
    both = np.concatenate((earlier.digests, digests[:, : assignments.DIGEST_BYTES]))
    order = assignments.order_of(both)
    starts = np.flatnonzero(assignments.is_first_of(both, order))
    group = np.empty(len(both), np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(both)))
    marks = np.zeros(len(starts), np.uint8)
    marks[group[:num_earlier]] = earlier.marks
    group = group[num_earlier:]
    first = np.full(len(starts), len(digests), np.int64)
    np.minimum.at(first, group, np.arange(len(digests)))
    return first[group], marks[group]


def _first_of_cluster(
    representatives: Int64[np.ndarray, "N"], is_one: Bool[np.ndarray, "N"]
) -> Int64[np.ndarray, "N"]:
    """Return, per document, the smallest number of its cluster's chosen ones, or N."""
    numbers = np.flatnonzero(is_one)
    first = np.full(len(representatives), len(representatives), np.int64)
    np.minimum.at(first, representatives[numbers], numbers)
    return first[representatives]


def _side_of_group(
    groups: UInt64[np.ndarray, "N"], marks: UInt8[np.ndarray, "N"]
) -> UInt8[np.ndarray, "N"]:
    """Return the side that kept documents of the same group are on; 0 without any, or on both."""
    _, which = np.unique(groups, return_inverse=True)
    sides = np.zeros(len(groups), np.uint8)
    np.bitwise_or.at(sides, which, marks & BRIDGE)
    found = sides[which]
    return np.where((groups == 0) | (found == BRIDGE), 0, found).astype(np.uint8)


def _drawn_side(
    digests: UInt8[np.ndarray, "N D"], eval_fraction: float, groups: UInt64[np.ndarray, "N"] | None
) -> UInt8[np.ndarray, "N"]:
    """Return the side of new clusters: by the group, or eight bytes of the content's digest."""
    draws = np.ascontiguousarray(digests[:, :8]).view(">u8").ravel()
    if groups is not None:
        draws = np.where(groups > 0, groups, draws)
    threshold = int(eval_fraction * (1 << 64))
    if threshold >= 1 << 64:
        return np.full(len(digests), EVAL, np.uint8)
    return np.where(draws < np.uint64(threshold), EVAL, TRAIN).astype(np.uint8)


def _over(
    stays: Bool[np.ndarray, "N"], was_kept: Bool[np.ndarray, "N"], max_documents: int | None
) -> Int64[np.ndarray, "M"]:
    """Return the numbers of new documents that go over the limit."""
    if max_documents is None:
        return np.zeros(0, np.int64)
    room = max(0, max_documents - int(was_kept.sum()))
    return np.flatnonzero(stays & ~was_kept)[room:]


def _marks(
    codes: UInt8[np.ndarray, "N"], side: UInt8[np.ndarray, "N"], keeper: Int64[np.ndarray, "N"]
) -> UInt8[np.ndarray, "N"]:
    """Return what is recorded of each document: nothing of a cluster that is over the limit."""
    marks = np.zeros(len(codes), np.uint8)
    is_kept = codes <= KEPT_EVAL
    marks[is_kept] = side[is_kept] | KEPT
    marks[codes == SPLIT_BRIDGE] = BRIDGE
    near = np.flatnonzero(codes == NEAR_DUPLICATE)
    near = near[codes[keeper[near]] <= KEPT_EVAL]
    marks[near] = side[keeper[near]]
    return marks
