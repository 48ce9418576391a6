"""Which documents a block takes where weights change: a pure function of (seed, entries, block).

Every (source, level) is a stream of its own, as in mixture.py, read by windows that tile it. The
entries say from which block on a source's tokens come from which of its levels; they are only ever
appended. A stream's window begins where the blocks before have left it, counted through the
entries, so that an entry changes no block before its own and no document is skipped or repeated.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from data_pipelines import levels as levels_lib
from data_pipelines.mixture import SourceStream


@dataclass(frozen=True, slots=True)
class Entry:
    """From a block on: the weight of each level of each source, by the source's name."""

    start_block: int
    shares: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class _Part:
    """A (source, level); level None is a whole source that has no levels."""

    source: int
    level: int | None
    documents: np.ndarray
    stream: SourceStream


@dataclass(frozen=True, slots=True)
class _Stage:
    """An entry worked out: where each part's stream stands at its first block, and its pace."""

    start_block: int
    positions: list[int]
    rates: list[Fraction]

    def position(self, part: int, block: int) -> int:
        return self.positions[part] + (block - self.start_block) * self.rates[part] // 1


class LeveledMixture:
    """The documents of each block, from the levels of weighted sources."""

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[np.ndarray],
        levels: Sequence[np.ndarray | None],
        weights: Sequence[float],
        *,
        block_size: int,
        seed: int,
        is_shuffled: bool,
    ):
        """Make the streams; `append` the first entry at block 0 before a block is asked for.

        Args:
            names: the sources' names.
            sizes: what each document counts in the windows, >= 1.
            levels: the level of each document; None for a source without levels.
            weights: > 0; the source's share of the tokens is its weight over their sum.
            block_size: what a block takes, in the unit of the sizes.
            seed: the run's seed.
            is_shuffled: False keeps the documents' own order in every epoch.

        Raises:
            ValueError: a source is empty or a weight is not positive.
        """
        self._names = list(names)
        self._parts: list[_Part] = []
        for source, (name, size, level) in enumerate(zip(names, sizes, levels, strict=True)):
            if not len(size):
                raise ValueError(f"source {name!r} has no documents; prepare it again")
            if not weights[source] > 0:
                raise ValueError(f"source {name!r}: weight must be > 0, got {weights[source]}")
            for each, documents in _by_level(level, len(size)):
                key = name if each is None else f"{name}/level_{each}"
                stream = SourceStream(key, size[documents], seed=seed, is_shuffled=is_shuffled)
                self._parts.append(_Part(source, each, documents, stream))
        total = sum(Fraction(weight) for weight in weights)
        self._paces = [Fraction(weight) / total * block_size for weight in weights]
        self._stages: list[_Stage] = []
        self.entries: list[Entry] = []

    def append(self, start_block: int, shares: Mapping[str, Sequence[float]]) -> None:
        """Add an entry; an earlier one that begins at the same block then holds for none.

        Raises:
            ValueError: it would change blocks before those of the last entry.
        """
        last = self._stages[-1] if self._stages else None
        if start_block < (last.start_block if last else 0) or (last is None and start_block):
            raise ValueError(
                f"entries are appended: expected a block from "
                f"{last.start_block if last else 0} on, got {start_block}"
            )
        count = len(self._parts)
        positions = [last.position(part, start_block) if last else 0 for part in range(count)]
        entry = Entry(start_block, {name: tuple(shares[name]) for name in sorted(shares)})
        self._stages.append(_Stage(start_block, positions, self._rates(entry.shares)))
        self.entries.append(entry)

    def block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (source index, document index) of the block's documents, sources in order."""
        stage = next(each for each in reversed(self._stages) if each.start_block <= block)
        sources, documents = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for index, part in enumerate(self._parts):
            start, stop = stage.position(index, block), stage.position(index, block + 1)
            if start == stop:  # no epoch is put in order for a level that is not read
                continue
            chosen = part.documents[part.stream.window(start, stop)]
            documents.append(chosen)
            sources.append(np.full(len(chosen), part.source, np.int32))
        return np.concatenate(sources), np.concatenate(documents)

    def get_state(self) -> list[dict[str, Any]]:
        """Return the entries as plain JSON values."""
        return [
            {
                "start_block": entry.start_block,
                "shares": {name: list(each) for name, each in entry.shares.items()},
            }
            for entry in self.entries
        ]

    def set_state(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take the entries of a state in place of those here."""
        self.entries, self._stages = [], []
        for entry in state:
            self.append(entry["start_block"], entry["shares"])

    def _rates(self, shares: Mapping[str, Sequence[float]]) -> list[Fraction]:
        rates = [Fraction(0)] * len(self._parts)
        for source, name in enumerate(self._names):
            mine = [index for index, part in enumerate(self._parts) if part.source == source]
            present = [self._parts[index].level for index in mine]
            for index, share in zip(mine, _shares_of(present, shares.get(name)), strict=True):
                rates[index] = share * self._paces[source]
        return rates


def _by_level(levels: np.ndarray | None, count: int) -> list[tuple[int | None, np.ndarray]]:
    """Return the documents of each level that there is."""
    if levels is None:
        return [(None, np.arange(count))]
    found = [(level, np.flatnonzero(levels == level)) for level in range(levels_lib.NUM_LEVELS)]
    return [(level, documents) for level, documents in found if len(documents)]


def _shares_of(present: Sequence[int | None], shares: Sequence[float] | None) -> list[Fraction]:
    """Return the share of each level that a source has; they sum to 1.

    Weights of levels without documents go to the others; where none of the weighted ones has any,
    the nearest level is read, the easier one of two.
    """
    if shares is None:
        return [Fraction(1, len(present))] * len(present)
    # 0.1 is a tenth, not the binary number beside it.
    weights = [Fraction(str(shares[level or 0])) for level in present]
    if not any(weights):
        wanted = max(range(len(shares)), key=lambda level: shares[level])
        nearest = min(range(len(present)), key=lambda at: abs((present[at] or 0) - wanted))
        weights[nearest] = Fraction(1)
    return [weight / sum(weights) for weight in weights]
