"""Sorted pairs, block by block, each block with its expert's weights: dropless, any platform.

The number of blocks is a trip count, so that padding and experts without tokens cost nothing. The
backward pass adds each block's weight gradients into [E, D, F] in place; the forward pass keeps
the two projections into the experts, not the tokens' copies and not the outputs.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax.nn import routing
from mistral_jax.nn.kernels import experts_order

if TYPE_CHECKING:
    from mistral_jax.nn import experts as experts_lib

# Rows of a block. An expert's rows are cut into the largest first: a large block pays for the copy
# of its weights, a small one wastes little at the end (CPU, 64 experts, 384 rows each, forward and
# backward: 0.56 of plain matmuls with 64-row blocks alone, 0.60 with 128, 0.76 with the three).
BLOCK_ROWS = (512, 128, 32)
# With fewer pairs than the smallest of those.
FEW_ROWS = 8

# Gate, up, down, as in experts.Kernels.
Kernels = tuple[Array, Array, Array]
GATE, UP, DOWN = range(3)


def block_rows(num_pairs: int) -> tuple[int, ...]:
    """Return the rows that a block may have, largest first."""
    return tuple(rows for rows in BLOCK_ROWS if rows <= num_pairs) or (FEW_ROWS,)


def run(
    x: Float[Array, "N D"], choice: routing.Choice, kernels: "experts_lib.Kernels"
) -> Float[Array, "N D"]:
    """Return the weighted sum of the chosen experts' outputs; see experts.run_experts."""
    arrays = (kernels.gate, kernels.up, kernels.down)
    return _run(x, choice.experts, choice.weights, arrays)


# Plain arrays: custom_vjp rebuilds its arguments' dataclasses around placeholders, which the
# tests' type checks refuse.
@jax.custom_vjp
def _run(x: Array, experts: Array, weights: Array, kernels: Kernels) -> Array:
    return _forward(x, experts, weights, kernels, is_kept=False)[0]


def _forward(
    x: Array, experts: Array, weights: Array, kernels: Kernels, *, is_kept: bool
) -> tuple[Array, tuple]:
    num_experts, width, hidden_width = kernels[GATE].shape
    sizes = block_rows(experts.size)
    order = experts_order.sort_pairs(experts, num_experts, multiple=sizes[-1])
    num_rows = order.pairs.shape[0]
    tokens = order.tokens
    row_weights = experts_order.take(weights.reshape(-1), order.pairs)

    def visit(state: tuple, expert: Array, start: Array, size: int) -> tuple:
        outputs, kept = state
        rows = experts_order.take(x, _slice(tokens, start, size))
        projected = rows @ _into(kernels, expert)
        if kept is not None:
            kept = _write(kept, projected, start)
        gate, up = jnp.split(projected, 2, axis=-1)
        weight = _slice(row_weights, start, size)[:, None]
        hidden = ((jax.nn.silu(gate) * up).astype(jnp.float32) * weight).astype(x.dtype)
        return _write(outputs, hidden @ kernels[DOWN][expert], start), kept

    outputs = jnp.zeros((num_rows, width), x.dtype)
    kept = jnp.zeros((num_rows, 2 * hidden_width), x.dtype) if is_kept else None
    outputs, kept = _visit_blocks(order, sizes, visit, (outputs, kept))
    return experts_order.collect(outputs, order), (x, row_weights, kernels, order, kept)


def _backward(residuals: tuple, out_gradient: Array) -> tuple:
    x, row_weights, kernels, order, projections = residuals
    tokens = order.tokens

    def visit(state: tuple, expert: Array, start: Array, size: int) -> tuple:
        x_rows, weight_gradients, gradients = state
        own_tokens = _slice(tokens, start, size)
        rows, out = experts_order.take(x, own_tokens), experts_order.take(out_gradient, own_tokens)
        weight = _slice(row_weights, start, size)[:, None]
        gate, up = jnp.split(_slice(projections, start, size).astype(jnp.float32), 2, axis=-1)
        sigmoid = jax.nn.sigmoid(gate)
        silu = gate * sigmoid
        hidden = silu * up
        weighted = (hidden * weight).astype(x.dtype)
        # Of the hidden row before its weight: times the row it is the weight's gradient.
        unweighted = (out @ kernels[DOWN][expert].T).astype(jnp.float32)
        hidden_gradient = unweighted * weight
        gate_gradient = hidden_gradient * up * (sigmoid + silu * (1 - sigmoid))
        into = jnp.concatenate([gate_gradient, hidden_gradient * silu], axis=-1).astype(x.dtype)
        x_rows = _write(x_rows, into @ _into(kernels, expert).T, start)
        weight_gradients = _write(weight_gradients, jnp.sum(unweighted * hidden, axis=-1), start)
        own = *jnp.split(_outer(rows, into), 2, axis=-1), _outer(weighted, out)
        gradients = tuple(
            total.at[expert].add(part.astype(jnp.float32))
            for total, part in zip(gradients, own, strict=True)
        )
        return x_rows, weight_gradients, gradients

    num_rows = order.pairs.shape[0]
    x_rows = jnp.zeros((num_rows, x.shape[1]), x.dtype)
    # float32: the sum runs over every block of an expert.
    zeros = jax.tree.map(lambda kernel: jnp.zeros(kernel.shape, jnp.float32), kernels)
    state = (x_rows, jnp.zeros((num_rows,), jnp.float32), zeros)
    sizes = block_rows(order.rows.size)
    x_rows, weight_gradients, gradients = _visit_blocks(order, sizes, visit, state)
    return (
        experts_order.collect(x_rows, order),
        None,
        experts_order.take(weight_gradients, order.rows),
        jax.tree.map(lambda total, kernel: total.astype(kernel.dtype), gradients, kernels),
    )


_run.defvjp(functools.partial(_forward, is_kept=True), _backward)


def _visit_blocks(
    order: experts_order.Order,
    sizes: tuple[int, ...],
    visit: Callable[[tuple, Array, Array, int], tuple],
    state: tuple,
) -> tuple:
    """Return the state after visit(state, expert, first row, rows) of every block."""
    remaining, offsets = order.sizes, order.starts
    for size in sizes:
        num_blocks = remaining // size
        ends = jnp.cumsum(num_blocks)

        def step(index: Array, state: tuple, size=size, ends=ends, firsts=ends - num_blocks,
                 offsets=offsets) -> tuple:  # fmt: skip
            expert = jnp.sum(ends <= index)
            return visit(state, expert, offsets[expert] + (index - firsts[expert]) * size, size)

        state = jax.lax.fori_loop(0, ends[-1], step, state)
        remaining, offsets = remaining - num_blocks * size, offsets + num_blocks * size
    return state


def _into(kernels: Kernels, expert: Array) -> Float[Array, "D twoF"]:
    """Return gate and up side by side: one matmul of twice the width."""
    return jnp.concatenate([kernels[GATE][expert], kernels[UP][expert]], axis=-1)


def _outer(a: Float[Array, "n A"], b: Float[Array, "n B"]) -> Float[Array, "A B"]:
    """Return a.T @ b; what is transposed in memory is the narrower, as in layers.project."""
    rows = (((0,), (0,)), ((), ()))
    if a.shape[1] <= b.shape[1]:
        return jax.lax.dot_general(a, b, rows)
    return jax.lax.dot_general(b, a, rows).T


def _slice(array: Array, start: Array, size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, start, size)


def _write(array: Array, rows: Array, start: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, rows, start, axis=0)
