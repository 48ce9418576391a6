"""Rows that devices share: the values and gradients of whole rows, packed, windowed or neither."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mistral_jax import sharding
from mistral_jax.adapters import lora
from mistral_jax.config import model as model_config
from mistral_jax.nn import attention
from mistral_jax.nn import context_parallel
from mistral_jax.nn import masks
from mistral_jax.nn import mla
from mistral_jax.nn import rope
from mistral_jax.nn.kernels import blockwise
from mistral_jax.nn.kernels import splash_blocks
from tests import tiny

pytestmark = pytest.mark.sharded

B, T, H, K, Q, W = 2, 64, 4, 2, 8, 8
TOLERANCE = 2e-5
FORMS = ("all_gather", "ring")
MESHES = (
    {"fsdp": 2, "context": 2, "tensor": 2},
    {"fsdp": 2, "context": 4},
    {"context": 8},
)


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "MAX_BLOCK", 8)


def mesh_of(sizes: dict[str, int]) -> jax.sharding.Mesh:
    return sharding.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])


def packed(order: np.ndarray | None = None) -> tuple[jax.Array, jax.Array]:
    """Return positions and segments of rows with documents of uneven lengths, and padding."""
    index = np.arange(T, dtype=np.int32)
    cuts = [[0, 5, 41], [0, 23, 24]]
    segments = np.stack([np.searchsorted(row, index, side="right") for row in cuts])
    starts = np.stack([np.asarray(row)[segments[i] - 1] for i, row in enumerate(cuts)])
    segments[1, -6:] = 0
    order = index if order is None else order
    return jnp.int32(index - starts)[:, order], jnp.int32(segments)[:, order]


@functools.cache
def numbers() -> tuple[jax.Array, ...]:
    generator = np.random.default_rng(0)
    shapes = ((B, T, H, Q), (B, T, K, Q), (B, T, K, W), (B, T, H, W))
    return tuple(jnp.float32(generator.normal(size=shape)) for shape in shapes)


def objective(q, k, v, weights, spec, implementation):
    out, _ = attention.attend(q, k, v, spec, scale=0.3, implementation=implementation)
    return jnp.sum(out * weights), out


def graded(arrays: tuple, spec: masks.AttentionSpec, implementation: str) -> list[np.ndarray]:
    """Return the output and the gradients of queries, keys and values."""
    call = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True), static_argnums=5)
    (_, out), gradients = call(*arrays, spec, implementation)
    return [np.asarray(each) for each in (out, *gradients)]


@functools.cache
def expected(is_packed: bool, reach: int | None) -> list[np.ndarray]:
    positions, segments = packed()
    spec = masks.row_spec(positions, segments if is_packed else None, reach=reach)
    return graded(numbers(), spec, "reference")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_shared_rows_equal_whole_rows_in_value_and_gradient(
    sizes: dict[str, int], form: masks.ContextForm
) -> None:
    assert_equal_to_whole_rows(sizes, form, is_packed=True, reach=None)


@pytest.mark.parametrize(
    ("form", "is_packed"), [("all_gather", True), ("ring", False), ("ring", True)]
)
def test_shared_rows_honour_a_window(form: masks.ContextForm, is_packed: bool) -> None:
    assert_equal_to_whole_rows({"context": 4}, form, is_packed=is_packed, reach=10)


@pytest.mark.parametrize("form", FORMS)
def test_splash_blocks_equal_whole_rows(
    form: masks.ContextForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splash_blocks, "IS_INTERPRETED", True)
    monkeypatch.setattr(splash_blocks, "MAX_BLOCK", 128)
    length, size = 1024, 2  # two blocks in each of four chunks
    generator = np.random.default_rng(1)
    arrays = tuple(
        jnp.float32(generator.normal(size=(1, length, heads, width)))
        for heads, width in ((4, 24), (2, 24), (2, 16), (4, 16))
    )
    index = np.arange(length, dtype=np.int32)
    # A document within a block, one over chunks, and padding.
    segments = np.searchsorted([0, 40, 700], index, side="right")[None]
    segments[:, -50:] = 0
    right = graded(arrays, masks.row_spec(jnp.int32(index)[None], jnp.int32(segments)), "reference")
    order = context_parallel.zigzag_order(length, size)
    with jax.set_mesh(mesh_of({"context": size, "tensor": 2})):
        spec = context_parallel.row_spec(
            jnp.int32(index[order])[None], jnp.int32(segments[:, order]), form
        )
        found = graded(tuple(each[:, order] for each in arrays), spec, "splash")
    for left, whole in zip(found, right, strict=True):
        np.testing.assert_allclose(left, whole[:, order], atol=TOLERANCE)


def test_splash_says_where_it_does_not_apply() -> None:
    with pytest.warns(UserWarning, match="multiples of 128 tokens and no window, got 256 and 10"):
        block, kernel = context_parallel._choose_blocks(256, 10, "splash")
    assert (block, kernel) == (8, blockwise.XLA)
    assert context_parallel._choose_blocks(8192, None, "splash")[0] == 4096


def assert_equal_to_whole_rows(
    sizes: dict[str, int], form: masks.ContextForm, *, is_packed: bool, reach: int | None
) -> None:
    order = context_parallel.zigzag_order(T, sizes["context"])
    positions, segments = packed(order)
    arrays = tuple(each[:, order] for each in numbers())
    with jax.set_mesh(mesh_of(sizes)):
        spec = context_parallel.row_spec(positions, segments if is_packed else None, form)
        found = graded(arrays, dataclasses.replace(spec, reach=reach), "banded")
    for left, right in zip(found, expected(is_packed, reach), strict=True):
        np.testing.assert_allclose(left, right[:, order], atol=TOLERANCE)


def test_the_reference_takes_rows_out_of_order() -> None:
    order = context_parallel.zigzag_order(T, 4)
    positions, segments = packed(order)
    spec = dataclasses.replace(masks.row_spec(positions, segments), rows=jnp.asarray(order))
    found = graded(tuple(each[:, order] for each in numbers()), spec, "reference")
    for left, right in zip(found, expected(True, None), strict=True):
        np.testing.assert_allclose(left, right[:, order], atol=1e-6)
    with pytest.raises(ValueError, match="takes rows in order"):
        attention.attend(*numbers()[:3], spec, scale=1.0, implementation="banded")


def test_zigzag_gives_every_device_the_same_work_and_every_token_a_place() -> None:
    size = 4
    order = context_parallel.zigzag_order(T, size)
    assert sorted(order) == list(range(T))
    seen = (order + 1).reshape(size, -1).sum(axis=1)  # keys that a device's queries see
    assert len(set(seen.tolist())) == 1
    with pytest.raises(ValueError, match="multiples of 16 tokens, got 40"):
        context_parallel.zigzag_order(40, 8)


LATENT = model_config.LatentAttention(
    query_rank=None, latent_rank=16, content_width=8, rotary_width=4, value_width=8
)
SHAPE = tiny.decoder(61, attention=LATENT, num_kv_heads=4, head_width=12, init_std=0.2)


@functools.cache
def latent_layer() -> tuple:
    """Return the graph of a latent layer with an adapter on kv_b_proj, its numbers, an input."""
    layer = mla.LatentAttention(
        SHAPE, LATENT, compute_dtype=np.dtype("float32"), implementation="reference",
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    adapter = model_config.LoraAdapter(rank=2, alpha=4.0)
    layer.kv_b_proj = lora.LoraLinear(layer.kv_b_proj, adapter, key=jax.random.key(1))
    graph, state = nnx.split(layer)
    state = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape), state
    )
    x = jax.random.normal(jax.random.key(3), (B, T, SHAPE.width))
    return graph, state, x


def latent_loss(state: nnx.State, x: jax.Array, spec: masks.AttentionSpec) -> jax.Array:
    rotary = rope.rotary(spec.query_positions, SHAPE.rope, SHAPE.query_scaling, SHAPE.rotary_width)
    out, _ = nnx.merge(latent_layer()[0], state)(x, spec, rotary)
    return jnp.sum(jnp.sin(out))


@functools.cache
def whole_latent_rows() -> tuple:
    _, state, x = latent_layer()
    call = jax.jit(jax.value_and_grad(latent_loss, argnums=(0, 1)))
    return call(state, x, masks.row_spec(*packed()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [{"context": 8}, {"fsdp": 2, "context": 2, "tensor": 2}], ids=str)
def test_latents_travel_with_the_gradients_of_whole_rows(
    sizes: dict[str, int], form: masks.ContextForm
) -> None:
    _, state, x = latent_layer()
    order = context_parallel.zigzag_order(T, sizes["context"])
    with jax.set_mesh(mesh_of(sizes)):
        spec = context_parallel.row_spec(*packed(order), form)
        call = jax.jit(jax.value_and_grad(latent_loss, argnums=(0, 1)))
        loss, (d_state, d_x) = call(state, x[:, order], spec)
    right_loss, (right_state, right_x) = whole_latent_rows()
    np.testing.assert_allclose(loss, right_loss, rtol=1e-5)
    np.testing.assert_allclose(d_x, right_x[:, order], atol=TOLERANCE)
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(d_state), jax.tree.leaves(right_state), strict=True
    ):
        assert np.any(right), path
        np.testing.assert_allclose(
            left, right, atol=5 * TOLERANCE, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize("form", FORMS)
def test_latents_are_never_expanded_for_a_whole_row(form: masks.ContextForm) -> None:
    _, state, x = latent_layer()
    with jax.set_mesh(mesh_of({"context": 8})):
        spec = context_parallel.row_spec(*packed(context_parallel.zigzag_order(T, 8)), form)
        traced = jax.make_jaxpr(jax.grad(latent_loss, argnums=(0, 1)))(state, x, spec)
    largest = max(largest_array(body) for body in bodies_of(traced.jaxpr, "shard_map"))
    expanded = B * T * SHAPE.num_heads * (LATENT.content_width + LATENT.rotary_width)
    travelling = B * T * mla.cache_width(LATENT)
    assert largest <= travelling < expanded / 2


def bodies_of(jaxpr: Any, name: str) -> Iterator[Any]:
    """Yield the bodies of all equations of a name, however deep."""
    for equation in jaxpr.eqns:
        for body in inner(equation):
            if equation.primitive.name == name:
                yield body
            else:
                yield from bodies_of(body, name)


def inner(equation: Any) -> Iterator[Any]:
    for value in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
    ):
        body = getattr(value, "jaxpr", value)
        if hasattr(body, "eqns"):
            yield body


def largest_array(jaxpr: Any) -> int:
    """Return the most numbers that any equation of a device's program makes."""
    own = [out.aval.size for equation in jaxpr.eqns for out in equation.outvars]
    below = [largest_array(body) for equation in jaxpr.eqns for body in inner(equation)]
    return max(own + below, default=0)


def test_a_mesh_without_a_context_axis_leaves_rows_as_they_are() -> None:
    array = np.arange(24).reshape(2, 12)
    with jax.set_mesh(mesh_of({"fsdp": 2})):
        assert context_parallel.row_spec(*packed(), "ring").context is None
        assert context_parallel.reordered(array, jax.sharding.get_abstract_mesh()) is array
    found = context_parallel.reordered(array, mesh_of({"context": 2}))
    np.testing.assert_array_equal(found[0], [0, 1, 2, 9, 10, 11, 3, 4, 5, 6, 7, 8])


def test_dropout_on_the_expansion_is_refused() -> None:
    _, state, x = latent_layer()
    layer = nnx.merge(latent_layer()[0], state)
    layer.kv_b_proj.dropout = 0.5
    with jax.set_mesh(mesh_of({"context": 2})):
        spec = context_parallel.row_spec(*packed(), "ring")
        rotary = rope.rotary(spec.query_positions, SHAPE.rope, SHAPE.query_scaling, 4)
        with pytest.raises(ValueError, match="kv_b_proj does not work on a context axis"):
            layer(x, spec, rotary, dropout_key=jax.random.key(0))
