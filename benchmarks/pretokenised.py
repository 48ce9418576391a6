"""Pre-tokenised shards against tokenising on the fly: tokens per CPU-second to packed rows.

Real texts of this machine, the v3 tokenizer, rows of 2,048. Ours reads what `prepare` writes:
tokens in ArrayRecord, packed by best fit in blocks, handed over by Grain. The peer reads the same
texts from ArrayRecord through Grain, tokenises them there and concatenates and splits, its cheapest
way to pack. Both end in batches of [64, 2048]; it is first asserted that both hold the same tokens,
and how full our rows are. One process each, no workers, CPU-seconds, rounds in turns.
`python -m benchmarks.pretokenised [--megabytes N] [--rounds R]`.
"""

import argparse
import importlib.metadata
import statistics
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from benchmarks import loader
from benchmarks import measure
from benchmarks import near_duplicates
from data_pipelines import batches
from data_pipelines import records
from data_pipelines import shards
from data_pipelines import sources
from mistral_jax import tokenizers
from mistral_jax.config.data import DataConfig

grain = batches.grain  # the house lets one room import Grain; the peer is its own packer
TOKENIZER = "mistral-common:v3"
ROW_TOKENS, BATCH_ROWS = loader.ROW_TOKENS, loader.BATCH_ROWS
TEXTS = "texts.array_record"
MIN_FILL = 0.97
Run = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]  # (tokens, which of them are real)


def write_prepared(
    folder: Path, documents: Iterable[list[int]], tokenizer: tokenizers.Tokenizer
) -> int:
    """Write a prepared folder of tokens as `prepare` would have; return its tokens."""
    writer = shards.SplitWriter(folder / "train")
    width = records.token_bytes_for(tokenizer.vocab_size)
    total = 0
    for number, tokens in enumerate(documents):
        made = np.asarray(tokens, np.int64)
        writer.add(records.encode_record(made, None, f"d{number}", token_bytes=width))
        total += len(tokens)
    described = {
        "name": tokenizer.name, "digest": tokenizer.digest, "vocab_size": tokenizer.vocab_size,
        "add_bos": tokenizer.add_bos,
    }  # fmt: skip
    splits = {"train": writer.close(), "eval": shards.SplitWriter(folder / "eval").close()}
    loader.write_manifest(folder, described, splits, token_bytes=width)
    return total


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """Write texts as records."""
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for text in texts:
        writer.write(text.encode())
    writer.close()


def run_ours(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield one epoch's (targets, which are real) from the tokens."""
    source = sources.ArrayRecordSource(folder)
    config = DataConfig(
        train="x",
        sequence_length=ROW_TOKENS,
        global_batch_sequences=BATCH_ROWS,
        prefetch_batches=0,
    )
    left = int((source.lengths - 1).sum())
    for batch in batches.train_batches([source], config, seed=0):
        is_real = batch.segment_ids > 0
        row_ends = np.cumsum(np.count_nonzero(is_real, axis=1))
        is_real[np.searchsorted(row_ends, left) + 1 :] = False  # of the next epoch
        yield batch.targets, is_real
        left -= int(row_ends[-1])
        if left <= 0:
            return


def run_grain(
    path: Path, parse: Callable[[bytes], dict[str, np.ndarray]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield one epoch's (tokens, which are real) from the texts, tokenised on the way."""
    source = grain.sources.ArrayRecordDataSource([str(path)])
    read = grain.MapDataset.source(source).shuffle(seed=0).map(parse)
    packed = grain.experimental.ConcatThenSplitIterDataset(
        read.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
        length_struct={"tokens": ROW_TOKENS},
    )
    for row in packed.batch(BATCH_ROWS):
        yield row["tokens"], row["tokens_segment_ids"] > 0


def check(ours: Run, peer: Run, tokenizer: tokenizers.Tokenizer, num_documents: int) -> dict:
    """Assert that both give the same tokens; return counts and fills.

    Our targets leave out the first token of each document, which is the begin token.
    """
    counts = {}
    figures: dict[str, Any] = {}
    for who, run in (("ours", ours), ("peer", peer)):
        found = np.zeros(tokenizer.vocab_size, np.int64)
        rows = 0
        for tokens, is_real in run():
            found += np.bincount(tokens[is_real], minlength=tokenizer.vocab_size)
            rows += int(is_real.any(axis=1).sum())
        counts[who] = found
        figures[f"{who}_fill"] = round(float(found.sum() / (rows * ROW_TOKENS)), 4)
    counts["ours"][tokenizer.bos_id] += num_documents
    assert (counts["ours"] == counts["peer"]).all(), "both must hold the same tokens"
    assert figures["ours_fill"] >= MIN_FILL, figures
    return {**figures, "tokens": int(counts["peer"].sum())}


def cpu_seconds(run: Run) -> float:
    """Run one epoch; return its CPU-seconds."""
    start = time.process_time()
    for _ in run():
        pass
    return time.process_time() - start


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    tokenizer = tokenizers.load_tokenizer(TOKENIZER)
    texts = list(near_duplicates.find_texts(options.megabytes * 1_000_000))
    size_bytes = sum(len(text.encode()) for text in texts)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, bos=True, eos=True)

    def tokenise(record: bytes) -> dict[str, np.ndarray]:
        return {"tokens": np.asarray(encode(record.decode()), np.int32)}

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.process_time()
        num_tokens = write_prepared(folder, map(encode, texts), tokenizer)
        writing_s = time.process_time() - start
        write_texts(folder / TEXTS, texts)

        def ours() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            return run_ours(folder)

        def peer() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            return run_grain(folder / TEXTS, tokenise)

        figures = check(ours, peer, tokenizer, len(texts))
        assert figures["tokens"] == num_tokens
        rounds = measure.interleave(
            lambda: cpu_seconds(ours), lambda: cpu_seconds(peer), num_rounds=options.rounds
        )
    rates = {
        who: num_tokens / 1e6 / statistics.median(getattr(rounds, who)) for who in ("ours", "peer")
    }
    measure.report(
        "pre-tokenised: packed tokens per CPU-second from ArrayRecord",
        value=round(rates["ours"], 2),
        unit="million tokens / CPU-s",
        peer="grain, tokenised on the fly, concatenated and split",
        peer_value=round(rates["peer"], 3),
        ratio=round(rounds.speedup, 1),
        fill=figures["ours_fill"],
        peer_fill=figures["peer_fill"],
        tokenise_and_write={
            "megabytes_per_cpu_s": round(size_bytes / 1e6 / writing_s, 2),
            "note": "what `prepare` pays once: tokens into ArrayRecord",
        },
        shapes={
            "documents": len(texts), "megabytes": round(size_bytes / 1e6, 1),
            "tokens": num_tokens, "row": ROW_TOKENS, "batch_rows": BATCH_ROWS,
        },
        tokenizer=TOKENIZER,
        n=options.rounds,
        spread=measure.spread([num_tokens / 1e6 / each for each in rounds.ours], digits=2),
        versions={
            package: importlib.metadata.version(package)
            for package in ("grain", "array-record", "mistral-common")
        },
        command="python -m benchmarks.pretokenised",
    )  # fmt: skip


if __name__ == "__main__":
    main()
