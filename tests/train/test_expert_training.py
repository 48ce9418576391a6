"""A mixture's training step: accumulation, balance, the bias that follows the load, overflow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.config import stage as stage_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import routing
from mistral_jax.train import expert_training
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib
from tests import tiny

MIXTURE = tiny.decoder(
    64,
    ffn=model_config.MoeFfn(
        width=16, num_experts=8, num_groups=2, group_names=("code", "math"), top_k=2,
        router=model_config.SigmoidRouter(),
    ),
)  # fmt: skip
OPTIMIZER = optimizer_config.AdamW(learning_rate=3e-3, max_steps=100, weight_decay=0.1)
BALANCED = stage_config.LmStage(
    experts=stage_config.ExpertTraining(bias_rate=0.02, sequence_loss=0.01, z_loss=0.01)
)


@functools.cache
def parts(stage: stage_config.LmStage) -> tuple:
    definition = definition_lib.define(MIXTURE)
    mesh = sharding.single_device_mesh()
    params = definition_lib.initialise(definition, rng.seed_key(0), mesh)
    optimizer = optimizers.make_optimizer(OPTIMIZER)
    step = step_lib.make_train_step(
        definition, stage, optimizer, optimizers.learning_rate(OPTIMIZER)
    )
    return definition, params, optimizer, step, mesh


def run(stage: stage_config.LmStage, batches: list[dict], *, skew: float = 0.0) -> tuple:
    """Train; with `skew` the first expert of each group starts as everybody's favourite."""
    definition, params, optimizer, step, mesh = parts(stage)
    own = jax.tree.map(jnp.array, params)  # the step takes its state away
    first = jnp.asarray([0, 4])
    own[expert_training.BIAS_PATH] = own[expert_training.BIAS_PATH].at[:, first].add(skew)
    state = state_lib.create(own, optimizer, 0, mesh, definition.shardings(mesh))
    history = []
    for batch in batches:
        state, metrics = step(state, {}, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def draw_batch(seed: int, accumulation: int) -> dict[str, jax.Array]:
    generator = np.random.default_rng(seed)
    shape = (8, 16)
    index = np.broadcast_to(np.arange(16), shape)
    cut = generator.integers(4, 12, (8, 1))
    segments = np.where(index < 14, 1 + (index >= cut), 0)  # two of padding
    arrays = {
        "tokens": generator.integers(0, 64, shape),
        "targets": generator.integers(0, 64, shape),
        "loss_weights": (segments != 0).astype(np.float32),
        "positions": np.where(index >= cut, index - cut, index),
        "segment_ids": segments,
    }
    return {
        name: jnp.asarray(
            array.reshape(accumulation, -1, 16),
            jnp.float32 if name == "loss_weights" else jnp.int32,
        )
        for name, array in arrays.items()
    }


def test_accumulation_equals_one_big_batch_with_balance_losses_and_moved_biases() -> None:
    (whole, first), (parts_state, second) = (
        run(BALANCED, [draw_batch(seed, accumulation) for seed in range(3)])
        for accumulation in (1, 4)
    )
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=2e-5), name
    for path, array in whole.params.items():
        np.testing.assert_allclose(parts_state.params[path], array, atol=2e-5, err_msg=path)


def test_the_bias_moves_by_its_rate_and_nothing_else_moves_it() -> None:
    state, _ = run(BALANCED, [draw_batch(0, 1)])
    bias = np.asarray(state.params[expert_training.BIAS_PATH]).reshape(2, 2, 4)
    assert 0 < np.abs(bias).max() <= 0.04  # a step of 0.02, centred
    np.testing.assert_allclose(bias.sum(axis=-1), 0, atol=1e-7)
    still = BALANCED.model_copy(
        update={"experts": BALANCED.experts.model_copy(update={"bias_rate": 0.0})}
    )
    state, _ = run(still, [draw_batch(0, 1)])
    assert not np.asarray(state.params[expert_training.BIAS_PATH]).any()


def test_load_inside_groups_evens_out_by_the_bias_alone() -> None:
    only_bias = stage_config.LmStage(experts=stage_config.ExpertTraining(bias_rate=0.004))
    batches = [draw_batch(seed % 4, 1) for seed in range(60)]
    _, history = run(only_bias, batches, skew=0.1)
    before, after = history[0]["expert_load"], np.mean([h["expert_load"] for h in history[-8:]])
    assert before > 2.5
    assert after < 1.6, (before, after)
    assert history[-1]["expert_idle"] == 0


def test_balance_losses_move_gradients_and_not_the_reported_loss() -> None:
    plain = stage_config.LmStage(experts=stage_config.ExpertTraining(bias_rate=0.004))
    (_, balanced), (_, bare) = (run(stage, [draw_batch(0, 1)]) for stage in (BALANCED, plain))
    assert balanced[0]["loss"] == pytest.approx(bare[0]["loss"], rel=1e-6)
    assert balanced[0]["grad_norm"] != pytest.approx(bare[0]["grad_norm"], rel=1e-6)


def test_metrics_name_the_groups_and_add_up() -> None:
    _, history = run(BALANCED, [draw_batch(0, 1)])
    shares = [history[0][f"group_share_{name}"] for name in ("code", "math")]
    assert sum(shares) == pytest.approx(1.0)
    assert history[0][expert_training.OVERFLOW] == 0
    assert history[0]["router_balance"] > 0.9


def test_a_balance_loss_is_the_weighted_mean_over_tokens() -> None:
    aux = routing.Aux(
        counts=jnp.ones((2, 4)),
        sequence_loss=jnp.asarray([6.0, 2.0]),
        z_loss=jnp.asarray([4.0, 4.0]),
        num_tokens=jnp.asarray([4.0, 4.0]),
        overflow=jnp.zeros(2),
    )
    training = stage_config.ExpertTraining(sequence_loss=0.1, z_loss=0.01)
    found = expert_training.balance_loss(aux, training, jnp.float32(4))
    assert float(found) == pytest.approx(0.1 * 2 + 0.01 * 2)
    assert expert_training.balance_loss(None, training, jnp.float32(4)) == 0
