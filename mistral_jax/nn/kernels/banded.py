"""Attention by blocks of queries, each with only the keys that it can reach.

For CPU, and the fallback elsewhere: skips what lies after the query block or before its window,
in plain XLA. Memory is O(T * (reach + block)) instead of O(T * T). Heads are brought in front
once, and the queries of a key head become rows of one matmul: 0.7 of the time of einsums over
[B, T, H, Q] at T=512 on two CPU cores (2026-11).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float

from mistral_jax.nn import masks
from mistral_jax.nn.kernels import reference

MIN_BLOCK = 64
# The block loop is unrolled: more blocks would lengthen compilation without saving much work.
MAX_BLOCKS = 32


def block_size(num_tokens: int) -> int:
    """Return the query block length for a row of `num_tokens`."""
    return max(MIN_BLOCK, -(-num_tokens // MAX_BLOCKS))


def attend(
    q: Float[Array, "B T H Q"],
    k: Float[Array, "B S K Q"],
    v: Float[Array, "B S K W"],
    spec: masks.AttentionSpec,
    *,
    scale: float,
) -> tuple[Float[Array, "B T H W"], Float[Array, "B H T"] | None]:
    """Return attention outputs, and the logsumexp if the spec asks for it.

    Raises:
        ValueError: the spec is not of a row (a cache), or has a bias or a block table.
    """
    if not spec.is_row or spec.score_bias is not None or spec.block_table is not None:
        raise ValueError("banded attention takes whole rows without a bias or a block table")
    batch, num_tokens, num_heads, head_width = q.shape
    num_kv_heads = k.shape[2]
    grouped = q.reshape(batch, num_tokens, num_kv_heads, num_heads // num_kv_heads, head_width)
    queries = grouped.transpose(0, 2, 3, 1, 4)  # [B, K, G, T, Q]
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, K, S, Q]
    block = block_size(num_tokens)
    outputs, sums = [], []
    for start in range(0, num_tokens, block):
        stop = min(start + block, num_tokens)
        first_key = 0 if spec.reach is None else max(0, start - spec.reach + 1)
        out, logsumexp = _attend_block(
            queries[:, :, :, start:stop],
            keys[:, :, first_key:stop],
            values[:, :, first_key:stop],
            _visible(spec, start, stop, first_key),
            scale=scale,
            has_logsumexp=spec.has_logsumexp,
        )
        outputs.append(out)
        sums.append(logsumexp)
    out = jnp.concatenate(outputs, axis=3).transpose(0, 3, 1, 2, 4)
    out = out.reshape(batch, num_tokens, num_heads, v.shape[-1])
    if not spec.has_logsumexp:
        return out, None
    return out, jnp.concatenate(sums, axis=3).reshape(batch, num_heads, num_tokens)


def _visible(
    spec: masks.AttentionSpec, start: int, stop: int, first_key: int
) -> Bool[Array, "#B t s"]:
    """Return which keys of [first_key, stop) the queries of [start, stop) see."""
    distance = jnp.arange(start, stop)[:, None] - jnp.arange(first_key, stop)[None, :]
    visible = distance >= 0
    if spec.reach is not None:
        visible &= distance < spec.reach
    if spec.query_segments is None or spec.key_segments is None:
        return visible[None]
    query_segments = spec.query_segments[:, start:stop]
    key_segments = spec.key_segments[:, first_key:stop]
    return visible[None] & (query_segments[:, :, None] == key_segments[:, None, :])


def _attend_block(
    q: Float[Array, "B K G t Q"],
    k: Float[Array, "B K s Q"],
    v: Float[Array, "B K s W"],
    visible: Bool[Array, "#B t s"],
    *,
    scale: float,
    has_logsumexp: bool,
) -> tuple[Float[Array, "B K G t W"], Float[Array, "B K G t"] | None]:
    batch, num_kv_heads, group, num_queries, head_width = q.shape
    rows = q.reshape(batch, num_kv_heads, group * num_queries, head_width)
    # float32: a bf16 softmax over 4k keys loses two digits.
    scores = jnp.einsum("bkrq,bksq->bkrs", rows, k, preferred_element_type=jnp.float32) * scale
    scores = scores.reshape(batch, num_kv_heads, group, num_queries, -1)
    scores = jnp.where(visible[:, None, None], scores, reference.MASKED_SCORE)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = weights.reshape(batch, num_kv_heads, group * num_queries, -1)
    out = jnp.einsum("bkrs,bksw->bkrw", weights, v)
    out = out.reshape(batch, num_kv_heads, group, num_queries, -1)
    return out, jax.nn.logsumexp(scores, axis=-1) if has_logsumexp else None
