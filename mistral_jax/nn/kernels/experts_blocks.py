"""Sorted pairs, block by block, each block with its expert's weights: dropless, any platform.

The number of blocks is a trip count, so that padding and experts without tokens cost nothing. The
backward pass adds each block's weight gradients into [E, D, F] in place, of those weights alone
that are differentiated: a frozen kernel costs neither the array nor the products. The forward pass
keeps the two projections into the experts, not the tokens' copies and not the outputs.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any

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
# backward: 0.56 of plain matmuls with 64-row blocks alone, 0.60 with 128, 0.76 with 512, 128, 32).
BLOCK_ROWS = (512, 128, 32)
# Below as many rows an expert, blocks of 8 too: a quarter of the work for a few tokens.
FEW_ROWS, SMALLEST_BLOCK = 64, 8

# A kernel and its low-rank pair or None, of gate, up and down. Not experts.Kernels: custom_vjp
# rebuilds dataclasses around placeholders, which the tests' type checks refuse.
Projection = tuple[Array, tuple[Array, Array] | None]
Projections = tuple[Projection, Projection, Projection]
GATE, UP, DOWN = range(3)


def block_rows(num_pairs: int, num_experts: int) -> tuple[int, ...]:
    """Return the rows that a block may have, largest first."""
    sizes = [rows for rows in BLOCK_ROWS if rows <= num_pairs]
    if num_pairs < FEW_ROWS * num_experts:
        sizes.append(SMALLEST_BLOCK)
    return tuple(sizes)


def _most_pairs(num_pairs: int, max_pairs: int | None) -> int:
    return num_pairs if max_pairs is None else min(num_pairs, max_pairs)


def run(
    x: Float[Array, "N D"],
    choice: routing.Choice,
    kernels: "experts_lib.Kernels",
    *,
    max_pairs: int | None = None,
) -> Float[Array, "N D"]:
    """Return the weighted sum of the chosen experts' outputs; see experts.run_experts."""
    whole = (kernels.gate, kernels.up, kernels.down)
    adapters = (kernels.gate_adapter, kernels.up_adapter, kernels.down_adapter)
    projections = tuple(
        (kernel, None if adapter is None else (adapter.a, adapter.b))
        for kernel, adapter in zip(whole, adapters, strict=True)
    )
    return _run(max_pairs, x, choice.experts, choice.weights, projections)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(
    max_pairs: int | None, x: Array, experts: Array, weights: Array, projections: Projections
) -> Array:
    return _forward(max_pairs, x, experts, weights, projections, is_kept=False)[0]


def _forward_to_differentiate(max_pairs: int | None, *inputs: Any) -> tuple[Array, tuple]:
    """Run, and keep beside the residuals which weights are differentiated; () is yes, None no."""
    # Inputs come as custom_vjp's pairs of a value and whether it has a tangent.
    x, experts, weights, projections = jax.tree.map(lambda leaf: leaf.value, inputs)
    is_trained = jax.tree.map(lambda leaf: () if leaf.perturbed else None, inputs[-1])
    out, kept = _forward(max_pairs, x, experts, weights, projections, is_kept=True)
    return out, (*kept, is_trained)


def _forward(
    max_pairs: int | None, x: Array, experts: Array, weights: Array, projections: Projections,
    *, is_kept: bool,
) -> tuple[Array, tuple]:  # fmt: skip
    num_experts, width, hidden_width = projections[GATE][0].shape
    sizes = block_rows(_most_pairs(experts.size, max_pairs), num_experts)
    order = experts_order.sort_pairs(experts, num_experts, multiple=sizes[-1], max_pairs=max_pairs)
    tokens = order.tokens
    row_weights = experts_order.take(weights.reshape(-1), order.pairs)

    def visit(state: tuple, expert: Array, start: Array, size: int) -> tuple:
        outputs, kept = state
        rows = experts_order.take(x, _slice(tokens, start, size))
        gate, up = (_project(rows, projections[index], expert) for index in (GATE, UP))
        if kept is not None:
            kept = _write(kept[0], gate, start), _write(kept[1], up, start)
        weight = _slice(row_weights, start, size)[:, None]
        hidden = ((jax.nn.silu(gate) * up).astype(jnp.float32) * weight).astype(x.dtype)
        return _write(outputs, _project(hidden, projections[DOWN], expert), start), kept

    def empty(columns: int) -> Array:
        return jnp.zeros((order.pairs.shape[0], columns), x.dtype)

    kept = (empty(hidden_width), empty(hidden_width)) if is_kept else None
    outputs, kept = _visit_blocks(order, sizes, visit, (empty(width), kept))
    return experts_order.collect(outputs, order), (x, row_weights, projections, order, kept)


def _backward(max_pairs: int | None, residuals: tuple, out_gradient: Any) -> tuple:
    x, row_weights, projections, order, (gates, ups), is_trained = residuals
    if isinstance(out_gradient, jax.custom_derivatives.SymbolicZero):
        out_gradient = jnp.zeros(out_gradient.aval.shape, out_gradient.aval.dtype)
    tokens = order.tokens

    def visit(state: tuple, expert: Array, start: Array, size: int) -> tuple:
        x_rows, weight_rows, gradients = state
        own_tokens = _slice(tokens, start, size)
        rows, out = experts_order.take(x, own_tokens), experts_order.take(out_gradient, own_tokens)
        weight = _slice(row_weights, start, size)[:, None]
        gate = _slice(gates, start, size).astype(jnp.float32)
        up = _slice(ups, start, size).astype(jnp.float32)
        sigmoid = jax.nn.sigmoid(gate)
        silu = gate * sigmoid
        hidden = silu * up
        weighted = (hidden * weight).astype(x.dtype)
        # Of the hidden row before its weight: times the row it is the weight's gradient.
        unweighted = _project_back(out, projections[DOWN], expert).astype(jnp.float32)
        hidden_gradient = unweighted * weight
        into_gate = (hidden_gradient * up * (sigmoid + silu * (1 - sigmoid))).astype(x.dtype)
        into_up = (hidden_gradient * silu).astype(x.dtype)
        into_rows = _project_back(into_gate, projections[GATE], expert)
        into_rows += _project_back(into_up, projections[UP], expert)
        sides = (rows, into_gate), (rows, into_up), (weighted, out)
        own = tuple(
            _weight_gradients(*both, projection, total, expert)
            for both, projection, total in zip(sides, projections, gradients, strict=True)
        )
        return (
            _write(x_rows, into_rows, start),
            _write(weight_rows, jnp.sum(unweighted * hidden, axis=-1), start),
            jax.tree.map(
                lambda total, part: total.at[expert].add(
                    part.astype(jnp.float32), mode="promise_in_bounds"
                ),
                gradients,
                own,
            ),
        )

    num_rows = order.pairs.shape[0]
    state = (
        jnp.zeros((num_rows, x.shape[1]), x.dtype),
        jnp.zeros((num_rows,), jnp.float32),
        # float32: the sum runs over every block of an expert.
        jax.tree.map(
            lambda weight, asked: None if asked is None else jnp.zeros(weight.shape, jnp.float32),
            projections,
            is_trained,
        ),
    )
    sizes = block_rows(_most_pairs(order.rows.size, max_pairs), projections[GATE][0].shape[0])
    x_rows, weight_rows, gradients = _visit_blocks(order, sizes, visit, state)
    return (
        experts_order.collect(x_rows, order),
        None,
        experts_order.take(weight_rows, order.rows),
        jax.tree.map(
            lambda weight, total: None if total is None else total.astype(weight.dtype),
            projections,
            gradients,
        ),
    )


_run.defvjp(_forward_to_differentiate, _backward, symbolic_zeros=True)


def _project(rows: Array, projection: Projection, expert: Array) -> Array:
    """Return the rows times an expert's kernel, its adapter's part included."""
    kernel, pair = projection
    out = rows @ kernel[expert]
    return out if pair is None else out + (rows @ pair[0][expert]) @ pair[1][expert]


def _project_back(gradient: Array, projection: Projection, expert: Array) -> Array:
    """Return the gradient of the rows that `_project` took."""
    kernel, pair = projection
    out = gradient @ kernel[expert].T
    return out if pair is None else out + (gradient @ pair[1][expert].T) @ pair[0][expert].T


def _weight_gradients(
    rows: Array, gradient: Array, projection: Projection, wanted: Any, expert: Array
) -> Any:
    """Return a block's gradients of an expert's weights, None where `wanted` has None."""
    (_, pair), (kernel_wanted, pair_wanted) = projection, wanted
    kernel_part = None if kernel_wanted is None else _outer(rows, gradient)
    if pair is None or pair_wanted is None:
        return kernel_part, None
    a_part = _outer(rows, gradient @ pair[1][expert].T) if pair_wanted[0] is not None else None
    b_part = _outer(rows @ pair[0][expert], gradient) if pair_wanted[1] is not None else None
    return kernel_part, (a_part, b_part)


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
