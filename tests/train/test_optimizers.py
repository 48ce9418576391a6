"""Schedules and update rules against their formulas; which parameters decay; clipping; bytes."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mistral_jax import checkpoint
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import load
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.config.evaluate import CheckpointConfig
from mistral_jax.models import definition as definition_lib
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib

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


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor"])
def test_b_of_adapters_moves_by_a_multiple_of_the_rate_decay_included(kind: str) -> None:
    kinds = {
        "adamw": optimizer_config.AdamW,
        "muon": optimizer_config.Muon,
        "adafactor": optimizer_config.Adafactor,
    }
    generator = np.random.default_rng(0)
    params, gradients = (
        {
            f"layers/attention/q_proj/{name}": jnp.asarray(generator.normal(size=(2, 6, 4)))
            for name in ("kernel", "lora_a", "lora_b")
        }
        for _ in range(2)
    )

    def updates(ratio: float) -> dict:
        settings = kinds[kind](
            learning_rate=0.1, max_steps=9, weight_decay=0.1, b_learning_rate_ratio=ratio
        )
        optimizer = optimizers.make_optimizer(settings)
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    plain, faster = updates(1.0), updates(16.0)
    for path, update in plain.items():
        factor = 16 if path.endswith("lora_b") else 1
        np.testing.assert_array_equal(faster[path], update * factor)


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


STACK = (2, 2, 3, 16, 24)  # [L, G, n, in, out]
SHAPES = {
    "embed/embedding": (40, 16),
    "head/kernel": (16, 40),
    "layers/mlp_norm/scale": (2, 16),
    "layers/mlp/router/kernel": (2, 16, 6),
    "layers/mlp/router/bias": (2, 6),
    "layers/mlp/gate_proj/kernel": STACK,
    "layers/mlp/down_proj/kernel": (2, 2, 3, 24, 16),
    "layers/attention/q_proj/kernel": (2, 16, 16),
    "dense_layers/mlp/gate_proj/kernel": (1, 16, 24),
}
MATRICES = {
    "layers/mlp/gate_proj/kernel", "layers/mlp/down_proj/kernel",
    "layers/attention/q_proj/kernel", "dense_layers/mlp/gate_proj/kernel",
}  # fmt: skip
KINDS = {
    "adamw": optimizer_config.AdamW,
    "adamw_bfloat16": optimizer_config.AdamW,
    "adamw_int8": optimizer_config.AdamW,
    "muon": optimizer_config.Muon,
    "muon_bfloat16": optimizer_config.Muon,
    "adafactor": optimizer_config.Adafactor,
}


def recipe(kind: str, **changes: object) -> optimizer_config.Optimizer:
    """Return a kind's configuration with a constant rate of 1 and no clipping."""
    fields = {
        "learning_rate": 1.0, "max_steps": 100, "max_grad_norm": None,
        "schedule": optimizer_config.ConstantSchedule(),
    }  # fmt: skip
    if "_" in kind:
        fields["moments"] = kind.partition("_")[2]
    return KINDS[kind].model_validate({**fields, **changes})


def draw(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, jax.Array]:
    """Return numbers for every path; a router's bias gets zeros, as its gradient is."""
    generator = np.random.default_rng(seed)
    return {
        path: jnp.asarray(
            generator.normal(size=shape) * (not path.endswith("router/bias")), jnp.float32
        )
        for path, shape in shapes.items()
    }


FACTORED_SHAPES = {
    "layers/mlp/gate_proj/kernel": (2, 128, 130),
    "layers/mlp_norm/scale": (2, 16),
}


@functools.cache
def updates_of(settings: optimizer_config.Optimizer, num_steps: int) -> tuple[list[dict], object]:
    """Return the updates of each step, for parameters that stand still, and the last state."""
    shapes = FACTORED_SHAPES if settings.kind == "adafactor" else SHAPES
    optimizer, params = optimizers.make_optimizer(settings), draw(99, shapes)
    state, found = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for step in range(num_steps):
        updates, state = update(draw(step, shapes), state, params)
        found.append(updates)
    return found, state


def test_adamw_has_the_bits_of_optax() -> None:
    settings = recipe("adamw", weight_decay=0.1, max_grad_norm=1.0)
    plain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(1.0, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, mask=optimizers.is_decayed),
    )
    found, _ = updates_of(settings, 3)
    params, state = draw(99), plain.init(draw(99))
    for step in range(3):
        expected, state = jax.jit(plain.update)(draw(step), state, params)
        for path in SHAPES:
            np.testing.assert_array_equal(found[step][path], expected[path])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_in_bfloat16_are_stored_so_and_close_to_float32(kind: str) -> None:
    exact, _ = updates_of(recipe(kind), 20)
    rounded, state = updates_of(recipe(f"{kind}_bfloat16"), 20)
    stored = [leaf for leaf in jax.tree.leaves(state) if leaf.size > 1]
    assert stored
    assert {leaf.dtype for leaf in stored} == {jnp.dtype("bfloat16")}
    for path in SHAPES:
        left, right = (np.stack([step[path] for step in steps]) for steps in (rounded, exact))
        if path.endswith("router/bias"):
            continue
        error = np.sqrt(np.mean((left - right) ** 2) / np.mean(right**2))
        assert 0 < error < 2e-2, (path, error)


@pytest.mark.parametrize("changes", [{"beta2": 0.999}, {"beta1": 0.995}, {"momentum": 0.995}])
def test_a_moment_that_bfloat16_cannot_decay_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="in bfloat16 need"):
        recipe("muon_bfloat16", **changes)
    recipe("muon", **changes)


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Return five steps of the quintic of Muon's authors, in float64."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix) / np.linalg.norm(matrix)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if is_tall else x


def test_muon_of_a_stack_equals_a_loop_over_its_matrices() -> None:
    found, _ = updates_of(recipe("muon", weight_decay=0.1), 3)
    params = draw(99)
    for path in MATRICES:
        momentum = 0.0
        for step in range(3):
            gradient = np.asarray(draw(step)[path], np.float64)
            momentum = 0.95 * momentum + gradient
            nesterov = gradient + 0.95 * momentum
            matrices = nesterov.reshape(-1, *nesterov.shape[-2:])
            size = 0.2 * math.sqrt(max(nesterov.shape[-2:]))
            expected = size * np.stack([newton_schulz(each) for each in matrices])
            expected = -(expected.reshape(nesterov.shape) + 0.1 * params[path])
            np.testing.assert_allclose(found[step][path], expected, atol=2e-5)


def test_muon_leaves_everything_but_hidden_matrices_to_adamw() -> None:
    muon, _ = updates_of(recipe("muon", weight_decay=0.1), 3)
    adamw, _ = updates_of(recipe("adamw", weight_decay=0.1), 3)
    assert {path for path in SHAPES if optimizer_config.is_hidden_matrix(path)} == MATRICES
    for path in SHAPES:
        is_same = np.allclose(muon[1][path], adamw[1][path], atol=1e-6)
        assert is_same == (path not in MATRICES), path


def test_muon_updates_are_nearly_orthogonal_and_of_one_size() -> None:
    found, _ = updates_of(recipe("muon"), 20)
    for path in MATRICES:
        update = np.asarray(found[0][path]).reshape(-1, *SHAPES[path][-2:])
        values = np.linalg.svd(update / (0.2 * math.sqrt(max(update.shape[1:]))))[1]
        assert values.min() > 0.65, (path, values.min())
        assert values.max() < 1.2, (path, values.max())
        sizes = np.sqrt(np.mean(update**2, axis=(1, 2)))
        np.testing.assert_allclose(sizes, 0.2, rtol=0.2)


def test_adafactor_equals_its_formula_matrix_by_matrix() -> None:
    shapes = FACTORED_SHAPES
    found, _ = updates_of(recipe("adafactor"), 3)
    rows = columns = whole = 0.0
    for step in range(3):
        keep = 1 - (step + 1) ** -0.8
        gradient, scale = (np.asarray(draw(step, shapes)[path], np.float64) for path in shapes)
        square = gradient**2 + 1e-30
        rows = keep * rows + (1 - keep) * square.mean(axis=2, keepdims=True)
        columns = keep * columns + (1 - keep) * square.mean(axis=1, keepdims=True)
        update = gradient / np.sqrt(rows * columns / rows.mean(axis=1, keepdims=True))
        size = np.sqrt(np.mean(update**2, axis=(1, 2), keepdims=True))
        expected = -update / np.maximum(1.0, size)
        np.testing.assert_allclose(found[step]["layers/mlp/gate_proj/kernel"], expected, rtol=2e-4)
        whole = keep * whole + (1 - keep) * scale**2
        update = scale / np.sqrt(whole)
        expected = -update / max(1.0, np.sqrt(np.mean(update**2)))
        np.testing.assert_allclose(found[step]["layers/mlp_norm/scale"], expected, rtol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_knows_the_bytes_of_every_state(kind: str) -> None:
    shapes = SHAPES | {"layers/attention/o_proj/kernel": (2, 128, 256), "head/kernel": (256, 300)}
    optimizer = optimizers.make_optimizer(recipe(kind))
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    state = jax.eval_shape(optimizer.init, params)
    found = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    settings = recipe(kind)
    predicted = sum(settings.array_state_bytes(path, shape) for path, shape in shapes.items())
    # Step counters, and Newton-Schulz's nothing.
    assert 0 <= found - predicted <= 32
    matrix = ("layers/mlp/up_proj/kernel", (2, 4, 4, 4096, 8192))
    share = settings.array_state_bytes(*matrix) / math.prod(matrix[1])
    assert share == pytest.approx(settings.state_bytes, abs=2e-3)


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor"])
def test_no_optimizer_moves_a_router_bias(kind: str) -> None:
    names = ("layers/mlp/router/bias", "layers/mlp/router/kernel")
    params, gradients = ({name: draw(seed)[name] for name in names} for seed in (1, 2))
    optimizer = optimizers.make_optimizer(recipe(kind, weight_decay=0.1))
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert not np.any(updates["layers/mlp/router/bias"])
    assert np.any(updates["layers/mlp/router/kernel"])


@pytest.mark.parametrize("kind", ["adamw_bfloat16", "adamw_int8", "muon", "adafactor"])
def test_each_kind_trains_the_tiny_config_and_comes_back_from_disk(
    kind: str, tmp_path: Path
) -> None:
    run = load.load_run("configs/tiny/dense.yaml", [f"optimizer.kind={kind.split('_')[0]}"])
    settings = recipe(kind, learning_rate=3e-3, max_grad_norm=1.0)
    shape = run.model.model_copy(update={"num_layers": 2})
    definition, mesh = definition_lib.define(shape), sharding.single_device_mesh()
    assert isinstance(run.optimizer, KINDS[kind])
    params = definition_lib.initialise(definition, rng.seed_key(0), mesh)
    optimizer = optimizers.make_optimizer(settings)
    state = state_lib.create(params, optimizer, 0, mesh, definition.shardings(mesh))
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    train_step = step_lib.make_train_step(
        definition, run.stage, optimizer, optimizers.learning_rate(settings)
    )
    tokens = np.random.default_rng(0).integers(0, 256, (1, 2, 65)).astype(np.int32)
    ones = jnp.ones((1, 2, 64), jnp.int32)
    batch = {
        "tokens": jnp.asarray(tokens[..., :-1]), "targets": jnp.asarray(tokens[..., 1:]),
        "loss_weights": ones.astype(jnp.float32), "segment_ids": ones,
        "positions": jnp.broadcast_to(jnp.arange(64, dtype=jnp.int32), ones.shape),
    }  # fmt: skip
    losses = []
    for number in range(6):
        state, metrics = train_step(state, {}, batch)
        losses.append(float(metrics["loss"]))
        if number == 2:
            keeper = checkpoint.Checkpointer(tmp_path / "saved", CheckpointConfig())
            keeper.save(3, state, {})
            keeper.close()
    assert losses[5] < losses[2] < losses[0]
    keeper = checkpoint.Checkpointer(tmp_path / "saved", CheckpointConfig(), is_reader=True)
    again = keeper.restore(abstract, 3).state
    keeper.close()
    for expected in losses[3:]:
        again, metrics = train_step(again, {}, batch)
        assert float(metrics["loss"]) == expected
