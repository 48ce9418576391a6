"""A run directory: whose it is, and the small files that a run leaves for `inspect` and the report.

Metrics, checkpoints and prepared data are written by their own modules.
"""

import contextlib
import json
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mistral_jax import artifact
from mistral_jax import manifest
from mistral_jax.config import load
from mistral_jax.config import run as run_config
from mistral_jax.train import held_out

MEASURED = "measured.json"


class ResumeRefused(ValueError):
    """The run directory is of another experiment; the message names each difference."""

    exit_code = 3  # refused by a gate; see cli.py


def choose(run: run_config.RunConfig, *, fresh: bool) -> Path:
    """Return where a run goes; `fresh` numbers it where that is taken."""
    directory = Path(run.run_directory()).expanduser()
    if not fresh:
        return directory
    number = 2
    while directory.exists():
        directory = directory.with_name(f"{Path(run.run_directory()).name}-{number}")
        number += 1
    return directory


@contextlib.contextmanager
def no_empty_folders(directory: Path, data: Path) -> Iterator[None]:
    """Make a run directory; where the work in it is refused, take away what stayed empty."""
    missing = [p for p in (directory, *directory.parents) if not p.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except ValueError:
        for folder in (*data.glob("*"), data, *missing):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def finished_steps(directory: Path) -> int | None:
    """Return how many steps the finished run did; None where it has not ended yet."""
    measured = directory / MEASURED
    if not measured.is_file():
        return None
    return json.loads(measured.read_text(encoding="utf-8"))["steps"]


def refuse_other_experiment(directory: Path, run: run_config.RunConfig) -> None:
    """Refuse a directory whose config differs in a field that decides the numbers.

    Raises:
        ResumeRefused: it does.
    """
    saved = directory / artifact.CONFIG_NAME
    if not saved.is_file():
        return
    found = manifest.differences(load.load_run(saved).science(), run.science())
    if found:
        raise ResumeRefused(
            f"{directory} holds another experiment; {'; '.join(found)}; "
            "set these back, choose another output=, or start beside it with fresh=true"
        )


def write_samples(directory: Path, step: int, prompts: Sequence[str], texts: Sequence[str]) -> None:
    """Write what the model said to each prompt at a step."""
    samples = [
        {"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)
    ]
    path = directory / "samples" / f"step_{step:06d}.json"
    write_json(path, {"step": step, "samples": samples})


def write_evaluation(directory: Path, step: int, losses: dict[str, held_out.RowLosses]) -> None:
    """Write a step's held-out losses row by row, for `write_comparison`."""
    content = {
        source: {
            "loss": rows.loss,
            "sums": rows.sums.tolist(),
            "weights": rows.weights.tolist(),
        }
        for source, rows in losses.items()
    }
    write_json(directory / "evals" / f"step_{step:06d}.json", content)


def write_comparison(directory: Path) -> None:
    """Write eval.json: held-out loss at the first and the last evaluation, paired by row."""
    files = sorted((directory / "evals").glob("step_*.json"))
    if len(files) < 2:
        return
    *earlier, last = (json.loads(path.read_text(encoding="utf-8")) for path in files)
    sources = {}
    for name, content in last.items():
        after = _row_losses(content)
        # A run that went on with another evaluate.max_rows has rows that are not paired.
        candidates = (_row_losses(side[name]) for side in earlier if name in side)
        before = next((rows for rows in candidates if len(rows.sums) == len(after.sums)), None)
        if before is None:
            continue
        difference, low, high = held_out.paired_interval(before, after)
        sources[name] = {
            "rows": len(before.sums),
            "before": before.loss,
            "after": after.loss,
            "difference": difference,
            "interval_low": low,
            "interval_high": high,
        }
    write_json(directory / "eval.json", {"sources": sources})


def _row_losses(content: dict[str, Any]) -> held_out.RowLosses:
    return held_out.RowLosses(np.asarray(content["sums"]), np.asarray(content["weights"]))


def write_json(path: Path, content: Any) -> None:
    """Write one of the directory's files whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
