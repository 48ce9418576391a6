"""A run's data, joined: raw paths are prepared into the run directory, then opened and batched.

The only place where the training side and data_pipelines meet.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from data_pipelines import batches
from data_pipelines import prepare
from data_pipelines import sources
from mistral_jax import protocols
from mistral_jax import tokenizers
from mistral_jax.config import data as data_config
from mistral_jax.config import run as run_config

DATA_FOLDER = "data"
DEFAULT_NAME = "documents"


@dataclasses.dataclass(frozen=True)
class RunData:
    """What a run reads.

    Attributes:
        train: the train splits, in the order of `Batch.domain`.
        held_out: the sources of held-out loss; may be empty.
    """

    train: list[sources.ArrayRecordSource]
    held_out: list[sources.ArrayRecordSource]

    def describe(self) -> list[dict[str, Any]]:
        """Return name, digest, documents and tokens of every source, for the manifest."""
        rows = []
        for role, opened in (("train", self.train), ("eval", self.held_out)):
            for source in opened:
                rows.append(
                    {
                        "role": role,
                        "name": source.name,
                        "digest": source.digest,
                        "documents": len(source),
                        "tokens": int(source.lengths.sum()),
                    }
                )
        return rows


def open_data(
    run: run_config.RunConfig,
    run_directory: Path,
    tokenizer: tokenizers.Tokenizer,
    *,
    say: Callable[[str], None],
) -> RunData:
    """Prepare what is raw, open what is prepared.

    Raises:
        ValueError: a path without usable documents, another tokenizer's shards, no train text.
    """
    config = run.data
    train, held_out = [], []
    fraction = config.eval_fraction if config.eval is None else 0.0
    for source in as_sources(config.train):
        folder = _prepared(source, run_directory, tokenizer, config, fraction, say=say)
        train.append(_open(folder, "train", source.name, tokenizer))
        if config.eval is None and _has_split(folder, "eval"):
            held_out.append(_open(folder, "eval", source.name, tokenizer))
    for source in as_sources(config.eval or ()):
        eval_source = source.model_copy(update={"name": f"eval-{source.name}"})
        folder = _prepared(eval_source, run_directory, tokenizer, config, 0.0, say=say)
        split = "eval" if _has_split(folder, "eval") else "train"
        held_out.append(_open(folder, split, source.name, tokenizer))
    return RunData(train, held_out)


def as_sources(given: str | tuple[data_config.Source, ...]) -> list[data_config.Source]:
    """Return a path, or a list of sources, as sources."""
    if isinstance(given, str):
        return [data_config.Source(name=DEFAULT_NAME, path=given)]
    return list(given)


def train_stream(
    run: run_config.RunConfig, data: RunData, *, state: dict | None
) -> batches.TrainBatches:
    """Return the run's batches, from the start or from a saved position.

    Raises:
        batches.ResumeMismatch: the saved position is of other data, seed or shapes.
    """
    stream = batches.train_batches(
        data.train,
        run.data,
        run.seed,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )
    if state is not None:
        stream.set_state(state)
    return stream


def held_out_batches(
    run: run_config.RunConfig, data: RunData, batch_rows: int
) -> dict[str, list[protocols.Batch]]:
    """Return the held-out rows of each source, at most evaluate.max_rows of each."""
    found: dict[str, list[protocols.Batch]] = {}
    for source in data.held_out:
        rows: Iterator[protocols.Batch] = batches.eval_batches(
            source,
            sequence_length=run.data.sequence_length,
            batch_rows=batch_rows,
            max_rows=run.evaluate.max_rows,
        )
        found[source.name] = list(rows)
    return {name: rows for name, rows in found.items() if rows}


def _prepared(
    source: data_config.Source,
    run_directory: Path,
    tokenizer: tokenizers.Tokenizer,
    config: data_config.DataConfig,
    eval_fraction: float,
    *,
    say: Callable[[str], None],
) -> Path:
    path = Path(source.path).expanduser()
    if sources.is_prepared(path):
        return path
    folder = run_directory / DATA_FOLDER / source.name
    prepare.prepare(
        path,
        folder,
        tokenizer=tokenizer,
        name=source.name,
        eval_fraction=eval_fraction,
        max_documents=config.max_documents,
        on_progress=say,
    )
    return folder


def _has_split(folder: Path, split: str) -> bool:
    entry = sources.read_manifest(folder)["splits"].get(split)
    return entry is not None and bool(entry["shards"])


def _open(
    folder: Path, split: str, name: str, tokenizer: tokenizers.Tokenizer
) -> sources.ArrayRecordSource:
    opened = sources.ArrayRecordSource(folder, split, name=name)
    if opened.tokenizer["digest"] != tokenizer.digest:
        raise ValueError(
            f"{folder}: prepared with tokenizer {opened.tokenizer['name']!r}, but the model's is "
            f"{tokenizer.name!r}; prepare it again with the model's tokenizer"
        )
    if split == "train" and len(opened) == 0:
        raise ValueError(f"{folder}: no training documents are left; lower data.eval_fraction")
    return opened
