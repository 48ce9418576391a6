"""Attention by blocks of queries, each with only the keys that it can reach.

For CPU, and the fallback elsewhere: skips what lies after the query block or before its window,
in plain XLA. Memory is O(T * (reach + block)) instead of O(T * T).
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float

from mistral_jax.nn import masks
from mistral_jax.nn.kernels import reference

MIN_BLOCK = 128
# The block loop is unrolled: more blocks would lengthen compilation without saving much work.
MAX_BLOCKS = 32


def block_size(num_tokens: int) -> int:
    """Return the query block length for a row of `num_tokens`."""
    return max(MIN_BLOCK, -(-num_tokens // MAX_BLOCKS))


def attend(
    q: Float[Array, "B T H Q"],
    k: Float[Array, "B S K Q"],
    v: Float[Array, "B S K Q"],
    spec: masks.AttentionSpec,
    *,
    scale: float,
) -> tuple[Float[Array, "B T H Q"], Float[Array, "B H T"] | None]:
    """Return attention outputs, and the logsumexp if the spec asks for it.

    Raises:
        ValueError: the spec is not of a row (a cache), or has a bias or a block table.
    """
    if not spec.is_row or spec.score_bias is not None or spec.block_table is not None:
        raise ValueError("banded attention takes whole rows without a bias or a block table")
    num_tokens = q.shape[1]
    block = block_size(num_tokens)
    outputs, sums = [], []
    for start in range(0, num_tokens, block):
        stop = min(start + block, num_tokens)
        first_key = 0 if spec.reach is None else max(0, start - spec.reach + 1)
        out, logsumexp = _attend_block(q, k, v, spec, (first_key, start, stop), scale=scale)
        outputs.append(out)
        sums.append(logsumexp)
    out = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)
    return out, jnp.concatenate(sums, axis=2) if spec.has_logsumexp else None


def _attend_block(
    q: Float[Array, "B T H Q"],
    k: Float[Array, "B S K Q"],
    v: Float[Array, "B S K Q"],
    spec: masks.AttentionSpec,
    bounds: tuple[int, int, int],
    *,
    scale: float,
) -> tuple[Float[Array, "B t H Q"], Float[Array, "B H t"] | None]:
    first_key, start, stop = bounds
    query_index = jnp.arange(start, stop, dtype=jnp.int32)
    key_index = jnp.arange(first_key, stop, dtype=jnp.int32)
    distance = query_index[:, None] - key_index[None, :]
    visible = distance >= 0
    if spec.reach is not None:
        visible &= distance < spec.reach
    mask = visible[None]  # [1, t, s]
    if spec.query_segments is not None and spec.key_segments is not None:
        query_segments = spec.query_segments[:, start:stop]
        key_segments = spec.key_segments[:, first_key:stop]
        mask = mask & (query_segments[:, :, None] == key_segments[:, None, :])
    return reference.attend_masked(
        q[:, start:stop],
        k[:, first_key:stop],
        v[:, first_key:stop],
        mask,
        dataclasses.replace(spec, block_table=None),
        scale=scale,
    )
