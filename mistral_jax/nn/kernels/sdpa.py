"""`jax.nn.dot_product_attention`: cuDNN flash attention on NVIDIA GPUs, XLA elsewhere.

cuDNN wants bf16 or fp16. Segments travel as a dense boolean mask, which cuDNN takes on a slower
path; rows of one document need none.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float

from mistral_jax.nn import masks


def attend(
    q: Float[Array, "B T H Q"],
    k: Float[Array, "B S K Q"],
    v: Float[Array, "B S K W"],
    spec: masks.AttentionSpec,
    *,
    scale: float,
    implementation: str | None = None,
) -> tuple[Float[Array, "B T H W"], Float[Array, "B H T"] | None]:
    """Return attention outputs, and the logsumexp if the spec asks for it.

    Raises:
        ValueError: the spec has a block table.
    """
    if spec.block_table is not None:
        raise ValueError("dot_product_attention does not take a block table")
    is_plain_row = spec.is_row and spec.query_segments is None
    window = None if spec.reach is None else (spec.reach - 1, 0)
    result: Any = jax.nn.dot_product_attention(  # pyright: ignore[reportCallIssue]
        q,
        k,
        v,
        bias=spec.score_bias,
        mask=None if is_plain_row else masks.dense_mask(spec)[:, None],
        scale=scale,
        is_causal=is_plain_row,
        local_window_size=window if is_plain_row else None,
        implementation=implementation,  # pyright: ignore[reportArgumentType]
        return_residual=spec.has_logsumexp,  # pyright: ignore[reportArgumentType]
    )
    if not spec.has_logsumexp:
        return result, None
    out, logsumexp = result
    return out, jnp.swapaxes(logsumexp, 1, 2).astype(jnp.float32)
