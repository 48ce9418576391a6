"""The whole corpus engine against a hand-written loop: megabytes of JSONL per CPU-second.

The corpus and the peers of near_duplicates.py: real files with planted copies; a loop in one file
with everything in memory, and datatrove's local executor. Ours is `prepare CONFIG` as it is, with
the loop's rules as its processors (the step `clean` and `quality` cut to them), the gate at its
cheapest, no tokenizer, JSONL out; with 1 worker and with 2; and once with every step on and a
tokenizer. CPU-seconds of the process tree, rounds in turns, after a check of recall and false
removals. The start (imports, models) is measured by a corpus of twenty rows. What of our time goes
into work that the loop does not do at all is measured by clocks around those functions, in runs of
their own. `python -m benchmarks.corpus_engine [--megabytes N] [--rounds R]`.
"""

import argparse
import functools
import importlib.metadata
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks import near_duplicates
from benchmarks.peer_scripts import document_filter
from mistral_jax.config import corpus as corpus_config

SOURCE = "corpus"
NEAR = near_duplicates.CONFIG
# The rules of peer_scripts/document_filter.py, as the step `quality` spells them.
RULES = {
    "kind": "quality",
    "min_words": document_filter.MIN_WORDS,
    "max_words": document_filter.MAX_WORDS,
    "mean_word_length": [document_filter.MIN_MEAN, document_filter.MAX_MEAN],
    "min_alphabetic": document_filter.MIN_LETTERS,
    "max_duplicate_lines": document_filter.MAX_SAME_LINES,
    "max_symbol_ratio": None,
    "max_bullet_lines": None,
    "max_ellipsis_lines": None,
    "max_duplicate_paragraphs": None,
    "max_top_ngram": {},
    "max_duplicate_ngrams": {},
    "min_stop_words": 0,
    "refuse_phrases": [],
}
# It cannot be left out: every batch has its scores. So few values and words as it takes.
CHEAP_GATE = {
    "signature_permutations": 1, "sample_words": 16, "vendi_rows": 1,
    "min_diversity": 0.0, "min_complexity": 0.0, "min_accuracy": 0.0, "max_toxicity": 1.0,
}  # fmt: skip
PARTS_ON = (
    "inventory with sha256 of the inputs, strict JSON, clean (without boilerplate), quality, exact "
    "duplicates, MinHash, gate (1 hash function, 16 words, no toxicity), "
    "difficulty without a tokenizer, sha256 of parts, join by Daft, split by cluster, levels, "
    "provenance, rejects with reasons, JSONL per split, manifest"
)
PARTS_OFF = (
    "language, PII, secrets, toxicity step, decontamination, verification, tokenizer, report"
)
PACKAGES = ("rensa", "daft", "pyarrow", "scikit-learn", "alt-profanity-check")
FEW_ROWS = 5
TOKENIZER = "mistral-common:v3"
Clock = dict[str, float]


def config_of(
    source: Path, *, workers: int, is_everything_on: bool = False
) -> corpus_config.CorpusConfig:
    """Return the config whose work is the hand-written loop's, or the defaults with a tokenizer."""
    steps = [{"kind": "clean", "boilerplate": False}, RULES]
    cut = {"processors": {"text": steps}, "gate": CHEAP_GATE}
    return corpus_config.CorpusConfig.model_validate_json(
        json.dumps(
            {
                "name": "benchmark",
                "output": "unused",
                "sources": [
                    {
                        "name": SOURCE,
                        "path": str(source),
                        "kind": "text",
                        "expert": "general",
                        "licence": "various",
                        "patterns": ["*.jsonl"],
                    },
                ],
                **({"tokenizer": TOKENIZER} if is_everything_on else cut),
                "near_duplicates": NEAR.model_dump(mode="json"),
                "executor": {"kind": "local", "workers": workers},
            }
        )
    )


def run_ours(
    source: Path, target: Path, workers: int, clocks_file: Path | None, *, is_everything_on: bool
) -> None:
    """Prepare the corpus in this process, with clocks around what only we do if asked."""
    from data_pipelines.corpus import build

    config = config_of(source, workers=workers, is_everything_on=is_everything_on)
    if clocks_file is None:
        build.build(config, target)
        return
    clocks: Clock = {}
    watch(clocks)
    build.build(config, target)
    clocks["all"] = time.process_time()
    clocks_file.write_text(json.dumps(clocks), encoding="utf-8")


def watch(clocks: Clock) -> None:
    """Put a clock of CPU time around each function that does what the loop does not."""
    from data_pipelines import difficulty
    from data_pipelines.corpus import encode_task
    from data_pipelines.corpus import fates
    from data_pipelines.corpus import inventory
    from data_pipelines.corpus import publish
    from data_pipelines.corpus import readable
    from data_pipelines.corpus import row
    from data_pipelines.corpus import state
    from data_pipelines.corpus import summary
    from data_pipelines.near_duplicates import runs
    from data_pipelines.processors import clean
    from data_pipelines.quality import gate

    for owner, name, what in (
        (inventory, "tasks", "sha256 of the inputs"),
        (clean, "_clean", "cleaning"),
        (gate, "judge", "gate"),
        (difficulty, "features", "difficulty"),
        (row, "to_line", "row to JSON"),
        (state, "folder_digest", "sha256 of parts"),
        (runs.RunWriter, "close", "sorted runs of band keys"),
        (fates, "decide", "join, split, fates"),
        (encode_task, "run", "reading kept rows again"),
        (publish, "write_expert", "provenance, levels"),
        (readable, "write", "readable files"),
        (summary, "manifest", "manifest, rejects"),
    ):
        setattr(owner, name, _clocked(getattr(owner, name), what, clocks))


def _clocked(function: Callable[..., Any], what: str, clocks: Clock) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            clocks[what] = clocks.get(what, 0.0) + time.process_time() - start

    return run


def check(source: Path, made: Path, pairs: list[tuple[str, str]], folder: Path) -> dict[str, Any]:
    """Assert recall and false removals of our result, and that every row is accounted for."""
    lines = {file.name: file.read_text(encoding="utf-8").splitlines() for file in _files(source)}
    original = {
        f"{SOURCE}/{name}#{number}": json.loads(line)
        for name, found in lines.items()
        for number, line in enumerate(found, 1)
    }
    rejects = [json.loads(line) for line in (made / "rejects.jsonl").open(encoding="utf-8")]
    by_rules = {
        each["id"] for each in rejects if each["kind"] not in ("duplicate", "near_duplicate")
    }
    kept = {row["id"] for row in kept_rows(made)}
    assert len(kept) + len(rejects) == len(original), "every row is kept or told of"
    good = {key for key, row in original.items() if document_filter.is_good(row["text"])}
    differ = len(original.keys() - good ^ by_rules) / len(original)
    assert differ <= 0.05, f"the rules of both must be nearly the same, {differ:.1%} of rows differ"
    passed, left = folder / "passed", folder / "left"
    for each, ids in ((passed, good - by_rules), (left, good & kept)):
        each.mkdir()
        with (each / "0.jsonl").open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(original[key]) + "\n" for key in original if key in ids)
    figures = near_duplicates.check(passed, left, pairs)
    return {**figures, "rows": len(original), "rules_differ": round(differ, 4)}


def kept_rows(made: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a prepared corpus."""
    for file in sorted(made.glob("general/*_dataset.jsonl")):
        with file.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def write_few(source: Path, folder: Path) -> Path:
    """Write the first rows of each file, to measure what a start costs."""
    folder.mkdir()
    for file in _files(source):
        with file.open("rb") as lines:
            (folder / file.name).write_bytes(b"".join(itertools.islice(lines, FEW_ROWS)))
    return folder


def command(source: Path, target: Path, workers: int, *more: str) -> list[str]:
    """Return the command of one run of ours."""
    own = [sys.executable, "-m", "benchmarks.corpus_engine", "--ours", str(source), str(target)]
    return [*own, "--workers", str(workers), *more]


def measure_all(folder: Path, options: argparse.Namespace) -> None:
    """Write the corpus, check, time, print the line."""
    source = folder / "in"
    hand_out = folder / "hand"
    source.mkdir()
    hand_out.mkdir()
    size, pairs = near_duplicates.write_corpus(source, options.megabytes * 1_000_000)
    shape = [str(NEAR.bands), str(NEAR.rows), str(NEAR.ngram_words), str(NEAR.min_estimate)]
    loop = str(measure.SCRIPTS / "rensa_loop.py")
    hand = [sys.executable, loop, str(source), str(hand_out), *shape]
    near_duplicates.cpu_seconds(command(source, folder / "checked", 1))
    near_duplicates.cpu_seconds(hand)
    quality = check(source, folder / "checked", pairs, folder)
    hand_quality = near_duplicates.check(source, hand_out, pairs)
    few = write_few(source, folder / "few")
    commands: dict[str, Callable[[Path], list[str]]] = {
        "hand": lambda out: [sys.executable, loop, str(source), str(hand_out), *shape],
        "1": lambda out: command(source, out, 1),
        "2": lambda out: command(source, out, 2),
        "hand start": lambda out: [sys.executable, loop, str(few), str(hand_out), *shape],
        "1 start": lambda out: command(few, out, 1),
        "all on": lambda out: command(source, out, 1, "--everything-on"),
        "all on start": lambda out: command(few, out, 1, "--everything-on"),
    }
    seconds: dict[str, list[float]] = {who: [] for who in commands}
    funnel: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for who, of in commands.items():
            out = folder / f"{who}.{number}"
            seconds[who].append(near_duplicates.cpu_seconds(of(out)))
            if who == "all on":
                funnel = json.loads((out / "manifest.json").read_bytes())["funnel"]
            shutil.rmtree(out, ignore_errors=True)
    clocks = {}
    for sign, of in ((1, source), (-1, few)):
        file = folder / f"clocks{sign}.json"
        own = command(of, folder / f"clocked{sign}", 1, "--clocks", str(file))
        near_duplicates.cpu_seconds(own)
        for what, each in json.loads(file.read_text()).items():
            clocks[what] = clocks.get(what, 0.0) + sign * each
    trove = measure_datatrove(folder, source, shape[:3], options.datatrove_python)
    report(size, seconds, clocks, quality, hand_quality, trove, funnel)


def measure_datatrove(
    folder: Path, source: Path, shape: list[str], python: str | None
) -> dict[str, Any]:
    """Run datatrove on one of the files, in an environment of its own; return its figures."""
    small = folder / "small"
    small.mkdir()
    (small / "0.jsonl").write_bytes((source / "0.jsonl").read_bytes())
    python = python or near_duplicates.make_datatrove(folder / "environment")
    script = str(measure.SCRIPTS / "datatrove_dedup.py")
    spent = near_duplicates.cpu_seconds([python, script, str(small), str(folder / "trove"), *shape])
    return {
        "value": round((small / "0.jsonl").stat().st_size / 1e6 / spent, 2),
        "note": "one of the four files, one worker; its English tokenizer (spaCy) takes most of "
        "the time",
    }


def report(
    size: int,
    seconds: dict[str, list[float]],
    clocks: Clock,
    quality: dict[str, Any],
    hand_quality: dict[str, Any],
    trove: dict[str, Any],
    funnel: list[dict[str, Any]],
) -> None:
    """Print the line."""
    spent = {who: statistics.median(each) for who, each in seconds.items()}
    rates = {who: size / 1e6 / spent[who] for who in ("hand", "1", "2")}
    ratios = {
        who: statistics.median(h / o for h, o in zip(seconds["hand"], seconds[who], strict=True))
        for who in ("1", "2")
    }
    running = {who: spent[who] - spent[f"{who} start"] for who in ("hand", "1", "all on")}
    whole = clocks.pop("all")
    # `readable files` lie inside `provenance, levels`; the loop writes its result as well.
    inner = clocks.pop("readable files")
    clocks["provenance, levels"] -= inner
    extra = sum(clocks.values())
    share = extra / whole
    measure.report(
        "corpus engine: JSONL megabytes per CPU-second, prepare CONFIG from files to files",
        value=round(rates["1"], 1),
        unit="MB / CPU-s",
        peer="hand-written rensa loop, same rules and bands, one process, all in memory",
        peer_value=round(rates["hand"], 1),
        ratio=round(ratios["1"], 2),
        two_workers={"value": round(rates["2"], 1), "ratio": round(ratios["2"], 2)},
        without_start={
            "ratio": round(running["hand"] / running["1"], 2),
            "value": round(size / 1e6 / running["1"], 1),
            "peer_value": round(size / 1e6 / running["hand"], 1),
            "start_cpu_s": round(spent["1 start"], 2),
            "peer_start_cpu_s": round(spent["hand start"], 2),
        },
        only_ours={
            "share": round(share, 3),
            "ratio_without": round(running["hand"] / running["1"] / (1 - share), 2),
            "cpu_s": {what: round(each, 2) for what, each in clocks.items()},
            "of_cpu_s": round(whole, 2),
            "note": "without the start; clocks around functions; the loop does none of this",
        },
        everything_on={
            "value": round(size / 1e6 / running["all on"], 2),
            "funnel": {stage["stage"]: stage["rows"] for stage in funnel},
            "note": "the defaults of every step for text, the gate's too, tokens by "
            f"{TOKENIZER}, ArrayRecord; without the start",
        },
        datatrove=trove,
        on=PARTS_ON,
        off=PARTS_OFF,
        quality=quality,
        peer_quality=hand_quality,
        shapes={"megabytes": round(size / 1e6, 1), "bands": NEAR.bands, "rows": NEAR.rows},
        n=len(seconds["1"]),
        spread=measure.spread([size / 1e6 / each for each in seconds["1"]], digits=1),
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        command="python -m benchmarks.corpus_engine",
    )


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=90)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--datatrove-python", help="an interpreter that has datatrove already")
    parser.add_argument("--ours", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--everything-on", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--clocks", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        source, target = options.ours
        run_ours(
            source,
            target,
            options.workers,
            options.clocks,
            is_everything_on=options.everything_on,
        )
        return
    with tempfile.TemporaryDirectory() as name:
        measure_all(Path(name), options)


if __name__ == "__main__":
    main()
