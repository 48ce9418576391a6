"""Quantises the weights of an .npz by bitsandbytes on the CPU and writes what it made of them.

For each [out, in] array NAME: NAME.codes, .absmax (8-bit), .largest (as dequantised), both also as
searched_.. (see below), .scales, .offset, .map, .values, and .int8_codes, .int8_absmax.
"""

import json
import pathlib
import sys

import bitsandbytes
import numpy as np
import torch
from bitsandbytes import functional


def main() -> None:
    """Quantise every array."""
    job = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = {"version": np.asarray(bitsandbytes.__version__)}
    for name, array in np.load(job["weights"]).items():
        weight = torch.from_numpy(array)
        codes, state = functional.quantize_4bit(
            weight, blocksize=64, quant_type="nf4", compress_statistics=True
        )
        exact = torch.from_numpy(abs(array.reshape(-1, 64)).max(axis=1)) - state.offset
        # In float64 the package searches the nearest entry of the map, as its GPU kernels do; its
        # float32 code for CPUs looks it up in a table of 2**16 values, and misses it near borders.
        map_codes, scales = torch.ops.bitsandbytes.quantize_blockwise.default(
            exact.double(), state.state2.code, 256
        )
        searched = (
            state.state2.code[map_codes.long()] * scales.repeat_interleave(256)[: exact.numel()]
        )
        largest = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        found[f"{name}.codes"] = codes.numpy().reshape(array.shape[0], -1)
        found[f"{name}.absmax"] = state.absmax.numpy().reshape(array.shape[0], -1)
        found[f"{name}.largest"] = largest.numpy().reshape(array.shape[0], -1)
        found[f"{name}.searched_absmax"] = map_codes.numpy().reshape(array.shape[0], -1)
        found[f"{name}.searched_largest"] = (searched + state.offset).numpy()
        found[f"{name}.scales"] = state.state2.absmax.numpy()
        found[f"{name}.offset"] = state.offset.numpy()
        found[f"{name}.map"] = state.state2.code.numpy()
        found[f"{name}.values"] = functional.dequantize_4bit(codes, state).numpy()
        int8_codes, int8_absmax, _ = torch.ops.bitsandbytes.int8_vectorwise_quant.default(weight)
        found[f"{name}.int8_codes"] = int8_codes.numpy()
        found[f"{name}.int8_absmax"] = int8_absmax.numpy()
    np.savez(job["out"], **found)


main()
