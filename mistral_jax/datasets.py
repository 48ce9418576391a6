"""A run's data as batches: the only place where the training side and data_pipelines meet."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from data_pipelines import batches
from data_pipelines import inputs
from data_pipelines import sources
from mistral_jax import distributed
from mistral_jax import protocols
from mistral_jax import tokenizers
from mistral_jax.config import data as data_config
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


def open_sources(
    run: run_config.RunConfig,
    tokenizer: tokenizers.Tokenizer,
    folder: Path,
    *,
    is_begun: bool,
    say: Callable[[str], None],
) -> inputs.RunSources:
    """Open what the run reads; process 0 prepares raw documents while the others wait.

    The others read what it has prepared out of the run's folder, which all must see; what was
    prepared before, each reads from where the config says.

    Raises:
        ValueError: see inputs.open_sources; on every process.
    """

    def opened(config: data_config.DataConfig) -> inputs.RunSources:
        return inputs.open_sources(config, tokenizer, folder, is_begun=is_begun, on_progress=say)

    if not distributed.is_shared():
        return opened(run.data)
    kept: list[inputs.RunSources] = []

    def prepare() -> dict[str, Any]:
        kept.append(opened(run.data))
        return _described(run.data, kept[0], folder)

    found = distributed.on_main(prepare)
    listed = {
        role: tuple(data_config.Source(**source) for source in entries) or None
        for role, entries in found.items()
    }
    there = run.data.model_copy(update=listed)
    return distributed.everywhere(lambda: kept[0] if kept else opened(there))


def _described(
    config: data_config.DataConfig, data: inputs.RunSources, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Return the config's sources; what was prepared for this run, by the folder that it is in."""
    trained = {source.name for source in data.train}
    further = [source for source in data.held_out if source.name not in trained]
    weights = {source.name: weight for source, weight in zip(data.train, data.weights, strict=True)}

    def path_of(given: str | tuple[data_config.Source, ...] | None, source: Any) -> str:
        if source.folder.is_relative_to(folder):
            return str(source.folder)
        if isinstance(given, str):
            return given
        return next(each.path for each in given or () if each.name == source.name)

    return {
        role: [
            {
                "name": source.name,
                "path": path_of(given, source),
                "weight": weights.get(source.name, 1.0),
            }
            for source in opened
        ]
        for role, given, opened in (
            ("train", config.train, data.train), ("eval", config.eval, further)
        )
    }  # fmt: skip


def train_stream(
    run: run_config.RunConfig,
    data: inputs.RunSources,
    *,
    state: dict | None,
    mesh: Mesh | None = None,
) -> batches.TrainBatches:
    """Return this process's rows of the run's batches, from the start or from a saved position.

    Args:
        run: the experiment.
        data: what it reads.
        state: a saved position, or None.
        mesh: says which rows the process's devices hold; all if None.

    Raises:
        batches.ResumeMismatch: the saved position is of other data, seed or shapes.
    """
    stream = batches.train_batches(
        data.train,
        run.data,
        run.seed,
        weights=data.weights,
        held_rows=_held_rows(mesh, run.data.global_batch_sequences),
        max_steps=run.optimizer.max_steps,
    )
    if state is not None:
        stream.set_state(state)
    return stream


def _held_rows(mesh: Mesh | None, num_rows: int) -> Any:
    return None if mesh is None else distributed.held_rows(mesh, num_rows)


def held_out_batches(
    run: run_config.RunConfig,
    data: inputs.RunSources,
    batch_rows: int,
    *,
    mesh: Mesh | None = None,
) -> dict[str, list[protocols.Batch]]:
    """Return this process's held-out rows of each source; of all, at most evaluate.max_rows.

    With a curriculum a source that has levels is looked at level by level, `<source>/<level>`, each
    at most its part of evaluate.max_rows.
    """
    found = {
        source.name: list(
            batches.eval_batches(
                source,
                sequence_length=run.data.sequence_length,
                batch_rows=batch_rows,
                max_rows=max_rows,
                held_rows=_held_rows(mesh, batch_rows),
            )
        )
        for source, max_rows in _looked_at(run, data)
    }
    return {name: rows for name, rows in found.items() if rows}


def _looked_at(
    run: run_config.RunConfig, data: inputs.RunSources
) -> Iterator[tuple[sources.ArrayRecordSource, int]]:
    """Yield what held-out losses are measured on, each with its number of rows."""
    for source in data.held_out:
        probes = _probes(run, source)
        if not probes:
            yield source, run.evaluate.max_rows
        for probe in probes.values():
            yield probe, max(1, run.evaluate.max_rows // len(probes))


def _probes(
    run: run_config.RunConfig, source: sources.ArrayRecordSource
) -> dict[int, sources.ArrayRecordSource]:
    return {} if run.data.curriculum.kind == "none" else batches.probes(source)


class LevelWatch:
    """What the loop tells the curriculum, and asks it: see loop.Curriculum."""

    def __init__(
        self, run: run_config.RunConfig, data: inputs.RunSources, stream: batches.TrainBatches
    ):
        """Watch over a stream that follows a curriculum."""
        self._stream = stream
        self._probe_of = {
            probe.name: (source.name, level)
            for source in data.held_out
            for level, probe in _probes(run, source).items()
        }

    def observe(self, losses: Mapping[str, float]) -> None:
        """Take the held-out losses, by the names of `held_out_batches`."""
        self._stream.observe(
            {self._probe_of[name]: loss for name, loss in losses.items() if name in self._probe_of}
        )

    def levels(self) -> dict[str, int]:
        """Return the level of each source, for the next batch."""
        return self._stream.levels()


def level_watch(
    run: run_config.RunConfig, data: inputs.RunSources, stream: batches.TrainBatches
) -> LevelWatch | None:
    """Return what the loop tells held-out losses; None for a run without a curriculum.

    Raises:
        ValueError: the levels are to follow held-out losses that a source does not have.
    """
    curriculum = run.data.curriculum
    if curriculum.kind == "none":
        return None
    known = {source.name for source in data.held_out if source.levels is not None}
    for name in stream.levels():
        if curriculum.kind == "adaptive" and name not in known:
            raise ValueError(
                f"data.curriculum is adaptive, but the source {name!r} has no held-out documents "
                "to know its level by; prepare it with a split, or choose data.curriculum.kind="
                "schedule"
            )
    return LevelWatch(run, data, stream)
