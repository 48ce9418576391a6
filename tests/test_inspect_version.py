"""Releases told apart, and configs that belong to other weights."""

import pytest

from mistral_jax.config import presets
from mistral_jax.config.model import DefaultRope
from mistral_jax.config.model import WindowAttention
from mistral_jax.inspect import version

V0_1, V0_2, V0_3 = (presets.PRESETS[f"mistral_7b_v0_{minor}"] for minor in (1, 2, 3))


def identify(decoder, tokenizer_format=None, tokenizer_size=None):
    return version.identify(
        decoder, tokenizer_format=tokenizer_format, tokenizer_size=tokenizer_size
    )


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_release_is_recognised_without_contradiction(name: str) -> None:
    release = presets.RELEASES[name]
    found = identify(
        presets.PRESETS[name],
        tokenizer_format=release.tokenizers[0] if release.tokenizers else None,
        tokenizer_size=presets.PRESETS[name].vocab_size,
    )
    assert release.title in found.title
    assert found.contradictions == ()


def test_a_config_of_v0_1_on_weights_of_v0_3_is_called_out() -> None:
    mixed = V0_3.model_copy(update={"attention": V0_1.attention, "rope": V0_1.rope})
    found = identify(mixed)
    assert "Mistral 7B v0.3" in found.title
    text = " ".join(found.contradictions)
    assert "attention is window (window 4096) and not full" in text
    assert "rope is default (theta 10000) and not default (theta 1e+06)" in text
    assert "such a config belongs to Mistral 7B v0.1" in text


def test_the_gain_that_a_conversion_gave_to_small_4_is_called_out() -> None:
    preset = presets.PRESETS["mistral_small_4"]
    gain = {"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": None}
    found = identify(preset.model_copy(update={"rope": preset.rope.model_copy(update=gain)}))
    assert found.title == "Mistral Small 4 119B"
    assert "rope is yarn" in found.contradictions[0]
    assert "mscale_all_dim 1" in found.contradictions[0]
    assert "and not yarn" in found.contradictions[0]
    assert "attention_factor 1" in found.contradictions[0]


def test_a_window_on_v0_2_is_called_out() -> None:
    found = identify(V0_2.model_copy(update={"attention": WindowAttention(window=4096)}))
    assert "Mistral 7B v0.2" in found.title
    assert "attention is window (window 4096) and not full" in found.contradictions[0]
    assert "such a config belongs to Mistral 7B v0.1" in found.contradictions[1]


def test_a_tokenizer_of_another_release_is_called_out() -> None:
    found = identify(V0_1, tokenizer_format="v3", tokenizer_size=32768)
    assert "knows 32,768 tokens, the embedding 32,000" in found.contradictions[0]
    assert "chat format is v3, this model's files carry v1" in found.contradictions[1]


def test_other_shapes_are_not_forced_on_a_release() -> None:
    found = identify(V0_3.model_copy(update={"num_layers": 31, "rope": DefaultRope(theta=2.0)}))
    assert found.title == "no published model has these shapes"
