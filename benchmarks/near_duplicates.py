"""Near-duplicates: megabytes per CPU-second of filter + exact + near-dedup, against two peers.

Real files of this machine (the standard library's sources, the packages' sources and documents,
/usr/share/doc) with planted copies: 4 % exact ones, 4 % with 1 % of their words replaced. JSONL in,
JSONL out. The peers: a hand-written rensa loop in one file with the same bands, and datatrove's
local executor (on one of the four files; its English tokenizer takes most of its time) in an
environment that is made for it. Each runs in processes of its own, CPU-seconds of all of them,
imports included, rounds in turns. First it is asserted, against exact Jaccard, that near copies are
found and that nothing distant goes. `python -m benchmarks.near_duplicates [--megabytes N]`.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.peer_scripts import document_filter
from data_pipelines.near_duplicates import assignments
from data_pipelines.near_duplicates import fates
from data_pipelines.near_duplicates import join
from data_pipelines.near_duplicates import runs
from mistral_jax.config.near_duplicates import NearDuplicates

DATATROVE = ("datatrove==0.10.1", "spacy==3.8.18", "tokenizers", "xxhash<4", "nltk", "orjson")
ROOTS = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "/usr/share/doc")
SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt", ".html", ".c", ".h", ".js", ""}
MIN_BYTES, MAX_BYTES = 500, 400_000
NUM_FILES = 4
CONFIG = NearDuplicates()


def find_texts(wanted_bytes: int) -> Iterator[str]:
    """Yield real texts of this machine, an even choice of the roots' files, up to a total size."""
    names = []
    for root in ROOTS:
        for folder, _, files in os.walk(root):
            if Path(folder).name == "site-packages" and root != folder:
                continue
            names += [os.path.join(folder, file) for file in files if Path(file).suffix in SUFFIXES]
    random.Random(0).shuffle(names := sorted(set(names)))
    total = 0
    for name in names:
        if total >= wanted_bytes:
            return
        if not os.path.isfile(name) or not MIN_BYTES <= os.path.getsize(name) <= MAX_BYTES:
            continue
        data = Path(name).read_bytes()
        try:
            yield data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        total += len(data)


def write_corpus(folder: Path, wanted_bytes: int) -> tuple[int, list[tuple[str, str]]]:
    """Write the corpus with its planted copies; return its bytes and the near pairs by id."""
    chance = random.Random(1)
    texts = list(find_texts(wanted_bytes))
    rows = [(f"d{number}", text) for number, text in enumerate(texts)]
    pairs = []
    for number in chance.sample(range(len(texts)), len(texts) // 25):
        rows.append((f"exact{number}", texts[number]))
    for number in chance.sample(range(len(texts)), len(texts) // 25):
        words = texts[number].split(" ")
        for place in chance.sample(range(len(words)), max(1, len(words) // 100)):
            words[place] = f"replaced{chance.randrange(1 << 30)}"
        rows.append((f"near{number}", " ".join(words)))
        pairs.append((f"d{number}", f"near{number}"))
    chance.shuffle(rows)
    size = 0
    for part in range(NUM_FILES):
        with (folder / f"{part}.jsonl").open("w", encoding="utf-8") as out:
            for key, text in rows[part::NUM_FILES]:
                size += out.write(json.dumps({"id": key, "text": text}) + "\n")
    return size, pairs


def run_ours(source: Path, target: Path) -> None:
    """Filter, sign, join and write through our parts: one task per file."""
    digests, places, made = [], [], []
    files = sorted(source.glob("*.jsonl"))
    for task, file in enumerate(files):
        writer = runs.RunWriter(runs.Run(target / "work", task), CONFIG)
        writer.add_all(_new_texts(file, digests, places))
        writer.close()
        made.append(writer.run)
    found = join.join(made, CONFIG)
    table = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)
    decided = fates.decide(table, found.representatives, assignments.nothing(), eval_fraction=0.2)
    is_kept = iter((decided.codes <= fates.KEPT_EVAL).tolist())
    wanted = iter(places)
    for file in files:
        following = iter(next(wanted))
        row_wanted = next(following, None)
        with file.open(encoding="utf-8") as lines, (target / file.name).open("w") as out:
            for row, line in enumerate(lines):
                if row == row_wanted:
                    row_wanted = next(following, None)
                    if next(is_kept):
                        out.write(line)


def _new_texts(file: Path, digests: list[bytes], places: list[list[int]]) -> Iterator[str]:
    """Yield the good texts of a file, each once; note their digests and rows."""
    seen, rows = set(), []
    places.append(rows)
    with file.open(encoding="utf-8") as lines:
        for row, line in enumerate(lines):
            text = json.loads(line)["text"]
            if not document_filter.is_good(text):
                continue
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                digests.append(digest)
                rows.append(row)
                yield text


def check(source: Path, target: Path, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Assert recall and false removals of a result against exact Jaccard; return the figures."""
    texts = {row["id"]: row["text"] for row in _rows(source)}
    good = {key for key, text in texts.items() if document_filter.is_good(text)}
    kept = [row["id"] for row in _rows(target)]
    left = set(kept)
    sets = {key: _shingles(texts[key]) for key in good}
    by_ngram: dict[int, list[str]] = {}
    for key in kept:
        for ngram in sets[key]:
            by_ngram.setdefault(ngram, []).append(key)
    near = [pair for pair in pairs if good.issuperset(pair) and _jaccard(sets, *pair) >= 0.8]
    missed = sum(left.issuperset(pair) for pair in near)
    false = 0
    for key in good - left:
        others = {other for ngram in sets[key] for other in by_ngram.get(ngram, ())}
        best = max((_jaccard(sets, key, other) for other in others), default=0)
        false += best < 0.5
    removed = len(good) - len(kept)
    figures = {
        "documents": len(texts), "passed_filter": len(good), "kept": len(kept),
        "near_pairs": len(near), "recall": round(1 - missed / len(near), 4),
        "false_removals": round(false / removed, 4),
    }  # fmt: skip
    assert len(kept) == len(left)
    assert figures["recall"] >= 0.98, figures
    assert figures["false_removals"] <= 0.01, figures
    return figures


def _rows(folder: Path) -> Iterator[dict[str, str]]:
    for file in sorted(folder.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _shingles(text: str) -> frozenset[int]:
    words = text.lower().split()
    num = CONFIG.ngram_words
    return frozenset(
        hash(tuple(words[at : at + num])) for at in range(max(1, len(words) - num + 1))
    )


def _jaccard(sets: dict[str, frozenset[int]], first: str, second: str) -> float:
    one, other = sets[first], sets[second]
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def cpu_seconds(command: list[str]) -> float:
    """Run a command; return the CPU-seconds of it and all its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[:3]} failed:\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_datatrove(folder: Path) -> str:
    """Make an environment with datatrove; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *DATATROVE], check=True)
    return python


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=90)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--datatrove-python", help="an interpreter that has datatrove already")
    parser.add_argument("--ours", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        run_ours(*options.ours)
        return
    with tempfile.TemporaryDirectory() as name:
        measure_all(Path(name), options)


def measure_all(folder: Path, options: argparse.Namespace) -> None:
    """Write the corpus, check all contestants, time them, print the line."""
    source, small = folder / "in", folder / "small"
    for each in (source, small, folder / "ours", folder / "hand", folder / "trove"):
        each.mkdir()
    size, pairs = write_corpus(source, options.megabytes * 1_000_000)
    (small / "0.jsonl").write_bytes((source / "0.jsonl").read_bytes())
    shape = [str(CONFIG.bands), str(CONFIG.rows), str(CONFIG.ngram_words)]
    peers = [sys.executable, str(measure.SCRIPTS / "rensa_loop.py"), str(source)]
    commands = {
        "ours": [sys.executable, "-m", "benchmarks.near_duplicates", "--ours", str(source)]
        + [str(folder / "ours")],
        "hand": [*peers, str(folder / "hand"), *shape, str(CONFIG.min_estimate)],
    }
    for command in commands.values():
        cpu_seconds(command)
    checked = {which: check(source, folder / which, pairs) for which in commands}
    rounds = measure.interleave(
        lambda: cpu_seconds(commands["ours"]),
        lambda: cpu_seconds(commands["hand"]),
        num_rounds=options.rounds,
        num_warm=0,
    )
    python = options.datatrove_python or make_datatrove(folder / "environment")
    script = str(measure.SCRIPTS / "datatrove_dedup.py")
    trove = cpu_seconds([python, script, str(small), str(folder / "trove"), *shape])
    trove_kept = sum(1 for _ in _rows(folder / "trove" / "kept"))
    rates = {
        which: size / 1e6 / statistics.median(getattr(rounds, which)) for which in ("ours", "peer")
    }
    trove_rate = (small / "0.jsonl").stat().st_size / 1e6 / trove
    measure.report(
        "near-duplicates: JSONL megabytes per CPU-second through filter, exact and near-dedup",
        value=round(rates["ours"], 1),
        unit="MB / CPU-s",
        peer="hand-written rensa loop, same bands, one process",
        peer_value=round(rates["peer"], 1),
        ratio=round(rounds.speedup, 2),
        datatrove={
            "value": round(trove_rate, 2),
            "ratio": round(rates["ours"] / trove_rate, 1),
            "kept": trove_kept,
            "note": "one of the four files, one worker; its English tokenizer (spaCy) takes most "
            "of the time, and it normalises other words, so what it keeps differs",
        },
        quality=checked["ours"],
        peer_quality=checked["hand"],
        shapes={"megabytes": round(size / 1e6, 1), "bands": CONFIG.bands, "rows": CONFIG.rows},
        n=options.rounds,
        spread=measure.spread([size / 1e6 / seconds for seconds in rounds.ours], digits=1),
        versions={
            package: importlib.metadata.version(package) for package in ("rensa", "daft", "pyarrow")
        }
        | {"datatrove": DATATROVE[0].partition("==")[2]},
    )


if __name__ == "__main__":
    main()
