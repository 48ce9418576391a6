"""Sorted pairs and one grouped matmul per projection: `jax.lax.ragged_dot`, or another's.

Native on TPU (compiled ahead of time for v5e, jax 0.12.0.1: a grouped kernel for every product,
gradients included). Never the default elsewhere: XLA on CPU and NVIDIA GPUs lowers ragged_dot to a
dense product of every row with every expert (8 experts top-2 on CPU: 0.12 of plain matmuls, less
than computing every expert). There it serves tests.
"""

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

# (rows [S, A], kernels [E, A, B], rows of each expert [E]) -> [S, B].
GroupedMatmul = Callable[
    [Float[Array, "S A"], Float[Array, "E A B"], Int[Array, " E"]], Float[Array, "S B"]
]


def run(
    x: Float[Array, "N D"],
    choice: routing.Choice,
    kernels: "experts_lib.Kernels",
    *,
    max_pairs: int | None = None,
    matmul: GroupedMatmul = jax.lax.ragged_dot,
    is_tail_cleared: bool = False,
) -> Float[Array, "N D"]:
    """Return the weighted sum of the chosen experts' outputs; see experts.run_experts.

    Args:
        x, choice, kernels, max_pairs: as there.
        matmul: the grouped product; rows after the last expert's may hold anything.
        is_tail_cleared: put zeros there after each product, for a `matmul` whose weight gradient
            multiplies what it should leave out. Otherwise nobody reads them: 13 % of a 671B
            step's memory traffic on TPU.
    """
    order = experts_order.sort_pairs(
        choice.experts, kernels.down.shape[0], multiple=1, max_pairs=max_pairs
    )
    is_row = (order.pairs < choice.experts.size)[:, None]

    def multiply(rows: Float[Array, "S A"], kernel: Float[Array, "E A B"]) -> Float[Array, "S B"]:
        out = matmul(rows, kernel, order.sizes)
        # The selection is its own gradient.
        return jnp.where(is_row, out, 0) if is_tail_cleared else out

    def adapted(
        out: Float[Array, "S B"], rows: Float[Array, "S A"], adapter: "experts_lib.LowRank | None"
    ) -> Float[Array, "S B"]:
        return out if adapter is None else out + multiply(multiply(rows, adapter.a), adapter.b)

    rows = experts_order.spread(x, order)
    if kernels.gate_up is None:
        gate, up = multiply(rows, kernels.gate), multiply(rows, kernels.up)
    else:
        gate, up = jnp.split(multiply(rows, kernels.gate_up), 2, axis=-1)
    gate = adapted(gate, rows, kernels.gate_adapter)
    hidden = jax.nn.silu(gate) * adapted(up, rows, kernels.up_adapter)
    weights = experts_order.take(choice.weights.reshape(-1), order.pairs)
    hidden = (hidden.astype(jnp.float32) * weights[:, None]).astype(x.dtype)
    out = adapted(multiply(hidden, kernels.down), hidden, kernels.down_adapter)
    return experts_order.collect(out, order)
