"""NF4 and int8 against slow, obvious arithmetic."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from mistral_jax.formats import nf4


def weight(shape=(24, 320), scale=0.02, seed=0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def slow_codes(blocks):
    """Return the nearest entry's number for each value of [blocks, 64]."""
    parts = blocks / np.maximum(np.abs(blocks).max(axis=1, keepdims=True), 1e-38)
    return np.abs(parts[..., None] - nf4.NF4).argmin(axis=-1)


def test_codes_are_the_nearest_entries_and_the_first_of_a_pair_is_the_high_nibble():
    # Rows that are not a whole number of the converter's chunks.
    array = weight((700, 192))
    found = nf4.quantise(array)
    codes = np.stack([found.codes >> 4, found.codes & 15], axis=-1).reshape(-1, nf4.BLOCK)
    assert np.mean(codes == slow_codes(array.reshape(-1, nf4.BLOCK))) > 0.99999
    assert found.codes.shape == (700, 96)
    assert found.absmax.shape == (700, 3)


def test_a_value_on_a_border_takes_the_lower_code():
    block = np.zeros((1, 64), np.float32)
    block[0, 0] = 1
    block[0, 1:16] = nf4.NF4_BORDERS
    codes = nf4.quantise(block).codes[0]
    pairs = np.stack([codes >> 4, codes & 15], axis=-1).reshape(-1)
    assert pairs[:16].tolist() == [15, *range(15)]


def test_largest_values_are_stored_in_eight_bits_by_the_dynamic_map():
    array = weight((130, 512))  # 1,040 blocks: four whole groups and a short one
    found = nf4.quantise(array)
    exact = np.abs(array.reshape(-1, nf4.BLOCK)).max(axis=1)
    assert found.scales.shape == (5,)
    assert found.offset == pytest.approx(exact.mean(), rel=1e-6)
    left = np.pad(exact - found.offset, (0, 5 * 256 - 1040)).reshape(5, 256)
    np.testing.assert_allclose(found.scales, np.abs(left).max(axis=1), rtol=1e-6)
    parts = left / found.scales[:, None]
    nearest = nf4.DYNAMIC[np.abs(parts[..., None] - nf4.DYNAMIC).argmin(axis=-1)]
    expected = (nearest * found.scales[:, None]).reshape(-1)[:1040] + found.offset
    np.testing.assert_allclose(found.largest().reshape(-1), expected, atol=1e-7)


def test_the_dynamic_map_has_256_values_over_seven_decades():
    table = nf4.DYNAMIC
    assert table.size == 256
    assert np.all(np.diff(table) > 0)
    # Zero and one are the only values without their negative.
    assert set(table[table < 0]) == {-value for value in table[(table > 0) & (table < 1)]}
    assert (table.max(), np.abs(table[table != 0]).min()) == (1, pytest.approx(5.5e-7))


def test_error_on_normal_weights_and_bits_for_each_are_those_of_the_paper():
    array = weight((512, 1024))
    found = nf4.quantise(array)
    back = nf4.dequantise(found)
    assert np.linalg.norm(back - array) / np.linalg.norm(array) <= 0.093
    stored = found.codes.nbytes + found.absmax.nbytes + found.scales.nbytes + found.offset.nbytes
    assert 8 * stored / array.size <= 4.13


def test_dequantised_numbers_are_codes_times_largest():
    found = nf4.quantise(weight((6, 128)))
    codes = np.stack([found.codes >> 4, found.codes & 15], axis=-1).reshape(6, 2, 64)
    expected = nf4.NF4[codes] * found.largest()[..., None]
    np.testing.assert_array_equal(nf4.dequantise(found), expected.reshape(6, 128))
    halves = nf4.dequantise(found, ml_dtypes.bfloat16)
    np.testing.assert_array_equal(halves, expected.reshape(6, 128).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("value", [0.0, 1e-3], ids=["zeros", "equal"])
def test_blocks_without_spread_come_back(value):
    array = np.full((4, 128), value, np.float32)
    np.testing.assert_allclose(nf4.dequantise(nf4.quantise(array)), array, atol=1e-9)
    np.testing.assert_allclose(nf4.dequantise_int8(nf4.quantise_int8(array)), array, rtol=1e-6)


def test_a_width_that_is_no_multiple_of_64_is_refused_by_name():
    with pytest.raises(ValueError, match=r"layers/mlp/down_proj has 100 inputs.*multiple of 64"):
        nf4.quantise(np.zeros((8, 100), np.float32), name="layers/mlp/down_proj")


def test_int8_is_within_half_a_step_of_each_row():
    array = weight((70, 96))
    found = nf4.quantise_int8(array)
    np.testing.assert_array_equal(found.absmax, np.abs(array).max(axis=1))
    assert np.abs(found.codes).max() == 127
    apart = np.abs(nf4.dequantise_int8(found) - array)
    assert np.all(apart <= found.absmax[:, None] / 127 * 0.5001)


def test_conversion_needs_little_memory_beside_its_result():
    array = weight((2048, 4096)).astype(ml_dtypes.bfloat16)
    tracemalloc.start()
    try:
        nf4.quantise(array)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A quarter is the result; the largest values in float32 and a thread's chunks are the rest.
    assert peak < 0.6 * array.nbytes
