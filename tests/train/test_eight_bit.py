"""Adam's moments in 8 bits: codes and blocks against a search in NumPy, updates against float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array
from jaxtyping import Float

from mistral_jax import sharding
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.train import eight_bit
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib

PATH = "layers/attention/q_proj/lora_a"
CONFIG = optimizer_config.AdamW(
    learning_rate=1e-2, max_steps=100, moments="int8", max_grad_norm=None,
    schedule=optimizer_config.ConstantSchedule(),
)  # fmt: skip


def paper_map(*, is_signed: bool) -> np.ndarray:
    """Return the dynamic map as the paper's figure says it: decades, each of twice the values."""
    values = [0.0, 1.0]
    for decade in range(7):
        count = 2**decade * (1 if is_signed else 2)
        edges = np.linspace(0.1, 1.0, count + 1)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        values += [*means, *(-means if is_signed else [])]
    return np.sort(np.array(values))


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.searchsorted((table[1:] + table[:-1]) / 2, values)


@pytest.mark.parametrize("is_signed", [True, False])
def test_the_map_has_256_values_and_codes_lead_to_the_nearest(is_signed: bool) -> None:
    table = paper_map(is_signed=is_signed)
    assert len(table) == 256
    np.testing.assert_allclose(eight_bit.dynamic_map(is_signed=is_signed), table, rtol=1e-6)
    codes = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_allclose(eight_bit.decode(codes, is_signed=is_signed), table, rtol=1e-6)
    generator = np.random.default_rng(0)
    values = (10.0 ** generator.uniform(-6.4, 0, 200_000)).astype(np.float32)
    if is_signed:
        values *= generator.choice([-1, 1], len(values)).astype(np.float32)
    found = np.asarray(eight_bit.encode(jnp.asarray(values), is_signed=is_signed)).astype(int)
    expected = nearest(values.astype(np.float64), table)
    # Beside an edge float32 may fall on either side.
    assert np.mean(found != expected) < 1e-4
    assert np.abs(found - expected).max() <= 1


def test_a_positive_second_moment_never_becomes_zero() -> None:
    tiny = jnp.array([0.0, 1e-12, 1e-30, 1.0])
    found = eight_bit.decode(eight_bit.encode(tiny, is_signed=False), is_signed=False)
    assert found[0] == 0
    assert (found[1:] > 0).all()


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((2, 8, 512), (1, 256)),
        ((2, 512, 16), (16, 16)),
        ((3, 48, 192), (4, 64)),
        ((8192,), (1, 256)),
        ((4096, 3), (256, 1)),
    ],
)
def test_each_block_is_scaled_by_its_largest(
    shape: tuple[int, ...], block: tuple[int, int]
) -> None:
    assert optimizer_config.eight_bit_block(PATH, shape) == block
    generator = np.random.default_rng(1)
    x = generator.normal(size=shape).astype(np.float32) * 10.0 ** generator.uniform(-4, 4)
    moment = eight_bit.quantise(jnp.asarray(x), block, is_signed=True)
    table = paper_map(is_signed=True)
    rows, columns = block
    matrices = x.reshape(-1, *shape[-2:]) if len(shape) > 1 else x[None, None]
    expected = np.zeros_like(matrices)
    for matrix, out in zip(matrices, expected, strict=True):
        for row in range(0, matrix.shape[0], rows):
            for column in range(0, matrix.shape[1], columns):
                place = slice(row, row + rows), slice(column, column + columns)
                scale = np.abs(matrix[place]).max()
                out[place] = table[nearest(matrix[place] / scale, table)] * scale
    found = np.asarray(eight_bit.dequantise(moment, block, is_signed=True))
    assert moment.codes.shape == shape
    assert moment.scales.shape == optimizer_config.scales_shape(shape, block)
    wrong = ~np.isclose(found, expected.reshape(shape), rtol=1e-5, atol=0)
    assert wrong.mean() < 1e-3


@pytest.mark.parametrize(
    ("path", "shape"),
    [(PATH, (16, 128)), ("embed/embedding", (512, 256)), (PATH, (64, 65, 3))],
)
def test_small_arrays_embeddings_and_odd_shapes_stay_in_float32(
    path: str, shape: tuple[int, ...]
) -> None:
    assert optimizer_config.eight_bit_block(path, shape) is None
    state = optimizers.make_optimizer(CONFIG).init({path: jnp.zeros(shape)})
    assert all(leaf.dtype != jnp.uint8 for leaf in jax.tree.leaves(state))


def directions(moments: str, num_steps: int) -> tuple[list[Float[Array, "..."]], object]:
    config = CONFIG.model_copy(update={"moments": moments})
    optimizer = optimizers.make_optimizer(config)
    params = {PATH: jnp.zeros((2, 64, 256))}
    state, found = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    generator = np.random.default_rng(2)
    sizes = 10.0 ** generator.uniform(-2, 0, (2, 64, 1))
    for _ in range(num_steps):
        gradient = generator.normal(0.3, 1.0, (2, 64, 256)) * sizes
        updates, state = update({PATH: jnp.asarray(gradient, jnp.float32)}, state, params)
        found.append(updates[PATH])
    return found, state


def test_the_first_update_is_adams_and_later_ones_stay_close() -> None:
    exact, _ = directions("float32", 30)
    rounded, state = directions("int8", 30)
    np.testing.assert_allclose(rounded[0], exact[0], rtol=1e-5)
    for left, right in zip(rounded, exact, strict=True):
        error = jnp.sqrt(jnp.mean((left - right) ** 2) / jnp.mean(right**2))
        assert error < 0.05
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert stored == CONFIG.array_state_bytes(PATH, (2, 64, 256)) + 2 * 4


def test_layers_of_a_large_stack_one_by_one_have_the_numbers_of_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once, first = directions("int8", 3)
    monkeypatch.setattr(eight_bit, "MAPPED_SIZE", 1000)
    one_by_one, second = directions("int8", 3)
    for left, right in zip(at_once, one_by_one, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)
    for left, right in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_gradients_of_zero_leave_a_state_of_zero() -> None:
    optimizer = optimizers.make_optimizer(CONFIG)
    params = {PATH: jnp.ones((64, 256))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    assert not jnp.any(updates[PATH])
    adam = next(
        each
        for each in jax.tree.leaves(
            state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState)
        )
        if isinstance(each, optax.ScaleByAdamState)
    )
    for moment, is_signed in ((adam.mu[PATH], True), (adam.nu[PATH], False)):
        assert not jnp.any(eight_bit.dequantise(moment, (1, 256), is_signed=is_signed))


def test_scales_that_devices_do_not_divide_are_planned_whole() -> None:
    shape, local = (2, 64, 512), (2, 64, 64)  # eight devices along the last axis, two blocks
    whole = CONFIG.array_state_bytes(PATH, shape)
    part = CONFIG.array_state_bytes(PATH, shape, local)
    assert whole == 2 * (2 * 64 * 512 + 4 * 2 * 64 * 2)
    assert part == 2 * (2 * 64 * 64 + 4 * 2 * 64 * 2)


def test_the_state_on_one_device_lies_as_its_parameter() -> None:
    mesh = sharding.single_device_mesh()
    lies = {PATH: sharding.named(("layer", "embed", "rank"), (2, 512, 16), mesh)}
    optimizer = optimizers.make_optimizer(CONFIG)
    state = state_lib.create({PATH: jnp.zeros((2, 512, 16))}, optimizer, 0, mesh, lies)
    codes = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.uint8]
    assert [leaf.sharding for leaf in codes] == [lies[PATH]] * 2
