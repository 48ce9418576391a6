"""Held-out loss, row by row, per source; and the paired bootstrap between two of them."""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from mistral_jax import distributed
from mistral_jax import protocols
from mistral_jax import sharding
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import context_parallel

BOOTSTRAP_DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class RowLosses:
    """Losses of the rows of one source.

    Attributes:
        sums: weighted sums of token losses, nats, float64, one a row.
        weights: sums of weights, one a row; rows without a target are left out.
    """

    sums: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]

    @property
    def loss(self) -> float:
        """Nats per weighted token over all rows."""
        return float(self.sums.sum() / max(self.weights.sum(), 1e-9))


def evaluate(
    eval_step: Callable,
    params: definition_lib.Params,
    eval_sets: Mapping[str, Sequence[protocols.Batch]],
    mesh: Mesh,
) -> dict[str, RowLosses]:
    """Return each source's losses under these parameters (trained and frozen together).

    Every process gives its own rows of each batch, and gets the losses of all rows.
    """
    results = {}
    for name, batches in eval_sets.items():
        sums, weights = [], []
        for batch in batches:
            row_sums, row_weights = eval_step(params, place_batch(batch, mesh))
            sums.append(distributed.whole(row_sums).astype(np.float64))
            weights.append(distributed.whole(row_weights).astype(np.float64))
        all_sums, all_weights = np.concatenate(sums), np.concatenate(weights)
        is_counted = all_weights > 0
        results[name] = RowLosses(all_sums[is_counted], all_weights[is_counted])
    return results


def place_batch(batch: protocols.Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Put the rows of a batch that this process has on the mesh, rows over the data axes."""
    target = sharding.batch_sharding(mesh)
    return {
        name: distributed.place_rows(context_parallel.reordered(array, mesh), target, axis=0)
        for name, array in model_arrays(batch).items()
    }


def model_arrays(batch: protocols.Batch) -> dict[str, np.ndarray]:
    """Return the arrays that a step reads; `domain` is for metrics only."""
    return {
        "tokens": batch.tokens,
        "targets": batch.targets,
        "loss_weights": batch.loss_weights,
        "positions": batch.positions,
        "segment_ids": batch.segment_ids,
    }


def paired_interval(
    before: RowLosses, after: RowLosses, *, seed: int = 0
) -> tuple[float, float, float]:
    """Return the difference after - before, and its 95 % bootstrap interval over rows.

    Rows are drawn with replacement, the same ones for both sides.
    """
    if len(before.sums) != len(after.sums):
        raise ValueError(f"{len(before.sums)} rows before, {len(after.sums)} after: not paired")
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(before.sums), (BOOTSTRAP_DRAWS, len(before.sums)))
    gains = (after.sums - before.sums)[draws].sum(axis=1) / before.weights[draws].sum(axis=1)
    low, high = np.quantile(gains, [0.025, 0.975])
    return after.loss - before.loss, float(low), float(high)
