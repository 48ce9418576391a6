"""Which documents a block takes from each source: a pure function of (seed, block).

Every source is an endless stream: epoch after epoch, each in its own order. A block takes from
each source the documents that start in the block's window of that stream; windows are as wide as
the source's weight says, in tokens, and they tile the stream. So each document is used exactly
once per epoch, nothing is dropped, and no block depends on another one.
"""

import hashlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

EPOCHS_KEPT = 4


def permutation(count: int, *key: object) -> np.ndarray:
    """Return an order of `count` things that depends on nothing but the key.

    The raw Philox stream is sorted, because NumPy promises the same raw stream in every version,
    and does not promise that of `Generator.permutation`.
    """
    text = "/".join(str(part) for part in key)
    digest = hashlib.sha256(text.encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return np.argsort(philox.random_raw(count), kind="stable")


class SourceStream:
    """The endless stream of one source's documents."""

    def __init__(self, name: str, sizes: np.ndarray, *, seed: int, is_shuffled: bool):
        """Make the stream.

        Args:
            name: part of the key of the order, so that other sources do not change it.
            sizes: what each document counts in the windows, >= 1 (inputs, or 1 per document).
            seed: the run's seed.
            is_shuffled: False keeps the documents' own order in every epoch.
        """
        self.name = name
        self.total = int(np.sum(sizes, dtype=np.int64))
        self._sizes = np.asarray(sizes)
        self._seed = seed
        self._is_shuffled = is_shuffled
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def window(self, start: int, stop: int) -> np.ndarray:
        """Return the documents that start at stream position start <= p < stop, in order."""
        found = [np.zeros(0, np.int64)]
        for epoch in range(start // self.total, -(-stop // self.total)):
            order, starts = self._epoch(epoch)
            base = epoch * self.total
            first, last = np.searchsorted(starts, [start - base, stop - base], side="left")
            found.append(order[first:last])
        return np.concatenate(found)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        kept = self._epochs.get(epoch)
        if kept is not None:
            return kept
        count = len(self._sizes)
        if self._is_shuffled:
            order = permutation(count, "order", self._seed, self.name, epoch)
        else:
            order = np.arange(count)
        sizes = self._sizes[order].astype(np.int64)
        made = (order, np.cumsum(sizes) - sizes)
        while len(self._epochs) >= EPOCHS_KEPT:
            self._epochs.pop(next(iter(self._epochs)))
        self._epochs[epoch] = made
        return made


class Mixture:
    """The documents of each block, from weighted sources."""

    def __init__(
        self,
        streams: Sequence[SourceStream],
        weights: Sequence[float],
        *,
        block_size: int,
    ):
        """Set the windows.

        The windows are widened or narrowed a little, at most to half, so that the source that
        runs out first ends an epoch at the end of a block; a source smaller than a block makes
        the block one epoch.

        Args:
            streams: one per source, each with a document at least.
            weights: > 0; the source's share of the tokens is its weight over their sum.
            block_size: about how much a block takes, in the streams' unit.

        Raises:
            ValueError: a source is empty or a weight is not positive.
        """
        for stream, weight in zip(streams, weights, strict=True):
            if stream.total == 0:
                raise ValueError(f"source {stream.name!r} has no documents; prepare it again")
            if not weight > 0:
                raise ValueError(f"source {stream.name!r}: weight must be > 0, got {weight}")
        total_weight = sum(Fraction(weight) for weight in weights)
        shares = [Fraction(weight) / total_weight for weight in weights]
        shortest = min(Fraction(s.total) / share for s, share in zip(streams, shares))
        self.blocks_per_epoch = max(1, -(-shortest // block_size))
        """Blocks until the source that runs out first has run through once."""
        per_block = shortest / self.blocks_per_epoch
        self._streams = list(streams)
        self._rates = [share * per_block for share in shares]

    def block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (source index, document index) of the block's documents, sources in order."""
        sources = []
        documents = []
        for index, (stream, rate) in enumerate(zip(self._streams, self._rates)):
            start = block * rate // 1
            stop = (block + 1) * rate // 1
            chosen = stream.window(int(start), int(stop))
            documents.append(chosen)
            sources.append(np.full(len(chosen), index, np.int32))
        return np.concatenate(sources), np.concatenate(documents)
