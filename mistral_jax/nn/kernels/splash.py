"""Splash attention, the block-sparse flash kernel of JAX for TPU (jax.experimental.pallas).

Head widths are filled up to multiples of 128: zeros change no score. Window and causal masks skip
whole blocks; segments are native. On a mesh every device runs its own rows and heads. On other
platforms it runs in interpret mode, for tests only.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax import sharding
from mistral_jax.nn import masks

LANE = 128
MAX_BLOCK = 512


def attend(
    q: Float[Array, "B T H Q"],
    k: Float[Array, "B S K Q"],
    v: Float[Array, "B S K W"],
    spec: masks.AttentionSpec,
    *,
    scale: float,
    is_interpreted: bool = False,
) -> tuple[Float[Array, "B T H W"], Float[Array, "B H T"] | None]:
    """Return attention outputs, and the logsumexp (forward only) if the spec asks for it.

    Raises:
        ValueError: the spec is not of a row, has a bias or a block table, or a width does not fit.
    """
    if not spec.is_row or spec.score_bias is not None or spec.block_table is not None:
        raise ValueError("splash attention takes whole rows without a bias or a block table")
    batch, num_tokens = q.shape[:2]
    if num_tokens % LANE:
        raise ValueError(
            f"splash attention needs a row length in multiples of {LANE}, got {num_tokens}"
        )
    value_width = v.shape[-1]
    q, k, v = (filled(array) for array in (q, k, v))
    segments = spec.query_segments
    if segments is None:
        segments = jnp.ones((batch, num_tokens), jnp.int32)

    on_shard = functools.partial(
        _attend_shard, reach=spec.reach, scale=scale, has_logsumexp=spec.has_logsumexp,
        is_interpreted=is_interpreted,
    )  # fmt: skip
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        out, logsumexp = on_shard(q, k, v, segments)
        return out[..., :value_width], logsumexp
    # A Mosaic kernel cannot be partitioned by the compiler: each device runs its rows and heads,
    # whole ones, without a word to the others.
    rows, _, heads, _ = sharding.spec(("batch", None, "kv_heads", None), k.shape, mesh)
    whole = PartitionSpec(rows, None, heads, None)
    out, logsumexp = jax.shard_map(
        on_shard,
        mesh=mesh,
        in_specs=(whole, whole, whole, PartitionSpec(rows, None)),
        out_specs=(whole, PartitionSpec(rows, heads, None) if spec.has_logsumexp else None),
        check_vma=False,
    )(q, k, v, segments)
    return out[..., :value_width], logsumexp


def filled(array: Float[Array, "B T H Q"]) -> Float[Array, "B T H R"]:
    """Return heads filled up with zeros to a multiple of the lanes."""
    return jnp.pad(array, [(0, 0)] * 3 + [(0, -array.shape[-1] % LANE)])


def make_kernel(
    mask: splash_attention.Mask, num_heads: int, *, has_residuals: bool, is_interpreted: bool
) -> Any:
    """Return the kernel of one row, (q, k, v, segments) -> output, or with its logsumexp."""
    num_tokens = math.gcd(*mask.shape)
    block = next(size for size in (MAX_BLOCK, 256, LANE) if num_tokens % size == 0)
    sizes = splash_attention.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    return splash_attention.make_splash_mha(
        mask=splash_attention.MultiHeadMask([mask] * num_heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        save_residuals=has_residuals,
        interpret=is_interpreted,
    )


def _attend_shard(
    q: Float[Array, "B T H Q"],
    k: Float[Array, "B S K Q"],
    v: Float[Array, "B S K W"],
    segments: Int[Array, "B T"],
    *,
    reach: int | None,
    scale: float,
    has_logsumexp: bool,
    is_interpreted: bool,
) -> tuple[Float[Array, "B T H W"], Float[Array, "B H T"] | None]:
    num_tokens, num_heads = q.shape[1:3]
    shape = (num_tokens, num_tokens)
    mask = (
        splash_attention.CausalMask(shape)
        if reach is None
        else splash_attention.LocalMask(shape, (reach - 1, 0), 0)
    )
    kernel = make_kernel(
        mask, num_heads, has_residuals=has_logsumexp, is_interpreted=is_interpreted
    )

    def one_row(
        q_row: Array, k_row: Array, v_row: Array, row_segments: Array
    ) -> Array | tuple[Array, tuple[Array]]:
        ids = splash_attention.SegmentIds(q=row_segments, kv=row_segments)
        return kernel(q_row * jnp.asarray(scale, q_row.dtype), k_row, v_row, segment_ids=ids)

    q, k, v = (jnp.swapaxes(array, 1, 2) for array in (q, k, v))  # [B, H, T, Q]
    result: Any = jax.vmap(one_row)(q, k, v, segments)
    if not has_logsumexp:
        return jnp.swapaxes(result, 1, 2), None
    out, (logsumexp,) = result
    return jnp.swapaxes(out, 1, 2), logsumexp
