"""Quantised kernels: products, gradients, what the backward pass keeps, experts among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import test_util
from jax.extend import core

from mistral_jax.formats import nf4
from mistral_jax.nn import layers
from mistral_jax.nn import quantised

KINDS = ("nf4", "int8")


def kernel(shape=(192, 40), seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def packed(kind, array=None):
    array = kernel() if array is None else array
    arrays = quantised.from_host(array.T, kind, name="kernel")
    return quantised.FORMS[kind](**{name: jnp.asarray(value) for name, value in arrays.items()})


def linear(kind, in_width=192, out_width=40):
    module = layers.Linear(
        in_width, out_width, axes=("embed", "mlp"), init_std=0.1,
        compute_dtype=np.dtype(np.float32), has_bias=True, rngs=nnx.Rngs(0),
    )  # fmt: skip
    plain = module.kernel[...]
    stack = nnx.Module()
    stack.up_proj = module
    quantised.replace_kernels({"layers": stack}, kind)
    return module, plain


@pytest.mark.parametrize("kind", KINDS)
def test_the_device_dequantises_as_numpy_does(kind):
    codes = packed(kind)
    expected = quantised.to_host(vars(codes))
    np.testing.assert_allclose(codes.dequantise(np.dtype(np.float32)), expected, rtol=2e-7, atol=0)
    host = nf4.dequantise(nf4.quantise(kernel().T)) if kind == "nf4" else None
    if host is not None:
        np.testing.assert_array_equal(expected, host.T)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stack", [(), (3,), (2, 2)], ids=str)
def test_kernels_quantised_on_the_device_are_those_of_the_host(kind, stack):
    # 5 blocks of 64, 320 of them: more than one group of scales.
    array = kernel((*stack, 320, 64))
    found = quantised.quantise(jnp.asarray(array), kind)
    for index in np.ndindex(stack):
        expected = quantised.from_host(array[index].T, kind, name="kernel")
        for name, value in expected.items():
            own = np.asarray(getattr(found, name))[index]
            if value.dtype.kind == "f":
                np.testing.assert_allclose(own, value, rtol=1e-6)
            else:
                assert np.mean(own == value) > 0.999, name


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_zeros_stay_zeros_on_the_device(kind):
    array = kernel()
    array[:64], array[:, 3] = 0, 0
    found = quantised.quantise(jnp.asarray(array), kind).dequantise(np.dtype(np.float32))
    assert not np.any(np.asarray(found)[array == 0])
    np.testing.assert_allclose(found, quantised.to_host(vars(packed(kind, array))), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(jnp.bfloat16)], ids=str)
def test_product_and_its_gradient_are_those_of_the_dequantised_kernel(kind, dtype):
    codes, x = packed(kind), jnp.asarray(kernel((2, 5, 192), 1), dtype)
    dense = codes.dequantise(dtype)
    found, pull = jax.vjp(lambda x: quantised.product(x, codes), x)
    expected, pull_dense = jax.vjp(lambda x: x @ dense, x)
    np.testing.assert_array_equal(found, expected)
    dy = jnp.asarray(kernel((2, 5, 40), 2), dtype)
    tolerance = 1e-6 if dtype == np.float32 else 2e-2
    found_dx, expected_dx = (np.asarray(f(dy)[0], np.float32) for f in (pull, pull_dense))
    np.testing.assert_allclose(found_dx, expected_dx, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_against_finite_differences(kind):
    codes, x = packed(kind), jnp.asarray(kernel((3, 192), 1))
    test_util.check_grads(
        jax.jit(lambda x: quantised.product(x, codes)), (x,), order=1, modes=("rev",), rtol=1e-2
    )


def shapes_of(jaxpr, primitive):
    """Return the results' shapes of one primitive, inner jaxprs included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            found += [tuple(out.aval.shape) for out in equation.outvars]
    for inner in core.subjaxprs(jaxpr):
        found += shapes_of(inner, primitive)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_of_a_kernel_is_computed_and_only_codes_are_kept(kind):
    module, _ = linear(kind)
    graph, state = nnx.split(module)

    def loss(x, state):
        return jnp.sum(jnp.square(nnx.merge(graph, state)(x)))

    x = jnp.ones((7, 192))
    _, pull = jax.vjp(lambda x: loss(x, state), x)
    kept = [leaf for leaf in jax.tree.leaves(pull) if hasattr(leaf, "nbytes")]
    wide = [leaf for leaf in kept if leaf.size >= 192 * 40 and leaf.dtype != jnp.int8]
    assert not wide
    assert any(leaf.dtype in (jnp.uint8, jnp.int8) for leaf in kept)
    jaxpr = jax.make_jaxpr(jax.grad(loss))(x, state).jaxpr
    made = shapes_of(jaxpr, "dot_general")
    assert made
    assert not {(192, 40), (40, 192)} & set(made)
    # Dequantised in the forward pass and again in the backward pass.
    assert len(shapes_of(jaxpr, "mul")) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_linear_computes_with_bias_and_gives_its_kernel(kind):
    module, plain = linear(kind)
    kernel_there = module.kernel
    assert kernel_there.shape == (192, 40)
    assert kernel_there.get_metadata() == {"axes": ("embed", "mlp")}
    assert np.linalg.norm(kernel_there[...] - plain) / np.linalg.norm(plain) < 0.1
    module.bias[...] = jnp.arange(40.0)
    x = jnp.asarray(kernel((2, 192)))
    np.testing.assert_allclose(module(x), x @ module.base_kernel() + jnp.arange(40.0), atol=1e-6)
    np.testing.assert_array_equal(module.whole_kernel(), kernel_there[...])


def test_a_projection_without_whole_blocks_is_named():
    with pytest.raises(ValueError, match=r"layers/up_proj has 100 inputs.*multiple of 64"):
        linear("nf4", in_width=100)
    linear("int8", in_width=100)


def test_weights_are_counted_and_not_bytes():
    def count(path, shape, dtype=np.uint8):
        return quantised.num_weights(f"layers/q_proj/{path}", shape, np.dtype(dtype))

    assert count("kernel/codes", (2, 3, 32, 40)) == 2 * 192 * 40
    assert count("kernel/codes", (192, 40), np.int8) == 192 * 40
    assert count("kernel/absmax", (2, 3, 40)) == 0
    assert count("kernel", (4, 4), np.float32) == 16
