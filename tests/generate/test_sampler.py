"""Sampling against NumPy: which tokens stay, with what frequency, and by whose key."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from mistral_jax import rng
from mistral_jax.generate import sampler


def kept_by_oracle(scores: np.ndarray, top_k: int | None, top_p: float) -> set[int]:
    """Return the kept tokens: walk down the sorted list until k are taken, then until p is."""
    order = np.argsort(-scores, kind="stable")
    if top_k is not None:
        order = order[:top_k]
    probabilities = np.exp(scores[order].astype(np.float64))
    probabilities /= probabilities.sum()
    kept, reached = set(), 0.0
    for token, probability in zip(order, probabilities):
        if reached >= top_p:
            break
        kept.add(int(token))
        reached += probability
    return kept


@settings(max_examples=40, deadline=None)
@given(
    strategies.integers(0, 10_000),
    strategies.sampled_from([None, 1, 3, 12, 50]),
    strategies.sampled_from([0.05, 0.5, 0.93, 1.0]),
)
def test_top_k_and_top_p_keep_what_the_oracle_keeps(
    seed: int, top_k: int | None, top_p: float
) -> None:
    scores = np.random.default_rng(seed).normal(size=(2, 12)).astype(np.float32) * 2
    sampling = sampler.Sampling(temperature=1.0, top_k=top_k, top_p=top_p)
    filtered = np.asarray(sampler.filtered(jnp.asarray(scores), sampling))
    for row in range(2):
        kept = set(np.flatnonzero(np.isfinite(filtered[row])).tolist())
        assert kept == kept_by_oracle(scores[row], top_k, top_p)
        np.testing.assert_array_equal(filtered[row][list(kept)], scores[row][list(kept)])


def draws(logits: np.ndarray, sampling: sampler.Sampling, *, num_rows: int = 4000) -> np.ndarray:
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (num_rows, len(logits)))
    keys = jax.random.split(rng.seed_key(0), num_rows)
    tokens, _ = sampler.choose(rows, keys, jnp.int32(0), sampling)
    return np.asarray(tokens)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_softmax(temperature: float) -> None:
    logits = np.array([1.0, 0.0, -1.0, 2.0])
    expected = np.exp(logits / temperature)
    expected /= expected.sum()
    found = np.bincount(draws(logits, sampler.Sampling(temperature)), minlength=4) / 4000
    np.testing.assert_allclose(found, expected, atol=4 * 0.5 / np.sqrt(4000))


def test_top_p_is_taken_after_the_temperature() -> None:
    logits = np.log([0.6, 0.3, 0.1])
    cold = draws(logits, sampler.Sampling(temperature=0.25, top_p=0.9), num_rows=500)
    assert set(cold.tolist()) == {0}
    warm = draws(logits, sampler.Sampling(temperature=4.0, top_p=0.9), num_rows=500)
    assert set(warm.tolist()) == {0, 1, 2}


def test_temperature_zero_is_the_argmax_with_the_models_log_probability() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    keys = jax.random.split(rng.seed_key(0), 3)
    tokens, log_probs = sampler.choose(
        jnp.asarray(logits), keys, jnp.int32(0), sampler.Sampling(top_k=2)
    )
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_probs, expected.max(-1), atol=1e-6)


def test_log_probabilities_are_the_models_own_whatever_the_filter() -> None:
    logits = np.random.default_rng(1).normal(size=(50, 12)).astype(np.float32)
    keys = jax.random.split(rng.seed_key(0), 50)
    sampling = sampler.Sampling(temperature=3.0, top_k=4, top_p=0.9)
    tokens, log_probs = sampler.choose(jnp.asarray(logits), keys, jnp.int32(5), sampling)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_probs, expected[np.arange(50), np.asarray(tokens)], atol=1e-6)


def test_a_row_draws_by_its_own_key_and_count() -> None:
    logits = jnp.zeros((3, 1000), jnp.float32)
    keys = jnp.stack([rng.seed_key(seed) for seed in (5, 6, 5)])
    sampling = sampler.Sampling(temperature=1.0)
    first, _ = sampler.choose(logits, keys, jnp.int32(0), sampling)
    assert first[0] == first[2] != first[1]
    later, _ = sampler.choose(logits, keys, jnp.int32(1), sampling)
    assert later[0] != first[0]
    alone, _ = sampler.choose(logits[:1], keys[:1], jnp.int32(0), sampling)
    assert alone[0] == first[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .* got {value}"):
        sampler.Sampling(**{field: value})
