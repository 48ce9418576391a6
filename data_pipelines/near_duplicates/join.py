"""The global stage: runs of band keys -> candidate pairs -> verified pairs -> clusters.

A Daft query takes one range of keys of all runs and returns the keys that several documents have.
The pairs of such a bucket are checked by the documents' full signatures, read from disk, and
joined. Memory is that of one range, of one chunk of signatures, and 8 bytes per document, whatever
the corpus. The result does not depend on the order in which Daft yields rows, nor on the ranges.

Clusters are transitive: of a chain of versions, each close to the next, one document stays.
"""

import itertools
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from jaxtyping import Int64
from jaxtyping import UInt32

from data_pipelines.near_duplicates import engine
from data_pipelines.near_duplicates import runs
from data_pipelines.near_duplicates import signatures
from data_pipelines.near_duplicates.clusters import Clusters
from mistral_jax.config.near_duplicates import NearDuplicates

CHUNK_PAIRS = 1 << 15  # checked at once: two signatures each, 32 MB at 120 values


@dataclass(frozen=True, slots=True)
class Join:
    """What the join found.

    Attributes:
        representatives: for each document, the smallest number of its cluster.
        num_candidates: pairs that were checked.
        num_pairs: those of them that are near-duplicates.
        num_queries: ranges of keys that were asked for.
    """

    representatives: Int64[np.ndarray, "N"]
    num_candidates: int
    num_pairs: int
    num_queries: int


class Corpus:
    """All runs of a corpus: numbers its documents through, task after task."""

    def __init__(self, all_runs: Sequence[runs.Run], config: NearDuplicates):
        """Check the runs.

        Raises:
            DamagedRun: one is missing, cut short or made with other settings.
            ValueError: their tasks do not ascend.
        """
        tasks = [run.task for run in all_runs]
        if any(second <= first for first, second in itertools.pairwise(tasks)):
            raise ValueError(f"expected runs in ascending order of their task, got {tasks[:20]}")
        self.runs = tuple(all_runs)
        self.config = config
        self.tasks = np.array(tasks, np.int64)
        sizes = [run.num_documents(config) for run in self.runs]
        self.starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)))

    @property
    def num_documents(self) -> int:
        """Documents of all tasks."""
        return int(self.starts[-1])

    def numbers_of(self, places: Int64[np.ndarray, "M"]) -> Int64[np.ndarray, "M"]:
        """Return the document numbers of places: (task, row), numbered through in order."""
        task = np.searchsorted(self.tasks, places >> runs.ROW_BITS)
        return self.starts[task] + (places & ((1 << runs.ROW_BITS) - 1))

    def signatures_of(self, numbers: Int64[np.ndarray, "M"]) -> UInt32[np.ndarray, "M P"]:
        """Read the signatures of documents, in ascending order of their numbers."""
        found = np.empty((len(numbers), self.config.permutations), np.uint32)
        edges = np.searchsorted(numbers, self.starts)
        for which in np.flatnonzero(np.diff(edges)).tolist():
            wanted = slice(edges[which], edges[which + 1])
            # Mapped anew each time, so that pages read before do not stay in our memory.
            mapped = self.runs[which].open_signatures(self.config)
            found[wanted] = mapped[numbers[wanted] - self.starts[which]]
        return found

    def are_near(
        self, first: Int64[np.ndarray, "M"], second: Int64[np.ndarray, "M"]
    ) -> Bool[np.ndarray, "M"]:
        """Tell which pairs are near-duplicates by their full signatures."""
        numbers, places = np.unique(np.stack((first, second)), return_inverse=True)
        signed = self.signatures_of(numbers)
        places = places.reshape(2, -1)
        alike = signatures.estimate(signed[places[0]], signed[places[1]])
        return alike >= self.config.min_estimate


def join(all_runs: Sequence[runs.Run], config: NearDuplicates) -> Join:
    """Find the clusters of near-duplicates.

    Args:
        all_runs: of all tasks, ascending; on a Ray cluster, where all its nodes can read them.
        config: as the runs were made with.

    Raises:
        DamagedRun: a run is missing, cut short or was made with other settings.
    """
    corpus = Corpus(all_runs, config)
    clusters = Clusters(corpus.num_documents)
    num_candidates = num_pairs = num_queries = 0
    for keys, places in _buckets(corpus):
        num_queries += 1
        numbers = corpus.numbers_of(places)
        for first, second in _candidate_pairs(keys, numbers, config.bucket_neighbours):
            for at in range(0, len(first), CHUNK_PAIRS):
                one, other = first[at : at + CHUNK_PAIRS], second[at : at + CHUNK_PAIRS]
                is_open = clusters.roots(one) != clusters.roots(other)
                one, other = one[is_open], other[is_open]
                is_near = corpus.are_near(one, other)
                clusters.union(one[is_near], other[is_near])
                num_candidates += len(one)
                num_pairs += int(is_near.sum())
    return Join(clusters.representatives(), num_candidates, num_pairs, num_queries)


def _buckets(corpus: Corpus) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (keys, places) of all keys that two or more documents have, range by range, sorted."""
    config = corpus.config
    paths = [str(run.bands_path) for run in corpus.runs]
    if not corpus.num_documents:
        return
    daft = engine.start(config.runner, config.ray_address)
    for begin, end in _ranges(corpus.num_documents * config.bands, config):
        table = _query(daft, paths, begin, end)
        keys, places = (table[name].to_numpy() for name in ("key", "place"))
        order = np.lexsort((places, keys))
        yield keys[order], places[order]


def _query(daft: Any, paths: list[str], begin: int, end: int) -> Any:
    """Return an Arrow table of (key, place): the keys in [begin, end) of several documents."""
    key = daft.col("key")
    banded = daft.read_parquet(paths).where((key >= begin) & (key <= end - 1))
    counted = banded.groupby("key").agg(daft.col("place").count().alias("documents"))
    shared = counted.where(daft.col("documents") > 1).select("key")
    return banded.join(shared, on="key", how="semi").to_arrow()


def _ranges(num_keys: int, config: NearDuplicates) -> Iterator[tuple[int, int]]:
    """Yield ranges of keys, each about join_keys of them: they are spread evenly."""
    edges = runs.range_edges(config.key_ranges)
    wanted = -(-num_keys // config.join_keys)
    together = max(1, config.key_ranges // wanted)
    for first in range(0, config.key_ranges, together):
        yield edges[first], edges[min(first + together, config.key_ranges)]


def _candidate_pairs(
    keys: Int64[np.ndarray, "M"], numbers: Int64[np.ndarray, "M"], neighbours: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of one bucket, distance by distance: (earlier, later) document numbers.

    All pairs up to `neighbours` apart in the bucket's order, then those at twice the distance and
    so on: a bucket of a million copies costs 25 million pairs at most, not 5e11, and most of them
    are in one cluster already after the first distance.
    """
    distance = 1
    while distance < len(keys):
        is_pair = keys[distance:] == keys[:-distance]
        if not is_pair.any():
            return  # the longest bucket is shorter than that
        yield _unique_pairs(numbers[:-distance][is_pair], numbers[distance:][is_pair])
        distance = distance + 1 if distance < neighbours else distance * 2


def _unique_pairs(
    first: Int64[np.ndarray, "M"], second: Int64[np.ndarray, "M"]
) -> tuple[Int64[np.ndarray, "K"], Int64[np.ndarray, "K"]]:
    """Drop the pairs that come several times: near copies share most of their bands."""
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    is_new = np.ones(len(first), np.bool_)
    is_new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return first[is_new], second[is_new]
