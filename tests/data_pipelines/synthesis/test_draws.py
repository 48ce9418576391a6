"""Choices by key: fixed for ever, even, and without repetition in samples."""

import collections

from data_pipelines.synthesis.draws import Draws


def test_choices_are_those_of_splitmix64():
    draws = Draws("a", 1)
    draws._state = 1234567  # the published test vector
    assert [draws.bits() for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_a_key_gives_the_same_choices_for_ever():
    assert [Draws("maths", "0.0", 7).below(1000) for _ in range(2)] == [887, 887]
    assert Draws("a", 11).bits() != Draws("a1", 1).bits()


def test_choices_are_even_and_samples_do_not_repeat():
    draws = Draws("even")
    counts = collections.Counter(draws.between(1, 6) for _ in range(6000))
    assert sorted(counts) == [1, 2, 3, 4, 5, 6]
    assert min(counts.values()) > 880
    assert max(counts.values()) < 1120
    assert sorted(draws.shuffled("abcdef")) == list("abcdef")
    assert len(set(draws.sample(range(50), 20))) == 20
    assert sum(draws.chance(0.25) for _ in range(4000)) in range(880, 1120)
    assert {draws.weighted((0.0, 1.0, 0.0)) for _ in range(100)} == {1}
    assert 0 not in {draws.nonzero(-2, 2) for _ in range(200)}
