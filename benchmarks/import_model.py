"""Import of 7B-shaped bf16 weights: speed against a plain transpose by safetensors, and memory.

Speed: a checkpoint of two layers of Mistral-7B v0.3's shape with its real embedding and head, to
our import layout. The peer reads the same file by safetensors.numpy into memory of its own,
transposes every matrix and saves; it checks nothing. A second peer leaves the transpose out, which
is the harder mark: our layout keeps a file's own, [out, in]. Ours hashes every byte that it writes;
the whole import, which ends with two runs of the model for its parity number, is timed beside it.
All end with fsync on the same disk, take turns, and must first have given the right bytes.
Memory: RssAnon of a process that imports 4 and 8 layers, parity included, sampled every 10 ms; it
must not grow with depth. Needs 14 GB of disk. `python -m benchmarks import_model`.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

from benchmarks import measure
from mistral_jax import convert
from mistral_jax import export
from mistral_jax import tokenizers
from mistral_jax.config import model as model_config
from mistral_jax.formats import hf_config
from mistral_jax.formats import names
from mistral_jax.formats import safetensors_file
from mistral_jax.formats.tensor_source import TensorSource

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SPEED_LAYERS = 2
MEMORY_LAYERS = (4, 8)
ROUNDS = 5
SPEED_GOAL = 0.7
MEMORY_GOAL_GB = 2.5
SAMPLE_S = 0.01
SCRATCH = "MISTRAL_JAX_BENCHMARK_SCRATCH"


def shape(num_layers: int) -> model_config.DecoderConfig:
    """Return Mistral-7B v0.3 with fewer layers."""
    return model_config.DecoderConfig(
        num_layers=num_layers,
        width=4096,
        num_heads=32,
        num_kv_heads=8,
        head_width=128,
        vocab_size=32_768,
        ffn=model_config.DenseFfn(width=14_336),
        rope=model_config.DefaultRope(theta=1e6),
        max_positions=32_768,
    )


def random_bfloat16(size: tuple[int, ...], seed: int) -> np.ndarray:
    """Return random signs and fractions of one exponent: as incompressible as real weights."""
    bits = np.random.default_rng(seed).integers(0, 1 << 16, size, np.uint16)
    if len(size) == 1:
        return np.ones(size, BFLOAT16)
    return (bits & np.uint16(0x807F) | np.uint16(0x3C80)).view(BFLOAT16)  # 2^-6 <= |x| < 2^-5


def write_checkpoint(folder: Path, num_layers: int) -> Path:
    """Write a Hugging Face folder with random weights."""
    config = shape(num_layers)
    sources = [
        TensorSource(
            entry.foreign_name,
            entry.shape,
            BFLOAT16,
            lambda size=entry.shape, seed=seed: random_bfloat16(size, seed),
        )
        for seed, entry in enumerate(names.entries(config, "hf"))
    ]
    safetensors_file.write_safetensors(folder, sources, max_shard_bytes=1 << 40)
    content = hf_config.hf_config(config.model_dump(), "bfloat16")
    (folder / "config.json").write_text(json.dumps(content))
    tokenizers.load_tokenizer("bytes").save(folder)
    return folder


def run_peer(source: Path, destination: Path, *, transpose: bool = True) -> None:
    """Read all into owned memory, transpose the matrices, save, and wait for the disk."""
    arrays = safetensors.numpy.load_file(source / "model.safetensors")
    if transpose:
        for name, array in arrays.items():
            arrays[name] = np.ascontiguousarray(array.T)
    destination.mkdir()
    file = destination / "model.safetensors"
    safetensors.numpy.save_file(arrays, file)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def write_ours(source: Path, destination: Path) -> None:
    """Write our import layout, without the reload that an import ends with."""
    reader = convert.weights.open_reader(source)
    export.write_model(
        reader,
        destination,
        format="hf",
        dtype="bfloat16",
        tokenizer=tokenizers.load_tokenizer(source),
        name="model",
    )


def import_ours(source: Path, destination: Path) -> None:
    """Run the whole import; what was read back must be what was written."""
    done = convert.import_checkpoint(str(source), str(destination), dtype="checkpoint")
    assert done.largest_logit_difference == 0.0, done


def check_bytes(source: Path, ours: Path, peer: Path) -> None:
    """Assert that both wrote every tensor, ours as it was and the peer transposed."""
    files = [safetensors_file.SafetensorsReader(folder) for folder in (source, ours, peer)]
    assert set(files[0].names()) == set(files[1].names()) == set(files[2].names())
    for name in files[0].names():
        original, copy, turned = (file.tensor(name).view(np.uint16) for file in files)
        assert np.array_equal(original, copy), name
        assert np.array_equal(original, turned.T), name


def timed(run: Callable[[Path, Path], None], source: Path, out: Path) -> Callable[[], float]:
    """Return a round: wall seconds of one run into a folder that is not there yet."""

    def measured() -> float:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        started = time.perf_counter()
        run(source, out)
        return time.perf_counter() - started

    return measured


def peak_gb(source: Path, destination: Path) -> float:
    """Return the largest RssAnon (10^9 bytes) of a process of its own that imports."""
    command = [sys.executable, "-m", "benchmarks.import_model", "--import", str(source)]
    child = subprocess.Popen([*command, str(destination)])
    status, peak_kib = Path(f"/proc/{child.pid}/status"), 0
    while child.poll() is None:
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                peak_kib = max(peak_kib, int(line.split()[1]))
        time.sleep(SAMPLE_S)
    if child.returncode:
        raise SystemExit(f"the import ended with code {child.returncode}")
    return peak_kib * 1024 / 1e9


def measure_memory(scratch: Path) -> dict[int, float]:
    """Return the peak by depth."""
    peaks = {}
    for depth in MEMORY_LAYERS:
        source, out = write_checkpoint(scratch / f"{depth}", depth), scratch / f"{depth}-out"
        peaks[depth] = round(peak_gb(source, out), 3)
        shutil.rmtree(source)
        shutil.rmtree(out)
    return peaks


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--import", dest="paths", nargs=2, type=Path, help="only import")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if options.paths:
        return import_ours(*options.paths)
    with tempfile.TemporaryDirectory(dir=os.environ.get(SCRATCH)) as name:
        scratch = Path(name)
        source = write_checkpoint(scratch / "source", SPEED_LAYERS)
        ours, peer = scratch / "ours", scratch / "peer"
        write_ours(source, ours)
        run_peer(source, peer)
        check_bytes(source, ours, peer)
        runs = {
            "ours": timed(write_ours, source, ours),
            "peer": timed(run_peer, source, peer),
            "copy": timed(functools.partial(run_peer, transpose=False), source, peer),
            "whole": timed(import_ours, source, ours),
        }
        seconds = {which: [] for which in runs}
        for index in range(1 + options.rounds):  # the first warms up
            for which, run in runs.items():
                taken = run()
                if index:
                    seconds[which].append(taken)
        size = (source / "model.safetensors").stat().st_size
        for folder in (source, ours, peer):
            shutil.rmtree(folder)
        peaks = measure_memory(scratch)
    if max(peaks.values()) > MEMORY_GOAL_GB:
        raise SystemExit(f"peak memory {peaks} GB by layers, more than {MEMORY_GOAL_GB}")
    speeds = {which: size / statistics.median(took) / 1e9 for which, took in seconds.items()}

    def ratio(ours: str, peer: str) -> float:
        return round(measure.Rounds(seconds[ours], seconds[peer]).speedup, 2)

    if ratio("ours", "peer") < SPEED_GOAL:
        raise SystemExit(f"{speeds} GB/s: below {SPEED_GOAL} of the peer's")
    measure.report(
        "import of bf16 weights in 7B shapes, written to our layout",
        value=round(speeds["ours"], 2),
        unit="GB/s",
        peer="safetensors.numpy load_file, transpose, save_file",
        peer_value=round(speeds["peer"], 2),
        ratio=ratio("ours", "peer"),
        goal=SPEED_GOAL,
        size_gb=round(size / 1e9, 2),
        peer_without_transpose=round(speeds["copy"], 2),
        ratio_without_transpose=ratio("ours", "copy"),
        whole_import_with_parity=round(speeds["whole"], 2),
        ratio_whole_import=ratio("whole", "peer"),
        peak_rss_anon_gb={str(depth): peak for depth, peak in peaks.items()},
        memory_goal_gb=MEMORY_GOAL_GB,
        shapes={"shape": "Mistral-7B v0.3", "speed_layers": SPEED_LAYERS,
                "memory_layers": list(MEMORY_LAYERS)},
        versions={"safetensors": importlib.metadata.version("safetensors")},
        n=options.rounds,
        spread=measure.spread([size / took / 1e9 for took in seconds["ours"]]),
    )  # fmt: skip
    return None


if __name__ == "__main__":
    sys.exit(main())
