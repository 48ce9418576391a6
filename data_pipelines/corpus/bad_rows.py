"""The stop rule for bad input: above a share of rejected rows a source is not what it should be.

It counts what readers and loaders yield; what filters, the gate and the search for duplicates take
out later is their work, no sign of a broken source.
"""

from collections import Counter
from dataclasses import dataclass
from dataclasses import field
from typing import Any

from data_pipelines.documents import Reject

# A folder may hold other things beside the documents; those were never rows of the source.
NOT_ROWS = frozenset({"unsupported_type", "linked_folder", "not_a_file"})
NUM_EXAMPLES = 5


class TooManyBadRows(ValueError):
    """A source gives more bad rows than its corpus allows; the run stops."""


@dataclass(slots=True)
class RowCount:
    """What was read of one source, in whole or of one task.

    Attributes:
        accepted: documents.
        rejected: rejects by kind.
        examples: the first rejects, as [id, kind, reason].
    """

    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[list[str]] = field(default_factory=list)

    def add(self, item: Any) -> None:
        """Count one item of a reader: a Reject, or anything else as accepted."""
        if not isinstance(item, Reject):
            self.accepted += 1
            return
        self.rejected[item.kind] += 1
        if item.kind not in NOT_ROWS and len(self.examples) < NUM_EXAMPLES:
            self.examples.append([item.id, item.kind, item.reason])

    def merge(self, other: "RowCount") -> None:
        """Add what another task has counted; call it in the order of the tasks."""
        self.accepted += other.accepted
        self.rejected.update(other.rejected)
        self.examples = (self.examples + other.examples)[:NUM_EXAMPLES]

    @property
    def num_bad(self) -> int:
        """Rejected rows, without what was never a row."""
        return sum(count for kind, count in self.rejected.items() if kind not in NOT_ROWS)

    def to_json(self) -> dict[str, Any]:
        """Return the count as JSON, for the state of a run."""
        return {
            "accepted": self.accepted,
            "rejected": dict(sorted(self.rejected.items())),
            "examples": self.examples,
        }

    @classmethod
    def from_json(cls, made: dict[str, Any]) -> "RowCount":
        """Return the count that `to_json` wrote."""
        return cls(made["accepted"], Counter(made["rejected"]), list(made["examples"]))


class BadRows:
    """Counts rows by source and stops a run that reads rubbish."""

    def __init__(self, max_bad_fraction: float, min_rows: int):
        """Start at nothing.

        Args:
            max_bad_fraction: share of a source's rows that may be bad, 0 <= share <= 1.
            min_rows: the rule holds for a source once so many of its rows were read.
        """
        self._max_bad_fraction = max_bad_fraction
        self._min_rows = min_rows
        self.counts: dict[str, RowCount] = {}

    def add(self, source: str, item: Any) -> None:
        """Count one item that was read, and check.

        Raises:
            TooManyBadRows: the source is above its share.
        """
        count = self.counts.setdefault(source, RowCount())
        count.add(item)
        if isinstance(item, Reject):
            self._check(source, count)

    def merge(self, source: str, other: RowCount) -> None:
        """Add what a task has counted, and check.

        Raises:
            TooManyBadRows: the source is above its share.
        """
        count = self.counts.setdefault(source, RowCount())
        count.merge(other)
        self._check(source, count)

    def _check(self, source: str, count: RowCount) -> None:
        bad, total = count.num_bad, count.num_bad + count.accepted
        if total < self._min_rows or bad <= self._max_bad_fraction * total:
            return
        kinds = ", ".join(
            f"{number} x {kind}"
            for kind, number in sorted(count.rejected.items())
            if kind not in NOT_ROWS
        )
        shown = "; ".join(f"{where}: {reason}" for where, _, reason in count.examples)
        raise TooManyBadRows(
            f"source {source!r}: {bad} of {total} rows are bad ({bad / total:.1%}, at most "
            f"{self._max_bad_fraction:.1%} are allowed): {kinds}. First: {shown}. Mend the files, "
            "correct the source's type or patterns, or raise max_bad_fraction"
        )
