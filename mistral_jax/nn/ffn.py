"""The feed-forward slot: SwiGLU (arXiv:2002.05202), or a mixture of them (nn/moe.py)."""

import functools

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import PRNGKeyArray

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.nn import layers
from mistral_jax.nn import moe


def feed_forward(
    config: model_config.DecoderConfig, *, compute_dtype: np.dtype, rngs: nnx.Rngs
) -> "SwiGlu | moe.MoeSwiGlu":
    """Return the layer's member of the slot."""
    if config.ffn.kind == "moe":
        return moe.MoeSwiGlu(config, config.ffn, compute_dtype=compute_dtype, rngs=rngs)
    return SwiGlu(config, compute_dtype=compute_dtype, rngs=rngs)


class SwiGlu(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(
        self, config: model_config.DecoderConfig, *, compute_dtype: np.dtype, rngs: nnx.Rngs
    ) -> None:
        width, hidden = config.width, config.ffn.width
        linear = functools.partial(layers.Linear, compute_dtype=compute_dtype, rngs=rngs)
        into = functools.partial(linear, axes=("embed", "mlp"), init_std=config.init_std)
        self.gate_proj = into(width, hidden)
        self.up_proj = into(width, hidden)
        out_std = config.init_std / np.sqrt(2 * config.num_layers)
        self.down_proj = linear(hidden, width, axes=("mlp", "embed"), init_std=out_std)

    def __call__(
        self, x: Float[Array, "B T D"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        """Apply the layer."""
        keys = [None if dropout_key is None else rng.counter_key(dropout_key, i) for i in range(3)]
        gate = jax.nn.silu(self.gate_proj(x, dropout_key=keys[0]))
        hidden = gate * self.up_proj(x, dropout_key=keys[1])
        hidden = sharding.constrain(hidden, ("batch", "sequence", "mlp"))
        return self.down_proj(hidden, dropout_key=keys[2])
