"""A run's data as batches: the only place where the training side and data_pipelines meet."""

from pathlib import Path
from typing import Any

import jax

from data_pipelines import batches
from data_pipelines import inputs
from mistral_jax import protocols
from mistral_jax.config import run as run_config

DATA_FOLDER = "data"


def describe(data: inputs.RunSources) -> list[dict[str, Any]]:
    """Return role, name, digest, documents and tokens of every source, for the manifest."""
    return [
        {
            "role": role,
            "name": source.name,
            "digest": source.digest,
            "documents": len(source),
            "tokens": int(source.lengths.sum()),
        }
        for role, opened in (("train", data.train), ("eval", data.held_out))
        for source in opened
    ]


def data_folder(run_directory: Path) -> Path:
    """Return where a run's raw documents are prepared into."""
    return run_directory / DATA_FOLDER


def train_stream(
    run: run_config.RunConfig, data: inputs.RunSources, *, state: dict | None
) -> batches.TrainBatches:
    """Return the run's batches, from the start or from a saved position.

    Raises:
        batches.ResumeMismatch: the saved position is of other data, seed or shapes.
    """
    stream = batches.train_batches(
        data.train,
        run.data,
        run.seed,
        weights=data.weights,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )
    if state is not None:
        stream.set_state(state)
    return stream


def held_out_batches(
    run: run_config.RunConfig, data: inputs.RunSources, batch_rows: int
) -> dict[str, list[protocols.Batch]]:
    """Return the held-out rows of each source, at most evaluate.max_rows of each."""
    found = {
        source.name: list(
            batches.eval_batches(
                source,
                sequence_length=run.data.sequence_length,
                batch_rows=batch_rows,
                max_rows=run.evaluate.max_rows,
            )
        )
        for source in data.held_out
    }
    return {name: rows for name, rows in found.items() if rows}
