"""Hashes of words against an obvious version."""

import numpy as np
import pytest

from data_pipelines.processors import ngrams


def slow_hash(word: bytes) -> int:
    total, power = 0, 1
    for byte in word:
        total += ngrams._mixed(byte) * power
        power = power * ngrams._BASE % 2**64
    return total % 2**64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat, the CAT; the_cat!", ["the", "cat", "the", "cat", "the_cat"]),
        ("naïve “Ärger” — 3.5 %", ["naïve", "ärger", "3", "5"]),
        ("水的abc かな", ["水", "的abc", "か", "な"]),
        ("สวัส", ["ส", "ว", "ั", "ส"]),
        (" \n\t", []),
        ("", []),
    ],
)
def test_word_hashes_are_those_of_the_words(text, words):
    found = ngrams.word_hashes(ngrams.normalised(text))
    assert found.tolist() == [slow_hash(word.encode()) for word in words]


def test_long_texts_are_cut_between_words():
    text = " ".join(f"word{at}" for at in range(200_000))
    found = ngrams.word_hashes(ngrams.normalised(text))
    assert len(found) == 200_000
    assert found[[0, 99_999, -1]].tolist() == [
        slow_hash(f"word{at}".encode()) for at in (0, 99_999, 199_999)
    ]


def test_runs_are_equal_where_their_words_are():
    words = ngrams.word_hashes(b"a b c a b c d")
    runs = ngrams.run_hashes(words, 3)
    assert runs[0] == runs[3] and len(np.unique(runs)) == 4
    assert ngrams.repeats(runs) == (2, 1)
    assert not len(ngrams.run_hashes(words, 8))
    assert ngrams.repeats(runs[:0]) == (0, 0)
