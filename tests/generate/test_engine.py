"""Decoding from the cache against the full forward pass, token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import protocols
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax import tokenizers
from mistral_jax.config import model as model_config
from mistral_jax.generate import engine
from mistral_jax.generate import sampler
from mistral_jax.models import definition as definition_lib
from tests import tiny

PROMPTS = [[5, 9, 2], [7], list(range(10, 28))]
MAX_TOKENS = 12
WIDTH = 32  # of the full forward pass; longer than any prompt with its completion
FULL = tiny.decoder(300, max_positions=96, init_std=0.3)
# Window 5: every row rolls past it, the longest already in its prompt.
CONFIGS = {
    "full": FULL,
    "window": FULL.model_copy(update={"attention": model_config.WindowAttention(window=5)}),
    "interleaved": FULL.model_copy(
        update={
            "attention": model_config.InterleavedAttention(window=5, period=("window", "full")),
            "query_scaling": model_config.LogQueryScaling(beta=0.3, period=4),
            "ffn": model_config.MoeFfn(width=24, num_experts=4, top_k=2),
        }
    ),
    "latent": FULL.model_copy(
        update={
            "num_kv_heads": 4,
            "head_width": 12,
            "attention": model_config.LatentAttention(
                query_rank=8, latent_rank=12, content_width=8, rotary_width=4, value_width=6
            ),
            "query_scaling": model_config.LogQueryScaling(beta=0.3, period=4),
            "ffn": model_config.MoeFfn(
                width=24, num_experts=4, num_groups=2, groups_per_token=1, top_k=2,
                router=model_config.SigmoidRouter(), num_shared_experts=1, num_dense_layers=1,
                dense_width=16,
            ),
        }
    ),
}  # fmt: skip
ADAPTERS = {
    "latent": model_config.LoraAdapter(rank=2, alpha=8.0, target_modules=("kv_b_proj", "q_a_proj"))
}


@functools.cache
def model(name: str) -> tuple[definition_lib.Definition, definition_lib.Params]:
    definition = definition_lib.define(CONFIGS[name], adapter=ADAPTERS.get(name))
    mesh = sharding.single_device_mesh()
    params = definition_lib.initialise(definition, rng.seed_key(0), mesh)
    for path in params:
        if path.endswith("lora_b"):  # as if it had trained
            params[path] = params[path] + 0.1
    return definition, params


@functools.partial(jax.jit, static_argnums=0)
def full_log_probs(definition, params, tokens):
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    bound = definition.bind(params)
    hidden, *_ = bound.hidden(tokens, positions)
    return jax.nn.log_softmax(bound.logits(hidden))


def generate(name: str, prompts: list[list[int]], **changes: object) -> engine.Generated:
    options = {"max_tokens": MAX_TOKENS, **changes}
    return engine.generate_tokens(*model(name), prompts, **options)  # pyright: ignore


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_equals_the_full_forward_pass(name: str) -> None:
    generated = generate(name, PROMPTS)
    for prompt, tokens, log_probs in zip(PROMPTS, generated.tokens, generated.log_probs):
        assert len(tokens) == len(log_probs) == MAX_TOKENS
        row = np.zeros((1, WIDTH), np.int32)
        row[0, : len(prompt) + MAX_TOKENS] = prompt + tokens
        expected = np.asarray(full_log_probs(*model(name), jnp.asarray(row)))[0]
        before = expected[len(prompt) - 1 : len(prompt) - 1 + MAX_TOKENS]
        np.testing.assert_array_equal(before.argmax(-1), tokens)
        np.testing.assert_allclose(before.max(-1), log_probs, atol=1e-5)


def test_the_window_matters_to_what_is_generated() -> None:
    assert generate("full", PROMPTS).tokens != generate("window", PROMPTS).tokens


def test_a_windows_cache_holds_the_window_only() -> None:
    cache = engine.empty_cache(model("window")[0], 3, 90)
    assert cache.stacks[0].keys.shape == (2, 3, 5, 2, 8)
    assert engine.empty_cache(model("full")[0], 3, 90).positions.shape == (3, 90)


def test_batch_mates_and_their_seeds_do_not_matter() -> None:
    sampling = sampler.Sampling(temperature=1.0, top_k=50, top_p=0.95)
    together = generate("full", PROMPTS, sampling=sampling, seeds=[3, 4, 5])
    mixed = [PROMPTS[2], [1, 2, 3, 4], PROMPTS[0]]
    other = generate("full", mixed, sampling=sampling, seeds=[5, 9, 3])
    assert other.tokens[2] == together.tokens[0]
    assert other.tokens[0] == together.tokens[2]
    np.testing.assert_allclose(other.log_probs[2], together.log_probs[0], atol=1e-5)
    reseeded = generate("full", PROMPTS, sampling=sampling, seeds=[3, 44, 5])
    assert reseeded.tokens[0] == together.tokens[0]
    assert reseeded.tokens[1] != together.tokens[1]
    default = generate("full", PROMPTS, sampling=sampling)
    assert default.tokens == generate("full", PROMPTS, sampling=sampling, seeds=[0, 1, 2]).tokens


def test_a_row_ends_at_a_stop_token_and_the_others_go_on() -> None:
    plain = generate("full", PROMPTS)
    stop = plain.tokens[0][3]
    stopped = generate("full", PROMPTS, stop_ids=(299, stop))
    for row in range(3):
        ends = [i for i, token in enumerate(plain.tokens[row]) if token in (299, stop)]
        end = ends[0] if ends else MAX_TOKENS
        assert stopped.tokens[row] == plain.tokens[row][:end]
        assert len(stopped.log_probs[row]) == end
        assert stopped.stop_reasons[row] == ("stop" if ends else "length")
    assert stopped.stop_reasons[0] == "stop"
    assert "length" in stopped.stop_reasons


def test_all_positions_can_be_used_and_one_more_is_refused() -> None:
    prompt = [3] * (96 - MAX_TOKENS)
    assert len(generate("full", [prompt]).tokens[0]) == MAX_TOKENS
    with pytest.raises(ValueError, match="85 tokens plus 12 new ones exceeds the model's 96"):
        generate("full", [[3] * (97 - MAX_TOKENS)])


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        ([], {}, "every prompt needs at least one token"),
        ([[1], []], {}, "every prompt needs at least one token"),
        ([[1, 300]], {}, "prompt 0 has token 300"),
        ([[1], [2, -1]], {}, "prompt 1 has token -1"),
        ([[1]], {"max_tokens": 0}, "max_tokens must be >= 1, got 0"),
        ([[1], [2]], {"seeds": [1]}, "1 seeds for 2 prompts"),
    ],
)
def test_bad_input_is_refused(prompts: list, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate("full", prompts, **changes)


def test_text_goes_in_and_comes_out() -> None:
    tokenizer = tokenizers.load_tokenizer("bytes")
    generator = engine.TextGenerator(*model("full"), tokenizer)
    assert isinstance(generator, protocols.Generator)
    texts = ["ab", "a longer prompt"]
    completions = generator.generate(texts, max_tokens=MAX_TOKENS, seed=0)
    ids = [tokenizer.encode(text, bos=True) for text in texts]
    expected = generate("full", ids, stop_ids=engine.stop_ids(tokenizer))
    assert [completion.tokens for completion in completions] == expected.tokens
    assert completions[0].text == tokenizer.decode(expected.tokens[0])
    assert completions[0].stop_reason == expected.stop_reasons[0]
