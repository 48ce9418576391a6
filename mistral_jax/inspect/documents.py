"""Prepared data and JSONL of chats: counts, what was kept out, documents in colour.

Tokens that are trained on are green, the others dim.
"""

import collections
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from data_pipelines import jsonl
from data_pipelines import sources
from data_pipelines import tokenize_documents
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from mistral_jax import tokenizers
from mistral_jax.inspect import table

TRAINED_STYLE = "green"
OTHER_STYLE = "dim"
TOKENS_SHOWN = 400  # of one document
REJECTS_SHOWN = 8


def show_prepared(folder: Path, num_rows: int, tokenizer: str | None, console: Console) -> None:
    """Print a prepared folder's counts and rejects, and its first documents."""
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
    console.print(table.two_columns(str(folder), rows))
    for reject in rejects.get("first", ())[:REJECTS_SHOWN]:
        print_reject(Reject(**reject), console)
    train = sources.ArrayRecordSource(folder, "train")
    spelling = _spelling_of(prepared_by, tokenizer)
    for example in (train[index] for index in range(min(num_rows, len(train)))):
        _print_document(example.document, example.tokens, example.loss_mask, spelling, console)
    if num_rows and spelling is None:
        console.print("tokens are shown as ids; --tokenizer spells them", style=OTHER_STYLE)


def show_document(
    folder: Path, split: str, index: int, tokenizer: str | None, console: Console
) -> None:
    """Print one document of a prepared folder as it is trained on; nothing if it has no shards."""
    if not sources.is_prepared(folder):
        return
    source = sources.ArrayRecordSource(folder, split)
    example = source[index]
    spelling = _spelling_of(source.tokenizer, tokenizer)
    _print_document(example.document, example.tokens, example.loss_mask, spelling, console)


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


def show_jsonl(path: Path, num_rows: int, tokenizer: str, console: Console) -> None:
    """Print the first documents of a JSONL file as they would be trained on, and its counts."""
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
                print_reject(made, console)
                continue
            tokens = made.tokens
            mask = np.ones(len(tokens), np.int8) if made.mask is None else made.mask
            counts["documents"] += 1
            counts["tokens"] += len(tokens)
            counts["trained tokens"] += int(np.count_nonzero(mask[1:]))
            if counts["documents"] <= num_rows:
                _print_document(item.id, tokens, mask, spelling, console)
    rows = {"kind": "documents as JSONL", "tokenizer": spelling.name}
    console.print(
        table.two_columns(path.name, rows | {name: f"{n:,}" for name, n in counts.items()})
    )


def print_reject(reject: Reject, console: Console) -> None:
    """Print what was kept out, and why."""
    line = table.visible(f"kept out: {reject.id}: {reject.reason}")
    console.print(line, style="yellow", markup=False, highlight=False)


def _print_document(
    name: str,
    tokens: Integer[np.ndarray, " n"],
    mask: Integer[np.ndarray, " n"],
    tokenizer: tokenizers.Tokenizer | None,
    console: Console,
) -> None:
    trained = int(np.count_nonzero(mask))
    name = escape(table.visible(name))
    console.print(f"\n[bold]{name}[/bold]: {len(tokens)} tokens, {trained} trained")
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
        text.append(table.visible(spelled), style=TRAINED_STYLE if is_trained else OTHER_STYLE)
    return text


def _spell(ids: list[int], tokenizer: tokenizers.Tokenizer) -> str:
    """Decode runs of ordinary tokens together, so that bytes of one letter meet; keep the rest."""
    special = tokenizer.spelling
    parts = []
    for is_special, run in itertools.groupby(ids, key=lambda token: token in special):
        found = list(run)
        parts += [special[token] for token in found] if is_special else [tokenizer.decode(found)]
    return "".join(parts)
