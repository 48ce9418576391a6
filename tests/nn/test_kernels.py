"""Attention kernels: the reference against loops in NumPy, every other kernel against it.

The loops are slow and obvious: for one query, list the keys that it sees, take their softmax.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.nn import attention
from mistral_jax.nn import masks
from mistral_jax.nn.kernels import banded
from mistral_jax.nn.kernels import reference
from mistral_jax.nn.kernels import sdpa
from mistral_jax.nn.kernels import splash

SCALE = 0.3
splash_attend = functools.partial(splash.attend, is_interpreted=True)
# Row length and head width that each kernel is compared at; neither length is a multiple of the
# banded block (128), and splash runs three blocks.
KERNELS = {
    "banded": (banded.attend, 300, 8),
    "sdpa": (sdpa.attend, 300, 8),
    "splash": (splash_attend, 384, 128),
}


def draw(num_tokens: int, head_width: int, *, dtype: object = jnp.float32, num_keys: int = 0):
    """Return q (4 heads), k and v (2 heads) for a batch of 2."""
    keys = jax.random.split(jax.random.key(num_tokens + head_width), 3)
    sizes = ((num_tokens, 4), (num_keys or num_tokens, 2), (num_keys or num_tokens, 2))
    return tuple(
        jax.random.normal(key, (2, length, heads, head_width), jnp.float32).astype(dtype)
        for key, (length, heads) in zip(keys, sizes)
    )


def run(kernel: Callable, inputs: tuple, spec: masks.AttentionSpec, scale: float = SCALE) -> tuple:
    """Return (out, logsumexp) of a jitted call."""
    return jax.jit(functools.partial(kernel, scale=scale))(*inputs, spec)


def row_spec(num_tokens: int, *, reach: int | None, has_segments: bool) -> masks.AttentionSpec:
    """Return a spec of two rows packed differently, the second with padding at its end."""
    segments = None
    positions = np.tile(np.arange(num_tokens, dtype=np.int32), (2, 1))
    if has_segments:
        third = num_tokens // 3
        cuts = np.array([[third, 2 * third + 5], [1, num_tokens - 7]])
        index = np.arange(num_tokens)
        segments = 1 + (index >= cuts[:, :1]).astype(np.int32) + (index >= cuts[:, 1:])
        segments[1, num_tokens - 7 :] = 0
        segments = jnp.asarray(segments, jnp.int32)
    spec = masks.row_spec(jnp.asarray(positions), segments, reach=reach)
    return dataclasses.replace(spec, has_logsumexp=True)


def visible_keys(spec: masks.AttentionSpec, row: int, query: int) -> list[int]:
    """Return the keys that one query sees, from the words of AttentionSpec."""
    seen = []
    positions = np.asarray(spec.key_positions)[row]
    own_position = int(np.asarray(spec.query_positions)[row, query])
    segments = None if spec.key_segments is None else np.asarray(spec.key_segments)[row]
    for key, position in enumerate(positions):
        distance = query - key if spec.is_row else own_position - int(position)
        if not spec.is_row and position < 0:
            continue
        is_same = segments is None or segments[query] == segments[key]
        if distance >= 0 and (spec.reach is None or distance < spec.reach) and is_same:
            seen.append(key)
    return seen


def oracle(q, k, v, spec: masks.AttentionSpec, bias=None) -> tuple[np.ndarray, np.ndarray]:
    q, k, v = (np.asarray(array, np.float64) for array in (q, k, v))
    batch, num_queries, num_heads, _ = q.shape
    group = num_heads // k.shape[2]
    out = np.zeros(q.shape)
    logsumexp = np.zeros((batch, num_heads, num_queries))
    for row in range(batch):
        for query in range(num_queries):
            seen = visible_keys(spec, row, query)
            for head in range(num_heads):
                scores = k[row, seen, head // group] @ q[row, query, head] * SCALE
                if bias is not None:
                    scores = scores + np.asarray(bias, np.float64)[row, head, query, seen]
                total = np.exp(scores).sum()
                out[row, query, head] = (np.exp(scores) / total) @ v[row, seen, head // group]
                logsumexp[row, head, query] = np.log(total)
    return out, logsumexp


@pytest.mark.parametrize("reach", [None, 1, 5, 100])
@pytest.mark.parametrize("has_segments", [False, True])
def test_reference_equals_the_loops_on_packed_rows(reach: int | None, has_segments: bool) -> None:
    q, k, v = draw(24, 8)
    spec = row_spec(24, reach=reach, has_segments=has_segments)
    out, logsumexp = run(reference.attend, (q, k, v), spec)
    expected, expected_logsumexp = oracle(q, k, v, spec)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(logsumexp, expected_logsumexp, atol=2e-6)


def cache_spec(reach: int | None) -> masks.AttentionSpec:
    """Return queries over rolled slots: two rows of different length, empty slots among them."""
    key_positions = np.array([[8, 9, 2, 3, 4, 5, 6, 7], [0, 1, 2, -1, -1, -1, -1, -1]], np.int32)
    return masks.AttentionSpec(
        query_positions=jnp.asarray([[9], [2]], jnp.int32),
        key_positions=jnp.asarray(key_positions),
        reach=reach,
        has_logsumexp=True,
    )


@pytest.mark.parametrize("reach", [None, 3])
@pytest.mark.parametrize("kernel", [reference.attend, sdpa.attend])
def test_a_cache_is_read_by_positions_and_its_empty_slots_are_not_seen(
    kernel: Callable, reach: int | None
) -> None:
    q, k, v = draw(1, 8, num_keys=8)
    spec = cache_spec(reach)
    out, logsumexp = run(kernel, (q, k, v), spec)
    expected, expected_logsumexp = oracle(q, k, v, spec)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(logsumexp, expected_logsumexp, atol=2e-6)


@pytest.mark.parametrize("kernel", [reference.attend, sdpa.attend])
def test_score_bias_is_added_before_the_softmax(kernel: Callable) -> None:
    q, k, v = draw(12, 8)
    bias = jax.random.normal(jax.random.key(7), (2, 4, 12, 12), jnp.float32)
    spec = dataclasses.replace(row_spec(12, reach=5, has_segments=True), score_bias=bias)
    out, logsumexp = run(kernel, (q, k, v), spec)
    expected, expected_logsumexp = oracle(q, k, v, spec, bias)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(logsumexp, expected_logsumexp, atol=2e-6)


def value_and_gradients(kernel: Callable, inputs: tuple, spec: masks.AttentionSpec) -> tuple:
    """Return outputs, and gradients of a fixed random projection of them."""
    shape = inputs[0].shape
    direction = jax.random.normal(jax.random.key(3), shape, jnp.float32)

    def projected(q, k, v):
        plain = dataclasses.replace(spec, has_logsumexp=False)
        out, _ = kernel(q, k, v, plain, scale=shape[-1] ** -0.5)
        return jnp.sum(out.astype(jnp.float32) * direction), out

    gradients, out = jax.jit(jax.grad(projected, argnums=(0, 1, 2), has_aux=True))(*inputs)
    return out, gradients


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("reach", "has_segments"), [(None, False), (None, True), (1, True), (150, False), (150, True)]
)
def test_kernel_equals_the_reference_in_value_and_gradient(
    name: str, reach: int | None, has_segments: bool
) -> None:
    kernel, num_tokens, head_width = KERNELS[name]
    inputs = draw(num_tokens, head_width)
    spec = row_spec(num_tokens, reach=reach, has_segments=has_segments)
    expected, expected_gradients = value_and_gradients(reference.attend, inputs, spec)
    out, gradients = value_and_gradients(kernel, inputs, spec)
    np.testing.assert_allclose(out, expected, atol=5e-6)
    for found, wanted in zip(gradients, expected_gradients):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("reach", [None, 150])
def test_kernel_gives_the_reference_logsumexp(name: str, reach: int | None) -> None:
    kernel, num_tokens, head_width = KERNELS[name]
    inputs = draw(num_tokens, head_width)
    spec = row_spec(num_tokens, reach=reach, has_segments=True)
    _, expected = run(reference.attend, inputs, spec, head_width**-0.5)
    _, logsumexp = run(kernel, inputs, spec, head_width**-0.5)
    assert logsumexp is not None and logsumexp.dtype == jnp.float32
    np.testing.assert_allclose(logsumexp, expected, atol=5e-6)


@pytest.mark.parametrize("name", ["reference", *KERNELS])
def test_bfloat16_stays_close_to_float32(name: str) -> None:
    kernel, num_tokens, head_width = {"reference": (reference.attend, 300, 8), **KERNELS}[name]
    inputs = draw(num_tokens, head_width)
    spec = row_spec(num_tokens, reach=150, has_segments=True)
    expected, _ = run(reference.attend, inputs, spec, head_width**-0.5)
    narrow = tuple(array.astype(jnp.bfloat16) for array in inputs)
    out, _ = run(kernel, narrow, spec, head_width**-0.5)
    assert out.dtype == jnp.bfloat16
    error = np.abs(np.asarray(out, np.float32) - np.asarray(expected))
    # The first queries of a segment average one or two values of size ~3, where bf16 steps by 1/64.
    assert error.max() < 5e-2
    assert error.mean() < 2e-3


@pytest.mark.parametrize("num_tokens", [1, 128, 129, 257])
def test_banded_takes_any_row_length(num_tokens: int) -> None:
    inputs = draw(num_tokens, 8)
    spec = masks.row_spec(jnp.zeros((2, num_tokens), jnp.int32), None, reach=130)
    expected, _ = run(reference.attend, inputs, spec)
    out, logsumexp = run(banded.attend, inputs, spec)
    assert logsumexp is None
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_banded_blocks_stay_few_for_long_rows() -> None:
    assert banded.block_size(100) == banded.MIN_BLOCK
    for num_tokens in (4096, 32768, 131072, 100_001):
        assert -(-num_tokens // banded.block_size(num_tokens)) <= banded.MAX_BLOCKS


def test_banded_makes_no_array_of_tokens_by_tokens() -> None:
    q, k, v = draw(1024, 8)
    spec = masks.row_spec(jnp.zeros((2, 1024), jnp.int32), None, reach=64)
    attend = functools.partial(banded.attend, scale=SCALE)
    jaxpr = jax.make_jaxpr(attend)(q, k, v, spec)
    largest = max(v.aval.size for equation in jaxpr.eqns for v in equation.outvars)
    block = banded.block_size(1024)
    assert largest <= max(q.size, 2 * 4 * block * (block + 64))


@pytest.mark.parametrize("name", ["reference", *KERNELS])
def test_a_query_that_sees_nothing_new_after_padding_is_finite(name: str) -> None:
    """A row of padding alone must not turn the batch into NaN, forward or backward."""
    kernel, num_tokens, head_width = {"reference": (reference.attend, 300, 8), **KERNELS}[name]
    inputs = draw(num_tokens, head_width)
    positions = jnp.zeros((2, num_tokens), jnp.int32)
    spec = masks.row_spec(positions, jnp.zeros((2, num_tokens), jnp.int32), reach=7)
    out, gradients = value_and_gradients(kernel, inputs, spec)
    assert all(np.isfinite(array).all() for array in (out, *gradients))


def test_kernels_refuse_what_they_cannot_honour() -> None:
    q, k, v = draw(128, 128)
    row = masks.row_spec(jnp.zeros((2, 128), jnp.int32), None, reach=None)
    table = dataclasses.replace(row, block_table=jnp.zeros((2, 1, 1), jnp.int32))
    bias = dataclasses.replace(row, score_bias=jnp.zeros((2, 4, 128, 128), jnp.float32))
    slots = dataclasses.replace(row, is_row=False)
    refused = {
        reference.attend: [table],
        sdpa.attend: [table],
        banded.attend: [table, bias, slots],
        splash_attend: [table, bias, slots],
    }
    for kernel, specs in refused.items():
        for spec in specs:
            with pytest.raises(ValueError, match="block table"):
                kernel(q, k, v, spec, scale=SCALE)


def test_splash_refuses_rows_off_the_lane() -> None:
    spec = masks.row_spec(jnp.zeros((2, 130), jnp.int32), None, reach=None)
    with pytest.raises(ValueError, match="multiples of 128, got 130"):
        splash_attend(*draw(130, 128), spec, scale=SCALE)


def test_splash_takes_latent_attentions_heads_whose_values_are_narrower() -> None:
    q, k, v = draw(128, 192)
    spec = masks.row_spec(jnp.broadcast_to(jnp.arange(128), (2, 128)), None, reach=None)
    found, _ = splash_attend(q, k, v[..., :64], spec, scale=SCALE)
    expected, _ = reference.attend(q, k, v[..., :64], spec, scale=SCALE)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_splash_hands_its_kernel_the_key_value_heads_unrepeated() -> None:
    q, k, v = draw(128, 128)
    spec = masks.row_spec(jnp.zeros((2, 128), jnp.int32), None, reach=None)
    jaxpr = jax.make_jaxpr(functools.partial(splash_attend, scale=SCALE))(q, k, v, spec)
    repeated = [
        v.aval.shape
        for equation in jaxpr.eqns
        for v in equation.outvars
        if equation.primitive.name in ("broadcast_in_dim", "concatenate") and v.aval.size >= q.size
    ]
    assert repeated == []


def test_auto_means_the_kernel_of_the_platform() -> None:
    choose = attention.choose_implementation
    bf16, f32 = np.dtype(jnp.bfloat16), np.dtype(np.float32)
    assert choose("auto", "cpu", f32) == "banded"
    assert choose("auto", "gpu", bf16) == "cudnn"
    assert choose("auto", "gpu", f32) == "banded"
    assert choose("auto", "tpu", bf16) == "splash"
    assert choose("auto", "other", bf16) == "banded"
    assert choose("reference", "tpu", bf16) == "reference"
    with pytest.raises(ValueError, match="'flash'; known: auto, reference, banded"):
        choose("flash", "cpu", f32)
