"""Prompts to completions: one prefill, then one jitted loop that decodes until all rows stop.

Prompts are padded on the right to a few fixed lengths, so that few programs are compiled. With a
window the cache rolls and holds `window` tokens only.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Key

from mistral_jax import distributed
from mistral_jax import protocols
from mistral_jax import rng
from mistral_jax import tokenizers
from mistral_jax.config import model as model_config
from mistral_jax.generate import sampler
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import cache as kv_cache
from mistral_jax.nn import mla

LENGTH_STEP = 64


def empty_cache(
    definition: definition_lib.Definition, batch_size: int, max_length: int
) -> decoder_lib.Cache:
    """Return a cache for sequences up to `max_length` tokens; fewer slots under a window."""
    config = definition.config
    # All layers share slot positions: one layer without a window needs them all.
    longest = max(reach or max_length for reach in config.attention.reaches)
    num_slots = min(max_length, longest)
    if config.attention.kind == "latent":
        keys, values = (1, mla.cache_width(config.attention)), (1, 0)
    else:
        keys = values = (config.num_kv_heads, config.head_width)
    dtype = definition.runtime.compute_dtype

    def empty(depth: int) -> kv_cache.LayerCache:
        keys_shape, values_shape = (
            (depth, batch_size, num_slots, *shape) for shape in (keys, values)
        )
        return kv_cache.LayerCache(jnp.zeros(keys_shape, dtype), jnp.zeros(values_shape, dtype))

    return decoder_lib.Cache(
        stacks=tuple(empty(depth) for depth in config.stack_depths),
        positions=jnp.full((batch_size, num_slots), -1, jnp.int32),
    )


@dataclasses.dataclass(frozen=True)
class Generated:
    """Token ids and log-probabilities, one list a prompt; the stop token is not included."""

    tokens: list[list[int]]
    log_probs: list[list[float]]
    stop_reasons: list[str]


def generate_tokens(
    definition: definition_lib.Definition,
    params: definition_lib.Params,
    prompts: list[list[int]],
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...] = (),
    sampling: sampler.Sampling | None = None,
    seeds: list[int] | None = None,
) -> Generated:
    """Complete tokenized prompts.

    Args:
        definition: the model.
        params: all of its parameters.
        prompts: token ids, at least one each.
        max_tokens: most tokens to add.
        stop_ids: a row ends at any of these.
        sampling: greedy if None.
        seeds: one for each prompt; 0, 1, 2, ... if None. A prompt with the same seed gives the
            same completion in any batch.

    Raises:
        ValueError: a prompt is empty or has an unknown token, prompt and completion exceed the
            model's positions, or there is not one seed for each prompt.
    """
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one for each")
    _check_prompts(definition.config, prompts, max_tokens)
    longest = max(len(prompt) for prompt in prompts)
    limit = definition.config.max_positions
    padded = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, limit)
    tokens = np.zeros((len(prompts), padded), np.int32)
    positions = np.full((len(prompts), padded), -1, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        positions[row, : len(prompt)] = np.arange(len(prompt))
    keys = jnp.stack([rng.seed_key(seed) for seed in seeds or range(len(prompts))])
    out, log_probs, lengths = _generate(
        definition, max_tokens, tuple(stop_ids), sampling or sampler.Sampling(),
        params, tokens, positions, keys,
    )  # fmt: skip
    out, log_probs, lengths = (distributed.whole(array) for array in (out, log_probs, lengths))
    return Generated(
        tokens=[out[row, :n].tolist() for row, n in enumerate(lengths)],
        log_probs=[log_probs[row, :n].tolist() for row, n in enumerate(lengths)],
        stop_reasons=["length" if n == max_tokens else "stop" for n in lengths],
    )


def _check_prompts(
    config: model_config.DecoderConfig, prompts: list[list[int]], max_tokens: int
) -> None:
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs at least one token")
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be >= 1, got {max_tokens}")
    longest = max(len(prompt) for prompt in prompts)
    if longest + max_tokens > config.max_positions:
        raise ValueError(
            f"prompt of {longest} tokens plus {max_tokens} new ones exceeds the model's "
            f"{config.max_positions} positions; shorten one of them"
        )
    for row, prompt in enumerate(prompts):
        # Their embedding is NaN, and the argmax of NaN is a token like any other.
        unknown = [token for token in prompt if not 0 <= token < config.vocab_size]
        if unknown:
            raise ValueError(
                f"prompt {row} has token {unknown[0]}, but the model's vocabulary has "
                f"{config.vocab_size} tokens; use the model's own tokenizer"
            )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
    definition: definition_lib.Definition,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    sampling: sampler.Sampling,
    params: definition_lib.Params,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    row_keys: Key[Array, " B"],
) -> tuple[Int[Array, "B n"], Float[Array, "B n"], Int[Array, " B"]]:
    model = definition.bind(params)
    batch = tokens.shape[0]
    cache = empty_cache(definition, batch, tokens.shape[1] + max_tokens)
    prompt_lengths = jnp.max(positions, axis=1) + 1
    hidden, cache, _ = model.hidden(tokens, positions, cache=cache)
    last = jnp.take_along_axis(hidden, (prompt_lengths - 1)[:, None, None], axis=1)
    logits = model.logits(last)[:, 0]

    def is_going(carry: dict) -> Array:
        return (carry["count"] < max_tokens) & ~jnp.all(carry["is_done"])

    def decode(carry: dict) -> dict:
        count = carry["count"]
        token, log_prob = sampler.choose(carry["logits"], row_keys, count, sampling)
        is_stop = jnp.isin(token, jnp.asarray(stop_ids, jnp.int32)) if stop_ids else token < 0
        is_done = carry["is_done"] | is_stop
        hidden, cache, _ = model.hidden(
            token[:, None], (prompt_lengths + count)[:, None], cache=carry["cache"]
        )
        return {
            "count": count + 1,
            "is_done": is_done,
            "lengths": carry["lengths"] + ~is_done,
            "tokens": carry["tokens"].at[:, count].set(token),
            "log_probs": carry["log_probs"].at[:, count].set(log_prob),
            "logits": model.logits(hidden)[:, 0],
            "cache": cache,
        }

    carry = {
        "count": jnp.int32(0),
        "is_done": jnp.zeros((batch,), bool),
        "lengths": jnp.zeros((batch,), jnp.int32),
        "tokens": jnp.zeros((batch, max_tokens), jnp.int32),
        "log_probs": jnp.zeros((batch, max_tokens), jnp.float32),
        "logits": logits,
        "cache": cache,
    }
    carry = jax.lax.while_loop(is_going, decode, carry)
    return carry["tokens"], carry["log_probs"], carry["lengths"]


@dataclasses.dataclass(frozen=True)
class TextGenerator:
    """A protocols.Generator: text in, text out.

    Attributes:
        definition: the model.
        params: all of its parameters.
        tokenizer: the model's own.
        sampling: how tokens are chosen.
    """

    definition: definition_lib.Definition
    params: definition_lib.Params
    tokenizer: tokenizers.Tokenizer
    sampling: sampler.Sampling = dataclasses.field(default_factory=sampler.Sampling)

    def generate(
        self, prompts: list[str], *, max_tokens: int, seed: int
    ) -> list[protocols.Completion]:
        """Return one completion for each prompt; prompt i draws by seed + i."""
        encoded = [self.tokenizer.encode(prompt, bos=True) for prompt in prompts]
        return self.complete(encoded, max_tokens=max_tokens, seed=seed)

    def complete(
        self, prompts: list[list[int]], *, max_tokens: int, seed: int
    ) -> list[protocols.Completion]:
        """Return one completion for each tokenized prompt."""
        generated = generate_tokens(
            self.definition,
            self.params,
            prompts,
            max_tokens=max_tokens,
            stop_ids=stop_ids(self.tokenizer),
            sampling=self.sampling,
            seeds=[seed + index for index in range(len(prompts))],
        )
        rows = zip(generated.tokens, generated.log_probs, generated.stop_reasons, strict=True)
        return [
            protocols.Completion(self.tokenizer.decode(tokens), tokens, log_probs, reason)
            for tokens, log_probs, reason in rows
        ]


def stop_ids(tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Return the tokens that end a completion."""
    return () if tokenizer.eos_id is None else (tokenizer.eos_id,)
