"""A run directory: whose it is, and the small files that a run leaves for `inspect` and the report.

Metrics, checkpoints and prepared data are written by their own modules.
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mistral_jax import artifact
from mistral_jax import checkpoint
from mistral_jax import distributed
from mistral_jax import manifest
from mistral_jax import storage
from mistral_jax.config import load
from mistral_jax.config import run as run_config
from mistral_jax.train import held_out

MANIFEST = artifact.MANIFEST
MEASURED = "measured.json"
PLAN = "plan.json"
RESUMES = "resumes.jsonl"
LOCK = ".train.lock"
# What of a plan rounds sums in another order; the rest of plan.json is prediction.
PLAN_FIELDS = (
    "platform", "num_devices", "mesh", "micro_batch_sequences", "accumulation", "attention",
    "remat", "mlp_chunk_tokens", "context_form",
)  # fmt: skip
# By which dropout's masks are drawn.
DROPOUT_FIELDS = ("accumulation", "mlp_chunk_tokens")


class ResumeRefused(ValueError):
    """The run directory is of another experiment; the message names each difference."""

    exit_code = 3  # refused by a gate; see cli.py


class InUse(ValueError):
    """Another process trains in the run directory at this moment."""

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
def claimed(directory: Path, data: Path) -> Iterator[None]:
    """Make a run directory and hold it alone; where the work is refused, remove what stayed empty.

    Raises:
        InUse: another process holds it.
    """
    missing = [p for p in (directory, *directory.parents) if not p.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(
                f"{directory}: another process trains this run now; wait for it, or start beside "
                "it with fresh=true"
            ) from None
        try:
            yield
        except ValueError:
            checkpoints = directory / artifact.CHECKPOINTS
            _remove_empty(*data.glob("*"), data, checkpoints)
            if directory in missing and [p.name for p in directory.iterdir()] == [LOCK]:
                (directory / LOCK).unlink()
                _remove_empty(*missing)
            raise


@contextlib.contextmanager
def claimed_by_one(directory: Path, data: Path) -> Iterator[None]:
    """Let process 0 hold the run directory for all processes of the run; see `claimed`."""
    with contextlib.ExitStack() as held:

        def claim() -> None:
            held.enter_context(claimed(directory, data))

        distributed.on_main(claim)
        yield


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def has_checkpoint(directory: Path) -> bool:
    """Tell whether a run has saved a step."""
    return bool(checkpoint.saved_steps(directory / artifact.CHECKPOINTS))


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


def check_resume(
    directory: Path,
    *,
    weights_digest: str | None,
    plan: dict[str, Any],
    has_dropout: bool,
    num_steps: int,
) -> list[str]:
    """Compare what a run began with; return the differences that change no more than rounding.

    Raises:
        ResumeRefused: the base weights are others, the data makes another number of steps, or
            dropout would be drawn in other rows.
    """
    began = _read_json(directory / MANIFEST)
    if began.get("max_steps", num_steps) != num_steps:
        raise ResumeRefused(
            f"{directory}: data.epochs made {began['max_steps']} steps when the run began and "
            f"makes {num_steps} now; put the data and the version back that it began with, or "
            "start beside it with fresh=true"
        )
    if began["start_checkpoint_digest"] != weights_digest:
        raise ResumeRefused(
            f"{directory}: the base weights are not those that the run began with: "
            f"{began['start_checkpoint_digest']} -> {weights_digest}; put these back, or start "
            "beside it with fresh=true"
        )
    first = {name: _read_json(directory / PLAN).get(name) for name in PLAN_FIELDS}
    differences = manifest.differences(first, {name: plan[name] for name in PLAN_FIELDS}, "plan")
    is_drawn_alike = all(first[name] == plan[name] for name in DROPOUT_FIELDS)
    if has_dropout and not is_drawn_alike:
        raise ResumeRefused(
            f"{directory}: with adapter.dropout the masks are drawn by micro batch and chunk, and "
            f"{'; '.join(differences)}; use a target with micro_batch_sequences: "
            f"{first['micro_batch_sequences']}, or start beside it with fresh=true"
        )
    versions = manifest.environment()["versions"]
    return differences + manifest.differences(began["versions"], versions, "versions")


def record_resume(directory: Path, step: int, differences: list[str]) -> None:
    """Append to resumes.jsonl where a process went on, on what, and what is not as it began."""
    line = {"step": step, "differences": differences, **manifest.environment()}
    with (directory / RESUMES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")


def write_config(directory: Path, run: run_config.RunConfig) -> None:
    """Write config.yaml whole or not at all."""
    storage.write_bytes(directory / artifact.CONFIG_NAME, load.dump_yaml(run).encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResumeRefused(
            f"{path}: cannot be read ({error}), so that the run cannot be compared with what it "
            "began with; put the file back, or start beside it with fresh=true"
        ) from None


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
