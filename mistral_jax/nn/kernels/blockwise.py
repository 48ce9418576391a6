"""Attention block by block with an online softmax, forward and backward, in plain XLA.

What devices that share a row compute (nn/context_parallel.py): queries stay, keys arrive in any
order, and explicit row indices say who sees whom. A pair of blocks that sees nothing is skipped.
FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax.nn.kernels import reference

MAX_BLOCK = 512
# Scores of so many heads at a time that they stay in a TPU's fast memory: of 128 heads they would
# go through the main one, 28 times the time of the matmuls at 256K tokens.
SCORE_BYTES = 8 << 20
# float32: sums over thousands of keys lose two digits in bf16.
_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class Where(NamedTuple):
    """Where tokens lie: all that decides who sees whom.

    Attributes:
        rows: index in the row.
        segments: document, 0 for padding.
    """

    rows: Int[Array, "*blocks t"]
    segments: Int[Array, "*blocks B t"]


class Sums(NamedTuple):
    """The softmax so far, of every block of queries; float32.

    Attributes:
        out: sum of exp(score - peak) times value.
        peak: largest score.
        total: sum of exp(score - peak).
    """

    out: Float[Array, "*blocks B K G t W"]
    peak: Float[Array, "*blocks B K G t"]
    total: Float[Array, "*blocks B K G t"]


class Queries(NamedTuple):
    """Queries in blocks.

    Attributes:
        q: grouped by key head.
        where: their tokens.
    """

    q: Float[Array, "*blocks B t K G Q"]
    where: Where


class Results(NamedTuple):
    """What became of the queries, for the backward pass.

    Attributes:
        out: the output.
        d_out: gradient of the output.
        logsumexp: of the scores.
        delta: sum over channels of output times its gradient.
    """

    out: Float[Array, "*blocks B K G t W"]
    d_out: Float[Array, "*blocks B K G t W"]
    logsumexp: Float[Array, "*blocks B K G t"]
    delta: Float[Array, "*blocks B K G t"]


class Keys(NamedTuple):
    """One block of keys with its values."""

    k: Float[Array, "B s K Q"]
    v: Float[Array, "B s K W"]
    where: Where


def block_size(num_tokens: int, longest: int) -> int:
    """Return the largest divisor of `num_tokens` that is no longer than `longest`."""
    return next(size for size in range(min(num_tokens, longest), 0, -1) if num_tokens % size == 0)


def in_blocks(array: Array, axis: int, size: int) -> Array:
    """Cut an axis into blocks; they become the first axis."""
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    return jnp.moveaxis(array.reshape(*before, -1, size, *after), axis, 0)


def joined(blocks: Array, axis: int) -> Array:
    """Undo `in_blocks`; `axis` is the cut axis of the whole array."""
    moved = jnp.moveaxis(blocks, 0, axis)
    return moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])


def nothing_seen(q: Float[Array, "n B t K G Q"], value_width: int) -> Sums:
    """Return the sums before the first key."""
    shape = (*q.shape[:2], *q.shape[3:5], q.shape[2])
    return Sums(
        out=jnp.zeros((*shape, value_width), jnp.float32),
        peak=jnp.full(shape, reference.MASKED_SCORE, jnp.float32),
        total=jnp.zeros(shape, jnp.float32),
    )


def finish(sums: Sums) -> tuple[Float[Array, "n B K G t W"], Float[Array, "n B K G t"]]:
    """Return outputs and logsumexp in float32; every query has seen itself."""
    return sums.out / sums.total[..., None], sums.peak + jnp.log(sums.total)


class Kernel(NamedTuple):
    """How one pair of blocks is worked out, one of queries and one of keys.

    Attributes:
        absorb: (sums, queries, keys, scale, reach) -> sums.
        pull_back: ((d_k, d_v, d_q), queries, results, keys, scale, reach) -> the same, added to.
    """

    absorb: Callable[..., Sums]
    pull_back: Callable[..., tuple[Array, Array, Array]]


def absorb(
    sums: Sums, queries: Queries, keys: Keys, *, kernel: Kernel, scale: float, reach: int | None
) -> Sums:
    """Return the sums after one more block of keys."""

    def one(inputs: tuple[Sums, Queries]) -> Sums:
        sums, block = inputs
        return jax.lax.cond(
            _may_see(block.where, keys.where, reach),
            lambda: kernel.absorb(sums, block, keys, scale=scale, reach=reach),
            lambda: sums,
        )

    return jax.lax.map(one, (sums, queries))


def pull_back(
    d_q: Float[Array, "n B t K G Q"],
    queries: Queries,
    results: Results,
    keys: Keys,
    *,
    kernel: Kernel,
    scale: float,
    reach: int | None,
) -> tuple[Float[Array, "n B t K G Q"], Float[Array, "B s K Q"], Float[Array, "B s K W"]]:
    """Return the queries' gradient after one more block of keys, and that block's own; float32."""

    def one(carry: tuple[Array, Array], inputs: tuple[Array, Queries, Results]) -> tuple:
        d_q, block, result = inputs
        d_k, d_v, d_q = jax.lax.cond(
            _may_see(block.where, keys.where, reach),
            lambda: kernel.pull_back((*carry, d_q), block, result, keys, scale=scale, reach=reach),
            lambda: (*carry, d_q),
        )
        return (d_k, d_v), d_q

    zeros = (jnp.zeros(keys.k.shape, jnp.float32), jnp.zeros(keys.v.shape, jnp.float32))
    (d_k, d_v), d_q = jax.lax.scan(one, zeros, (d_q, queries, results))
    return d_q, d_k, d_v


def _absorb_pair(
    sums: Sums, queries: Queries, keys: Keys, *, scale: float, reach: int | None
) -> Sums:
    mask = _visible(queries.where, keys.where, reach)
    size = _heads_at_once(queries.q, keys.k)

    def attend(first: Array, sums: Sums) -> Sums:
        part = Sums(*(_heads(array, first, size, 1) for array in sums))
        q, k, v = (_heads(array, first, size, 2) for array in (queries.q, keys.k, keys.v))
        scores = _scores(q, k, mask, scale)
        peak = jnp.maximum(part.peak, jnp.max(scores, axis=-1))
        # A row without a visible key has scores equal to its peak: the mask once more.
        weights = jnp.where(mask, jnp.exp(scores - peak[..., None]), 0.0)
        shrink = jnp.exp(part.peak - peak)
        out = _einsum("bkgts,bskw->bkgtw", weights.astype(v.dtype), v)
        total = part.total * shrink + jnp.sum(weights, axis=-1)
        new = Sums(part.out * shrink[..., None] + out, peak, total)
        return Sums(*(_put(array, n, first, 1) for array, n in zip(sums, new, strict=True)))

    return jax.lax.fori_loop(
        0, keys.k.shape[2] // size, lambda index, sums: attend(index * size, sums), sums
    )


def _pull_back_pair(
    sums: tuple[Array, Array, Array],
    queries: Queries,
    results: Results,
    keys: Keys,
    *,
    scale: float,
    reach: int | None,
) -> tuple[Array, Array, Array]:
    mask = _visible(queries.where, keys.where, reach)
    size = _heads_at_once(queries.q, keys.k)

    def add(first: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        q, k, v = (_heads(array, first, size, 2) for array in (queries.q, keys.k, keys.v))
        d_out, logsumexp, delta = (
            _heads(array, first, size, 1)
            for array in (results.d_out, results.logsumexp, results.delta)
        )
        scores = _scores(q, k, mask, scale)
        weights = jnp.where(mask, jnp.exp(scores - logsumexp[..., None]), 0.0)
        d_weights = _einsum("bkgtw,bskw->bkgts", d_out, v)
        d_scores = (weights * (d_weights - delta[..., None]) * scale).astype(k.dtype)
        more = (
            _einsum("bkgts,btkgq->bskq", d_scores, q),
            _einsum("bkgts,bkgtw->bskw", weights.astype(v.dtype), d_out),
            _einsum("bkgts,bskq->btkgq", d_scores, k),
        )
        return tuple(
            _put(array, _heads(array, first, size, 2) + part, first, 2)
            for array, part in zip(sums, more, strict=True)
        )

    return jax.lax.fori_loop(
        0, keys.k.shape[2] // size, lambda index, sums: add(index * size, sums), sums
    )


XLA = Kernel(_absorb_pair, _pull_back_pair)


def _heads_at_once(q: Float[Array, "B t K G Q"], k: Float[Array, "B s K Q"]) -> int:
    """Return how many key heads' scores are made at a time; a divisor of all."""
    batch, num_queries, num_heads, group, _ = q.shape
    each = 4 * batch * group * num_queries * k.shape[1]
    limit = max(1, SCORE_BYTES // each)
    return next(size for size in range(min(limit, num_heads), 0, -1) if num_heads % size == 0)


def _heads(array: Array, first: Array, size: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, first, size, axis)


def _put(array: Array, part: Array, first: Array, axis: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part, first, axis)


def _scores(
    q: Float[Array, "B t K G Q"],
    k: Float[Array, "B s K Q"],
    mask: Bool[Array, "B 1 1 t s"],
    scale: float,
) -> Float[Array, "B K G t s"]:
    scores = _einsum("btkgq,bskq->bkgts", q, k) * scale
    return jnp.where(mask, scores, reference.MASKED_SCORE)


def _visible(queries: Where, keys: Where, reach: int | None) -> Bool[Array, "B 1 1 t s"]:
    distance = queries.rows[:, None] - keys.rows[None, :]
    visible = distance >= 0
    if reach is not None:
        visible &= distance < reach
    visible = visible & (queries.segments[:, :, None] == keys.segments[:, None, :])
    return visible[:, None, None]


def _may_see(queries: Where, keys: Where, reach: int | None) -> Bool[Array, ""]:
    """Tell whether any query can see any key, from the ends of both blocks alone."""
    is_seen = jnp.min(keys.rows) <= jnp.max(queries.rows)
    if reach is not None:
        is_seen &= jnp.min(queries.rows) - jnp.max(keys.rows) < reach
    # Packed documents: blocks of other documents are most of a long row.
    is_seen &= jnp.min(keys.segments) <= jnp.max(queries.segments)
    return is_seen & (jnp.min(queries.segments) <= jnp.max(keys.segments))
