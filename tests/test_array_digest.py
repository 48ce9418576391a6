"""Digests of arrays in parts against zlib over the whole."""

import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from mistral_jax import array_digest


def oracle(array: np.ndarray) -> str:
    content = np.ascontiguousarray(array).tobytes()
    return f"{zlib.crc32(content):08x}-{len(content)}"


def test_a_digest_is_zlibs_crc32_of_the_bytes_and_their_number() -> None:
    generator = np.random.default_rng(0)
    tree = {
        "matrix": jnp.asarray(generator.normal(size=(3, 5)), jnp.float32),
        "half": jnp.asarray(generator.normal(size=7), jnp.bfloat16),
        "nested": (np.uint8(7), np.zeros((0, 4), np.float32)),
        "scalar": jnp.int32(-5),
    }
    found = array_digest.digests_of(tree)
    assert found == {
        "half": oracle(np.asarray(tree["half"])),
        "matrix": oracle(np.asarray(tree["matrix"])),
        "nested/0": oracle(np.asarray(tree["nested"][0])),
        "nested/1": oracle(tree["nested"][1]),
        "scalar": oracle(np.asarray(tree["scalar"])),
    }


@st.composite
def parted(draw: st.DrawFn) -> tuple[np.ndarray, list[tuple[slice, ...]]]:
    """Return an array and the indices of parts that make it up, cut on every axis."""
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    dtype = draw(st.sampled_from([np.uint8, np.float16, np.float32, np.int64]))
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 250, shape).astype(dtype)
    indices: list[tuple[slice, ...]] = [()]
    for size in shape:
        cuts = [0, *sorted(draw(st.sets(st.integers(1, size), max_size=3))), size]
        slices = [slice(a, b) for a, b in itertools.pairwise(cuts) if a < b]
        indices = [(*index, part) for index in indices for part in slices]
    return array, indices


@settings(max_examples=200, deadline=None)
@given(parted())
def test_the_terms_of_any_parts_add_up_to_that_of_the_whole(
    case: tuple[np.ndarray, list[tuple[slice, ...]]],
) -> None:
    array, indices = case
    total = 0
    for index in indices:
        total ^= array_digest._of_part(np.asarray(array[index]), index, array.shape)
    assert total == array_digest._of_part(array, (slice(None),) * array.ndim, array.shape)


def test_every_bit_counts() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    digests = {array_digest.digests_of([array])["0"]}
    for bit in range(8 * array.nbytes):
        changed = array.copy()
        changed.reshape(-1).view(np.uint8)[bit // 8] ^= 1 << bit % 8
        digests.add(array_digest.digests_of([jax.device_put(changed)])["0"])
    assert len(digests) == 1 + 8 * array.nbytes
