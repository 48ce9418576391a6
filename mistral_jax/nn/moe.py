"""The feed-forward slot as a mixture of SwiGLU experts: router, and every expert in turn.

Each expert runs on all tokens and is weighted afterwards: exact, without dropped tokens or
buffers, at num_experts / top_k of the needed work. It is the oracle for faster dispatches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import PRNGKeyArray

from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.nn import layers


class ExpertKernel(nnx.Module):
    """One projection of every expert.

    Attributes:
        kernel: [groups, experts of a group, in, out].
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        *,
        axes: tuple[str | None, str | None],
        init_std: float,
        rngs: nnx.Rngs,
    ) -> None:
        kernel = jax.random.normal(rngs.params(), shape, jnp.float32) * init_std
        self.kernel = nnx.Param(kernel, axes=(None, "expert", *axes))

    def flat(self, dtype: np.dtype) -> Float[Array, "E n_in n_out"]:
        """Return the kernels of all experts, group after group."""
        kernel = self.kernel[...]
        return kernel.reshape(-1, *kernel.shape[2:]).astype(dtype)


class MoeSwiGlu(nnx.Module):
    """sum over the chosen experts e of weight_e(x) * down_e(silu(gate_e(x)) * up_e(x))."""

    def __init__(
        self,
        config: model_config.DecoderConfig,
        ffn: model_config.MoeFfn,
        *,
        compute_dtype: np.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        width, hidden = config.width, ffn.width
        stack = (ffn.num_groups, ffn.num_experts // ffn.num_groups)
        out_std = config.init_std / np.sqrt(2 * config.num_layers)
        self.router = layers.Linear(
            width,
            ffn.num_experts,
            axes=("embed", None),
            init_std=config.init_std,
            # float32: a bf16 score moves tokens between experts.
            compute_dtype=np.dtype(np.float32),
            rngs=rngs,
        )
        expert = functools.partial(ExpertKernel, rngs=rngs)
        self.gate_proj = expert(
            (*stack, width, hidden), axes=("embed", "mlp"), init_std=config.init_std
        )
        self.up_proj = expert(
            (*stack, width, hidden), axes=("embed", "mlp"), init_std=config.init_std
        )
        self.down_proj = expert((*stack, hidden, width), axes=("mlp", "embed"), init_std=out_std)
        self.top_k = ffn.top_k
        self.compute_dtype = compute_dtype

    def __call__(
        self, x: Float[Array, "B T D"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        """Apply the layer; the experts have no dropout."""
        del dropout_key
        weights = router_weights(self.router(x), self.top_k)
        kernels = tuple(
            module.flat(self.compute_dtype)
            for module in (self.gate_proj, self.up_proj, self.down_proj)
        )

        def add_expert(
            total: Float[Array, "B T D"], expert: tuple
        ) -> tuple[Float[Array, "B T D"], None]:
            weight, gate_kernel, up_kernel, down_kernel = expert
            hidden = jax.nn.silu(layers.project(x, gate_kernel)) * layers.project(x, up_kernel)
            hidden = sharding.constrain(hidden, ("batch", "sequence", "mlp"))
            out = layers.project(hidden, down_kernel)
            # float32: top_k outputs add up, in an order that must not matter.
            return total + out.astype(jnp.float32) * weight[..., None], None

        zero = jnp.zeros(x.shape, jnp.float32)
        by_expert = jnp.moveaxis(weights, -1, 0)
        total, _ = jax.lax.scan(add_expert, zero, (by_expert, *kernels))
        return total.astype(x.dtype)


def router_weights(scores: Float[Array, "B T E"], top_k: int) -> Float[Array, "B T E"]:
    """Return each expert's weight for each token: softmax, then 1 in sum over the best `top_k`."""
    probabilities = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
    chosen, experts = jax.lax.top_k(probabilities, top_k)
    chosen = chosen / jnp.sum(chosen, axis=-1, keepdims=True)
    one_hot = jax.nn.one_hot(experts, scores.shape[-1], dtype=jnp.float32)  # [B, T, k, E]
    return jnp.einsum("btk,btke->bte", chosen, one_hot)
