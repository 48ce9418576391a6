"""Every expert on every token, weighted afterwards: the oracle, at E / k of the needed work."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float

from mistral_jax.nn import layers
from mistral_jax.nn import routing

if TYPE_CHECKING:
    from mistral_jax.nn import experts as experts_lib


def run(
    x: Float[Array, "N D"],
    choice: routing.Choice,
    kernels: "experts_lib.Kernels",
    *,
    max_pairs: int | None = None,
) -> Float[Array, "N D"]:
    """Return the weighted sum of the chosen experts' outputs; see experts.run_experts."""
    del max_pairs  # there are no rows to save
    num_experts = kernels.gate.shape[0]
    one_hot = jax.nn.one_hot(choice.experts, num_experts, dtype=jnp.float32)  # [N, k, E]
    by_expert = jnp.einsum("nk,nke->en", choice.weights, one_hot)

    def add_expert(total: Float[Array, "N D"], expert: tuple) -> tuple[Float[Array, "N D"], None]:
        weight, own = expert
        gate = _project(x, own.gate, own.gate_adapter)
        hidden = jax.nn.silu(gate) * _project(x, own.up, own.up_adapter)
        out = _project(hidden, own.down, own.down_adapter)
        # float32: k outputs add up, in an order that must not matter.
        return total + out.astype(jnp.float32) * weight[:, None], None

    zero = jnp.zeros(x.shape, jnp.float32)
    return jax.lax.scan(add_expert, zero, (by_expert, kernels))[0].astype(x.dtype)


def _project(
    rows: Float[Array, "N A"], kernel: Float[Array, "A B"], adapter: "experts_lib.LowRank | None"
) -> Float[Array, "N B"]:
    out = layers.project(rows, kernel)
    if adapter is None:
        return out
    return out + layers.project(layers.project(rows, adapter.a), adapter.b)
