"""Memory of the corpus engine at 1x and 4x of a corpus: peak PSS of the process tree.

Real texts of this machine cut into documents of about a kilobyte (many documents: what is held for
each of them shows), the whole engine with bytes as tokens, two workers. The goal: the peak at 4x is
within 20 % of that at 1x, plus 200 bytes for each further document. PSS counts a page that two
processes share once; it is read every 50 ms, so that shorter peaks may be missed.
`python -m benchmarks.corpus_memory [--documents N]`.
"""

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks import near_duplicates
from mistral_jax.config import corpus as corpus_config

DOCUMENT_CHARACTERS = 1000
FILE_DOCUMENTS = 1000
TASK_BYTES = 2_000_000
EVERY_S = 0.05
MAX_GROWTH, MAX_BYTES_A_DOCUMENT = 1.2, 200
PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
SCRIPT = """
import sys
from pathlib import Path
from data_pipelines.corpus import build
from mistral_jax.config.corpus import CorpusConfig
build.build(CorpusConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""


def documents() -> Iterator[str]:
    """Yield documents of about one size from real texts, each different."""
    for number, text in enumerate(near_duplicates.find_texts(1 << 40)):
        for start in range(0, len(text), DOCUMENT_CHARACTERS):
            piece = text[start : start + DOCUMENT_CHARACTERS]
            if len(piece.split()) > 20:
                yield f"{piece} ({number}.{start})"


def write_corpus(folder: Path, num_documents: int) -> Path:
    """Write the first documents as JSONL, some files of them."""
    folder.mkdir()
    found = itertools.islice(documents(), num_documents)
    for number, part in enumerate(itertools.batched(found, FILE_DOCUMENTS)):
        lines = [json.dumps({"text": text}) for text in part]
        (folder / f"{number:05d}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def config_of(source: Path) -> corpus_config.CorpusConfig:
    """Return a config with every stage on; cheap processors, since they hold nothing."""
    return corpus_config.CorpusConfig.model_validate_json(
        json.dumps(
            {
                "name": "memory",
                "output": "unused",
                "tokenizer": "bytes",
                "sources": [
                    {"name": "pieces", "path": str(source), "kind": "text", "expert": "general"}
                ],
                "processors": {"text": [{"kind": "clean"}]},
                "gate": {"min_diversity": 0.0, "min_complexity": 0.0, "max_toxicity": 1.0},
                "task_bytes": TASK_BYTES,
                "executor": {"kind": "local", "workers": 2},
            }
        )
    )


def peak_bytes(command: list[str]) -> int:
    """Run a command; return the highest PSS of it and all its children together."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    highest = 0
    is_over = threading.Event()

    def look() -> None:
        nonlocal highest
        while not is_over.wait(EVERY_S):
            highest = max(highest, sum(map(_pss_bytes, _tree(process.pid))))

    watcher = threading.Thread(target=look)
    watcher.start()
    _, said = process.communicate()
    is_over.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command[:2]} failed:\n{said.decode()[-3000:]}")
    return highest


def _tree(root: int) -> Iterator[int]:
    yield root
    try:
        lists = [path.read_text() for path in Path(f"/proc/{root}/task").glob("*/children")]
    except OSError:  # the process, or a thread of it, has just ended; the next look is soon
        return
    for child in " ".join(lists).split():
        yield from _tree(int(child))


def _pss_bytes(number: int) -> int:
    try:
        found = PSS.search(Path(f"/proc/{number}/smaps_rollup").read_bytes())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def run(folder: Path, num_documents: int) -> dict[str, Any]:
    """Prepare so many documents; return the peak and what was made."""
    source = write_corpus(folder / f"in{num_documents}", num_documents)
    target = folder / f"out{num_documents}"
    config = config_of(source)
    peak = peak_bytes([sys.executable, "-c", SCRIPT, config.model_dump_json(), str(target)])
    manifest = json.loads((target / "manifest.json").read_bytes())
    read = manifest["sources"]["pieces"]["read"]
    assert read == num_documents, f"expected {num_documents} documents, the engine read {read}"
    size = sum(path.stat().st_size for path in source.iterdir())
    return {"documents": read, "megabytes": round(size / 1e6, 1), "peak_bytes": peak}


def allowed_bytes(small: dict[str, Any], large: dict[str, Any]) -> float:
    """Return the peak that the large corpus may have."""
    further = large["documents"] - small["documents"]
    return MAX_GROWTH * small["peak_bytes"] + MAX_BYTES_A_DOCUMENT * further


def measure_growth(folder: Path, num_documents: int) -> dict[str, Any]:
    """Return the peaks at 1x and 4x and whether the goal is met."""
    small, large = run(folder, num_documents), run(folder, 4 * num_documents)
    further = large["documents"] - small["documents"]
    return {
        "small": small,
        "large": large,
        "bytes_a_document": round((large["peak_bytes"] - small["peak_bytes"]) / further),
        "growth": round(large["peak_bytes"] / small["peak_bytes"], 3),
        "allowed_bytes": round(allowed_bytes(small, large)),
        "is_flat": large["peak_bytes"] <= allowed_bytes(small, large),
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=8000, help="of the small corpus")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            rounds.append(measure_growth(Path(name), options.documents))
    growths = [each["growth"] for each in rounds]
    middle = sorted(rounds, key=lambda each: each["growth"])[len(rounds) // 2]
    measure.report(
        "corpus engine: peak PSS of the process tree, 4x corpus over 1x",
        value=round(statistics.median(growths), 3),
        unit="times",
        peer="the same engine at 1x",
        peer_value=1.0,
        ratio=round(statistics.median(growths), 3),
        **middle,
        n=options.rounds,
        spread=measure.spread(growths),
        command="python -m benchmarks.corpus_memory",
    )


if __name__ == "__main__":
    main()
