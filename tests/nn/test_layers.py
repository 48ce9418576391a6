"""Linear, RmsNorm and Embedding against NumPy, and what they do at their edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from mistral_jax.nn import layers

F32 = np.dtype(np.float32)


def linear(*, has_bias: bool = False, compute_dtype: np.dtype = F32) -> layers.Linear:
    return layers.Linear(
        6, 4, axes=("embed", "mlp"), init_std=0.5, compute_dtype=compute_dtype,
        has_bias=has_bias, rngs=nnx.Rngs(0),
    )  # fmt: skip


@pytest.mark.parametrize("widths", [(4, 9), (9, 4)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_ordered_backward_is_the_matmuls_own(widths: tuple[int, int], dtype: jnp.dtype) -> None:
    generator = np.random.default_rng(2)
    x = jnp.asarray(generator.normal(size=(2, 3, widths[0])), dtype)
    kernel = jnp.asarray(generator.normal(size=widths), dtype)

    def squares(product, *operands):
        return jnp.sum(jnp.square(product(*operands).astype(jnp.float32)))

    ours, plain = (
        jax.grad(functools.partial(squares, product), argnums=(0, 1))(x, kernel)
        for product in (layers.project, jnp.matmul)
    )
    for our, expected in zip(ours, plain, strict=True):
        assert our.dtype == dtype
        error = np.abs(our.astype(jnp.float32) - expected.astype(jnp.float32)).max()
        assert error <= (1e-5 if dtype == jnp.float32 else 2e-2) * np.abs(expected).max()


def test_linear_is_a_matmul_with_an_optional_bias() -> None:
    module = linear(has_bias=True)
    assert module.bias is not None
    module.bias[...] = jnp.arange(4, dtype=jnp.float32)
    x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    expected = x.astype(np.float64) @ np.asarray(module.kernel[...], np.float64) + np.arange(4)
    np.testing.assert_allclose(module(jnp.asarray(x)), expected, atol=1e-6)
    assert linear().bias is None


def test_linear_computes_in_its_dtype_and_keeps_float32_parameters() -> None:
    module = linear(compute_dtype=np.dtype(jnp.bfloat16))
    assert module.kernel[...].dtype == jnp.float32
    assert module(jnp.ones((1, 6), jnp.float32)).dtype == jnp.bfloat16


def test_rms_norm_equals_its_formula() -> None:
    norm = layers.RmsNorm(8, epsilon=1e-5)
    norm.scale[...] = jnp.linspace(-1, 2, 8)
    x = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32) * 10
    wide = x.astype(np.float64)
    root = np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(x)), wide / root * np.linspace(-1, 2, 8), rtol=1e-5)


def test_rms_norm_of_bfloat16_is_taken_in_float32() -> None:
    """In bf16 the mean of 4096 squares of 1/16 stops growing; the norm would be far from 1."""
    norm = layers.RmsNorm(4096, epsilon=1e-12)
    out = norm(jnp.full((1, 4096), 0.0625, jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1.0)


def test_rms_norm_of_zeros_is_zero_with_a_finite_gradient() -> None:
    norm = layers.RmsNorm(8, epsilon=1e-5)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(norm(x)))(jnp.zeros((2, 8)))
    assert value == 0
    assert np.isfinite(gradient).all()


def test_rms_norm_gradients_are_right() -> None:
    x = jax.random.normal(jax.random.key(0), (3, 8), jnp.float32)
    graph, state = nnx.split(layers.RmsNorm(8, epsilon=1e-5))

    def apply(state: nnx.State, x: object) -> jax.Array:
        return nnx.merge(graph, jax.tree.map(jnp.asarray, state))(jnp.asarray(x))

    check_grads(apply, (state, x), order=1, modes=["rev"], rtol=1e-2)


@pytest.mark.parametrize("token", [11, 5000, -1])
def test_ids_outside_the_vocabulary_give_nan(token: int) -> None:
    table = layers.Embedding(11, 4, init_std=1.0, compute_dtype=F32, rngs=nnx.Rngs(0))
    rows = np.asarray(table(jnp.asarray([[3, token, 10]], jnp.int32)))
    np.testing.assert_array_equal(rows[0, [0, 2]], np.asarray(table.embedding[...])[[3, 10]])
    assert np.isnan(rows[0, 1]).all()


def test_embedding_is_its_own_head_transposed() -> None:
    table = layers.Embedding(11, 4, init_std=1.0, compute_dtype=F32, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(table.head_kernel(), np.asarray(table.embedding[...]).T)
