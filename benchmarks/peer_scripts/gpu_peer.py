"""What the torch peers of the GPU rows share: the protocol, timing, hashed numbers.

A request is a line of JSON on stdin with an `op`; the answer a line on stdout, {"error": why} where
it failed. Everything that libraries print goes to stderr. Arguments: platform, dtype.
"""

import importlib.util
import json
import math
import os
import sys
import time
import traceback
import zlib

import torch

ROUND_SECONDS = 0.05
MAX_REPEATS = 50
SAMPLE_SIZE = 256
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
LOW_BITS = 0xFFFFFFFF

PLATFORM, DTYPE_NAME = sys.argv[1:]
DTYPE = getattr(torch, DTYPE_NAME)
DEVICE = torch.device("cuda" if PLATFORM == "gpu" else "cpu")


def serve(operations):
    """Answer until stdin closes; `prepared` holds what the last operation made ready to time."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content):
        print(json.dumps(content), file=answers, flush=True)

    versions = {"torch": torch.__version__, "torch_cuda": str(torch.version.cuda)}
    answer(versions)
    prepared = {}
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("op")
        try:
            if DEVICE.type == "cuda" and not torch.cuda.is_available():
                raise RuntimeError(f"torch {torch.__version__} here sees no GPU")
            if operation == "time":
                answer({"seconds": timed(prepared[request["what"]])})
                continue
            if operation not in ("train", "prefill", "decode"):
                prepared.clear()
                if DEVICE.type == "cuda":
                    torch.cuda.empty_cache()
            answer(operations[operation](prepared, **request))
        except Exception as error:  # noqa: BLE001 - the process's boundary
            traceback.print_exc()
            first = (str(error).strip().splitlines() or [""])[0]
            answer({"error": f"{type(error).__name__}: {first[:300]}"})


def wait():
    """Wait until the device is idle."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def timed(call):
    """Return the mean seconds of as many calls as fill ROUND_SECONDS."""
    repeats = getattr(call, "repeats", None)
    if repeats is None:
        call()
        wait()
        started = time.perf_counter()
        call()
        wait()
        once = max(time.perf_counter() - started, 1e-6)
        repeats = max(1, min(MAX_REPEATS, math.ceil(ROUND_SECONDS / once)))
        call.repeats = repeats
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - started) / repeats


def _mixed(x):
    first, second = MULTIPLIERS
    # int64 products wrap; their low 32 bits are right all the same.
    x = ((x ^ (x >> 16)) * first) & LOW_BITS
    x = ((x ^ (x >> 15)) * second) & LOW_BITS
    return x ^ (x >> 16)


def hashed(name, shape, *, scale=1.0, dtype=None):
    """Return the numbers that benchmarks/gpu_rows/hashed.py makes of the same name and shape."""
    count = math.prod(shape)
    index = torch.arange(count, dtype=torch.int64, device=DEVICE)
    bits = _mixed(_mixed(index) ^ zlib.crc32(name.encode())) >> 8
    # float32 constants, as there: a Python number would be rounded once more or once less.
    step = torch.tensor(2.0**-23, dtype=torch.float32, device=DEVICE)
    width = torch.tensor(scale * 3**0.5, dtype=torch.float32, device=DEVICE)
    unit = bits.to(torch.float32) * step - 1.0
    return (unit * width).to(dtype or DTYPE).reshape(shape)


def sample(tensor):
    """Return numbers from all over a tensor, as benchmarks/gpu_rows/device.py does."""
    stride = max(1, tensor.numel() // SAMPLE_SIZE) | 1
    return tensor.detach().reshape(-1)[::stride][:SAMPLE_SIZE].float().tolist()


def is_installed(name):
    """Tell whether a package is here."""
    return importlib.util.find_spec(name) is not None
