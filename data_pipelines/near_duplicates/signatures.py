"""MinHash signatures by rensa, and the keys of their bands.

The n-grams are hashed by shingles.py and handed over as one flat buffer: no Python object per
n-gram. A document without words has no signature: its values are all NO_VALUE, and it has no band
keys. RMinHash is the full-set sketch: equal values of two signatures estimate Jaccard.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from jaxtyping import Int64
from jaxtyping import UInt32

from data_pipelines.near_duplicates import shingles
from mistral_jax.config.near_duplicates import NearDuplicates

try:
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  # a Rust module
except ImportError as error:
    raise ImportError(
        "near-duplicates need the package rensa; install the extra with MISTRAL_JAX_LOCKS=data"
    ) from error

NO_VALUE = np.uint32(0xFFFFFFFF)
BATCH_CHARS = 1 << 20
BATCH_TEXTS = 1024
KEY_BITS = 63  # band keys are int64 >= 0, as Parquet's statistics order them


class Signer:
    """Makes signatures of texts. Cheap to make, and the same in every process."""

    def __init__(self, config: NearDuplicates):
        self.config = config
        self._shingler = shingles.Shingler(config.ngram_words, config.seed)

    def sign(self, texts: Sequence[str]) -> UInt32[np.ndarray, "N P"]:
        """Return a signature for each text; all at once, so hand over a batch at a time."""
        num_values = self.config.permutations
        if not texts:
            return np.zeros((0, num_values), np.uint32)
        hashes, offsets = self._shingler(texts)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets.astype(np.uint64), num_values, self.config.seed
        )
        signatures = np.array(matrix.to_rows(), np.uint32)
        signatures[np.diff(offsets) == 0] = NO_VALUE
        return signatures

    def sign_all(self, texts: Iterable[str]) -> Iterator[UInt32[np.ndarray, "N P"]]:
        """Yield the signatures of a stream of texts, batch after batch."""
        waiting: list[str] = []
        size = 0
        for text in texts:
            waiting.append(text)
            size += len(text)
            if size >= BATCH_CHARS or len(waiting) >= BATCH_TEXTS:
                yield self.sign(waiting)
                waiting, size = [], 0
        if waiting:
            yield self.sign(waiting)


def facts(config: NearDuplicates) -> dict[str, Any]:
    """Return what decides the bytes of signatures: the config's part, and rensa's algorithm."""
    return {**config.signature_facts(), "rensa_algorithm": RMinHash.ALGORITHM_VERSION}


def has_words(signatures: UInt32[np.ndarray, "N P"]) -> Bool[np.ndarray, "N"]:
    """Tell which signatures are those of documents with words."""
    return (signatures != NO_VALUE).any(axis=1)


def band_keys(
    signatures: UInt32[np.ndarray, "N P"], config: NearDuplicates
) -> Int64[np.ndarray, "N Bands"]:
    """Return the key of each band: a hash of its number and its values, of KEY_BITS bits."""
    bands = signatures.reshape(len(signatures), config.bands, config.rows)
    keys = np.broadcast_to(
        np.arange(1, config.bands + 1, dtype=np.uint64), (len(signatures), config.bands)
    ).copy()
    for row in range(config.rows):
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
        keys += bands[:, :, row]
    return (shingles.mix(keys) >> np.uint64(64 - KEY_BITS)).astype(np.int64)


def estimate(first: UInt32[np.ndarray, "N P"], second: UInt32[np.ndarray, "N P"]) -> np.ndarray:
    """Return the estimated Jaccard similarity of each pair of signatures, float64 [N]."""
    return (first == second).mean(axis=1)
