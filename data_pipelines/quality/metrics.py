"""What a batch of texts is like, each number with its definition and its bounds.

diversity   1 - mean over all pairs of rows of the Jaccard similarity of their word 5-grams,
            estimated by MinHash; 0: all the same, 1: no two share anything. Exact duplicates
            only lower it.
distinct_2  different word pairs over all word pairs (arXiv:1510.03055).
vendi       exp of the entropy of the eigenvalues of the similarity matrix over its rows
            (arXiv:2210.02410): how many different texts there effectively are, 1 to rows.
complexity  mean over rows, each in [0, 1] (see `complexity`).
"""

import math
import re
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt64

from data_pipelines.processors import ngrams

SHINGLE_WORDS = 5
DISTINCT_WORDS = 256  # words of a row that distinct_2 looks at
# What counts as fully complex; running English prose reaches about these at 400 words.
RATIO_FULL = 0.6  # compressed over plain bytes
VOCABULARY_FULL = 0.7  # different words among WINDOW_WORDS
SENTENCE_FULL = 25.0  # words
SENTENCE_NONE = 60.0  # a mean above it is a list or a table, whose sentences say nothing
SHORT_POWER = 0.25  # how fast the parts fall for texts of fewer words than the window
WINDOW_WORDS = 200
SAMPLE_BYTES = 4096
SENTENCE_END = re.compile(r"[.!?。！？।؟]+(?:\s|$)|\n\s*\n")


def word_arrays(texts: Sequence[str], sample_words: int) -> list[UInt64[np.ndarray, " n"]]:
    """Return the hashes of the first words of each text."""
    # 16 bytes hold a word and what follows it in all but odd texts; no book is read to its end.
    return [
        ngrams.word_hashes(ngrams.normalised(text[: 16 * sample_words]))[:sample_words]
        for text in texts
    ]


def signatures(
    words: Sequence[UInt64[np.ndarray, " n"]], permutations: int, seed: int
) -> UInt64[np.ndarray, "rows permutations"]:
    """Return the MinHash signature of each row's word 5-grams.

    A text of fewer words is one shingle: all of it. Texts without words are equal to each other.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    keys, factors = generator.integers(1 << 64, size=(2, permutations, 1), dtype=np.uint64)
    factors |= np.uint64(1)
    made = np.zeros((len(words), permutations), np.uint64)
    for row, hashes in enumerate(words):
        shingles = ngrams.run_hashes(hashes, min(SHINGLE_WORDS, len(hashes) or 1))
        if len(shingles):
            mixed = (shingles[None] ^ keys) * factors
            mixed ^= mixed >> np.uint64(31)
            mixed *= np.uint64(0x94D049BB133111EB)
            made[row] = mixed.min(axis=1)
    return made


def diversity(signed: UInt64[np.ndarray, "rows permutations"]) -> float:
    """Return 1 - mean estimated Jaccard similarity over all pairs; 1 for a single row.

    Per hash function the equal pairs are counted by sorting, so that no pair is looked at.
    """
    rows, permutations = signed.shape
    if rows < 2:
        return 1.0
    ordered = np.sort(signed, axis=0)
    equal = 0
    for column in ordered.T:
        edges = np.flatnonzero(column[1:] != column[:-1])
        counts = np.diff(np.concatenate(([-1], edges, [rows - 1])))
        equal += int((counts * (counts - 1) // 2).sum())
    return 1 - equal / (permutations * (rows * (rows - 1) // 2))


def vendi(signed: UInt64[np.ndarray, "rows permutations"]) -> float:
    """Return the effective number of different rows."""
    rows = len(signed)
    similar = np.zeros((rows, rows))
    for column in signed.T:
        similar += column[:, None] == column[None]
    values = np.linalg.eigvalsh(similar / signed.shape[1] / rows)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def distinct_2(words: Sequence[UInt64[np.ndarray, " n"]]) -> float:
    """Return the share of different word pairs among all; 1 where there are none."""
    pairs = np.concatenate([ngrams.run_hashes(each[:DISTINCT_WORDS], 2) for each in words])
    return len(np.unique(pairs)) / len(pairs) if len(pairs) else 1.0


def complexity(text: str, *, is_prose: bool) -> float:
    """Return how complex a text is, 0 to 1.

    The mean of three parts (of the first two where it is not prose), each 1 from a set value on:
    how little it can be compressed (zlib, first 4 KiB), how many of the first 200 words differ
    (scaled for shorter texts), how long its sentences are (where there are any).
    """
    sample = text[:SAMPLE_BYTES]
    words = sample.lower().split()[:WINDOW_WORDS]
    if not words:
        return 0.0
    data = sample.encode("utf-8", "surrogatepass")
    # The header and tables of a stream are no part of what is in it; short texts would look dense.
    ratio = max(0, len(zlib.compress(data, 6)) - 11) / len(data)
    # A text of n words has more different ones among them the shorter it is (Heaps' law, 0.7).
    expected = VOCABULARY_FULL * (len(words) / WINDOW_WORDS) ** -0.3
    vocabulary = len(set(words)) / len(words) / min(1.0, expected)
    parts = [min(1.0, ratio / RATIO_FULL), min(1.0, vocabulary)]
    if len(words) < WINDOW_WORDS:  # too little to be judged by what does not repeat in it
        parts = [part * (len(words) / WINDOW_WORDS) ** SHORT_POWER for part in parts]
    if is_prose:
        sentences = sum(1 for each in SENTENCE_END.split(sample) if each.strip())
        length = len(sample.split()) / max(1, sentences)
        if length <= SENTENCE_NONE:
            parts.append(min(1.0, length / SENTENCE_FULL))
    return sum(parts) / len(parts)


def mean(values: Sequence[float]) -> float:
    """Return the mean, 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0
