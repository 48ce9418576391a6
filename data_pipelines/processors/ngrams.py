"""Words of a text as 64-bit hashes, and runs of them, by NumPy over its bytes.

A word is a run of letters, digits and underscores; in scripts that are written without spaces
every character is one. The hash of a word is a polynomial of its bytes modulo 2**64 and the same
on every machine and in every process.
"""

import functools
import re

import numpy as np
from jaxtyping import UInt64

PIECE_BYTES = 1 << 20
_MASK = (1 << 64) - 1
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 1 << 64)
_RUN_BASE = np.uint64(0xC2B2AE3D27D4EB4F)
# Punctuation and spaces beyond ASCII: Latin-1, general punctuation, CJK, full width.
_MARKS = re.compile(
    "[\u00a0-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u2000-\u206f\u3000-\u303f\uff00-\uff0f]"
)
# Lead bytes in UTF-8 of U+3000 to U+9FFF: kana and Han. Then Thai, Lao, Burmese and Khmer, that
# are known by two bytes.
_SINGLE_LEADS = (0xE3, 0xE9)
_SINGLE_PAIRS = ((0xE0, 0xB8, 0xBB), (0xE1, 0x80, 0x82), (0xE1, 0x9E, 0x9F))


def _mixed(value: int) -> int:
    """Return SplitMix64 of a number."""
    value = (value + _BASE) & _MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


def _is_word(byte: int) -> bool:
    return byte >= 0x80 or chr(byte).isalnum() or chr(byte) == "_"


_BYTE = np.array([_mixed(byte) if _is_word(byte) else 0 for byte in range(256)], np.uint64)
_WORD = np.array([_is_word(byte) for byte in range(256)])


def normalised(text: str) -> bytes:
    """Return lower case UTF-8 in which all that is no word is an ASCII sign."""
    if text.isascii():
        return text.encode().lower()
    return _MARKS.sub(" ", text).lower().encode("utf-8", "surrogatepass")


def word_hashes(data: bytes) -> UInt64[np.ndarray, " n"]:
    """Return the hash of each word of normalised text, at any length in bounded memory."""
    if len(data) <= PIECE_BYTES:
        return _piece_hashes(data)
    parts, start = [], 0
    while start < len(data):
        stop = min(start + PIECE_BYTES, len(data))
        cut = data.rfind(b" ", start + 1, stop) if stop < len(data) else stop
        stop = cut if cut > start else stop
        parts.append(_piece_hashes(data[start:stop]))
        start = stop
    return np.concatenate(parts)


def run_hashes(words: UInt64[np.ndarray, " n"], length: int) -> UInt64[np.ndarray, " m"]:
    """Return the hash of every run of `length` words; none if there are fewer words."""
    count = len(words) - length + 1
    if count <= 0:
        return words[:0]
    runs = words[:count].copy()
    for offset in range(1, length):
        runs *= _RUN_BASE
        runs += words[offset : offset + count]
    runs ^= runs >> np.uint64(29)
    runs *= np.uint64(0xBF58476D1CE4E5B9)
    runs ^= runs >> np.uint64(32)
    return runs


def repeats(runs: UInt64[np.ndarray, " n"]) -> tuple[int, int]:
    """Return how often the most frequent run comes, and how many runs stood before."""
    if len(runs) < 2:
        return len(runs), 0
    ordered = np.sort(runs)
    edges = np.flatnonzero(ordered[1:] != ordered[:-1])
    bounds = np.concatenate(([-1], edges, [len(runs) - 1]))
    return int(np.diff(bounds).max()), len(runs) - len(edges) - 1


def _piece_hashes(data: bytes) -> UInt64[np.ndarray, " n"]:
    if not data:
        return np.zeros(0, np.uint64)
    codes = np.frombuffer(data, np.uint8)
    inside = _WORD[codes]
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    if not data.isascii():
        begins |= _singles(codes)
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, np.uint64)
    powers, inverses = _powers(1 << max(12, (len(data) - 1).bit_length()))
    terms = _BYTE[codes]
    terms *= powers[: len(codes)]
    return np.add.reduceat(terms, starts) * inverses[starts]


def _singles(codes: np.ndarray) -> np.ndarray:
    """Return where a character begins that is a word by itself."""
    found = (codes >= _SINGLE_LEADS[0]) & (codes <= _SINGLE_LEADS[1])
    behind = np.append(codes[1:], np.uint8(0))
    for lead, low, high in _SINGLE_PAIRS:
        found |= (codes == lead) & (behind >= low) & (behind <= high)
    return found


@functools.cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the powers of the base and of its inverse, for positions in a piece."""
    tables = []
    for base in (_BASE, _INVERSE):
        table = np.full(count, base, np.uint64)
        table[0] = 1
        tables.append(np.multiply.accumulate(table))
    return tables[0], tables[1]
