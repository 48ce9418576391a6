"""Texts to hashes of their word n-grams, by NumPy over the bytes: no Python object per word.

Normalisation: lower case; words are what stands between white space, punctuation included (so that
"3 + 4" and "3 - 4" differ); each character of a script without spaces (Han, kana, Thai, ...) is a
word. A text of fewer than n words is one n-gram. The hash of a word is a polynomial over its bytes
mod 2^64 with a random coefficient per byte value; n-grams are mixed as in splitmix64.
"""

import re
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64
from jaxtyping import UInt8
from jaxtyping import UInt64

PIECE_BYTES = 1 << 17  # hashed at once; the arrays of a piece stay in the second-level cache
LAST_SPACE = 0x20  # in ASCII; control characters count as white space too
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
_KEY = 0x6E656172 << 64  # sets these random numbers apart from others of the same seed


class Shingler:
    """Hashes the word n-grams of texts.

    Attributes:
        ngram_words: words of one n-gram.
    """

    def __init__(self, ngram_words: int, seed: int):
        """Draw the coefficients of the hash."""
        draw = np.random.Philox(key=_KEY | seed).random_raw
        self.ngram_words = ngram_words
        self._byte_values = draw(256)
        self._byte_values[: LAST_SPACE + 1] = 0  # a sum up to the next word's start is the word's
        self._padding = draw(1)
        self._word_weights = draw(ngram_words) | np.uint64(1)
        base = int(draw(1)[0]) | 1
        self._powers = _powers_of(base)
        self._inverse_powers = _powers_of(pow(base, -1, 1 << 64))

    def __call__(
        self, texts: Sequence[str]
    ) -> tuple[UInt64[np.ndarray, "M"], Int64[np.ndarray, "N+1"]]:
        """Return the hashes of all n-grams, and where those of each text begin.

        A text without words has none.
        """
        words, counts = self._words(texts)
        num = self.ngram_words
        missing = np.where(counts == 0, 0, np.maximum(num - counts, 0))
        if missing.any():
            words = np.insert(words, np.repeat(np.cumsum(counts), missing), self._padding[0])
            counts = counts + missing
        wanted = np.maximum(counts - (num - 1), 0)
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(wanted)))
        if not offsets[-1]:
            return np.zeros(0, np.uint64), offsets
        num_windows = len(words) - num + 1
        sums = words[:num_windows] * self._word_weights[0]
        for place in range(1, num):
            sums += words[place : num_windows + place] * self._word_weights[place]
        # Of each text, all but the last num - 1 windows lie inside it.
        skipped = np.repeat(np.cumsum(counts) - counts - offsets[:-1], wanted)
        return mix(sums[np.arange(offsets[-1]) + skipped]), offsets

    def _words(
        self, texts: Sequence[str]
    ) -> tuple[UInt64[np.ndarray, "W"], Int64[np.ndarray, "N"]]:
        """Return the hashes of all words, and how many each text has."""
        hashes = [np.zeros(0, np.uint64)]
        counts = np.zeros(len(texts), np.int64)
        for first, text_starts, piece in _pieces(texts):
            word_starts, found = self._hash_piece(np.frombuffer(piece, np.uint8))
            of_text = np.searchsorted(text_starts, word_starts, side="right") - 1
            num = len(text_starts)
            counts[first : first + num] += np.bincount(of_text, minlength=num)
            hashes.append(found)
        return np.concatenate(hashes), counts

    def _hash_piece(
        self, data: UInt8[np.ndarray, "P"]
    ) -> tuple[Int64[np.ndarray, "W"], UInt64[np.ndarray, "W"]]:
        """Return where each word starts, and its hash."""
        is_start = data > LAST_SPACE
        is_start[1:] &= data[:-1] <= LAST_SPACE
        starts = np.flatnonzero(is_start)
        if not len(starts):
            return starts, np.zeros(0, np.uint64)
        values = self._byte_values[data]
        values *= self._powers[: len(data)]
        return starts, np.add.reduceat(values, starts) * self._inverse_powers[starts]


def normal_bytes(text: str) -> bytes:
    """Return a text in lower case, its words set apart by ASCII white space, as UTF-8."""
    text = text.lower()
    if not text.isascii():
        text = " ".join(_UNSPACED.sub(r" \g<0> ", text).split())
    return text.encode("utf-8", "surrogatepass")


def _pieces(texts: Sequence[str]) -> Iterator[tuple[int, Int64[np.ndarray, "K"], bytes]]:
    """Yield pieces of at most PIECE_BYTES: first text, where each begins, the bytes.

    Short texts share a piece; a long one is cut between words, so that what a text hashes to does
    not depend on those around it.
    """
    first, size = 0, 0
    waiting: list[bytes] = []
    for number, text in enumerate(texts):
        data = normal_bytes(text)
        if waiting and size + len(data) >= PIECE_BYTES:
            yield first, _starts_of(waiting), b"\n".join(waiting)
            waiting = []
        if len(data) > PIECE_BYTES:
            for piece in _cut(data):
                yield number, np.zeros(1, np.int64), piece
            continue
        if not waiting:
            first, size = number, 0
        waiting.append(data)
        size += len(data) + 1
    if waiting:
        yield first, _starts_of(waiting), b"\n".join(waiting)


def _starts_of(parts: list[bytes]) -> Int64[np.ndarray, "K"]:
    sizes = np.fromiter((len(part) + 1 for part in parts), np.int64, len(parts))
    return np.cumsum(sizes) - sizes


def _cut(data: bytes) -> Iterator[bytes]:
    """Yield a long text in pieces that end between words; a longer word is cut."""
    at = 0
    while at < len(data):
        end = at + PIECE_BYTES
        if end < len(data):
            space = max(data.rfind(b" ", at + 1, end), data.rfind(b"\n", at + 1, end))
            end = space if space > 0 else end
        yield data[at:end]
        at = end


def _powers_of(base: int) -> UInt64[np.ndarray, "P"]:
    powers = np.full(PIECE_BYTES, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def mix(values: UInt64[np.ndarray, "M"]) -> UInt64[np.ndarray, "M"]:
    """Spread each value over 64 bits, in place. Source: Steele et al. 2014, SplitMix64."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
