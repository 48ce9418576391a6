"""Held-out losses and the paired bootstrap."""

import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import protocols
from mistral_jax import sharding
from mistral_jax.train import held_out


def batch(weights: list[list[float]]) -> protocols.Batch:
    array = np.asarray(weights, np.float32)
    whole = np.zeros(array.shape, np.int32)
    return protocols.Batch(whole, whole, array, whole, whole, whole)


def row_sums(params: dict, arrays: dict) -> tuple[np.ndarray, np.ndarray]:
    """Stand for an eval step: every token's loss is `params["loss"]`."""
    weights = np.asarray(arrays["loss_weights"]).sum(axis=1)
    return weights * float(params["loss"]), weights


def test_losses_are_per_weighted_token_over_all_rows_that_have_one() -> None:
    sets = {"a": [batch([[1, 1], [0, 0]]), batch([[0, 2], [1, 0]])], "b": [batch([[1, 0]])]}
    found = held_out.evaluate(
        row_sums, {"loss": jnp.float32(2.5)}, sets, sharding.single_device_mesh()
    )
    assert set(found) == {"a", "b"}
    np.testing.assert_array_equal(found["a"].weights, [2, 2, 1])
    assert found["a"].loss == 2.5
    assert found["a"].sums.dtype == np.float64


def test_the_interval_covers_a_known_difference_and_is_repeatable() -> None:
    generator = np.random.default_rng(0)
    weights = generator.uniform(50, 100, 200)
    before = held_out.RowLosses(weights * generator.normal(3, 0.5, 200), weights)
    gain = generator.normal(-0.1, 0.05, 200)
    after = held_out.RowLosses(before.sums + weights * gain, weights)
    difference, low, high = held_out.paired_interval(before, after)
    assert low < difference < high < 0
    assert low < -0.1 < high
    # Paired: the spread of the gains over sqrt(rows), not that of the losses.
    assert high - low < 2 * 1.96 * 0.05 / np.sqrt(200) * 1.3
    assert held_out.paired_interval(before, after) == (difference, low, high)
    same = held_out.paired_interval(before, before)
    assert same == (0.0, 0.0, 0.0)


def test_unpaired_rows_are_refused() -> None:
    rows = held_out.RowLosses(np.ones(3), np.ones(3))
    other = held_out.RowLosses(np.ones(4), np.ones(4))
    with pytest.raises(ValueError, match="3 rows before, 4 after: not paired"):
        held_out.paired_interval(rows, other)
