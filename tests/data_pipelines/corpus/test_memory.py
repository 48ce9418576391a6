"""The corpus engine's memory does not grow with the corpus: 1x against 4x, as benchmarked."""

import pytest

from benchmarks import corpus_memory


@pytest.mark.slow
def test_memory_is_flat_from_one_to_four_times_the_corpus(tmp_path):
    found = corpus_memory.measure_growth(tmp_path, 4000)
    assert found["large"]["peak_bytes"] > 50 << 20  # what imports alone take
    assert found["is_flat"], found
