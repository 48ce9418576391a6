"""What is this? A checkpoint of any format, a run directory, prepared data, or a JSONL of chats.

Reads headers, manifests and logs only, and starts no backend. Documents are shown with their loss
mask in colour: tokens that are trained on in green, the others dim.
"""

import collections
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data_pipelines import jsonl
from data_pipelines import sources
from data_pipelines import tokenize_documents
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from mistral_jax import metrics
from mistral_jax import tokenizers
from mistral_jax.config import load
from mistral_jax.config import run as run_config
from mistral_jax.formats import detect
from mistral_jax.formats import locate

TRAINED_STYLE = "green"
OTHER_STYLE = "dim"
TOKENS_SHOWN = 400  # of one document
REJECTS_SHOWN = 8
SPARK_WIDTH = 48
JSONL_SUFFIXES = (".jsonl", ".ndjson")
WEIGHT_SUFFIXES = (".safetensors", ".gguf")
EXPECTED = (
    "a checkpoint (a folder, a .safetensors or a .gguf file), a run directory, a prepared data "
    "folder, or a .jsonl file"
)


def show(
    path: str | Path,
    *,
    num_rows: int = 2,
    tokenizer: str | None = None,
    console: Console | None = None,
) -> None:
    """Print what lies at a path.

    Args:
        path: see EXPECTED; `package:NAME` is an installed package that carries its model.
        num_rows: documents to show of data.
        tokenizer: spells the tokens of data; by default the one that prepared it, where its name
            says where it is (a .jsonl file: bytes).
        console: where to print; standard output by default.

    Raises:
        ValueError: nothing that we know lies there, or it is damaged; the message says what.
    """
    console = console or Console()
    is_package = str(path).startswith(f"{locate.PACKAGE_SCHEME}:")
    where = locate.local_path(str(path)) if is_package else Path(path).expanduser()
    if not where.exists():
        raise ValueError(f"{where}: nothing is there; expected {EXPECTED}")
    if (where / "config.yaml").is_file():
        _show_run(where, num_rows, tokenizer, console)
    elif sources.is_prepared(where) and "splits" in _json_object(where / sources.MANIFEST):
        _show_prepared(where, num_rows, tokenizer, console)
    elif where.suffix in JSONL_SUFFIXES:
        _show_jsonl(where, num_rows, tokenizer or "bytes", console)
    elif _may_hold_weights(where):
        _show_checkpoint(where, console)
    else:
        raise ValueError(f"{where}: not something that inspect knows; expected {EXPECTED}")


def _may_hold_weights(path: Path) -> bool:
    if path.is_file():
        return path.suffix in WEIGHT_SUFFIXES
    names = ("config.json", "params.json")
    return any((path / name).is_file() for name in names) or any(
        file.suffix in WEIGHT_SUFFIXES for file in path.iterdir()
    )


def _show_checkpoint(path: Path, console: Console) -> None:
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
    rows = {
        "kind": f"checkpoint, {weights.kind}",
        "path": str(weights.path),
        "parameters": f"{total:,}",
        "tensors": f"{len(names):,}",
        "number formats": formats,
        "size on disk": _size(_files_size(weights.path)),
        "tokenizer": _tokenizer_line(path),
    }
    try:
        decoder = weights.decoder_config()
    except ValueError as error:  # another architecture: still worth showing
        console.print(_table(path.name, rows))
        console.print(f"our decoder does not run it: {error}", style="yellow", markup=False)
        return
    console.print(_table(path.name, rows | {"decoder": _flat(decoder)}))


def _tokenizer_line(path: Path) -> str:
    folder = path if path.is_dir() or path.suffix == ".gguf" else path.parent
    try:
        found = tokenizers.load_tokenizer(folder)
    except ValueError as error:
        return f"none ({error})"
    template = "with" if found.chat_template is not None else "without"
    return f"{found.name}, {found.vocab_size:,} tokens, {template} a chat template"


def _show_run(folder: Path, num_rows: int, tokenizer: str | None, console: Console) -> None:
    run = load.load_run(folder / "config.yaml")
    log_path = folder / metrics.METRICS_FILE
    log = metrics.read_metrics(log_path) if log_path.is_file() else metrics.MetricsLog([], [], [])
    last_step = log.steps[-1]["step"] if log.steps else 0
    is_finished = (folder / "measured.json").is_file()
    rows = {
        "kind": "run, finished" if is_finished else "run, not finished; the same command goes on",
        "config": run.name,
        "science hash": run.science_hash()[:8],
        "model": _flat(run.model.model_dump(mode="json")),
        "adapter": _flat(run.adapter.model_dump(mode="json")),
        "data": _data_line(run),
        "step": f"{last_step} of {run.optimizer.max_steps}",
        "losses": _loss_line(log.steps),
        **_held_out_lines(log.evals),
        "checkpoints": _checkpoint_line(folder / "checkpoints"),
        "size on disk": _size(_files_size(folder)),
    }
    console.print(_table(folder.name, rows))
    spelling = tokenizer or _tokenizer_of_run(run)
    for prepared in sorted(folder.glob(f"data/*/*/{sources.MANIFEST}")):
        _show_prepared(prepared.parent, num_rows, spelling, console)


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
    shown = ", ".join(f"step {step} ({_size(_files_size(folder / str(step)))})" for step in steps)
    return (shown or "none") + (f"; damaged, set aside: {', '.join(aside)}" if aside else "")


def _tokenizer_of_run(run: run_config.RunConfig) -> str | None:
    if run.data.tokenizer != "auto":
        return run.data.tokenizer
    weights = run.model.weights
    return "bytes" if weights is None else str(locate.local_path(weights))


def _show_prepared(folder: Path, num_rows: int, tokenizer: str | None, console: Console) -> None:
    manifest = sources.read_manifest(folder)
    rejects, prepared_by = manifest["rejects"], manifest["tokenizer"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in rejects["by_kind"].items())
    rows = {
        "kind": "prepared data",
        "name": manifest["name"],
        "tokenizer": f"{prepared_by['name']}, {prepared_by['vocab_size']:,} tokens",
        **{name.replace("_", " "): f"{count:,}" for name, count in manifest["counts"].items()},
        "kept out": kinds or "nothing",
    }
    for split, entry in manifest["splits"].items():
        rows[f"split {split}"] = (
            f"{entry['documents']:,} documents, {entry['tokens']:,} tokens, "
            f"{entry['target_tokens']:,} of them trained, {len(entry['shards'])} shards"
        )
    console.print(_table(str(folder), rows))
    for reject in rejects["first"][:REJECTS_SHOWN]:
        line = f"kept out: {reject['id']}: {reject['reason']}"
        console.print(line, style="yellow", markup=False, highlight=False)
    train = sources.ArrayRecordSource(folder, "train")
    spelling = _spelling_of(prepared_by, tokenizer)
    for example in (train[index] for index in range(min(num_rows, len(train)))):
        _print_document(example.document, example.tokens, example.loss_mask, spelling, console)
    if num_rows and spelling is None:
        console.print("tokens are shown as ids; --tokenizer spells them", style=OTHER_STYLE)


def _spelling_of(prepared_by: dict[str, Any], wanted: str | None) -> tokenizers.Tokenizer | None:
    """Return the tokenizer that prepared the data, or None where nothing says where it is.

    Raises:
        ValueError: the wanted one is not the one that prepared the data.
    """
    name = wanted or prepared_by["name"]
    try:
        found = tokenizers.load_tokenizer(name)
    except ValueError:
        if wanted is not None:
            raise
        return None
    if found.digest == prepared_by["digest"]:
        return found
    if wanted is None:
        return None
    raise ValueError(
        f"the data was prepared with tokenizer {prepared_by['name']!r}, and {wanted} is another "
        "one; give the model's own"
    )


def _show_jsonl(path: Path, num_rows: int, tokenizer: str, console: Console) -> None:
    spelling = tokenizers.load_tokenizer(tokenizer)
    counts: collections.Counter[str] = collections.Counter()
    with path.open("rb") as stream:
        for item in jsonl.read_jsonl(path.name, stream, Limits()):
            if isinstance(item, Reject):
                made: Any = item
            else:
                made = tokenize_documents.tokenize_document(item, spelling)
            if isinstance(made, Reject):
                counts[f"kept out, {made.kind}"] += 1
                line = f"kept out: {made.id}: {made.reason}"
                console.print(line, style="yellow", markup=False, highlight=False)
                continue
            tokens, mask = made
            mask = np.ones(len(tokens), np.int8) if mask is None else mask
            counts["documents"] += 1
            counts["tokens"] += len(tokens)
            counts["trained tokens"] += int(np.count_nonzero(mask[1:]))
            if counts["documents"] <= num_rows:
                _print_document(item.id, tokens, mask, spelling, console)
    rows = {"kind": "documents as JSONL", "tokenizer": spelling.name}
    console.print(_table(path.name, rows | {name: f"{n:,}" for name, n in counts.items()}))


def _print_document(
    name: str,
    tokens: Integer[np.ndarray, " n"],
    mask: Integer[np.ndarray, " n"],
    tokenizer: tokenizers.Tokenizer | None,
    console: Console,
) -> None:
    trained = int(np.count_nonzero(mask))
    console.print(f"\n[bold]{escape(name)}[/bold]: {len(tokens)} tokens, {trained} trained")
    text = mask_text(tokens[:TOKENS_SHOWN], mask[:TOKENS_SHOWN], tokenizer)
    if len(tokens) > TOKENS_SHOWN:
        text.append(f" ... {len(tokens) - TOKENS_SHOWN} more", style=OTHER_STYLE)
    console.print(text)


def mask_text(
    tokens: Integer[np.ndarray, " n"],
    mask: Integer[np.ndarray, " n"],
    tokenizer: tokenizers.Tokenizer | None,
) -> Text:
    """Return tokens as text, in the colours of their loss mask; ids where there is no tokenizer."""
    text = Text()
    pairs = zip(tokens.tolist(), mask.tolist(), strict=True)
    for is_trained, run in itertools.groupby(pairs, key=lambda pair: bool(pair[1])):
        ids = [token for token, _ in run]
        spelled = f"{' '.join(map(str, ids))} " if tokenizer is None else _spell(ids, tokenizer)
        text.append(spelled, style=TRAINED_STYLE if is_trained else OTHER_STYLE)
    return text


def _spell(ids: list[int], tokenizer: tokenizers.Tokenizer) -> str:
    """Decode runs of ordinary tokens together, so that bytes of one letter meet; keep the rest."""
    special = {number: spelling for spelling, number in tokenizer.special_tokens.items()}
    parts = []
    for is_special, run in itertools.groupby(ids, key=lambda token: token in special):
        found = list(run)
        parts += [special[token] for token in found] if is_special else [tokenizer.decode(found)]
    return "".join(parts)


def _table(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


def _flat(node: dict[str, Any]) -> str:
    """Return a config node on one line, without what is null."""
    shown = []
    for key, value in node.items():
        if isinstance(value, dict):
            shown.append(f"{key} ({_flat(value)})")
        elif value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            shown.append(f"{key} {text}")
    return ", ".join(shown)


def _files_size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _size(size_bytes: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} bytes"


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
