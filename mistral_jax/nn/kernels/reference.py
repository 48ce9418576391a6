"""Attention by definition: every score, one mask, one softmax. The oracle; memory is O(T * S).

Honours every field of the spec except the block table.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float

from mistral_jax.nn import masks

# Finite, so that a query that sees no key gives a mean of values, not NaN (padding rows).
MASKED_SCORE = -1e30


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
        ValueError: the spec has a block table.
    """
    if spec.block_table is not None:
        raise ValueError("the reference attention does not take a block table")
    return attend_masked(q, k, v, masks.dense_mask(spec), spec, scale=scale)


def attend_masked(
    q: Float[Array, "B T H Q"],
    k: Float[Array, "B S K Q"],
    v: Float[Array, "B S K W"],
    mask: Bool[Array, "#B T S"],
    spec: masks.AttentionSpec,
    *,
    scale: float,
) -> tuple[Float[Array, "B T H W"], Float[Array, "B H T"] | None]:
    """Attend under a given mask; the banded form calls this for each of its blocks."""
    batch, num_queries, num_heads, head_width = q.shape
    num_kv_heads = k.shape[2]
    grouped = q.reshape(batch, num_queries, num_kv_heads, num_heads // num_kv_heads, head_width)
    scores = jnp.einsum(
        "btkgq,bskq->bkgts", grouped, k, preferred_element_type=jnp.float32
    )  # float32: a bf16 softmax over 4k keys loses two digits
    scores = scores * scale
    if spec.score_bias is not None:
        scores = scores + spec.score_bias.reshape(scores.shape).astype(jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, MASKED_SCORE)
    # jax.nn.softmax has its own gradient rule, which keeps the weights and nothing else.
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bskw->btkgw", weights, v)
    out = out.reshape(batch, num_queries, num_heads, v.shape[-1])
    if not spec.has_logsumexp:
        return out, None
    logsumexp = jax.nn.logsumexp(scores, axis=-1).reshape(batch, num_heads, num_queries)
    return out, logsumexp
