"""The rolling key/value cache against a dictionary from position to key."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from mistral_jax.nn import cache


def empty(batch: int, num_slots: int) -> tuple[cache.LayerCache, jnp.ndarray]:
    zeros = jnp.zeros((batch, num_slots, 1, 2), jnp.float32)
    positions = jnp.full((batch, num_slots), -1, jnp.int32)
    return cache.LayerCache(keys=zeros, values=zeros), positions


def written(positions: np.ndarray, layer: cache.LayerCache, slots: jnp.ndarray) -> tuple:
    """Write tokens whose key is their position plus one half, and whose value is minus that."""
    marks = np.broadcast_to(positions[:, :, None, None] + 0.5, (*positions.shape, 1, 2))
    keys = jnp.asarray(marks, jnp.float32)
    where = jnp.asarray(positions, jnp.int32)
    return layer.write(keys, -keys, where), cache.write_positions(slots, where)


@settings(max_examples=25, deadline=None)
@given(
    strategies.sampled_from([1, 3, 4, 9]),
    strategies.lists(strategies.integers(1, 12), min_size=2, max_size=2),
    strategies.integers(0, 12),
)
def test_the_cache_holds_the_last_tokens_of_each_row(
    num_slots: int, prompts: list[int], num_decoded: int
) -> None:
    positions = np.full((2, 12), -1)
    for row, length in enumerate(prompts):
        positions[row, :length] = np.arange(length)
    layer, slots = written(positions, *empty(2, num_slots))
    for count in range(num_decoded):
        layer, slots = written(np.asarray(prompts)[:, None] + count, layer, slots)
    for row, length in enumerate(prompts):
        end = length + num_decoded
        expected = set(range(max(0, end - num_slots), end))
        held = np.asarray(slots[row])
        assert set(held[held >= 0].tolist()) == expected
        assert (held >= 0).sum() == len(expected)
        for slot, position in enumerate(held):
            if position >= 0:
                assert float(layer.keys[row, slot, 0, 0]) == position + 0.5
                assert float(layer.values[row, slot, 0, 1]) == -(position + 0.5)


def test_padding_is_not_written() -> None:
    layer, slots = written(np.array([[-1, -1, 0]]), *empty(1, 4))
    np.testing.assert_array_equal(slots, [[0, -1, -1, -1]])
    np.testing.assert_array_equal(layer.keys[0, :, 0, 0], [0.5, 0, 0, 0])


def test_keys_are_stored_in_the_dtype_of_the_cache() -> None:
    layer, _ = empty(1, 4)
    narrow = cache.LayerCache(
        keys=layer.keys.astype(jnp.bfloat16), values=layer.values.astype(jnp.bfloat16)
    )
    ones = jnp.ones((1, 1, 1, 2), jnp.float32)
    assert narrow.write(ones, ones, jnp.zeros((1, 1), jnp.int32)).keys.dtype == jnp.bfloat16
