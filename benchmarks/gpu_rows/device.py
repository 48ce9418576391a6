"""What every GPU row shares: the machine, checks, rounds in turns with torch, one line a figure.

A row module has `lines(machine, peer)`; `main` runs it. A case that fails becomes a line with an
`error`, and the row's other cases go on.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure

ROUNDS = 5
# A round of a short call repeats it for this long, without waiting in between.
ROUND_SECONDS = 0.05
MAX_REPEATS = 50
SAMPLE_SIZE = 256
# (part of the device's name, dense bf16 TFLOP/s, GB/s): the vendor's data sheets; first match.
SPECIFICATIONS: tuple[tuple[str, float, float], ...] = (
    ("H200", 989.0, 4800.0),
    ("H100 PCIe", 756.0, 2000.0),
    ("H100", 989.0, 3350.0),
    ("A100-SXM4-80GB", 312.0, 2039.0),
    ("A100 80GB", 312.0, 1935.0),
    ("A100", 312.0, 1555.0),
    ("A10G", 70.0, 600.0),
)
# What a case may raise where the device or the installation lacks something.
FAILURES = (ArithmeticError, ImportError, MemoryError, OSError, RuntimeError, ValueError)

Line = dict[str, Any]


class CheckError(ArithmeticError):
    """Two things that should compute the same do not."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where the rows run.

    Attributes:
        is_tiny: toy shapes in float32, to test the code on any platform.
        platform: JAX's name: gpu, cpu.
        kind: the device's name.
        memory_gib: what JAX may use; infinity where it does not say.
        gemm_tflops: measured by the row `limits` in the same run; None before it.
        copy_gb_per_s: likewise, bytes read and written.
    """

    is_tiny: bool
    platform: str
    kind: str
    memory_gib: float
    gemm_tflops: float | None = None
    copy_gb_per_s: float | None = None

    @property
    def dtype(self) -> np.dtype:
        """Return the number format of activations."""
        return np.dtype(np.float32) if self.is_tiny else np.dtype(jnp.bfloat16)

    @property
    def tolerance(self) -> float:
        """Return the greatest distance of one operator's results from its oracle, by norm."""
        return 1e-4 if self.is_tiny else 2e-2

    @property
    def rounds(self) -> int:
        """Return how often a case is timed."""
        return 2 if self.is_tiny else ROUNDS

    def pick(self, full: Any, tiny: Any) -> Any:
        """Return the shape for this run."""
        return tiny if self.is_tiny else full

    def shares(self, tflops: float) -> dict[str, float]:
        """Return the shares of the specified and of the measured peak."""
        peaks = {"of_spec": self._specified()[0], "of_gemm": self.gemm_tflops}
        return {name: round(tflops / peak, 3) for name, peak in peaks.items() if peak}

    def bandwidth(self) -> dict[str, float]:
        """Return GB/s by where the figure comes from."""
        found = {"spec": self._specified()[1], "copy": self.copy_gb_per_s}
        return {name: value for name, value in found.items() if value}

    def _specified(self) -> tuple[float | None, float | None]:
        rows = (peaks for name, *peaks in SPECIFICATIONS if name in self.kind)
        tflops, gb_per_s = next(rows, (None, None))
        return tflops, gb_per_s


class Peer:
    """A torch script in its own process, or the reason why there is none."""

    def __init__(self, script: str, machine: Machine) -> None:
        """Start it; it loads nothing yet."""
        self.versions: dict[str, str] = {}
        self.missing: str | None = None
        self._process: measure.PeerProcess | None = None
        try:
            self._process = measure.PeerProcess(script, machine.platform, machine.dtype.name)
            self.versions = self._process.versions
        except OSError as error:
            self.missing = one_line(error)

    def ask(self, operation: str, **fields: Any) -> Line:
        """Return the answer to a request; {"error": why} where there is none."""
        if self._process is None:
            return {"error": self.missing}
        try:
            answer = self._process.ask(json.dumps({"op": operation, **fields}))
        except OSError as error:  # a broken pipe too
            self._process, self.missing = None, one_line(error)
            return {"error": self.missing}
        if "error" in answer:
            print(f"peer: {operation}: {answer['error']}", file=sys.stderr)
        return answer

    def timer(self, what: str) -> Callable[[], float]:
        """Return a round of what was prepared last."""

        def run() -> float:
            answer = self.ask("time", what=what)
            if "error" in answer:
                raise OSError(f"peer: {answer['error']}")
            return answer["seconds"]

        return run

    def close(self) -> None:
        """End the process, which frees its memory."""
        if self._process is not None:
            self._process.close()
            self._process, self.missing = None, "closed"


def one_line(error: BaseException) -> str:
    """Return an error as one short line."""
    first = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[0][:300]}"


def check(name: str, ours: Any, expected: Any, tolerance: float) -> float:
    """Return how far two arrays lie apart, relative to the second's norm.

    Raises:
        CheckError: farther than the tolerance, or not a number.
    """
    left = jnp.asarray(ours, jnp.float32).reshape(-1)
    right = jnp.asarray(expected, jnp.float32).reshape(-1)
    if left.shape != right.shape:
        raise CheckError(f"{name}: {left.size} numbers against {right.size}")
    scale = float(jnp.linalg.norm(right))
    apart = float(jnp.linalg.norm(left - right)) / (scale or 1.0)
    if not apart <= tolerance:  # NaN too
        raise CheckError(f"{name}: {apart:.2e} apart from the oracle, tolerance {tolerance}")
    return apart


def sample(array: jax.Array) -> list[float]:
    """Return numbers from all over an array; the peer takes the same ones (gpu_peer.py)."""
    stride = max(1, array.size // SAMPLE_SIZE) | 1
    return np.asarray(array.reshape(-1)[::stride][:SAMPLE_SIZE], np.float32).tolist()


class Program:
    """A compiled call: of its own arguments, or of others of the same shapes."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        """Compile it."""
        self._run = jax.jit(function).lower(*arguments).compile()
        self._arguments = arguments
        analysis = self._run.memory_analysis()
        self.temporary_bytes = 0 if analysis is None else int(analysis.temp_size_in_bytes)

    def __call__(self, *others: Any) -> Any:
        """Run once, without waiting for the end."""
        return self._run(*(others or self._arguments))

    @property
    def temporary_mib(self) -> int:
        """Return what it needs beside arguments and results."""
        return round(self.temporary_bytes / 2**20)


def timer(call: Callable[[], Any]) -> Callable[[], float]:
    """Return a round: the mean seconds of as many calls as fill ROUND_SECONDS."""
    jax.block_until_ready(call())
    started = time.perf_counter()
    jax.block_until_ready(call())
    once = max(time.perf_counter() - started, 1e-6)
    repeats = max(1, min(MAX_REPEATS, math.ceil(ROUND_SECONDS / once)))

    def run() -> float:
        started = time.perf_counter()
        for _ in range(repeats - 1):
            call()
        jax.block_until_ready(call())
        return (time.perf_counter() - started) / repeats

    return run


def race(
    ours: Callable[[], float], peer: Callable[[], float] | None, *, num_rounds: int
) -> measure.Rounds:
    """Run both in turns, or ours alone; a peer that stops answering leaves ours alone."""
    if peer is not None:
        try:
            return measure.interleave(ours, peer, num_rounds=num_rounds)
        except OSError as error:
            print(one_line(error), file=sys.stderr)
    ours()
    return measure.Rounds([ours() for _ in range(num_rounds)], [])


def line(
    metric: str,
    rounds: measure.Rounds,
    *,
    work: float,
    unit: str,
    peer: str,
    limit: Line | None = None,
    digits: int = 1,
    **more: Any,
) -> Line:
    """Return a figure as a rate: work per median second, and the peer's.

    Args:
        metric: what is measured.
        rounds: seconds, ours and the peer's.
        work: done in one round, in thousands of millions or whatever the unit says.
        unit: of work per second.
        peer: its name; where rounds has none of it, why.
        limit: what physics allows, {"name", "value"} in the same unit.
        digits: to round rates to.
        more: further fields.
    """
    value = work / statistics.median(rounds.ours)
    peer_value = work / statistics.median(rounds.peer) if rounds.peer else None
    found: Line = {
        "metric": metric,
        "value": round(value, digits),
        "unit": unit,
        "peer": peer,
        "peer_value": None if peer_value is None else round(peer_value, digits),
        "ratio": round(rounds.speedup, 3) if rounds.peer else None,
        "limit": limit,
        "n": len(rounds.ours),
        "spread": measure.spread([work / seconds for seconds in rounds.ours], digits=digits),
        "error": None,
        **more,
    }
    if limit and limit.get("value"):
        found["of_limit"] = round(value / limit["value"], 3)
    return found


def flops_line(
    machine: Machine, metric: str, rounds: measure.Rounds, *, flops: float, peer: str, **more: Any
) -> Line:
    """Return a figure in TFLOP/s with its shares of the peaks."""
    rate = flops / 1e12 / statistics.median(rounds.ours)
    more |= machine.shares(rate)
    limit = {"name": "8192^3 matmul of this run", "value": machine.gemm_tflops}
    more.setdefault("limit", limit if machine.gemm_tflops else None)
    digits = 6 if machine.is_tiny else 1
    return line(metric, rounds, work=flops / 1e12, unit="TFLOP/s", peer=peer, digits=digits, **more)


def guarded(metric: str, case: Callable[[], Line]) -> Line:
    """Return the case's line, or one that says in a line why there is none."""
    try:
        return case()
    except FAILURES as error:
        traceback.print_exc()
        return {"metric": metric, "value": None, "error": one_line(error)}


def skipped(metric: str, reason: str) -> Line:
    """Return the line of a case that cannot run here."""
    return {"metric": metric, "value": None, "error": None, "skipped": reason}


def peak_gib() -> float | None:
    """Return the most device memory that this process held, where the platform tells."""
    stats = jax.devices()[0].memory_stats()
    return round(stats["peak_bytes_in_use"] / 2**30, 2) if stats else None


def this_machine(*, is_tiny: bool, gemm_tflops: float | None, copy: float | None) -> Machine:
    """Return the first device as a Machine; starts JAX."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    memory_gib = stats.get("bytes_limit", math.inf) / 2**30
    return Machine(is_tiny, device.platform, device.device_kind, memory_gib, gemm_tflops, copy)


def main(lines: Callable[[Machine, Peer], Iterator[Line]], script: str) -> None:
    """Print a row's lines as they come."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--gemm-tflops", type=float)
    parser.add_argument("--copy-gb-per-s", type=float)
    options = parser.parse_args()
    machine = this_machine(
        is_tiny=options.tiny, gemm_tflops=options.gemm_tflops, copy=options.copy_gb_per_s
    )
    peer = Peer(script, machine)
    facts = {"device": machine.kind, "platform": machine.platform, "peer_versions": peer.versions}
    print(json.dumps({"facts": facts}), flush=True)
    for found in lines(machine, peer):
        print(json.dumps(found), flush=True)
    peer.close()
