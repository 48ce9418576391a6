"""What a model is opened with: the attention of prompts, and a tokenizer that is really meant."""

from pathlib import Path

import pytest

from mistral_jax import artifact
from mistral_jax.config import load
from mistral_jax.models import decoder

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    ("training", "prompts"),
    [("splash", "sdpa"), ("cudnn", "cudnn"), ("banded", "banded"), ("reference", "reference")],
)
def test_prompts_take_an_attention_for_any_length(training: str, prompts: str) -> None:
    runtime = decoder.Runtime(attention=training, remat="full")
    found = artifact.for_prompts(runtime)
    assert (found.attention, found.remat) == (prompts, "full")


def test_auto_without_weights_is_refused_with_what_to_write() -> None:
    run = load.load_run(CONFIGS / "tiny" / "dense.yaml", ["data.tokenizer=auto"])
    with pytest.raises(ValueError, match=r"write data\.tokenizer=bytes, .* or set model\.weights"):
        artifact.find_tokenizer(run)
    assert artifact.find_tokenizer(load.load_run(CONFIGS / "tiny" / "dense.yaml")).name == "bytes"


def test_the_tokenizer_of_pretraining_fills_the_models_vocabulary() -> None:
    run = load.load_run(CONFIGS / "mistral_7b" / "pretrain.yaml")
    tokenizer = artifact.find_tokenizer(run)
    assert tokenizer.vocab_size == artifact.resolve_decoder(run.model).vocab_size
