"""Checkpoints and run directories, from headers and logs."""

import collections
import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipelines import sources
from mistral_jax import metrics
from mistral_jax import tokenizers
from mistral_jax.config import load
from mistral_jax.config import run as run_config
from mistral_jax.config.model import DecoderConfig
from mistral_jax.formats import detect
from mistral_jax.formats import locate
from mistral_jax.formats import peft
from mistral_jax.inspect import documents
from mistral_jax.inspect import table
from mistral_jax.inspect import version

SPARK_WIDTH = 48


def show_checkpoint(path: Path, console: Console) -> None:
    """Print what a checkpoint's header tells, and which tokenizer lies beside it."""
    weights = detect.open_weights(path)
    names = weights.names()
    sizes = {name: math.prod(weights.shape(name)) for name in names}
    by_format: collections.Counter[str] = collections.Counter()
    for name in names:
        by_format[weights.dtype_name(name)] += sizes[name]
    total = sum(sizes.values())
    formats = ", ".join(
        f"{kind} {count / max(total, 1):.1%}" for kind, count in by_format.most_common()
    )
    tokenizer, tokenizer_line = _tokenizer_beside(path)
    rows = {
        "kind": f"checkpoint, {weights.kind}",
        "path": str(weights.path),
        "parameters": f"{total:,}",
        "tensors": f"{len(names):,}",
        "number formats": formats,
        "size on disk": table.format_size(table.files_size_bytes(weights.path)),
        "tokenizer": tokenizer_line,
    }
    try:
        decoder = weights.decoder_config()
    except ValueError as error:  # another architecture: still worth showing
        console.print(table.two_columns(path.name, rows))
        console.print(f"our decoder does not run it: {error}", style="yellow", markup=False)
        return
    rows |= {"decoder": table.one_line(decoder)}
    if weights.left_out:
        rows["left out"] = f"{len(weights.left_out):,} tensors beside the text model"
    config = load.validate(decoder, DecoderConfig, where=str(path))
    is_mistrals = isinstance(tokenizer, tokenizers.MistralCommonTokenizer)
    found = version.identify(
        config,
        tokenizer_format=tokenizer.version.value if is_mistrals else None,
        tokenizer_size=None if tokenizer is None else tokenizer.vocab_size,
    )
    console.print(table.two_columns(path.name, {"model": found.title} | rows))
    for sentence in found.contradictions:
        console.print(f"contradiction: {sentence}", style="yellow", markup=False)


def show_adapter(folder: Path, console: Console) -> None:
    """Print what a PEFT adapter's settings tell."""
    adapter = peft.AdapterFile(folder)
    settings = adapter.settings
    sizes = {name: adapter.tensor(name).size for name in adapter.names()}
    rows = {
        "kind": "adapter, peft",
        "base model": settings.base_model or "not named",
        "base digest": settings.base_digest or "not recorded",
        "rank, alpha": f"{settings.rank}, {settings.alpha:g}",
        "target modules": ", ".join(settings.target_modules),
        "parameters": f"{sum(sizes.values()):,}",
        "tensors": f"{len(sizes):,}",
        "size on disk": table.format_size(table.files_size_bytes(folder)),
    }
    if adapter.not_for_peft is not None:
        rows["PEFT"] = adapter.not_for_peft
    console.print(table.two_columns(folder.name, rows))


def _tokenizer_beside(path: Path) -> tuple[tokenizers.Tokenizer | None, str]:
    """Return the tokenizer that lies beside a checkpoint, and what to say of it."""
    folder = path if path.is_dir() or path.suffix == ".gguf" else path.parent
    try:
        found = tokenizers.load_tokenizer(folder)
    except ValueError as error:
        return None, f"none ({error})"
    template = "with" if found.chat_template is not None else "without"
    return found, f"{found.name}, {found.vocab_size:,} tokens, {template} a chat template"


def show_run(folder: Path, num_rows: int, tokenizer: str | None, console: Console) -> None:
    """Print how far a run is, its losses and checkpoints, and the data that it prepared."""
    run = load.load_run(folder / "config.yaml")
    log_path = folder / metrics.METRICS_FILE
    log = metrics.read_metrics(log_path) if log_path.is_file() else metrics.MetricsLog([], [], [])
    last_step = log.steps[-1]["step"] if log.steps else 0
    is_finished = (folder / "measured.json").is_file()
    rows = {
        "kind": "run, finished" if is_finished else "run, not finished; the same command goes on",
        "config": run.name,
        "science hash": run.science_hash()[:8],
        "model": table.one_line(run.model.model_dump(mode="json")),
        "adapter": table.one_line(run.adapter.model_dump(mode="json")),
        "data": _data_line(run),
        "step": f"{last_step} of {_num_steps(folder, run)}",
        "losses": _loss_line(log.steps),
        **_held_out_lines(log.evals),
        "checkpoints": _checkpoint_line(folder / "checkpoints"),
        "size on disk": table.format_size(table.files_size_bytes(folder)),
    }
    console.print(table.two_columns(folder.name, rows))
    spelling = tokenizer or _tokenizer_of_run(run)
    for prepared in sorted(folder.glob(f"data/*/*/{sources.MANIFEST}")):
        documents.show_prepared(prepared.parent, num_rows, spelling, console)


def _num_steps(folder: Path, run: run_config.RunConfig) -> int | str:
    """Return the run's steps; where its data decides them, the manifest tells."""
    if run.optimizer.max_steps is not None:
        return run.optimizer.max_steps
    path = folder / "manifest.json"
    if not path.is_file():
        return f"those of {run.data.epochs:g} epochs"
    return json.loads(path.read_text(encoding="utf-8"))["max_steps"]


def _data_line(run: run_config.RunConfig) -> str:
    train = run.data.train
    named = train if isinstance(train, str) else ", ".join(source.path for source in train)
    rows, length = run.data.global_batch_sequences, run.data.sequence_length
    return f"{named}; {rows} rows of {length} tokens a step"


def _loss_line(steps: list[dict[str, Any]]) -> str:
    losses = [line["loss"] for line in steps if line.get("loss") is not None]
    if not losses:
        return "none yet"
    return f"{losses[0]:.4f} {metrics.sparkline(losses, SPARK_WIDTH)} {losses[-1]:.4f}"


def _held_out_lines(evals: list[dict[str, Any]]) -> dict[str, str]:
    by_source: dict[str, list[tuple[int, float]]] = {}
    for line in evals:
        if line.get("loss") is not None:
            by_source.setdefault(line["eval"], []).append((line["step"], line["loss"]))
    lines = {}
    for source, points in by_source.items():
        (first, before), (last, after) = points[0], points[-1]
        best_step, best = min(points, key=lambda point: point[1])
        lines[f"held-out {source}"] = (
            f"{before:.4f} at step {first}, {after:.4f} at step {last}; best {best:.4f} at step "
            f"{best_step}"
        )
    return lines


def _checkpoint_line(folder: Path) -> str:
    steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())
    damaged = folder.with_name(f"{folder.name}-damaged")
    aside = sorted(p.name for p in damaged.glob("*"))
    shown = ", ".join(
        f"step {step} ({table.format_size(table.files_size_bytes(folder / str(step)))})"
        for step in steps
    )
    return (shown or "none") + (f"; damaged, set aside: {', '.join(aside)}" if aside else "")


def _tokenizer_of_run(run: run_config.RunConfig) -> str | None:
    if run.data.tokenizer != "auto":
        return run.data.tokenizer
    weights = run.model.weights
    return "bytes" if weights is None else str(locate.headers_path(weights, has_text=True))
