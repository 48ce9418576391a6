"""Blocks of rows that devices share, each pair by the splash kernel: scores never leave a TPU core.

The same two functions as the plain ones of blockwise.py. Forward, splash gives a pair's output and
logsumexp, which are merged; backward, its kernels take the whole row's logsumexp and output. That
entry is not public in JAX: it is the only one that lets several devices share a softmax. Blocks
are whole runs of tokens, so a pair is causal inside or sees everything, documents apart.
"""

import functools
from typing import TYPE_CHECKING
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jaxtyping import Array
from jaxtyping import Float

from mistral_jax.nn.kernels import splash

if TYPE_CHECKING:
    from mistral_jax.nn.kernels import blockwise

# A pair's kernel: longer blocks read and write the sums of the queries less often.
MAX_BLOCK = 4096
IS_INTERPRETED = False  # tests set it: there is no TPU


def absorb(
    sums: "blockwise.Sums", queries: "blockwise.Queries", keys: "blockwise.Keys", *,
    scale: float, reach: int | None,
) -> "blockwise.Sums":  # fmt: skip
    """Return the sums of one block of queries after one block of keys that it may see."""
    del reach
    shape = queries.q.shape
    q, k, v = _heads_first(queries.q, scale), _heads_first(keys.k), _heads_first(keys.v)

    def attend(is_causal: bool) -> tuple[Array, Array]:
        kernel = _kernel(q.shape, k.shape[2], is_causal, has_residuals=True)

        def one_row(q: Array, k: Array, v: Array, own: Array, other: Array) -> tuple:
            out, (logsumexp,) = kernel(q, k, v, splash_attention.SegmentIds(own, other))
            return out, logsumexp

        return jax.vmap(one_row)(q, k, v, queries.where.segments, keys.where.segments)

    out, logsumexp = jax.lax.cond(
        _is_same(queries, keys), lambda: attend(True), lambda: attend(False)
    )
    grouped = (shape[0], shape[2], shape[3], shape[1])  # [B, K, G, t]
    out = out[..., : keys.v.shape[-1]].reshape(*grouped, -1).astype(jnp.float32)
    logsumexp = logsumexp.reshape(grouped)
    peak = jnp.maximum(sums.peak, logsumexp)
    shrink, weight = jnp.exp(sums.peak - peak), jnp.exp(logsumexp - peak)
    return sums._replace(
        out=sums.out * shrink[..., None] + out * weight[..., None],
        peak=peak,
        total=sums.total * shrink + weight,
    )


def pull_back(
    sums: tuple[Array, Array, Array], queries: "blockwise.Queries", results: "blockwise.Results",
    keys: "blockwise.Keys", *, scale: float, reach: int | None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Return the gradients of keys, values and queries with one pair's added; float32."""
    del reach
    shape, value_width = queries.q.shape, keys.v.shape[-1]
    q, k, v = _heads_first(queries.q, scale), _heads_first(keys.k), _heads_first(keys.v)
    heads = (shape[0], shape[2] * shape[3], shape[1])  # [B, H, t]
    d_out, out = (
        splash.filled(array.reshape(*heads, value_width)) for array in (results.d_out, results.out)
    )
    logsumexp = results.logsumexp.reshape(heads)

    def gradients(is_causal: bool) -> tuple[Array, Array, Array]:
        kernel = _kernel(q.shape, k.shape[2], is_causal, has_residuals=False)
        back = functools.partial(
            splash_attention_kernel._splash_attention_bwd,
            False,
            kernel.kwargs["mask_value"],
            False,
            kernel.kwargs["block_sizes"],
            None,
            kernel.kwargs["mask_function"],
            None,
            IS_INTERPRETED,
        )

        def one_row(q, k, v, own, other, out, logsumexp, d_out) -> tuple[Array, Array, Array]:
            segments = splash_attention.SegmentIds(own, other)
            masks = kernel.dq_mask_info, kernel.dkv_mask_info
            return back((q, k, v, segments, None, out, logsumexp, *masks), d_out)[3:6]

        segments = queries.where.segments, keys.where.segments
        return jax.vmap(one_row)(q, k, v, *segments, out, logsumexp, d_out)

    d_q, d_k, d_v = jax.lax.cond(
        _is_same(queries, keys), lambda: gradients(True), lambda: gradients(False)
    )
    d_q = d_q[..., : shape[-1]].reshape(shape[0], shape[2], shape[3], shape[1], shape[-1])
    d_q = jnp.moveaxis(d_q.astype(jnp.float32) * scale, 3, 1)  # [B, t, K, G, Q]
    d_k = jnp.swapaxes(d_k, 1, 2)[..., : keys.k.shape[-1]].astype(jnp.float32)
    d_v = jnp.swapaxes(d_v, 1, 2)[..., :value_width].astype(jnp.float32)
    return sums[0] + d_k, sums[1] + d_v, sums[2] + d_q


def _is_same(queries: "blockwise.Queries", keys: "blockwise.Keys") -> Array:
    """Tell whether both are the same tokens, so that order inside the block decides."""
    return queries.where.rows[0] == keys.where.rows[0]


def _heads_first(
    array: Float[Array, "B t *heads Q"], scale: float = 1.0
) -> Float[Array, "B h t R"]:
    """Return [B, heads, t, Q] with heads filled up to whole lanes."""
    flat = array.reshape(*array.shape[:2], -1, array.shape[-1])
    flat = splash.filled(jnp.swapaxes(flat, 1, 2))
    return flat if scale == 1.0 else flat * jnp.asarray(scale, flat.dtype)


def _kernel(
    q_shape: tuple[int, ...], num_keys: int, is_causal: bool, *, has_residuals: bool
) -> Any:
    shape = (q_shape[2], num_keys)
    mask = splash_attention.CausalMask(shape) if is_causal else splash_attention.FullMask(shape)
    return splash.make_kernel(
        mask, q_shape[1], has_residuals=has_residuals, is_interpreted=IS_INTERPRETED
    )
