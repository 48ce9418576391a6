"""The only training loop: batches in, steps, held-out loss, samples, checkpoints, a stop.

It knows no files but the checkpointer's and the metrics', and no data but an iterator of Batch.
Metrics of a step are read after the next one is under way, so that the device never waits.
"""

import dataclasses
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Protocol
from typing import runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from mistral_jax import checkpoint
from mistral_jax import distributed
from mistral_jax import metrics
from mistral_jax import protocols
from mistral_jax import sharding
from mistral_jax.config import run as run_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import context_parallel
from mistral_jax.train import expert_training
from mistral_jax.train import held_out
from mistral_jax.train import signals
from mistral_jax.train import state as state_lib


class LossNotFinite(ValueError):
    """Loss or gradient became NaN or infinite; the message names step and last good checkpoint."""

    exit_code = 1


@runtime_checkable
class BatchStream(Protocol):
    """Global batches in order, with a position that can be saved."""

    def __next__(self) -> protocols.Batch:
        """Return this process's rows of the next batch."""
        ...

    def get_state(self) -> dict:
        """Return the position after the batches handed out so far, as JSON."""
        ...


@runtime_checkable
class Curriculum(Protocol):
    """What decides how difficult the coming batches are."""

    def observe(self, losses: Mapping[str, float]) -> None:
        """Take the held-out losses of an evaluation, alike on every process."""
        ...

    def levels(self) -> Mapping[str, int]:
        """Return the level of each source, for the next batch."""
        ...


@dataclasses.dataclass(frozen=True)
class Parts:
    """What the loop runs with.

    Attributes:
        run: the experiment.
        mesh: where.
        train_step, eval_step: jitted; see train/step.py.
        frozen: parameters that do not train.
        stream: training batches.
        eval_sets: held-out batches by source.
        accumulation: micro batches a step.
        checkpointer: where steps are saved.
        writer: where metrics go.
        flops_per_step: model FLOPs, for MFU; None where no peak is known.
        peak_flops_per_s: of all devices together, or None.
        take_samples: called with (step, parameters) after each evaluation, or None.
        save_evaluation: called with (step, losses by source) after each evaluation.
        curriculum: told the losses after each evaluation, or None.
    """

    run: run_config.RunConfig
    mesh: Mesh
    train_step: Callable
    eval_step: Callable
    frozen: definition_lib.Params
    stream: BatchStream
    eval_sets: Mapping[str, Sequence[protocols.Batch]]
    accumulation: int
    checkpointer: checkpoint.Checkpointer
    writer: metrics.Writer
    flops_per_step: float | None
    peak_flops_per_s: float | None
    take_samples: Callable[[int, definition_lib.Params], None] | None
    save_evaluation: Callable[[int, dict[str, held_out.RowLosses]], None]
    curriculum: Curriculum | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the loop ended.

    Attributes:
        state: the last state.
        step: steps done in all.
        reason: "done", "stop_rule", or the signal's name.
        seconds_per_step: median over the steps of this process, the first two left out.
    """

    state: state_lib.TrainState
    step: int
    reason: str
    seconds_per_step: float | None


def fit(
    parts: Parts,
    state: state_lib.TrainState,
    *,
    start_step: int,
    eval_history: Sequence[float] = (),
) -> Outcome:
    """Train from `start_step` to the end of the run, or until a signal or the stop rule.

    Args:
        parts: what runs.
        state: the state after `start_step` steps.
        start_step: 0, or the restored step.
        eval_history: held-out losses before `start_step`, from the restored record, so that the
            stop rule sees what an uninterrupted run would see.

    Raises:
        LossNotFinite: with the step and where to go on from.
    """
    with jax.set_mesh(parts.mesh), signals.StopRequest() as stop:
        return _Fit(parts, state, start_step, list(eval_history)).run(stop)


class _Fit:
    """The loop's variables, so that its parts can be short."""

    def __init__(
        self,
        parts: Parts,
        state: state_lib.TrainState,
        start_step: int,
        eval_history: list[float],
    ) -> None:
        self.parts = parts
        self.state = state
        self.step = start_step
        self.pending: tuple[int, dict] | None = None
        self.clock = time.monotonic()
        self.durations: list[float] = []
        self.eval_history = eval_history
        self.last_eval: tuple[int, float] | None = None
        self.saved_step = start_step

    def run(self, request: signals.StopRequest) -> Outcome:
        stop = signals.SharedStop(request)
        max_steps = self.parts.run.optimizer.num_steps
        evaluate_every = self.parts.run.evaluate.every_steps
        save_every = self.parts.run.checkpoint.every_steps
        if self.step == 0:
            self._evaluate()
        # A run that the rule has stopped, and that was killed before it could say so, has ended.
        reason = "stop_rule" if self._is_stalled() else "done"
        while self.step < max_steps and reason == "done":
            self._one_step()
            asked = stop.poll()
            is_last = self.step == max_steps
            is_new_best = False
            if is_last or self.step % evaluate_every == 0:
                is_new_best = self._evaluate()
                if self._is_stalled():
                    reason = "stop_rule"
            if reason == "done" and asked is not None and not is_last:
                reason = asked.name
            is_due = self.step % save_every == 0 or is_new_best
            if is_last or is_due or reason != "done":
                self._save()
        self._flush()
        self.parts.checkpointer.wait()
        return Outcome(self.state, self.step, reason, self._median_seconds())

    def _one_step(self) -> None:
        curriculum = self.parts.curriculum
        levels = {} if curriculum is None else curriculum.levels()
        batch = place_micro_batches(next(self.parts.stream), self.parts)
        self.state, step_metrics = self.parts.train_step(self.state, self.parts.frozen, batch)
        self.step += 1
        self._flush()
        shown = {f"level/{name}": level for name, level in levels.items()}
        self.pending = (self.step, step_metrics | shown)

    def _flush(self) -> None:
        """Log the step that is under way, waiting for its numbers."""
        if self.pending is None:
            return
        step, step_metrics = self.pending
        self.pending = None
        values = {name: float(value) for name, value in step_metrics.items()}
        # From the end of the step before to the end of this one: data and dispatch included.
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        self.durations.append(seconds)
        # The gradient too: a finite loss with a NaN gradient has spoiled the parameters already.
        if not np.isfinite([values["loss"], values["grad_norm"]]).all():
            saved = f"step {self.saved_step}" if self.saved_step else "none yet"
            raise LossNotFinite(
                f"step {step}: the loss is {values['loss']}, the gradient norm "
                f"{values['grad_norm']}; the last checkpoint is {saved}; "
                "lower optimizer.learning_rate or look at the batch"
            )
        overflow = values.get(expert_training.OVERFLOW, 0.0)
        if overflow and self.parts.run.stage.experts.overflow == "error":
            raise expert_training.ExpertOverflow(
                f"step {step}: {overflow:.0f} assignments of tokens to experts found no room on "
                f"their device; raise stage.experts.buffer_factor (now "
                f"{self.parts.run.stage.experts.buffer_factor}), or allow it with "
                "stage.experts.overflow=drop"
            )
        data = self.parts.run.data
        tokens = data.global_batch_sequences * data.sequence_length
        values["tokens_per_s"] = tokens / seconds
        if self.parts.flops_per_step and self.parts.peak_flops_per_s:
            rate = self.parts.flops_per_step / seconds
            values["mfu"] = rate / self.parts.peak_flops_per_s
        values |= device_memory()
        self.parts.writer.log(step, **values)

    def _evaluate(self) -> bool:
        """Measure and log; return whether it is the best step so far, and to be kept."""
        self._flush()
        params = self.parts.frozen | self.state.params
        losses = held_out.evaluate(
            self.parts.eval_step, params, self.parts.eval_sets, self.parts.mesh
        )
        for source, rows in losses.items():
            self.parts.writer.log_eval(self.step, source, rows.loss)
        self.parts.save_evaluation(self.step, losses)
        if self.parts.curriculum is not None:
            self.parts.curriculum.observe({name: rows.loss for name, rows in losses.items()})
        if losses:
            total = sum(rows.sums.sum() for rows in losses.values())
            weight = sum(rows.weights.sum() for rows in losses.values())
            self.last_eval = (self.step, float(total / weight))
            self.eval_history.append(self.last_eval[1])
        if self.parts.take_samples is not None:
            self.parts.take_samples(self.step, params)
        self.clock = time.monotonic()
        # Step 0 is never saved: what went in is not a result.
        *before, newest = self.eval_history[1:] or [np.inf]
        is_best = bool(losses) and newest < min(before, default=np.inf)
        return is_best and self.parts.run.checkpoint.keep_best > 0

    def _is_stalled(self) -> bool:
        rule = self.parts.run.evaluate.stop
        if rule is None or len(self.eval_history) <= rule.patience:
            return False
        best_before = min(self.eval_history[: -rule.patience])
        # >=: a loss that stands still has not fallen, with a min_delta of 0 too.
        return min(self.eval_history[-rule.patience :]) >= best_before - rule.min_delta

    def _save(self) -> None:
        self._flush()
        record = {
            "data": self.parts.stream.get_state(),
            "eval_history": self.eval_history,
        }
        is_fresh = self.last_eval is not None and self.last_eval[0] == self.step
        eval_loss = self.last_eval[1] if self.last_eval is not None and is_fresh else None
        self.parts.checkpointer.save(self.step, self.state, record, eval_loss=eval_loss)
        self.saved_step = self.step
        self.clock = time.monotonic()

    def _median_seconds(self) -> float | None:
        steady = self.durations[2:]
        return float(np.median(steady)) if steady else None


def place_micro_batches(batch: protocols.Batch, parts: Parts) -> dict[str, jax.Array]:
    """Put this process's rows on the mesh as [A, B, T]; micro batch a takes every A-th row.

    The stride keeps each micro batch's rows spread over the whole batch: a device's rows of all
    micro batches are neighbours in it.
    """
    target = sharding.micro_batch_sharding(parts.mesh)
    placed = {}
    for name, array in held_out.model_arrays(batch).items():
        rows, length = array.shape
        micro = array.reshape(rows // parts.accumulation, parts.accumulation, length)
        micro = context_parallel.reordered(micro, parts.mesh)
        local = np.ascontiguousarray(np.swapaxes(micro, 0, 1))
        placed[name] = distributed.place_rows(local, target, axis=1)
    return placed


def device_memory() -> dict[str, float]:
    """Return the first device's peak memory, where the backend tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {} if peak is None else {"device_memory_bytes": float(peak)}
