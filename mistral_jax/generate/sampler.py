"""Choosing the next token: greedy, temperature, top-k, top-p; each row by its own key.

A row's draws depend on its seed and its token count alone, not on who shares the batch.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Key

from mistral_jax import rng

REMOVED_SCORE = -jnp.inf


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 is greedy; 1 samples the model's own distribution.
        top_k: keep only the k likeliest tokens; None keeps all.
        top_p: keep the smallest set of likeliest tokens whose probability reaches this.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a number >= 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be >= 1, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


def choose(
    logits: Float[Array, "B V"],
    row_keys: Key[Array, " B"],
    count: Int[Array, ""],
    sampling: Sampling,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Return the next token of each row and its log-probability under the model.

    Args:
        logits: float32.
        row_keys: one key a row, [B].
        count: how many tokens were drawn before; makes each draw's key.
        sampling: static.
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    if sampling.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        scores = filtered(logits / sampling.temperature, sampling)
        keys = jax.vmap(lambda key: rng.counter_key(key, count))(row_keys)
        tokens = jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
    chosen = jnp.take_along_axis(log_probs, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen


def filtered(scores: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Return the scores with everything outside top-k and top-p at minus infinity."""
    if sampling.top_k is not None and sampling.top_k < scores.shape[-1]:
        smallest = jax.lax.top_k(scores, sampling.top_k)[0][:, -1:]
        scores = jnp.where(scores < smallest, REMOVED_SCORE, scores)
    if sampling.top_p < 1:
        ordered = jnp.sort(scores, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The token that crosses top_p stays; the likeliest always does.
        num_kept = jnp.sum(before < sampling.top_p, axis=-1, keepdims=True)
        smallest = jnp.take_along_axis(ordered, num_kept - 1, axis=-1)
        scores = jnp.where(scores < smallest, REMOVED_SCORE, scores)
    return scores
