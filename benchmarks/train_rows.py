"""A jitted training step on one fixed batch, for the benchmarks that time steps."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from mistral_jax import sharding
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.config import stage as stage_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib

LEARNING_RATE = 1e-4


@dataclasses.dataclass
class FixedBatchStep:
    """A step that is repeated on the same batch."""

    step: Callable
    state: state_lib.TrainState
    frozen: definition_lib.Params
    batch: dict[str, np.ndarray]

    def run(self) -> tuple[float, float]:
        """Return the seconds of one step and its loss."""
        started = time.monotonic()
        self.state, metrics = self.step(self.state, self.frozen, self.batch)
        loss = float(metrics["loss"])
        return time.monotonic() - started, loss


def make_step(
    definition: definition_lib.Definition,
    params: definition_lib.Params,
    frozen: definition_lib.Params,
    batch: dict[str, np.ndarray],
) -> FixedBatchStep:
    """Return a step over a batch of [B, T] arrays."""
    config = optimizer_config.AdamW(
        learning_rate=LEARNING_RATE,
        max_steps=1_000_000,
        schedule=optimizer_config.ConstantSchedule(),
    )
    optimizer = optimizers.make_optimizer(config)
    mesh = sharding.single_device_mesh()
    state = state_lib.create(params, optimizer, 0, mesh, definition.shardings(mesh))
    schedule = optimizers.learning_rate(config)
    step = step_lib.make_train_step(definition, stage_config.LmStage(), optimizer, schedule)
    placed = {name: jax.device_put(array[None]) for name, array in batch.items()}
    return FixedBatchStep(step, state, frozen, placed)


def random_batch(rows: int, length: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Return [B, T] arrays of random tokens, one document a row."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, length + 1), np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_weights": np.ones((rows, length), np.float32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)).copy(),
        "segment_ids": np.ones((rows, length), np.int32),
    }


def save_batch(batch: dict[str, np.ndarray], path: Path) -> Path:
    """Write tokens and targets for a peer."""
    np.savez(path, tokens=batch["tokens"], targets=batch["targets"])
    return path
