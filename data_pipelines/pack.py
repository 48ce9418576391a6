"""Put pieces of documents into rows: best-fit decreasing over known lengths.

Pure integer work on lengths; no tokens are touched here. A document longer than a row is cut into
row-sized pieces first. Pieces of equal length and rows of equal space are placed together, so the
cost grows with the number of distinct lengths, not with the number of documents.

Source: best-fit decreasing, D. S. Johnson, "Near-optimal bin packing algorithms" (1973); for
language models "Fewer Truncations Improve Language Modeling" (arXiv:2404.10830).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces of documents; parallel arrays.

    Attributes:
        document: index into the list of lengths that was cut.
        start: first input token of the piece in its document.
        length: number of input tokens, 1 <= length <= row_tokens.
    """

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray


def cut_documents(lengths: np.ndarray, row_tokens: int) -> Pieces:
    """Cut documents into pieces of at most `row_tokens` inputs, in order.

    A document of n tokens has n - 1 inputs, each with the next token as its target, so that
    neighbouring pieces share one token and no target is lost.

    Args:
        lengths: inputs per document, each >= 1.
        row_tokens: inputs per row.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    counts = -(-lengths // row_tokens)
    document = np.repeat(np.arange(len(lengths)), counts)
    first_piece = np.cumsum(counts) - counts
    start = (np.arange(len(document)) - first_piece[document]) * row_tokens
    length = np.minimum(lengths[document] - start, row_tokens)
    return Pieces(document=document, start=start, length=length)


def best_fit_rows(lengths: np.ndarray, row_tokens: int) -> tuple[np.ndarray, int]:
    """Give every piece a row by best-fit decreasing.

    Pieces are taken longest first (equal ones in their order), each to the row with the least
    space that still holds it, or to a new row.

    Args:
        lengths: 1 <= length <= row_tokens for each piece.
        row_tokens: space of a row.

    Returns:
        The row of each piece, int64, and the number of rows.

    Raises:
        ValueError: a length is outside its range.
    """
    lengths = np.asarray(lengths)
    if len(lengths) == 0:
        return np.zeros(0, np.int64), 0
    if lengths.min() < 1 or lengths.max() > row_tokens:
        raise ValueError(
            f"expected piece lengths of 1..{row_tokens}, got {lengths.min()}..{lengths.max()}; "
            "cut the documents first"
        )
    order = np.argsort(-lengths, kind="stable")
    sizes, counts = _runs_of_equal(lengths[order])
    placed_rows: list[int] = []
    placed_counts: list[int] = []
    rows_by_space: dict[int, list[int]] = {}
    occupied = 0  # bit s is set when some row has s tokens of space
    num_rows = 0
    for size, count in zip(sizes, counts):
        while count:
            fitting = occupied >> size
            if fitting:
                space = size + (fitting & -fitting).bit_length() - 1
                rows = rows_by_space[space]
                each = space // size
                needed = min(-(-count // each), len(rows))
                taken = rows[-needed:]
                del rows[-needed:]
                if not rows:
                    occupied &= ~(1 << space)
            else:
                space = row_tokens
                each = space // size
                needed = -(-count // each)
                taken = list(range(num_rows, num_rows + needed))
                num_rows += needed
            total = min(count, each * needed)
            in_last = total - each * (needed - 1)
            placed_rows += taken
            placed_counts += [each] * (needed - 1) + [in_last]
            count -= total
            for left, group in (
                (space - each * size, taken[:-1]),
                (space - in_last * size, taken[-1:]),
            ):
                if left and group:
                    rows_by_space.setdefault(left, []).extend(group)
                    occupied |= 1 << left
    row_of = np.empty(len(lengths), np.int64)
    row_of[order] = np.repeat(placed_rows, placed_counts)
    return row_of, num_rows


def _runs_of_equal(values: np.ndarray) -> tuple[list[int], list[int]]:
    borders = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = np.concatenate([[0], borders])
    counts = np.diff(np.concatenate([starts, [len(values)]]))
    return values[starts].tolist(), counts.tolist()
