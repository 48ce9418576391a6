"""Training and held-out batches: Grain does order of hand-over, prefetch and worker processes.

Which rows a batch holds is decided by the ledger alone, from the step's number. The iterator's
state is that number and a fingerprint of everything that decides the rows; a resume with another
fingerprint is refused with the difference named. With a curriculum the state also has what it has
decided so far.
"""

import functools
import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import fields
from fractions import Fraction
from typing import Any

import grain
import numpy as np
from absl import flags

from data_pipelines import curriculum
from data_pipelines import ledger
from data_pipelines import levels
from data_pipelines import rows
from data_pipelines import sources
from mistral_jax.config.data import DataConfig
from mistral_jax.protocols import Batch

ENDLESS_STEPS = 1 << 40
FIELDS = tuple(field.name for field in fields(Batch))


class ResumeMismatch(ValueError):
    """A run would go on with other data, order or shape than it began with; the CLI exits 3."""

    exit_code = 3  # refused by a gate; see cli.py


class TrainBatches:
    """An endless iterator of this host's part of the global batches."""

    def __init__(
        self,
        made: rows.Rows,
        config: DataConfig,
        fingerprint: dict[str, Any],
        *,
        start_step: int,
        held_rows: np.ndarray,
        epoch_order: Callable[[], ledger.Ledger],
        guide: curriculum.Curriculum | None = None,
    ):
        """Use `train_batches`."""
        self._rows = made
        self._epoch_order = epoch_order
        self._guide = guide
        self._config = config
        self._fingerprint = fingerprint
        self._held_rows = held_rows
        self._next_step = start_step
        self._grain: grain.DatasetIterator[dict[str, np.ndarray]] | None = None
        self._follow()

    def __iter__(self) -> "TrainBatches":
        """Return itself."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch."""
        self._follow()
        if self._grain is None:
            self._grain = self._start()
        batch = Batch(**next(self._grain))
        self._next_step += 1
        return batch

    def num_steps(self, epochs: float) -> int:
        """Return the steps of so many passes over the data, the last one whole.

        A pass is the rows of the ledger's first epoch: where the source that runs out first,
        against its weight, has run through once. All of them are packed to count them. With a
        curriculum they are counted as without one.
        """
        return _steps_in(self._epoch_order(), epochs, self._config)

    def get_state(self) -> dict[str, Any]:
        """Return plain JSON values; the block is only there to find the row sooner."""
        step = self._next_step
        block, first_row = self._rows.order.locate(step * self._config.global_batch_sequences)
        state = {
            "next_step": step,
            "fingerprint": self._fingerprint,
            "anchor": {"block": block, "first_row": first_row},
        }
        leveled = self._rows.order.leveled
        if self._guide is not None and leveled is not None:
            state["curriculum"] = {
                "entries": leveled.get_state(),
                "sources": self._guide.get_state(),
            }
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ResumeMismatch: it is of other data, seed, weights or shapes; names each difference.
        """
        check_fingerprint(state["fingerprint"], self._fingerprint)
        self._stop()
        if self._guide is not None:
            self._rows.order.set_entries(state["curriculum"]["entries"])
            self._guide.set_state(state["curriculum"]["sources"])
        if "anchor" in state:
            self._rows.order.anchor(state["anchor"]["block"], state["anchor"]["first_row"])
        self._next_step = state["next_step"]

    def observe(self, losses: curriculum.Losses) -> None:
        """Tell the curriculum the held-out losses by (source, level)."""
        if self._guide is not None:
            self._guide.observe(losses)

    def levels(self) -> dict[str, int]:
        """Return the level of each source that follows the curriculum, for the next batch."""
        return {} if self._guide is None else self._guide.levels(self._next_step)

    def _follow(self) -> None:
        """Enter what the curriculum wants now, for the blocks that no batch so far has touched.

        Batches made ahead are dropped and made again, so that how far ahead they were made does
        not matter.
        """
        if self._guide is None:
            return
        wanted = self._guide.shares(self._next_step)
        if wanted == self._rows.order.shares:
            return
        self._rows.order.append(self._next_step * self._config.global_batch_sequences, wanted)
        self._stop()

    def _stop(self) -> None:
        """Let go of the batches made ahead; a thread may still be at work on one."""
        if self._grain is not None:
            self._grain.close()
            self._grain = None
            self._rows = self._rows.again()

    def _start(self) -> "grain.DatasetIterator[dict[str, np.ndarray]]":
        steps = grain.MapDataset.range(self._next_step, ENDLESS_STEPS)
        cut = _Cut(self._rows, self._config.global_batch_sequences, self._held_rows)
        prefetch = self._config.prefetch_batches
        # One thread: batches are cut by NumPy under the GIL, so that more would only take turns.
        options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
        dataset = steps.map(cut).to_iter_dataset(options)
        if self._config.worker_count:
            _mark_flags_parsed()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._config.worker_count,
                    per_worker_buffer_size=max(1, prefetch),
                )
            )
        return iter(dataset)


class _Cut:
    """Step number to this host's rows of the step's batch, as a dict (Grain knows no Batch)."""

    def __init__(self, made: rows.Rows, batch_rows: int, held_rows: np.ndarray):
        self._rows = made
        self._batch_rows = batch_rows
        self._held_rows = held_rows

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        batch = _read(self._rows, int(step) * self._batch_rows + self._held_rows)
        return {name: getattr(batch, name) for name in FIELDS}


def _read(made: rows.Rows, wanted: np.ndarray) -> Batch:
    """Return rows in ascending order, each run of neighbours read at once."""
    borders = np.flatnonzero(np.diff(wanted) != 1) + 1
    runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(wanted, borders)]
    parts = [made.batch(start, stop) for start, stop in runs]
    if len(parts) == 1:
        return parts[0]
    return Batch(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in FIELDS})


def train_batches(
    opened: Sequence[sources.ArrayRecordSource],
    config: DataConfig,
    seed: int,
    *,
    weights: Sequence[float] | None = None,
    start_step: int = 0,
    held_rows: np.ndarray | None = None,
    max_steps: int | None = None,
) -> TrainBatches:
    """Return the run's batches from a step on.

    Args:
        opened: the train splits, in the order of `Batch.domain`.
        config: lengths, batch, packing, shuffling, prefetch.
        seed: of the run.
        weights: one per source; by default those of config.train, or 1 for each.
        start_step: number of the first batch.
        held_rows: which rows of each global batch this host reads, ascending; all if None.
        max_steps: of the run, for a curriculum by fractions of it; None where config.epochs says.

    Raises:
        ValueError: rows that are not of the batch; sources of different tokenizers; a source
            without documents; a curriculum, but no source has levels.
    """
    batch_rows = config.global_batch_sequences
    held = np.arange(batch_rows) if held_rows is None else np.asarray(held_rows)
    if not len(held) or (np.diff(held) < 1).any() or held[0] < 0 or held[-1] >= batch_rows:
        raise ValueError(
            f"a host reads rows below data.global_batch_sequences ({batch_rows}), ascending and at "
            f"least one, got {held.tolist()}; change the target's mesh"
        )
    weights = list(weights) if weights is not None else _weights(opened, config)
    check_same_tokenizer(opened)
    make_order = functools.partial(
        ledger.Ledger,
        [source.name for source in opened],
        [source.lengths for source in opened],
        weights,
        seed=seed,
        row_tokens=config.sequence_length,
        block_rows=config.packing.block_rows,
        packing=config.packing.kind,
        is_shuffled=config.shuffle,
    )
    finish = functools.partial(
        TrainBatches,
        config=config,
        fingerprint=fingerprint_of(opened, config, seed, weights),
        start_step=start_step,
        held_rows=held,
    )
    if config.curriculum.kind == "none":
        order = make_order()
        return finish(rows.Rows(opened, order), epoch_order=lambda: order)
    if start_step:
        raise ValueError(
            f"a run with a curriculum goes on from a saved state, not from step {start_step}"
        )
    names = [source.name for source in opened if source.levels is not None]
    if not names:
        raise ValueError(
            f"data.curriculum.kind is {config.curriculum.kind}, but none of the sources "
            f"({', '.join(source.name for source in opened)}) has levels; prepare them as a "
            "corpus, or set data.curriculum.kind=none"
        )
    guide = curriculum.Curriculum(config.curriculum, names)
    if guide.has_fractions:
        steps = max_steps or _steps_in(make_order(), config.epochs, config)
        guide.settle(steps)
    order = make_order(levels=[source.levels for source in opened])
    return finish(rows.Rows(opened, order), epoch_order=make_order, guide=guide)


def eval_batches(
    source: sources.ArrayRecordSource,
    *,
    sequence_length: int,
    batch_rows: int,
    max_rows: int | None = None,
    held_rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Yield held-out batches: always the same rows, best-fit packed, each document once.

    Args:
        source: the split to look at.
        sequence_length: inputs per row.
        batch_rows: rows per batch; the last batch is filled up with rows of weight 0.
        max_rows: no more rows than this, chosen by a fixed shuffle.
        held_rows: which rows of each batch this host reads, ascending; all if None.
    """
    order = ledger.Ledger(
        [source.name],
        [source.lengths],
        [1.0],
        seed=0,
        row_tokens=sequence_length,
        block_rows=512,
    )
    made = rows.Rows([source], order)
    row = 0
    while max_rows is None or row < max_rows:
        stop = row + batch_rows if max_rows is None else min(row + batch_rows, max_rows)
        stop = min(stop, _rows_in_epoch(order, stop))
        if stop <= row:
            return
        held = np.arange(batch_rows) if held_rows is None else held_rows
        wanted = held[row + held < stop]
        # A host whose part of the last batch is empty fills up nothing.
        batch = _read(made, row + wanted) if len(wanted) else _no_rows(made.batch(row, row + 1))
        yield _fill_up(batch, len(held))
        row = stop


def probes(source: sources.ArrayRecordSource) -> dict[int, sources.ArrayRecordSource]:
    """Return the documents of each level of a source that has levels, as sources."""
    if source.levels is None:
        return {}
    return {int(level): source.of_level(int(level)) for level in np.unique(source.levels)}


def fingerprint_of(
    opened: Sequence[sources.ArrayRecordSource],
    config: DataConfig,
    seed: int,
    weights: Sequence[float],
) -> dict[str, Any]:
    """Return everything that decides the rows, as plain JSON values."""
    guided = {}
    if config.curriculum.kind != "none":
        guided = {
            "curriculum": config.curriculum.model_dump(mode="json"),
            "levels": {
                source.name: levels.digest(source.levels)
                for source in opened
                if source.levels is not None
            },
        }
    return {
        **guided,
        "sources": {source.name: source.digest for source in opened},
        "order_of_sources": [source.name for source in opened],
        "weights": {source.name: weight for source, weight in zip(opened, weights)},
        "seed": seed,
        "global_batch_sequences": config.global_batch_sequences,
        "sequence_length": config.sequence_length,
        "tokenizer": opened[0].tokenizer["digest"],
        "packing": config.packing.model_dump(mode="json"),
        "shuffle": config.shuffle,
        "ledger_version": ledger.LEDGER_VERSION,
    }


def check_fingerprint(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Compare a saved fingerprint with that of the run that would go on.

    Raises:
        ResumeMismatch: they differ; the message gives each field with both values.
    """
    differences = [
        f"{name} was {saved.get(name)!r}, is {current.get(name)!r}"
        for name in sorted({*saved, *current})
        if saved.get(name) != current.get(name)
    ]
    if differences:
        raise ResumeMismatch(
            f"the run cannot go on with other data than it began with: {'; '.join(differences)}; "
            "restore these, or start beside it with fresh=true"
        )


def check_same_tokenizer(opened: Sequence[sources.ArrayRecordSource]) -> None:
    """Check that all sources were prepared by one tokenizer.

    Raises:
        ValueError: there are no sources, or they differ; the message names them.
    """
    if not opened:
        raise ValueError("data.train: expected one source at least, got none")
    first = opened[0]
    for source in opened[1:]:
        if source.tokenizer["digest"] != first.tokenizer["digest"]:
            raise ValueError(
                f"sources {first.name!r} ({first.tokenizer['name']}) and {source.name!r} "
                f"({source.tokenizer['name']}) were prepared by different tokenizers; prepare "
                "one of them again"
            )


def _weights(opened: Sequence[sources.ArrayRecordSource], config: DataConfig) -> list[float]:
    if isinstance(config.train, str):
        return [1.0] * len(opened)
    given = {source.name: source.weight for source in config.train}
    missing = [source.name for source in opened if source.name not in given]
    if missing:
        raise ValueError(
            f"data.train has no weight for the sources {', '.join(missing)}; it names "
            f"{', '.join(given)}"
        )
    return [given[source.name] for source in opened]


def _steps_in(order: ledger.Ledger, epochs: float | None, config: DataConfig) -> int:
    if epochs is None:
        raise ValueError(
            "a curriculum by fractions of the run needs to know how long it is; set "
            "optimizer.max_steps or data.epochs"
        )
    passes = Fraction(str(epochs))  # 0.1 is a tenth, not the binary number beside it
    return max(1, math.ceil(passes * _rows_in_epoch(order) / config.global_batch_sequences))


def _rows_in_epoch(order: ledger.Ledger, at_most: float = math.inf) -> int:
    """Return the rows of the first epoch, counted no further than needed."""
    total = 0
    for block in range(order.mixture.blocks_per_epoch):
        total += order.plan(block).num_rows
        if total >= at_most:
            break
    return total


def _fill_up(batch: Batch, batch_rows: int) -> Batch:
    missing = batch_rows - len(batch.tokens)
    if not missing:
        return batch
    grown = {name: np.pad(getattr(batch, name), ((0, missing), (0, 0))) for name in FIELDS}
    return Batch(**grown)


def _no_rows(batch: Batch) -> Batch:
    return Batch(**{name: getattr(batch, name)[:0] for name in FIELDS})


def _mark_flags_parsed() -> None:
    """Grain's workers read absl flags, which nobody parses here."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
