"""Signatures against exact Jaccard, and what they may not depend on."""

import numpy as np
import pytest

from data_pipelines.near_duplicates import shingles
from data_pipelines.near_duplicates import signatures
from mistral_jax.config.near_duplicates import NearDuplicates

CONFIG = NearDuplicates()
WORDS = np.array([f"word{index}" for index in range(5000)])


def exact_jaccard(first: str, second: str, num: int = 5) -> float:
    """Return the Jaccard similarity of the sets of word n-grams, the obvious way."""
    one, other = (
        {tuple(words[at : at + num]) for at in range(max(1, len(words) - num + 1))}
        for words in (text.lower().split() for text in (first, second))
    )
    return len(one & other) / len(one | other)


def test_share_of_equal_values_is_exact_jaccard_within_its_deviation():
    rng = np.random.default_rng(0)
    pairs = []
    for share in np.repeat((0.0, 0.01, 0.03, 0.1, 0.3, 1.0), 60):
        words = rng.choice(WORDS, 200)
        other = np.where(rng.random(200) < share, rng.choice(WORDS, 200), words)
        pairs.append((" ".join(words), " \n".join(other).upper()))
    signer = signatures.Signer(CONFIG)
    first, second = (signer.sign([pair[side] for pair in pairs]) for side in (0, 1))
    exact = np.array([exact_jaccard(*pair) for pair in pairs])
    error = signatures.estimate(first, second) - exact
    deviation = np.sqrt(exact * (1 - exact) / CONFIG.permutations)
    assert (np.abs(error) <= 4.5 * deviation + 1e-9).all()
    assert abs(error.mean()) < 0.01
    keys = [signatures.band_keys(side, CONFIG) for side in (first, second)]
    shared = (keys[0] == keys[1]).any(axis=1)
    assert shared[exact >= 0.8].mean() >= 0.98
    assert not shared[exact < 0.05].any()


def test_signature_depends_on_nothing_but_the_text():
    long = "x" * (shingles.PIECE_BYTES + 9) + " and " + "some words more " * 12_000
    texts = [
        "a b c d e f",
        "",
        "one",
        " \n",
        long,
        "日本語の文章です",
        "Ünï cödé\u3000wörds",
        "a b",
    ]
    signer = signatures.Signer(CONFIG)
    together = signer.sign(texts)
    alone = np.concatenate([signer.sign([text]) for text in texts])
    streamed = np.concatenate(list(signer.sign_all(iter(texts))))
    assert np.array_equal(together, alone)
    assert np.array_equal(together, streamed)
    assert signatures.has_words(together).tolist() == [bool(text.strip()) for text in texts]
    assert len(np.unique(signer.sign(["a b", "b a", "a", "b", "ab", "a  B"]), axis=0)) == 5


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("One two\tthree\r\nfour five six", "one TWO three four five six ", True),
        ("what is 3 + 4", "what is 3 - 4", False),
        ("ÄRGER über\u00a0Maße", "ärger\u2003über maße", True),
        ("\ud800 lone", "lone \ud800", False),
    ],
)
def test_normalisation_is_lower_case_and_words_between_white_space(first, second, is_same):
    signed = signatures.Signer(CONFIG).sign([first, second])
    assert np.array_equal(signed[0], signed[1]) == is_same


def test_texts_without_spaces_are_compared_character_by_character():
    rng = np.random.default_rng(1)
    text = "".join(chr(0x4E00 + code) for code in rng.integers(0, 3000, 600))
    near = text[:300] + "一" + text[301:]
    signed = signatures.Signer(CONFIG).sign([text, near, text[::-1]])
    assert signatures.estimate(signed[:1], signed[1:2])[0] > 0.9
    assert signatures.estimate(signed[:1], signed[2:])[0] < 0.1


def test_config_refuses_bands_that_find_too_few_or_too_many():
    assert CONFIG.found_share(0.8) > 0.99
    with pytest.raises(ValueError, match=r"find 0\.9\d+ of the pairs at threshold 0.8"):
        NearDuplicates(bands=14, rows=8)
    with pytest.raises(ValueError, match=r"of the pairs of similarity 0\.5"):
        NearDuplicates(min_estimate=0.55)
