"""NF4 and int8 storage of a frozen weight, in bitsandbytes' layout. NumPy only.

NF4 (QLoRA, arXiv:2305.14314): blocks of 64 over the flattened [out, in] weight, each number the
nearest of 16 normal quantiles, the first of a pair in the high nibble. The blocks' largest values
are stored in 8 bits themselves: less their mean, in blocks of 256, by the dynamic map of
arXiv:2110.02861. int8 (arXiv:2208.07339): each output row in 127ths of its largest value.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from jaxtyping import Float32
from jaxtyping import Int8
from jaxtyping import Shaped
from jaxtyping import UInt8

BLOCK = 64
GROUP = 256
INT8_LARGEST = 127
# Appendix E of arXiv:2305.14314: means of neighbouring quantiles of the normal distribution.
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
# A value on the border of two codes takes the lower.
NF4_BORDERS = ((NF4[:-1].astype(np.float64) + NF4[1:]) / 2).astype(np.float32)
# Blocks and rows of zeros are divided by these. Normal numbers: XLA takes smaller ones for 0.
SMALLEST = np.finfo(np.float32).tiny
SMALLEST_ROW = np.float32(1e-36)
# Numbers that one thread works on at a time: their float32 copies stay in its cache.
CHUNK = 1 << 16


def _dynamic_map() -> Float32[np.ndarray, "256"]:
    """Return the signed dynamic map: decades from 1e-7 to 1, each with twice as many values.

    A decade d = 0..6 holds the middles of 2**d equal parts of [0.1, 1] times 10**(d - 6), with
    both signs; 0 and 1 are added.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        borders = np.linspace(0.1, 1, 2**decade + 1)
        middles = (borders[:-1] + borders[1:]) / 2 * 10.0 ** (decade - 6)
        values += [*middles, *-middles]
    return np.sort(np.asarray(values)).astype(np.float32)


DYNAMIC = _dynamic_map()
DYNAMIC_BORDERS = ((DYNAMIC[:-1].astype(np.float64) + DYNAMIC[1:]) / 2).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Nf4Weight:
    """One weight in NF4.

    Attributes:
        codes: pairs of 4-bit codes.
        absmax: 8-bit codes of each block's largest value, less the offset.
        scales: of each 256 of these, row after row; the last group may be short.
        offset: the mean of the blocks' largest values.
    """

    codes: UInt8[np.ndarray, "out pairs"]
    absmax: UInt8[np.ndarray, "out blocks"]
    scales: Float32[np.ndarray, " groups"]
    offset: Float32[np.ndarray, ""]

    def largest(self) -> Float32[np.ndarray, "out blocks"]:
        """Return each block's largest value as it is stored."""
        scales = np.repeat(self.scales, GROUP)[: self.absmax.size].reshape(self.absmax.shape)
        return DYNAMIC[self.absmax] * scales + self.offset


@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """One weight in 127ths of each row's largest value.

    Attributes:
        codes: -127 to 127.
        absmax: largest value of each row.
    """

    codes: Int8[np.ndarray, "out n_in"]
    absmax: Float32[np.ndarray, " out"]


def num_groups(num_weights: int) -> int:
    """Return how many float32 scales NF4 keeps for a weight of this size."""
    return -(-(num_weights // BLOCK) // GROUP)


def check_width(in_width: int, name: str) -> None:
    """Check that blocks end where rows do.

    Raises:
        ValueError: they do not; the message names the module.
    """
    if in_width % BLOCK:
        raise ValueError(
            f"precision.frozen nf4: {name} has {in_width} inputs, which is not a multiple of "
            f"{BLOCK}; choose precision.frozen=int8 or bfloat16 for this model"
        )


def quantise(weight: Float[np.ndarray, "out n_in"], *, name: str = "a weight") -> Nf4Weight:
    """Return a weight in NF4; beside input and result it needs a few MiB for each thread.

    Raises:
        ValueError: the row length is not a multiple of 64; the message holds `name`.
    """
    num_rows, in_width = weight.shape
    check_width(in_width, name)
    codes = np.empty((num_rows, in_width // 2), np.uint8)
    largest = np.empty((num_rows, in_width // BLOCK), np.float32)

    def convert(rows: slice) -> None:
        blocks = np.asarray(weight[rows], np.float32).reshape(-1, BLOCK)
        most = np.max(np.abs(blocks), axis=1)
        parts = blocks * (np.float32(1) / np.maximum(most, SMALLEST))[:, None]
        nearest = (parts > NF4_BORDERS[0]).view(np.uint8)
        for border in NF4_BORDERS[1:]:  # 15 comparisons are faster than a binary search
            nearest += parts > border
        codes[rows] = (nearest[:, ::2] << 4 | nearest[:, 1::2]).reshape(-1, in_width // 2)
        largest[rows] = most.reshape(-1, in_width // BLOCK)

    _over_rows(convert, num_rows, in_width)
    offset = np.float32(np.mean(largest, dtype=np.float64))
    absmax, scales = _quantise_largest((largest - offset).reshape(-1))
    return Nf4Weight(codes, absmax.reshape(largest.shape), scales, np.asarray(offset))


def dequantise(
    weight: Nf4Weight, dtype: np.dtype | type = np.float32
) -> Shaped[np.ndarray, "out n_in"]:
    """Return the numbers that the codes stand for."""
    num_rows, num_pairs = weight.codes.shape
    whole = np.empty((num_rows, 2 * num_pairs), dtype)
    largest = weight.largest()

    def convert(rows: slice) -> None:
        codes = weight.codes[rows]
        pairs = np.stack([codes >> 4, codes & 15], axis=-1)
        values = NF4[pairs].reshape(-1, BLOCK) * largest[rows].reshape(-1, 1)
        whole[rows] = values.reshape(-1, 2 * num_pairs)

    _over_rows(convert, num_rows, 2 * num_pairs)
    return whole


def quantise_int8(weight: Float[np.ndarray, "out n_in"]) -> Int8Weight:
    """Return a weight in int8, a scale for each output row."""
    num_rows, in_width = weight.shape
    codes = np.empty(weight.shape, np.int8)
    absmax = np.empty(num_rows, np.float32)

    def convert(rows: slice) -> None:
        wide = np.asarray(weight[rows], np.float32)
        absmax[rows] = np.max(np.abs(wide), axis=1)
        # The reciprocal first, as torch divides a number by a tensor: ties fall the same way.
        factor = np.float32(1) / np.maximum(absmax[rows], SMALLEST_ROW) * np.float32(INT8_LARGEST)
        codes[rows] = np.rint(wide * factor[:, None])

    _over_rows(convert, num_rows, in_width)
    return Int8Weight(codes, absmax)


def dequantise_int8(
    weight: Int8Weight, dtype: np.dtype | type = np.float32
) -> Shaped[np.ndarray, "out n_in"]:
    """Return the numbers that the codes stand for."""
    whole = np.empty(weight.codes.shape, dtype)
    scales = weight.absmax * np.float32(1 / INT8_LARGEST)

    def convert(rows: slice) -> None:
        whole[rows] = weight.codes[rows] * scales[rows][:, None]

    _over_rows(convert, *weight.codes.shape)
    return whole


def _quantise_largest(
    values: Float32[np.ndarray, " blocks"],
) -> tuple[UInt8[np.ndarray, " blocks"], Float32[np.ndarray, " groups"]]:
    """Return 8-bit codes and a scale for each 256."""
    count = -(-values.size // GROUP)
    groups = np.zeros((count, GROUP), np.float32)
    groups.reshape(-1)[: values.size] = values
    scales = np.max(np.abs(groups), axis=1)
    parts = groups * (np.float32(1) / np.maximum(scales, SMALLEST))[:, None]
    codes = np.searchsorted(DYNAMIC_BORDERS, parts.reshape(-1)[: values.size])
    return codes.astype(np.uint8), scales


def _over_rows(convert: Callable[[slice], None], num_rows: int, width: int) -> None:
    """Run a conversion on runs of rows, on all processors: NumPy's loops do not hold the lock."""
    step = max(1, CHUNK // width)
    runs = [slice(first, first + step) for first in range(0, num_rows, step)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(convert, runs):
            pass
