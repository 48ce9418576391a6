"""The training step: against AdamW in NumPy, accumulation against one big batch, no recompile."""

import dataclasses
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
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib
from tests import tiny

B, T, V = 8, 12, 61
TINY = tiny.decoder(V, init_std=0.2)
# A large epsilon: where a gradient is rounding noise, Adam would blow the noise up to a full step.
OPTIMIZER = optimizer_config.AdamW(
    learning_rate=1e-2, warmup_steps=2, max_steps=10, epsilon=1e-3, weight_decay=0.1,
    max_grad_norm=0.5, schedule=optimizer_config.CosineSchedule(final_fraction=0.1),
)  # fmt: skip
KINDS = {
    "full": model_config.NoAdapter(),
    "lora": model_config.LoraAdapter(rank=4, alpha=8.0),
    "dropout": model_config.LoraAdapter(rank=4, alpha=8.0, dropout=0.5),
}


@functools.cache
def define(kind: str) -> definition_lib.Definition:
    return definition_lib.define(TINY, adapter=KINDS[kind])


@functools.cache
def start_params(kind: str) -> dict[str, np.ndarray]:
    mesh = sharding.single_device_mesh()
    params = definition_lib.initialise(define(kind), rng.seed_key(0), mesh)
    return {path: np.asarray(value) for path, value in params.items()}


@functools.cache
def train_step(kind: str, z_loss: float = 0.0):
    return step_lib.make_train_step(
        define(kind),
        stage_config.LmStage(z_loss=z_loss),
        optimizers.make_optimizer(OPTIMIZER),
        optimizers.learning_rate(OPTIMIZER),
    )


@functools.cache
def start_state(kind: str) -> tuple[state_lib.TrainState, state_lib.TrainState]:
    """Return the state before step 0 in NumPy, and its shardings."""
    mesh, definition = sharding.single_device_mesh(), define(kind)
    trained = {path: jnp.asarray(start_params(kind)[path]) for path in definition.trainable_paths()}
    optimizer, shardings = optimizers.make_optimizer(OPTIMIZER), definition.shardings(mesh)
    state = state_lib.create(trained, optimizer, 0, mesh, shardings)
    return jax.device_get(state), state_lib.state_shardings(state, shardings, mesh)


def start(kind: str, *, seed: int = 0) -> tuple[state_lib.TrainState, definition_lib.Params]:
    """Return a fresh state, which a step may take over, and the frozen parameters."""
    state = jax.device_put(*start_state(kind))
    key_data = jax.random.key_data(rng.seed_key(seed))
    frozen = set(define(kind).shapes) - set(define(kind).trainable_paths())
    return (
        dataclasses.replace(state, key_data=key_data),
        {path: jnp.asarray(start_params(kind)[path]) for path in frozen},
    )


def make_batch(seed: int, *, num_micro: int = 1) -> dict[str, jax.Array]:
    """Return rows of two documents and padding; weights differ, a third of them is zero."""
    generator = np.random.default_rng(seed)
    batch = {
        "tokens": generator.integers(0, V, (B, T)).astype(np.int32),
        "targets": generator.integers(0, V, (B, T)).astype(np.int32),
        "loss_weights": (
            generator.uniform(0.5, 1.5, (B, T)) * (generator.uniform(size=(B, T)) > 1 / 3)
        ).astype(np.float32),
        "positions": np.tile([*range(5), *range(6), 0], (B, 1)).astype(np.int32),
        "segment_ids": np.tile([1] * 5 + [2] * 6 + [0], (B, 1)).astype(np.int32),
    }
    batch["loss_weights"][:, -1] = 0
    return {
        name: jnp.asarray(array.reshape(num_micro, B // num_micro, T))
        for name, array in batch.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def naive_loss(kind: str, params: definition_lib.Params, batch: dict) -> jax.Array:
    """Return the mean loss from materialised logits."""
    model = define(kind).bind(params)
    flat = {name: array.reshape(B, T) for name, array in batch.items()}
    hidden, *_ = model.hidden(flat["tokens"], flat["positions"], flat["segment_ids"])
    log_probs = jax.nn.log_softmax(model.logits(hidden))
    chosen = jnp.take_along_axis(log_probs, flat["targets"][..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen * flat["loss_weights"]) / jnp.sum(flat["loss_weights"])


class NumpyAdamW:
    """Clipping and AdamW by their formulas, in float64."""

    def __init__(self, params: dict[str, np.ndarray]) -> None:
        self.params = {path: value.astype(np.float64) for path, value in params.items()}
        self.mean = {path: np.zeros(value.shape) for path, value in params.items()}
        self.square = {path: np.zeros(value.shape) for path, value in params.items()}
        self.count = 0

    def step(self, gradients: dict[str, np.ndarray], rate: float) -> float:
        norm = float(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values())))
        self.count += 1
        for path, gradient in gradients.items():
            gradient = gradient.astype(np.float64) * min(1.0, 0.5 / norm)
            self.mean[path] = 0.9 * self.mean[path] + 0.1 * gradient
            self.square[path] = 0.95 * self.square[path] + 0.05 * gradient**2
            mean = self.mean[path] / (1 - 0.9**self.count)
            square = self.square[path] / (1 - 0.95**self.count)
            decay = 0.1 if path.endswith("kernel") else 0.0
            self.params[path] = self.params[path] - rate * (
                mean / (np.sqrt(square) + 1e-3) + decay * self.params[path]
            )
        return norm


def test_three_steps_equal_adamw_in_numpy() -> None:
    oracle = NumpyAdamW(start_params("full"))
    state, frozen = start("full")
    assert frozen == {}
    for count, rate in enumerate((5e-3, 1e-2, 1e-2)):
        batch = make_batch(count)
        params = {path: jnp.asarray(p, jnp.float32) for path, p in oracle.params.items()}
        loss, gradients = jax.value_and_grad(naive_loss, argnums=1)("full", params, batch)
        norm = oracle.step({path: np.asarray(g) for path, g in gradients.items()}, rate)
        state, metrics = train_step("full")(state, frozen, batch)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
        np.testing.assert_allclose(metrics["loss_tokens"], batch["loss_weights"].sum(), rtol=1e-6)
        assert norm > 0.5  # else clipping would not be seen
    assert int(state.step) == 3
    for path, expected in oracle.params.items():
        np.testing.assert_allclose(state.params[path], expected, atol=2e-5, err_msg=path)


def test_four_micro_batches_equal_one_big_batch() -> None:
    results = []
    for num_micro in (1, 4):
        state, frozen = start("full")
        for seed in (0, 1):
            batch = make_batch(seed, num_micro=num_micro)
            state, metrics = train_step("full")(state, frozen, batch)
        results.append((state, metrics))
    (whole, whole_metrics), (parts, parts_metrics) = results
    for name in ("loss", "grad_norm", "loss_tokens"):
        np.testing.assert_allclose(parts_metrics[name], whole_metrics[name], rtol=1e-5)
    for path, value in whole.params.items():
        np.testing.assert_allclose(parts.params[path], value, atol=1e-5, err_msg=path)


def test_a_token_of_weight_zero_has_no_say() -> None:
    batch = make_batch(0)
    other = dict(batch)
    is_ignored = batch["loss_weights"] == 0
    other["targets"] = jnp.where(is_ignored, (batch["targets"] + 7) % V, batch["targets"])
    states = []
    for given in (batch, other):
        state, frozen = start("full")
        states.append(train_step("full")(state, frozen, given))
    assert states[0][1]["loss"] == states[1][1]["loss"]
    for path, value in states[0][0].params.items():
        np.testing.assert_array_equal(value, states[1][0].params[path])


def test_a_batch_without_a_target_gives_loss_zero_and_no_nan() -> None:
    batch = make_batch(0) | {"loss_weights": jnp.zeros((1, B, T), jnp.float32)}
    state, frozen = start("full")
    state, metrics = train_step("full")(state, frozen, batch)
    assert metrics["loss"] == 0
    assert metrics["grad_norm"] == 0
    assert all(np.isfinite(value).all() for value in state.params.values())


def test_only_adapters_move_and_the_frozen_base_is_neither_changed_nor_given_away() -> None:
    state, frozen = start("lora")
    before = {path: np.asarray(value) for path, value in frozen.items()}
    for seed in range(2):
        state, metrics = train_step("lora")(state, frozen, make_batch(seed))
    assert set(state.params) == set(define("lora").trainable_paths())
    for path, value in state.params.items():
        assert not np.array_equal(value, start_params("lora")[path]), path
    for path, value in frozen.items():
        np.testing.assert_array_equal(value, before[path])
    assert metrics["loss"] > 0


def test_the_loss_of_a_fixed_batch_falls() -> None:
    for kind in ("full", "lora"):
        state, frozen = start(kind)
        losses = []
        for _ in range(8):
            state, metrics = train_step(kind)(state, frozen, make_batch(0))
            losses.append(float(metrics["loss"]))
        assert losses[-1] < losses[0] - 0.02, (kind, losses)


def test_no_step_compiles_again_and_the_state_is_donated() -> None:
    mesh = sharding.single_device_mesh()
    with jax.set_mesh(mesh):
        state, frozen = start("full")
        state = jax.device_put(state, start_state("full")[1])
        step = step_lib.make_train_step(
            define("full"), stage_config.LmStage(), optimizers.make_optimizer(OPTIMIZER),
            optimizers.learning_rate(OPTIMIZER),
            state_shardings=start_state("full")[1],
        )  # fmt: skip
        for seed in range(3):
            given = state
            batch = jax.device_put(make_batch(seed), sharding.micro_batch_sharding(mesh))
            state, _ = step(state, frozen, batch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.opt_state[1][0].mu))
    assert step._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]


def test_dropout_depends_on_seed_and_step_alone() -> None:
    def loss_of(seed: int, first_step: int) -> float:
        state, frozen = start("dropout", seed=seed)
        # Adapters away from zero, so that what dropout does can be seen.
        params = {path: value + 0.1 for path, value in state.params.items()}
        step = jnp.int32(first_step)
        state = state_lib.TrainState(step, params, state.opt_state, state.key_data)
        _, metrics = train_step("dropout")(state, frozen, make_batch(0))
        return float(metrics["loss"])

    assert loss_of(0, 3) == loss_of(0, 3)
    assert len({loss_of(0, 3), loss_of(0, 4), loss_of(1, 3)}) == 3


@pytest.mark.parametrize("z_loss", [1e-2])
def test_z_loss_is_added_to_the_loss(z_loss: float) -> None:
    state, frozen = start("full")
    batch = make_batch(0)
    model = define("full").bind(state.params)
    flat = {name: array[0] for name, array in batch.items()}
    hidden, *_ = model.hidden(flat["tokens"], flat["positions"], flat["segment_ids"])
    logsumexp = np.asarray(jax.nn.logsumexp(model.logits(hidden), axis=-1), np.float64)
    weights = np.asarray(flat["loss_weights"], np.float64)
    penalty = z_loss * (logsumexp**2 * weights).sum() / weights.sum()
    plain = float(naive_loss("full", state.params, batch))
    _, metrics = train_step("full", z_loss)(state, frozen, batch)
    np.testing.assert_allclose(metrics["loss"], plain + penalty, rtol=1e-5)


def test_eval_step_gives_row_sums_of_the_same_loss() -> None:
    batch = make_batch(0)
    params = {path: jnp.asarray(value) for path, value in start_params("full").items()}
    flat = {name: array[0] for name, array in batch.items()}
    sums, weights = step_lib.make_eval_step(define("full"))(params, flat)
    assert sums.shape == weights.shape == (B,)
    np.testing.assert_allclose(weights, flat["loss_weights"].sum(axis=1), rtol=1e-6)
    expected = naive_loss("full", params, batch)
    np.testing.assert_allclose(sums.sum() / weights.sum(), expected, rtol=1e-5)
