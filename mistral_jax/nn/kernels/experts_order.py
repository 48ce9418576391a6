"""The (token, expert) pairs in the order of their experts: what sorted dispatch is made of.

Rows of one expert lie together; `spread` copies tokens to their rows, `collect` adds rows up to
tokens. Each is the other's gradient, so that neither direction needs a scatter of whole rows.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

COLLECTED_TOKENS = 256
# The loop over a token's rows where not all of its pairs have one: its name in the compiled module,
# where its trip count is not known (train/hlo_traffic.py).
ROWS_LOOP = "rows_of_tokens"
# Slots in one turn of it: the sum passes through main memory once a turn, not once a slot.
SLOTS_OF_TURN = 8


class How(NamedTuple):
    """What is known of an order before it is.

    Attributes:
        is_gapless: rows without a pair come last only, where nobody reads them.
        is_partial: some pairs have no expert, and so no row.
    """

    is_gapless: bool
    is_partial: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Order:
    """Where each pair lies; S rows, of which some may be empty.

    Attributes:
        rows: [N, k], each pair's row; S for a pair without an expert.
        pairs: [S], each row's pair, token * k + slot; N * k for an empty row.
        starts: [E], each expert's first row, a multiple of the `multiple` of `sort_pairs`.
        sizes: [E], rows of each expert, likewise a multiple; the empty ones come last.
        how: what is static.
    """

    rows: Int[Array, "N k"]
    pairs: Int[Array, " S"]
    starts: Int[Array, " E"]
    sizes: Int[Array, " E"]
    how: "How" = dataclasses.field(metadata={"static": True})

    @property
    def tokens(self) -> Int[Array, " S"]:
        """Each row's token; N for an empty row."""
        return self.pairs // self.rows.shape[1]


def sort_pairs(
    experts: Int[Array, "N k"], num_experts: int, *, multiple: int, max_pairs: int | None = None
) -> Order:
    """Return the order of the pairs.

    Args:
        experts: of each token; an index of `num_experts` gets no row.
        num_experts: E.
        multiple: each expert's rows are filled up to a multiple of this.
        max_pairs: how many pairs have an expert at most; None is all.
    """
    num_pairs = experts.size
    limit = num_pairs if max_pairs is None else min(max_pairs, num_pairs)
    # The sum over experts of a rounded-up count cannot be more.
    most = limit + min(num_experts, limit) * (multiple - 1)
    num_rows = most // multiple * multiple
    flat = experts.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    sorted_experts = flat[order]
    bounds = jnp.searchsorted(sorted_experts, jnp.arange(num_experts + 1)).astype(jnp.int32)
    sizes = -(-jnp.diff(bounds) // multiple) * multiple
    starts = jnp.cumsum(sizes) - sizes
    shift = jnp.append(starts - bounds[:-1], num_rows)
    row = jnp.minimum(jnp.arange(num_pairs, dtype=jnp.int32) + shift[sorted_experts], num_rows)
    rows = jnp.zeros((num_pairs,), jnp.int32).at[order].set(row, unique_indices=True)
    pairs = jnp.full((num_rows,), num_pairs, jnp.int32)
    pairs = pairs.at[row].set(order.astype(jnp.int32), mode="drop")
    how = How(is_gapless=multiple == 1, is_partial=limit < num_pairs)
    return Order(rows.reshape(experts.shape), pairs, starts, sizes, how)


def take(x: Float[Array, "n *rest"], indices: Int[Array, "*shape"]) -> Float[Array, "..."]:
    """Return x[indices], with zeros where an index is n."""
    return x.at[indices].get(mode="fill", fill_value=0)


def spread(x: Float[Array, "N D"], order: Order) -> Float[Array, "S D"]:
    """Return each row's token; empty rows are zero where any but the last may be empty."""
    return _spread(order.how, x, order.tokens, order.rows)


def collect(rows: Float[Array, "S D"], order: Order) -> Float[Array, "N D"]:
    """Return the sum of each token's rows, in the rows' dtype."""
    return _collect(order.how, rows, order.tokens, order.rows)


# Plain arrays from here on: custom_vjp rebuilds its arguments' dataclasses around placeholders,
# which the tests' type checks refuse.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _spread(how: How, x: Array, tokens: Array, rows_of: Array) -> Array:
    del rows_of
    if how.is_gapless:  # no pass over the rows to clear the last ones
        return x.at[tokens].get(mode="clip")
    return take(x, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _collect(how: How, rows: Array, tokens: Array, rows_of: Array) -> Array:
    del tokens
    num_tokens, top_k = rows_of.shape

    def add_up(own: Int[Array, "n k"]) -> Float[Array, "n D"]:
        # float32: k outputs add up, in an order that must not matter. One gather after the other:
        # XLA on CPU took seven times as long over a single one of [N, k, D].
        total = jnp.zeros((own.shape[0], rows.shape[1]), jnp.float32)

        def add(total: Array, slots: Int[Array, "n s"]) -> Array:
            for slot in range(slots.shape[1]):
                total = total + take(rows, slots[:, slot]).astype(jnp.float32)
            return total

        if not how.is_partial or top_k <= SLOTS_OF_TURN:
            return add(total, own).astype(rows.dtype)
        # A third of the slots have a row on 8 devices: as many turns as any token needs.
        own = jnp.sort(own, axis=-1)  # those without a row come last
        most = jnp.max(jnp.sum(own < rows.shape[0], axis=-1))
        padded = -top_k % SLOTS_OF_TURN
        own = jnp.pad(own, ((0, 0), (0, padded)), constant_values=rows.shape[0])

        def turn(index: Array, total: Array) -> Array:
            first = index * SLOTS_OF_TURN
            return add(total, jax.lax.dynamic_slice_in_dim(own, first, SLOTS_OF_TURN, axis=1))

        with jax.named_scope(ROWS_LOOP):
            turns = (most + SLOTS_OF_TURN - 1) // SLOTS_OF_TURN
            total = jax.lax.fori_loop(0, turns, turn, total)
        return total.astype(rows.dtype)

    # Some tokens at a time, so that their sums stay in a TPU's fast memory.
    if num_tokens <= COLLECTED_TOKENS or num_tokens % COLLECTED_TOKENS:
        return add_up(rows_of)
    blocks = jax.lax.map(add_up, rows_of.reshape(-1, COLLECTED_TOKENS, top_k))
    return blocks.reshape(num_tokens, -1)


def _spread_backward(
    how: How, places: tuple[Array, Array], gradient: Array
) -> tuple[Array, None, None]:
    return _collect(how, gradient, *places), None, None


def _collect_backward(
    how: How, places: tuple[Array, Array], gradient: Array
) -> tuple[Array, None, None]:
    return _spread(how, gradient, *places), None, None


_spread.defvjp(lambda how, x, *places: (_spread(how, x, *places), places), _spread_backward)
_collect.defvjp(
    lambda how, rows, *places: (_collect(how, rows, *places), places), _collect_backward
)
