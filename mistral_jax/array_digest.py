"""crc32 of arrays that may lie in parts on many devices and hosts; the parting leaves no trace.

A crc is linear over GF(2): that of a whole array is the sum of its parts', each moved by the bytes
behind it. So every process digests the shards that it has, and the digests of one process, of one
device and of the file on disk are one. The arithmetic is zlib's (its crc32_combine).
"""

import functools
import math
import zlib
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt32

from mistral_jax import distributed

POLYNOMIAL = np.uint32(0xEDB88320)  # of crc32, its lowest power in the highest bit
ALL_ONES = 0xFFFFFFFF
ONE, BYTE = 1 << 31, 1 << 23  # x^0, x^8

Crcs = UInt32[np.ndarray, "..."]


def digests_of(tree: Any) -> dict[str, str]:
    """Return crc32 and size of every array, by path; where there are more processes, all call."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    own = np.array([_linear_crc(leaf) for _, leaf in leaves], np.uint32)
    parts = np.asarray(distributed.gather(own.tolist()), np.uint32)
    sums = np.bitwise_xor.reduce(parts, axis=0) if len(leaves) else own
    digests = {}
    for (path, leaf), linear in zip(leaves, sums, strict=True):
        name = "/".join(
            str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path
        )
        size_bytes = math.prod(leaf.shape) * leaf.dtype.itemsize
        crc = int(linear) ^ int(_moved(np.uint32(ALL_ONES), size_bytes)) ^ ALL_ONES
        digests[name] = f"{crc:08x}-{size_bytes}"
    return digests


def _linear_crc(leaf: Any) -> int:
    """Return this process's part of an array's crc without its constant terms."""
    if getattr(leaf, "is_fully_addressable", True) and not distributed.is_main():
        return 0  # not a part of the run's array, but a copy that each process has
    if not isinstance(leaf, jax.Array):
        leaf = np.asarray(leaf)
        return _of_part(leaf, (slice(None),) * leaf.ndim, leaf.shape)
    total = 0
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            total ^= _of_part(np.asarray(shard.data), shard.index, leaf.shape)
    return total


def _of_part(part: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """Return the term of a part at an index of a whole of this shape."""
    if not part.size:
        return 0
    starts = [place.start or 0 for place in index]
    strides = [part.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    # From the axis on which the part is cut first, seen from the end, its bytes are one run.
    cut = [axis for axis in range(len(shape)) if part.shape[axis] != shape[axis]]
    num_outer = cut[-1] if cut else 0
    outer = part.shape[:num_outer]
    runs = np.ascontiguousarray(part).reshape(math.prod(outer), -1).view(np.uint8)
    terms = np.array([zlib.crc32(run, ALL_ONES) ^ ALL_ONES for run in runs], np.uint32)
    terms = terms.reshape(outer)
    for axis in reversed(range(num_outer)):
        terms = _joined(terms, strides[axis])
    sizes = [length - 1 for length in outer] + ([part.shape[num_outer]] if shape else [])
    end = sum((s + n) * stride for s, n, stride in zip(starts, sizes, strides, strict=False))
    total_bytes = part.itemsize * math.prod(shape)
    return int(_moved(terms, total_bytes - (end if shape else total_bytes)))


def _joined(terms: Crcs, stride_bytes: int) -> Crcs:
    """Return the sum over the last axis, whose entries lie a stride apart, seen from the last."""
    while terms.shape[-1] > 1:
        if terms.shape[-1] % 2:
            terms = np.concatenate([np.zeros_like(terms[..., :1]), terms], axis=-1)
        terms = _moved(terms[..., 0::2], stride_bytes) ^ terms[..., 1::2]
        stride_bytes *= 2
    return np.asarray(terms[..., 0])


def _moved(crcs: Crcs | np.uint32, num_bytes: int) -> Crcs:
    """Return crcs with so many zero bytes behind them."""
    return np.asarray(_times(crcs, _power(num_bytes)))  # NumPy makes scalars of no axes


@functools.lru_cache(maxsize=4096)
def _power(num_bytes: int) -> int:
    """Return x^(8 * num_bytes) modulo the polynomial."""
    result, square = np.uint32(ONE), np.uint32(BYTE)
    while num_bytes:
        if num_bytes & 1:
            result = _times(result, int(square))
        square = _times(square, int(square))
        num_bytes >>= 1
    return int(result)


def _times(crcs: Any, factor: int) -> Any:
    """Return products modulo the polynomial, all by one factor."""
    product = np.zeros_like(crcs)
    for bit in range(31, -1, -1):
        if factor >> bit & 1:
            product = product ^ crcs
        crcs = (crcs >> np.uint32(1)) ^ (POLYNOMIAL * (crcs & np.uint32(1)))
    return product
