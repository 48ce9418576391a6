"""Which row of the run is made of which pieces of which documents.

The ledger is append-only: block after block, each a pure function of (seed, block), so that row i
means the same on every host and after every restart. Only the number of rows of a block is not
known before the block is packed; the table of first rows is therefore built up once, and an anchor
(a block and its first row) lets a restart begin in the middle. With levels, what blocks take is
told by entries that are appended too, each for the blocks that begin at a row or after it.
"""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Literal

import numpy as np

from data_pipelines import leveled_mixture
from data_pipelines import mixture
from data_pipelines import pack

LEDGER_VERSION = 1
BLOCKS_KEPT = 8


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """The rows of a block as pieces, sorted by row.

    Attributes:
        source, document: whose piece it is.
        start: first input token of the piece in its document.
        length: inputs in the piece.
        row_starts: [rows + 1]; row r holds pieces row_starts[r] to row_starts[r + 1].
    """

    source: np.ndarray
    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    row_starts: np.ndarray

    @property
    def num_rows(self) -> int:
        """Rows in the block."""
        return len(self.row_starts) - 1


class Ledger:
    """Row i of the run, for every i >= 0. Safe to use from several threads."""

    def __init__(
        self,
        names: Sequence[str],
        lengths: Sequence[np.ndarray],
        weights: Sequence[float],
        *,
        seed: int,
        row_tokens: int,
        block_rows: int,
        packing: Literal["best_fit", "none"] = "best_fit",
        is_shuffled: bool = True,
        levels: Sequence[np.ndarray | None] | None = None,
    ):
        """Make the ledger.

        Args:
            names: the sources' names, all different.
            lengths: per source the number of tokens of each document, >= 2.
            weights: per source its share of the tokens, > 0; of the rows with packing "none".
            seed: with the lengths and the weights it fixes every row.
            row_tokens: inputs per row (sequence_length).
            block_rows: rows of a block, about.
            packing: "none" puts one document in a row and cuts it at the row's end.
            is_shuffled: False keeps the documents' order.
            levels: per source the level of each document, or None; with these, `append` what is
                read of which level before anything else.

        Raises:
            ValueError: an empty source, a document of one token, two sources of one name.
        """
        if len(set(names)) != len(names):
            raise ValueError(f"expected different names of sources, got {', '.join(names)}")
        self._inputs = [np.asarray(each, dtype=np.int64) - 1 for each in lengths]
        for name, inputs in zip(names, self._inputs, strict=True):
            if len(inputs) and inputs.min() < 1:
                raise ValueError(
                    f"source {name!r}: document {int(inputs.argmin())} has fewer than 2 tokens; "
                    "prepare the source again"
                )
        self._is_packed = packing == "best_fit"
        sizes = self._inputs if self._is_packed else [np.ones_like(i) for i in self._inputs]
        block_size = block_rows * row_tokens if self._is_packed else block_rows
        self.leveled: leveled_mixture.LeveledMixture | None = None
        if levels is None:
            streams = [
                mixture.SourceStream(name, size, seed=seed, is_shuffled=is_shuffled)
                for name, size in zip(names, sizes)
            ]
            self.mixture = mixture.Mixture(streams, weights, block_size=block_size)
        else:
            self.leveled = leveled_mixture.LeveledMixture(
                names, sizes, levels, weights,
                block_size=block_size, seed=seed, is_shuffled=is_shuffled,
            )  # fmt: skip
        self.row_tokens = row_tokens
        self._seed = seed
        self._is_shuffled = is_shuffled
        self._plans: OrderedDict[int, BlockPlan] = OrderedDict()
        self._first_block = 0
        self._first_rows = [0]  # of block _first_block + i; the last one is not packed yet
        self._lock = threading.RLock()

    def __getstate__(self) -> dict:
        """Leave the lock and the kept plans behind when a worker process gets a copy."""
        return {**self.__dict__, "_lock": None, "_plans": OrderedDict()}

    def __setstate__(self, state: dict) -> None:
        """Take a copy into use with a lock of its own."""
        self.__dict__.update(state)
        self._lock = threading.RLock()

    @property
    def shares(self) -> Mapping[str, tuple[float, ...]] | None:
        """What is read of each level of each source after the last entry; None before it."""
        entries = self.leveled.entries if self.leveled else []
        return entries[-1].shares if entries else None

    def append(self, row: int, shares: Mapping[str, Sequence[float]]) -> None:
        """Change what is read of which level, for the blocks that begin at `row` or after it."""
        assert self.leveled is not None, "a ledger with levels"
        with self._lock:
            if not self.leveled.entries:
                self.leveled.append(0, shares)
                return
            block, first_row = self.locate(row)
            start = block if first_row == row else block + 1
            self.leveled.append(start, shares)
            for kept in [each for each in self._plans if each >= start]:
                del self._plans[kept]
            del self._first_rows[max(1, start - self._first_block + 1) :]

    def set_entries(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take saved entries, in place of those here; nothing that was packed is kept."""
        assert self.leveled is not None, "a ledger with levels"
        with self._lock:
            self.leveled.set_state(state)
            self._plans.clear()
            self.anchor(0, 0)

    def anchor(self, block: int, first_row: int) -> None:
        """Trust that `block` begins at `first_row`, as `locate` once said."""
        with self._lock:
            self._first_block = block
            self._first_rows = [first_row]

    def locate(self, row: int) -> tuple[int, int]:
        """Return the block that holds a row, and the block's first row.

        Packs every block between the last known one and the wanted one.
        """
        if row < 0:
            raise ValueError(f"expected a row >= 0, got {row}")
        with self._lock:
            if row < self._first_rows[0]:
                self.anchor(0, 0)
            while self._first_rows[-1] <= row:
                plan = self.plan(self._first_block + len(self._first_rows) - 1)
                self._first_rows.append(self._first_rows[-1] + plan.num_rows)
            index = bisect.bisect_right(self._first_rows, row) - 1
            return self._first_block + index, self._first_rows[index]

    def pieces(self, start_row: int, stop_row: int) -> BlockPlan:
        """Return rows start_row <= row < stop_row of the run as one plan."""
        parts = []
        row = start_row
        while row < stop_row:
            block, first_row = self.locate(row)
            plan = self.plan(block)
            stop = min(stop_row - first_row, plan.num_rows)
            parts.append(_slice_rows(plan, row - first_row, stop))
            row = first_row + stop
        return parts[0] if len(parts) == 1 else _join(parts)

    def plan(self, block: int) -> BlockPlan:
        """Return the rows of one block; the last few are kept."""
        with self._lock:
            kept = self._plans.get(block)
            if kept is not None:
                self._plans.move_to_end(block)
                return kept
            plan = self._make(block)
            self._plans[block] = plan
            while len(self._plans) > BLOCKS_KEPT:
                self._plans.popitem(last=False)
            return plan

    def _make(self, block: int) -> BlockPlan:
        source, document = (self.leveled or self.mixture).block(block)
        inputs = np.empty(len(source), np.int64)
        for index, each in enumerate(self._inputs):
            mine = source == index
            inputs[mine] = each[document[mine]]
        if self._is_packed:
            pieces = pack.cut_documents(inputs, self.row_tokens)
            row_of, num_rows = pack.best_fit_rows(pieces.length, self.row_tokens)
            whose, start, length = pieces.document, pieces.start, pieces.length
        else:
            num_rows = len(source)
            row_of = whose = np.arange(num_rows)
            start = np.zeros(num_rows, np.int64)
            length = np.minimum(inputs, self.row_tokens)
        row_of = self._reorder(row_of, num_rows, block)
        by_row = np.argsort(row_of, kind="stable")
        counts = np.bincount(row_of, minlength=num_rows)
        whose = whose[by_row]
        return BlockPlan(
            source=source[whose],
            document=document[whose],
            start=start[by_row],
            length=length[by_row],
            row_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )

    def _reorder(self, row_of: np.ndarray, num_rows: int, block: int) -> np.ndarray:
        """Renumber the rows: by chance, or by the first piece that each one holds."""
        if num_rows == 0:
            return row_of
        if self._is_shuffled:
            order = mixture.permutation(num_rows, "rows", self._seed, block)
            return order[row_of]
        first_piece = np.full(num_rows, len(row_of))
        np.minimum.at(first_piece, row_of, np.arange(len(row_of)))
        rank = np.empty(num_rows, np.int64)
        rank[np.argsort(first_piece)] = np.arange(num_rows)
        return rank[row_of]


def _slice_rows(plan: BlockPlan, start: int, stop: int) -> BlockPlan:
    first, last = plan.row_starts[start], plan.row_starts[stop]
    return BlockPlan(
        source=plan.source[first:last],
        document=plan.document[first:last],
        start=plan.start[first:last],
        length=plan.length[first:last],
        row_starts=plan.row_starts[start : stop + 1] - first,
    )


def _join(parts: list[BlockPlan]) -> BlockPlan:
    counts = np.concatenate([np.diff(part.row_starts) for part in parts])
    return BlockPlan(
        source=np.concatenate([part.source for part in parts]),
        document=np.concatenate([part.document for part in parts]),
        start=np.concatenate([part.start for part in parts]),
        length=np.concatenate([part.length for part in parts]),
        row_starts=np.concatenate([[0], np.cumsum(counts)]),
    )
