"""Schedules against their formulas; which parameters decay; clipping."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.train import optimizers

PEAK, WARMUP, MAX_STEPS = 2.0, 10, 100
SCHEDULES = {
    "cosine": optimizer_config.CosineSchedule(final_fraction=0.1),
    "wsd": optimizer_config.WsdSchedule(decay_fraction=0.2, final_fraction=0.05),
    "constant": optimizer_config.ConstantSchedule(),
}


def config(**changes: object) -> optimizer_config.AdamW:
    fields = {"learning_rate": PEAK, "warmup_steps": WARMUP, "max_steps": MAX_STEPS}
    return optimizer_config.AdamW.model_validate({**fields, **changes})


def rates_of(settings: optimizer_config.AdamW, num_steps: int = MAX_STEPS) -> np.ndarray:
    return np.asarray(jax.vmap(optimizers.learning_rate(settings))(jnp.arange(num_steps)))


def oracle(kind: str, step: int, warmup: int = WARMUP) -> float:
    """Return the factor on the peak, from the sentences of config/optimizer.py."""
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        share = min((step - warmup) / (MAX_STEPS - warmup), 1)
        return 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2
    if step <= 80:
        return 1.0
    return 1 - 0.95 * min((step - 80) / 20, 1)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
def test_schedule_equals_its_formula_at_every_step(kind: str, warmup: int) -> None:
    found = rates_of(config(schedule=SCHEDULES[kind], warmup_steps=warmup), MAX_STEPS + 5)
    expected = [PEAK * oracle(kind, step, warmup) for step in range(MAX_STEPS + 5)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_no_step_has_a_rate_of_zero_and_the_peak_is_reached_and_never_passed() -> None:
    for schedule in SCHEDULES.values():
        rates = rates_of(config(schedule=schedule))
        assert rates.min() > 0
        assert rates.max() == PEAK == rates[WARMUP - 1]


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_wsd_at_the_ends_of_its_range_is_finite(fraction: float) -> None:
    schedule = optimizer_config.WsdSchedule(decay_fraction=fraction)
    rates = rates_of(config(schedule=schedule))
    assert np.isfinite(rates).all()
    assert (rates[-1] == PEAK) == (fraction == 0)


def test_warmup_longer_than_the_run_only_warms_up() -> None:
    rates = rates_of(config(warmup_steps=200))
    np.testing.assert_allclose(rates, PEAK * (np.arange(100) + 1) / 200, rtol=1e-6)


def test_weight_decay_acts_on_kernels_and_adapters_alone() -> None:
    paths = {
        "layers/attention/q_proj/kernel": True,
        "layers/attention/q_proj/lora_a": True,
        "layers/attention/q_proj/lora_b": True,
        "head/kernel": True,
        "layers/attention/q_proj/bias": False,
        "layers/mlp_norm/scale": False,
        "embed/embedding": False,
    }
    assert optimizers.is_decayed(paths) == paths


@pytest.mark.parametrize("max_grad_norm", [None, 0.5, 100.0])
def test_gradients_are_clipped_by_their_global_norm(max_grad_norm: float | None) -> None:
    """AdamW's first moment after one step is (1 - beta1) times the gradient that it was given."""
    params = {"a/kernel": jnp.zeros(3), "b/scale": jnp.zeros(1)}
    gradients = {"a/kernel": jnp.asarray([1.0, 2.0, 2.0]), "b/scale": jnp.asarray([4.0])}
    optimizer = optimizers.make_optimizer(config(max_grad_norm=max_grad_norm))
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    factor = min(1.0, (max_grad_norm or math.inf) / 5.0)
    adam = state[1][0]
    np.testing.assert_allclose(adam.mu["a/kernel"] / 0.1, factor * np.array([1, 2, 2]), rtol=1e-5)
