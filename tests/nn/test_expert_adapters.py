"""Adapters of experts: equal to merged kernels in every implementation; frozen ones are free."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.nn import experts
from mistral_jax.nn import routing
from mistral_jax.nn.kernels import experts_blocks

N, D, F, E, K, R = 83, 16, 24, 5, 2, 3
PARTS = ("gate", "up", "down")


def draw(dtype: object = jnp.float32) -> tuple[jax.Array, routing.Choice, experts.Kernels]:
    generator = np.random.default_rng(0)
    first = generator.integers(0, E, N)
    chosen = np.stack([first, (first + generator.integers(1, E, N)) % E], axis=1)
    chosen[::5] = E
    weights = jnp.asarray(generator.uniform(0.1, 1, chosen.shape), jnp.float32)
    sides = {"gate": (D, F), "up": (D, F), "down": (F, D)}

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.normal(size=shape) / shape[-2] ** 0.5, dtype)

    kernels = {name: normal(E, *side) for name, side in sides.items()}
    adapters = {
        f"{name}_adapter": experts.LowRank(normal(E, side[0], R), normal(E, R, side[1]))
        for name, side in sides.items()
    }
    x = jnp.asarray(generator.normal(size=(N, D)), dtype)
    return (
        x,
        routing.Choice(jnp.asarray(chosen, jnp.int32), weights),
        experts.Kernels(**kernels, **adapters),
    )


def run(implementation: str, x, weights, kernels, chosen):
    out = experts.run_experts(
        x, routing.Choice(chosen, weights), kernels, implementation=implementation
    )
    direction = jnp.cos(jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape))
    return jnp.sum(out.astype(jnp.float32) * direction), out


@functools.cache
def of_all(implementation: str):
    """Return outputs and gradients by tokens, weights, kernels and adapters."""
    x, choice, kernels = draw()
    both = jax.value_and_grad(
        functools.partial(run, implementation), argnums=(0, 1, 2), has_aux=True
    )
    (_, out), gradients = jax.jit(both)(x, choice.weights, kernels, choice.experts)
    return out, gradients


def test_adapters_beside_kernels_equal_merged_kernels() -> None:
    x, choice, kernels = draw()
    merged = {}
    for name in PARTS:
        pair = getattr(kernels, f"{name}_adapter")
        merged[name] = getattr(kernels, name) + pair.a @ pair.b
    expected = run("all", x, choice.weights, experts.Kernels(**merged), choice.experts)[1]
    np.testing.assert_allclose(of_all("all")[0], expected, atol=3e-5)


@pytest.mark.parametrize("implementation", ["blocks", "ragged", "grouped"])
@pytest.mark.usefixtures("lax_as_tokamax")
def test_every_implementation_equals_the_oracle(implementation: str) -> None:
    found, expected = of_all(implementation), of_all("all")
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for ours, theirs in leaves:
        limit = 1e-5 * max(1, float(np.abs(theirs).max()))
        np.testing.assert_allclose(ours, theirs, atol=limit)


def matmuls_and_shapes(jaxpr) -> tuple[int, set[str]]:
    """Return how many matmuls a jaxpr has, inner ones included, and every array type in it."""
    count, types_ = 0, set()
    for equation in jaxpr.eqns:
        count += equation.primitive.name in ("dot_general", "ragged_dot_general")
        types_ |= {variable.aval.str_short() for variable in equation.outvars}
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                more, others = matmuls_and_shapes(inner)
                count, types_ = count + more, types_ | others
    return count, types_


def differentiated(implementation: str, *, is_frozen: bool, with_adapters: bool):
    """Return a gradient by bfloat16 tokens and adapters, or by all; and its arguments."""
    x, choice, kernels = draw(jnp.bfloat16)
    plain = {name: getattr(kernels, name) for name in PARTS}
    pairs = {name: getattr(kernels, f"{name}_adapter") for name in PARTS}
    # Arrays alone: an argument of a jitted function is told about with placeholders.
    low = {name: (pair.a, pair.b) for name, pair in pairs.items()} if with_adapters else {}

    def loss(trained, x):
        low_now = {f"{name}_adapter": experts.LowRank(*pair) for name, pair in trained[1].items()}
        both = experts.Kernels(**(plain | trained[0]), **low_now)
        return run(implementation, x, choice.weights, both, choice.experts)[0]

    trained = ({} if is_frozen else plain, low)
    return jax.grad(loss, argnums=(0, 1)), (trained, x)


@pytest.mark.parametrize("with_adapters", [True, False], ids=["adapters", "elsewhere"])
def test_blocks_make_no_gradient_of_frozen_kernels(*, with_adapters: bool) -> None:
    """Neither sums, float32 of a kernel's shape, nor products; also where x alone is trained."""

    def found(*, is_frozen: bool) -> tuple[int, set[str]]:
        gradient, inputs = differentiated(
            "blocks", is_frozen=is_frozen, with_adapters=with_adapters
        )
        return matmuls_and_shapes(jax.make_jaxpr(gradient)(*inputs).jaxpr)

    sums = {f"float32[{E},{D},{F}]", f"float32[{E},{F},{D}]"}
    (count, shapes), (frozen_count, frozen_shapes) = found(is_frozen=False), found(is_frozen=True)
    assert sums <= shapes
    assert not sums & frozen_shapes
    # A kernel each: once forward, once for the rows, once for itself; for each size of block.
    sizes = len(experts_blocks.block_rows(N * K, E))
    assert count - frozen_count == 3 * sizes
    if not with_adapters:
        assert (count, frozen_count) == (9 * sizes, 6 * sizes)


@pytest.mark.parametrize("implementation", ["all", "ragged"])
def test_autodiffs_unused_products_are_gone_after_compilation(implementation: str) -> None:
    def num_matmuls(*, is_frozen: bool) -> int:
        gradient, inputs = differentiated(implementation, is_frozen=is_frozen, with_adapters=True)
        return jax.jit(gradient).lower(*inputs).compile().as_text().count(" dot(")

    assert num_matmuls(is_frozen=False) - num_matmuls(is_frozen=True) == 3


def test_adapters_of_some_projections() -> None:
    x, choice, kernels = draw()
    some = dataclasses.replace(kernels, gate_adapter=None, down_adapter=None)
    outs = [
        run(name, x, choice.weights, some, choice.experts)[1]
        for name in ("all", "blocks", "ragged")
    ]
    for out in outs[1:]:
        np.testing.assert_allclose(out, outs[0], atol=1e-5)
