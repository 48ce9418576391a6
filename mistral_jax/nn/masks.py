"""What a query may see: AttentionSpec, and the dense mask that only the reference makes."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

ContextForm = Literal["all_gather", "ring"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """Structure of one attention call; no implementation but the reference makes it dense.

    A query sees a key if the key's position is not later, less than `reach` positions back, and
    in the same segment.

    Attributes:
        query_positions: [B, T].
        key_positions: [B, S].
        query_segments: [B, T], or None when every token is of one segment. 0 is padding.
        key_segments: [B, S], or None together with `query_segments`.
        reach: keys a query may see, itself included; None for all earlier ones. Static.
        is_row: queries and keys are the same row of tokens, so that row indices decide what is
            earlier (packed training rows). False for a cache. Static.
        rows: [T], each token's index in its row, where the tokens are not in order; else None.
        context: how devices that share a row exchange keys (nn/context_parallel.py); None where
            a row is whole on its device. Static.
        has_logsumexp: return the logsumexp too (ring attention needs it). Static.
        score_bias: added to the scores before the softmax, or None.
        block_table: key blocks for each query block, or None: [K, query blocks, k].
    """

    query_positions: Int[Array, "B T"]
    key_positions: Int[Array, "B S"]
    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    score_bias: Float[Array, "B H T S"] | None = None
    block_table: Int[Array, "K n_blocks k"] | None = None
    rows: Int[Array, " T"] | None = None
    reach: int | None = dataclasses.field(default=None, metadata={"static": True})
    is_row: bool = dataclasses.field(default=False, metadata={"static": True})
    context: ContextForm | None = dataclasses.field(default=None, metadata={"static": True})
    has_logsumexp: bool = dataclasses.field(default=False, metadata={"static": True})


def row_spec(
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None,
    *,
    reach: int | None = None,
) -> AttentionSpec:
    """Return the spec of self-attention over packed rows."""
    return AttentionSpec(
        query_positions=positions,
        key_positions=positions,
        query_segments=segment_ids,
        key_segments=segment_ids,
        reach=reach,
        is_row=True,
    )


def dense_mask(spec: AttentionSpec) -> Bool[Array, "B T S"]:
    """Return which keys each query sees."""
    if spec.is_row:
        # In a packed row the index decides: padding and segments may share positions.
        num_tokens = spec.query_positions.shape[1]
        index = jnp.arange(num_tokens, dtype=jnp.int32) if spec.rows is None else spec.rows
        query = key = index[None, :]
    else:
        query, key = spec.query_positions, spec.key_positions
    distance = query[:, :, None] - key[:, None, :]  # [B, T, S]
    visible = distance >= 0
    if spec.reach is not None:
        visible &= distance < spec.reach
    if not spec.is_row:
        visible &= spec.key_positions[:, None, :] >= 0  # empty cache slots are at -1
    if spec.query_segments is not None and spec.key_segments is not None:
        visible &= spec.query_segments[:, :, None] == spec.key_segments[:, None, :]
    batch = spec.query_positions.shape[0]
    return jnp.broadcast_to(visible, (batch, *visible.shape[1:]))
