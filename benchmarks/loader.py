"""Loader: tokens per CPU-second from ArrayRecord shards to packed batches, against Grain's packers.

30,000 documents of lognormal length (mean 570 tokens), rows of 2,048, no worker processes. It is
first asserted that each target of the epoch comes out exactly once. The peers read the same shard
through Grain's own source and pack with its best-fit and first-fit datasets; rounds of all three
take turns. Prints one line of JSON; `python benchmarks/loader.py [--documents N] [--rounds R]`.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import batches
from data_pipelines import records
from data_pipelines import shards
from data_pipelines import sources
from mistral_jax.config.data import DataConfig
from mistral_jax.protocols import Batch

grain = batches.grain  # the house lets one room import Grain; the peers are its own packers
ROW_TOKENS = 2048
BATCH_ROWS = 64
BINS = 64
VOCABULARY = 32_768
MEAN_TOKENS = 570
SIGMA = 1.0  # of log length; 3.7 % of the documents are then longer than a row


def write_source(folder: Path, num_documents: int) -> Path:
    """Write a prepared folder of random documents as `prepare` would have."""
    rng = np.random.default_rng(0)
    mean = np.log(MEAN_TOKENS) - SIGMA**2 / 2
    lengths = np.maximum(2, rng.lognormal(mean, SIGMA, num_documents).astype(int))
    writer = shards.SplitWriter(folder / "train")
    for index, length in enumerate(lengths.tolist()):
        tokens = rng.zipf(1.2, size=length) % VOCABULARY
        writer.add(records.encode_record(tokens, None, f"d{index}", token_bytes=2))
    described = {"name": "random", "digest": "0", "vocab_size": VOCABULARY}
    write_manifest(folder, described, {"train": writer.close()}, token_bytes=2)
    return folder


def write_manifest(
    folder: Path, tokenizer: dict[str, Any], splits: dict[str, Any], *, token_bytes: int
) -> None:
    """Write the manifest that makes a folder of shards one that `prepare` could have left."""
    manifest = {
        "version": sources.MANIFEST_VERSION,
        "name": folder.name,
        "fingerprint": "benchmark",
        "token_bytes": token_bytes,
        "tokenizer": tokenizer,
        "settings": {},
        "counts": {"kept": sum(entry["documents"] for entry in splits.values())},
        "rejects": {"by_kind": {}},
        "splits": splits,
    }
    (folder / sources.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def run_ours(folder: Path, look: Callable[[Batch], None] | None = None) -> tuple[int, int]:
    """Make the batches of one epoch; return (real tokens, rows)."""
    source = sources.ArrayRecordSource(folder)
    config = DataConfig(
        train="x",
        sequence_length=ROW_TOKENS,
        global_batch_sequences=BATCH_ROWS,
        prefetch_batches=0,
    )
    made = batches.train_batches([source], config, seed=0)
    wanted = int((source.lengths - 1).sum())
    tokens = rows = 0
    for batch in made:
        # The epoch ends inside the last batch; what follows belongs to the next one.
        tokens += int(np.count_nonzero(batch.segment_ids))
        rows += len(batch.tokens)
        if look:
            look(batch)
        if tokens >= wanted:
            return tokens, rows
    raise AssertionError("train batches are endless")


def run_grain(folder: Path, packer: type) -> tuple[int, int]:
    """Read, cut at the row's end and pack one epoch with Grain; return (real tokens, rows)."""
    shard = sorted((folder / "train").glob("*.array_record"))
    source = grain.sources.ArrayRecordDataSource([str(path) for path in shard])

    def parse(record: bytes) -> dict[str, np.ndarray]:
        count = int.from_bytes(record[4:8], "little")
        tokens = np.frombuffer(record, np.uint16, count, records.HEADER_BYTES)
        return {"tokens": tokens[:ROW_TOKENS].astype(np.int32)}

    read = grain.MapDataset.source(source).shuffle(seed=0).map(parse)
    rows_of = packer(
        read.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
        length_struct={"tokens": ROW_TOKENS},
        num_packing_bins=BINS,
    )
    tokens = rows = 0
    for row in rows_of.batch(BATCH_ROWS):
        tokens += int(np.count_nonzero(row["tokens_segment_ids"]))
        rows += len(row["tokens"])
    return tokens, rows


def check_each_target_once(folder: Path) -> float:
    """Assert that an epoch holds every (input, target) pair exactly once; return the fill."""
    source = sources.ArrayRecordSource(folder)
    wanted = np.zeros(1 << 30 >> 5, np.int32)  # counts by a hash of the pair
    for start in range(0, len(source), 1024):
        for example in source.__getitems__(range(start, min(start + 1024, len(source)))):
            np.add.at(wanted, _slot(example.tokens[:-1], example.tokens[1:]), 1)
    order = batches.train_batches(
        [source],
        DataConfig(train="x", sequence_length=ROW_TOKENS, global_batch_sequences=BATCH_ROWS),
        seed=0,
    )._rows
    ledger = order.order
    rows = sum(ledger.plan(block).num_rows for block in range(ledger.mixture.blocks_per_epoch))
    for start in range(0, rows, BATCH_ROWS):
        batch = order.batch(start, min(start + BATCH_ROWS, rows))
        inside = batch.segment_ids > 0
        assert (batch.loss_weights[inside] == 1).all() and not batch.loss_weights[~inside].any()
        np.subtract.at(wanted, _slot(batch.tokens[inside], batch.targets[inside]), 1)
    assert not wanted.any(), "an epoch must hold every target exactly once"
    return float((source.lengths - 1).sum() / (rows * ROW_TOKENS))


def _slot(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    pair = inputs.astype(np.uint64) << np.uint64(15) | targets.astype(np.uint64)
    return (pair * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(39)


def measure(run: Callable[[], tuple[int, int]]) -> tuple[float, float]:
    """Return (tokens per CPU-second, fill) of one round."""
    start = time.process_time()
    tokens, rows = run()
    return tokens / (time.process_time() - start), tokens / (rows * ROW_TOKENS)


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = write_source(Path(name), options.documents)
        fill = check_each_target_once(folder)
        runs = {
            "ours": lambda: run_ours(folder),
            "best_fit": lambda: run_grain(folder, grain.experimental.BestFitPackIterDataset),
            "first_fit": lambda: run_grain(folder, grain.experimental.FirstFitPackIterDataset),
        }
        rounds = {which: [] for which in runs}
        for _ in range(options.rounds):
            for which, run in runs.items():
                rounds[which].append(measure(run))
    rates = {which: statistics.median(rate for rate, _ in got) for which, got in rounds.items()}
    peer = max(("best_fit", "first_fit"), key=rates.get)
    ours = sorted(rate for rate, _ in rounds["ours"])
    print(
        json.dumps(
            {
                "metric": "loader: packed tokens per CPU-second from ArrayRecord",
                "value": round(rates["ours"] / 1e6, 2),
                "unit": "million tokens / CPU-s",
                "peer": f"grain {peer} (documents cut at the row's end)",
                "peer_value": round(rates[peer] / 1e6, 2),
                "ratio": round(rates["ours"] / rates[peer], 2),
                "fill": round(fill, 4),
                "peer_fill": round(rounds[peer][0][1], 4),
                "shapes": {
                    "documents": options.documents,
                    "mean_tokens": MEAN_TOKENS,
                    "row": ROW_TOKENS,
                    "batch_rows": BATCH_ROWS,
                    "peer_bins": BINS,
                },
                "versions": {
                    package: importlib.metadata.version(package)
                    for package in ("numpy", "grain", "array-record")
                }
                | {"python": platform.python_version()},
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu_name()}",
                "n": options.rounds,
                "spread": [round(ours[0] / 1e6, 2), round(ours[-1] / 1e6, 2)],
            }
        )
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
