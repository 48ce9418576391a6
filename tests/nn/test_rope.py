"""Rotary positions against complex multiplication."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from mistral_jax.config import model as model_config
from mistral_jax.nn import rope

ROPE = model_config.DefaultRope(theta=1e4)


def rotary(positions: np.ndarray, width: int) -> rope.Rotary:
    scaling = model_config.NoQueryScaling()
    return rope.rotary(jnp.asarray(positions, jnp.int32), ROPE, scaling, width)


def rotated(x: np.ndarray, positions: np.ndarray, *, dtype: object = jnp.float32) -> np.ndarray:
    return np.asarray(rotary(positions, x.shape[-1]).rotate_key(jnp.asarray(x, dtype)))


def oracle(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Turn each pair (x[i], x[i + half]) as one complex number by e^(i position theta^(-2i/Q))."""
    half = x.shape[-1] // 2
    frequency = 1e4 ** (-np.arange(half) / half)
    turn = np.exp(1j * positions[..., None, None] * frequency)
    turned = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)


def test_rotation_equals_complex_multiplication() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8))
    positions = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 100, 1000]])
    np.testing.assert_allclose(rotated(x, positions), oracle(x, positions), atol=2e-4)
    near = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 7]])
    np.testing.assert_allclose(rotated(x, near), oracle(x, near), atol=2e-6)


def test_position_zero_changes_nothing() -> None:
    x = np.random.default_rng(1).normal(size=(1, 4, 2, 16)).astype(np.float32)
    np.testing.assert_array_equal(rotated(x, np.zeros((1, 4), np.int32)), x)


@settings(max_examples=20, deadline=None)
@given(strategies.integers(0, 3000), strategies.integers(0, 60))
def test_scores_depend_on_the_distance_alone(start: int, distance: int) -> None:
    q, k = np.random.default_rng(2).normal(size=(2, 1, 1, 1, 16))

    def score(query: int, key: int) -> float:
        return float(np.sum(rotated(q, np.array([[query]])) * rotated(k, np.array([[key]]))))

    # float32 angles at position 3000 are exact to 2e-4 radians.
    assert abs(score(start + distance, start) - score(distance, 0)) < 5e-3


def test_far_positions_do_not_collapse_in_bfloat16() -> None:
    """Tables are float32: in bf16 the positions 4096 and 4097 would be the same number."""
    x = np.ones((1, 2, 1, 8))
    out = rotated(x, np.array([[4096, 4097]]), dtype=jnp.bfloat16)
    assert out.dtype == jnp.bfloat16
    assert np.abs(out[0, 0].astype(np.float32) - out[0, 1].astype(np.float32)).max() > 0.3


def test_rotation_keeps_lengths_and_its_gradient_is_the_inverse_rotation() -> None:
    x = np.random.default_rng(3).normal(size=(1, 6, 2, 8)).astype(np.float32)
    positions = np.arange(6)[None] * 11
    out = rotated(x, positions)
    np.testing.assert_allclose(np.sum(out**2, -1), np.sum(x**2, -1), rtol=1e-5)
    _, pull = jax.vjp(rotary(positions, 8).rotate_key, jnp.asarray(x))
    np.testing.assert_allclose(pull(jnp.asarray(out))[0], x, atol=1e-5)
