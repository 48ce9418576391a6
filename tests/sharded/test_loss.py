"""The loss on a mesh: the numbers of one device, and every device at its own tokens only."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import sharding
from mistral_jax.nn import loss

pytestmark = pytest.mark.sharded

B, T, D, V = 8, 12, 16, 24
MESHES = (
    {"fsdp": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 2, "expert": 2, "context": 2},
    {"context": 4, "tensor": 2},
    {"data": 8},
)


def inputs(vocab_size: int = V) -> tuple[jax.Array, ...]:
    generator = np.random.default_rng(0)
    return (
        jnp.asarray(generator.normal(size=(B, T, D)), jnp.float32),
        jnp.asarray(generator.normal(size=(D, vocab_size)), jnp.float32),
        jnp.asarray(generator.integers(0, vocab_size, (B, T)), jnp.int32),
        jnp.asarray(generator.uniform(0, 2, (B, T)), jnp.float32),
    )


def value_and_gradients(hidden, kernel, targets, weights):
    call = functools.partial(loss.linear_cross_entropy, chunk_tokens=5, z_loss=0.01)
    return jax.value_and_grad(call, argnums=(0, 1, 3))(hidden, kernel, targets, weights)


def placed(mesh: jax.sharding.Mesh, arrays: tuple[jax.Array, ...]) -> list[jax.Array]:
    axes = (("batch", "sequence", None), ("embed", "vocab")) + (("batch", "sequence"),) * 2
    return [
        jax.device_put(array, sharding.named(names, array.shape, mesh))
        for array, names in zip(arrays, axes, strict=True)
    ]


@pytest.mark.parametrize("vocab_size", [V, 23])  # 23 columns do not divide over `tensor`
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_value_gradients_and_token_losses_are_those_of_one_device(
    sizes: dict[str, int], vocab_size: int
) -> None:
    arrays = inputs(vocab_size)
    value, gradients = jax.jit(value_and_gradients)(*arrays)
    losses = loss.token_losses(*arrays[:3])
    mesh = sharding.make_mesh(sizes, jax.devices())
    with jax.set_mesh(mesh):
        on_mesh = placed(mesh, arrays)
        found, found_gradients = jax.jit(value_and_gradients)(*on_mesh)
        found_losses = jax.jit(loss.token_losses)(*on_mesh[:3])
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(found_losses, losses, atol=1e-5)
    for ours, theirs in zip(found_gradients, gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_no_device_sees_the_tokens_of_another() -> None:
    mesh = sharding.make_mesh({"fsdp": 4, "context": 2}, jax.devices())
    with jax.set_mesh(mesh):
        on_mesh = placed(mesh, inputs())
        text = jax.jit(value_and_gradients).lower(*on_mesh).compile().as_text()
    gathered = re.findall(r"= f32\[([\d,]+)\][^=]*\ball-gather", text)
    assert gathered, "the kernel at least is gathered"
    for shape in gathered:
        assert sorted(map(int, shape.split(","))) == sorted((D, V)), shape
