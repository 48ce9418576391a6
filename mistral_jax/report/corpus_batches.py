"""batches.jsonl of a corpus, read in bounded memory: each metric's values in order, and failures.

A line is `{"source", "task", "batch", "rows", <metric>: number, ..., "failed": [names]}`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

BATCHES_FILE = "batches.jsonl"
METRICS = ("diversity", "complexity", "accuracy", "toxicity", "distinct_2", "vendi")
MAX_KEPT = 2000  # passed batches kept of a metric; then every second one goes
MAX_FAILED = 400


@dataclasses.dataclass
class Metric:
    """One metric over all batches.

    Attributes:
        name: as in the lines.
        threshold: the bar; None if the gate has none for it.
        is_upper: whether values above the bar fail.
        passed, failed: (number of the batch from 1, value); thinned, failed ones cut at a cap.
        num_passed, num_failed: how many there are in truth.
    """

    name: str
    threshold: float | None = None
    is_upper: bool = False
    passed: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    failed: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    num_passed: int = 0
    num_failed: int = 0
    _stride: int = 1

    def add(self, number: int, value: float, named: list[str]) -> None:
        """Take one batch's value; `named` is what it failed by, each beginning with a metric."""
        if any(each.startswith(self.name) for each in named):
            self.num_failed += 1
            if len(self.failed) < MAX_FAILED:
                self.failed.append((number, value))
            return
        if self.num_passed % self._stride == 0:
            self.passed.append((number, value))
        self.num_passed += 1
        if len(self.passed) > MAX_KEPT:
            self.passed = self.passed[::2]
            self._stride *= 2


@dataclasses.dataclass
class Batches:
    """All batches of a corpus: the metrics, and the lines of the first that failed."""

    metrics: list[Metric]
    failed: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    num_batches: int = 0
    num_failed: int = 0


def read(path: Path, gate: dict[str, Any], *, num_shown: int = 20) -> Batches:
    """Read the lines; no file gives no batches.

    Args:
        path: batches.jsonl.
        gate: thresholds as the config spells them: min_<metric> or max_<metric>.
        num_shown: failed batches whose lines are kept.

    Raises:
        ValueError: a line is not what it should be; the message has its number.
    """
    metrics = {name: _metric(name, gate) for name in METRICS}
    found = Batches(list(metrics.values()))
    if not path.is_file():
        return found
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                batch = json.loads(line)
                named = [str(each) for each in batch.get("failed", ())]
                values = {name: float(batch[name]) for name in METRICS if _is_number(batch, name)}
            except (ValueError, TypeError, AttributeError):
                raise ValueError(
                    f"{path}: line {number} is not a batch's line; prepare the corpus again"
                ) from None
            found.num_batches += 1
            found.num_failed += bool(named)
            if named and len(found.failed) < num_shown:
                found.failed.append(batch)
            for name, value in values.items():
                metrics[name].add(number, value, named)
    return found


def _is_number(batch: dict[str, Any], name: str) -> bool:
    value = batch.get(name)
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _metric(name: str, gate: dict[str, Any]) -> Metric:
    for prefix, is_upper in (("min_", False), ("max_", True)):
        threshold = gate.get(prefix + name)
        if threshold is not None:
            return Metric(name, float(threshold), is_upper)
    return Metric(name)
