"""Speed of the data plant's steps: MB of text per CPU-second, step by step and in their order.

Real texts of this machine: the documentation and metadata in site-packages, and Python sources.
Each step is fed what the steps before it give. Prints one line of JSON;
`python -m benchmarks.data_steps [MEGABYTES]`. Only relative figures mean much on a busy machine.
"""

import statistics
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks import measure
from data_pipelines import processors
from data_pipelines.corpus.row import Kind
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from mistral_jax.config import processors as config

SUFFIXES: dict[Kind, tuple[str, ...]] = {"text": (".txt", ".md", ".rst", ".html"), "code": (".py",)}
ROUNDS = 3


def rows_of(kind: Kind, megabytes: float) -> list[Row]:
    """Return rows of one kind from the files of this interpreter, in the order of their paths."""
    rows, size = [], 0
    for path, text in _files(SUFFIXES[kind]):
        rows.append(Row(Document(path, "text", text=text), "files", kind, "general", "various"))
        size += len(text.encode())
        if size >= megabytes * 1e6:
            break
    return rows


def _files(suffixes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for root in ("stdlib", "purelib"):
        folder = Path(sysconfig.get_path(root))
        for path in sorted(folder.rglob("*")):
            if path.suffix in suffixes and path.is_file():
                try:
                    text = path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue
                if len(text) > 200:
                    yield path.relative_to(folder).as_posix(), text


def speed_of(steps: tuple, rows: list[Row]) -> tuple[float, list[Row | Reject]]:
    """Return the median MB per CPU-second of taking rows through steps, and what came out."""
    process = processors.build(steps)
    process(rows[0])  # loads what a step needs
    megabytes = sum(len(row.text.encode()) for row in rows) / 1e6
    speeds: list[float] = []
    made: list[Row | Reject] = []
    for _ in range(ROUNDS):
        start = time.process_time()
        made = [process(row) for row in rows]
        speeds.append(megabytes / (time.process_time() - start))
    return statistics.median(speeds), made


def main() -> None:
    """Measure every step of both kinds, the two hot ones together, and all."""
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 6.0
    found = {}
    for kind in SUFFIXES:
        rows = rows_of(kind, megabytes)
        steps = getattr(config.Processors(), kind)
        speeds = {}
        left = rows
        for step in steps:
            speeds[step.kind], made = speed_of((step,), left)
            left = [each for each in made if isinstance(each, Row)]
        hot = tuple(step for step in steps if step.kind in ("clean", "quality"))
        speeds["clean+quality"], _ = speed_of(hot, rows)
        speeds["all"], made = speed_of(steps, rows)
        rejects = Counter(each.kind for each in made if isinstance(each, Reject))
        found[kind] = {
            "rows": len(rows),
            "megabytes": round(sum(len(row.text.encode()) for row in rows) / 1e6, 2),
            "mb_per_cpu_s": {name: round(value, 1) for name, value in speeds.items()},
            "rejects": dict(sorted(rejects.items())),
        }
    measure.report("data_steps", rounds=ROUNDS, **found)


if __name__ == "__main__":
    main()
