"""Block layouts of GGUF's quantised tensors: bytes to float32, and float32 to Q8_0.

Every function takes `[blocks, bytes_per_block]` uint8 and gives `[blocks, weights_per_block]`
float32, vectorised over blocks. What is not listed in `BLOCKS` is refused by name by the reader.
Format: ggml-common.h and ggml-quants.c of https://github.com/ggml-org/llama.cpp
"""

from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float
from jaxtyping import UInt8

Bytes = UInt8[np.ndarray, "N bytes"]
Weights = Float[np.ndarray, "N weights"]


def _half(raw: Bytes) -> Weights:
    # ascontiguousarray: a view with another item size needs the last axis to be contiguous.
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _nibbles(raw: Bytes) -> UInt8[np.ndarray, "N quants"]:
    """Split bytes into low nibbles first, then high nibbles, as the 32-weight blocks store them."""
    return np.concatenate([raw & 0x0F, raw >> 4], axis=1)


def _fifth_bits(raw: Bytes) -> UInt8[np.ndarray, "N quants"]:
    bits = np.ascontiguousarray(raw).view("<u4") >> np.arange(32, dtype=np.uint32)
    return (bits & 1).astype(np.uint8) << 4


def _float32(raw: Bytes) -> Weights:
    return np.ascontiguousarray(raw).view(np.float32)


def _float64(raw: Bytes) -> Weights:
    return np.ascontiguousarray(raw).view(np.float64).astype(np.float32)


def _bfloat16(raw: Bytes) -> Weights:
    return np.ascontiguousarray(raw).view(ml_dtypes.bfloat16).astype(np.float32)


def _q4_0(raw: Bytes) -> Weights:
    return _half(raw[:, :2]) * (_nibbles(raw[:, 2:]).astype(np.float32) - 8)


def _q4_1(raw: Bytes) -> Weights:
    return _half(raw[:, :2]) * _nibbles(raw[:, 4:]) + _half(raw[:, 2:4])


def _q5_0(raw: Bytes) -> Weights:
    quants = _nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6])
    return _half(raw[:, :2]) * (quants.astype(np.float32) - 16)


def _q5_1(raw: Bytes) -> Weights:
    quants = _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])
    return _half(raw[:, :2]) * quants + _half(raw[:, 2:4])


def _q8_0(raw: Bytes) -> Weights:
    return _half(raw[:, :2]) * np.ascontiguousarray(raw[:, 2:]).view(np.int8)


def _packed_scales(raw: Bytes) -> tuple[Weights, Weights]:
    """Unpack eight 6-bit scales and eight 6-bit minima out of 12 bytes (Q4_K, Q5_K)."""
    first, second, mixed = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    scales = np.concatenate([first & 0x3F, (mixed & 0x0F) | ((first >> 2) & 0x30)], axis=1)
    minima = np.concatenate([second & 0x3F, (mixed >> 4) | ((second >> 2) & 0x30)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _scaled_by_subblock(raw: Bytes, quants: UInt8[np.ndarray, "N 8 32"]) -> Weights:
    scales, minima = _packed_scales(raw[:, 4:16])
    scales = _half(raw[:, :2]) * scales
    minima = _half(raw[:, 2:4]) * minima
    return (scales[:, :, None] * quants - minima[:, :, None]).reshape(len(raw), 256)


def _four_bit_rows(raw: Bytes) -> UInt8[np.ndarray, "N 8 32"]:
    """Split 128 bytes: each run of 32 holds sub-block 2i in low and 2i+1 in high nibbles."""
    runs = raw.reshape(len(raw), 4, 1, 32)
    return np.concatenate([runs & 0x0F, runs >> 4], axis=2).reshape(len(raw), 8, 32)


def _q4_k(raw: Bytes) -> Weights:
    return _scaled_by_subblock(raw, _four_bit_rows(raw[:, 16:]))


def _q5_k(raw: Bytes) -> Weights:
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]
    high = (raw[:, None, 16:48] >> shifts) & 1
    return _scaled_by_subblock(raw, _four_bit_rows(raw[:, 48:]) | (high << 4))


def _q6_k(raw: Bytes) -> Weights:
    low = raw[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 0x0F, low >> 4], axis=2).reshape(-1, 256)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = ((raw[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 256)
    quants = (low | (high << 4)).astype(np.float32) - 32
    scales = np.ascontiguousarray(raw[:, 192:208]).view(np.int8).astype(np.float32)
    scales = np.repeat(_half(raw[:, 208:210]) * scales, 16, axis=1)
    return scales * quants


class BlockType(NamedTuple):
    """A tensor type: its number in the file, block sizes and the way back to float32."""

    number: int
    name: str
    weights: int
    size_bytes: int
    dequantize: Callable[[Bytes], Weights]


BLOCKS = {
    block.number: block
    for block in (
        BlockType(0, "F32", 1, 4, _float32),
        BlockType(1, "F16", 1, 2, _half),
        BlockType(2, "Q4_0", 32, 18, _q4_0),
        BlockType(3, "Q4_1", 32, 20, _q4_1),
        BlockType(6, "Q5_0", 32, 22, _q5_0),
        BlockType(7, "Q5_1", 32, 24, _q5_1),
        BlockType(8, "Q8_0", 32, 34, _q8_0),
        BlockType(12, "Q4_K", 256, 144, _q4_k),
        BlockType(13, "Q5_K", 256, 176, _q5_k),
        BlockType(14, "Q6_K", 256, 210, _q6_k),
        BlockType(28, "F64", 1, 8, _float64),
        BlockType(30, "BF16", 1, 2, _bfloat16),
    )
}
# Known by name only, for the refusal.
UNSUPPORTED = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
    41: "Q1_0",
}  # fmt: skip
BLOCKS_BY_NAME = {block.name: block for block in BLOCKS.values()}


def quantize_q8_0(values: Float[np.ndarray, "N 32"]) -> Bytes:
    """Quantise rows of 32 weights to Q8_0 (34 bytes each), rounding halves away from zero."""
    values = values.astype(np.float32)
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    scaled = values * inverse
    quants = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    return np.concatenate([scale.astype(np.float16).view(np.uint8), quants.view(np.uint8)], axis=1)
