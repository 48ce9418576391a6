"""What a run directory holds for its report, read and checked to be JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mistral_jax import metrics

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What a run directory holds; None or empty where a file is missing."""

    folder: Path
    metrics: metrics.MetricsLog
    manifest: Row
    plan: Row
    measured: Row
    held_out: Row
    resume: Row
    parity: list[Row]
    samples: list[Row]
    config: str


def read_files(folder: Path) -> RunFiles:
    """Read every file that the report knows.

    Raises:
        ValueError: a file is not the JSON that it should be; the message names it.
    """
    log_path = folder / metrics.METRICS_FILE
    empty = metrics.MetricsLog([], [], [])
    config = folder / "config.yaml"
    return RunFiles(
        folder=folder,
        metrics=metrics.read_metrics(log_path) if log_path.exists() else empty,
        manifest=_read(folder / "manifest.json", dict),
        plan=_read(folder / "plan.json", dict),
        measured=_read(folder / "measured.json", dict),
        held_out=_read(folder / "eval.json", dict),
        resume=_read(folder / "resume.json", dict),
        parity=_read(folder / "export" / "parity.json", list),
        samples=[_read(path, dict) for path in sorted((folder / "samples").glob("step_*.json"))],
        config=config.read_text(encoding="utf-8") if config.exists() else "",
    )


def _read[T: (dict, list)](path: Path, kind: type[T]) -> T:
    if not path.exists():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it or run again") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {kind.__name__}, got {type(value).__name__}")
    return value
