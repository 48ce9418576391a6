"""The feed-forward slot: one SwiGLU, or a mixture of them (nn/moe.py)."""

import numpy as np
from flax import nnx
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import PRNGKeyArray

from mistral_jax.config import model as model_config
from mistral_jax.nn import expert_parallel
from mistral_jax.nn import layers
from mistral_jax.nn import moe
from mistral_jax.nn import routing


def feed_forward(
    config: model_config.DecoderConfig,
    ffn: model_config.Ffn,
    *,
    compute_dtype: np.dtype,
    placement: expert_parallel.Placement,
    rngs: nnx.Rngs,
) -> "DenseFeedForward | moe.MoeSwiGlu":
    """Return the layer's member of the slot."""
    if ffn.kind == "moe":
        return moe.MoeSwiGlu(
            config, ffn, compute_dtype=compute_dtype, placement=placement, rngs=rngs
        )
    return DenseFeedForward(
        config.width,
        ffn.width,
        init_std=config.init_std,
        out_std=config.init_std / np.sqrt(2 * config.num_layers),
        compute_dtype=compute_dtype,
        rngs=rngs,
    )


class DenseFeedForward(layers.SwiGlu):
    """A SwiGLU that answers as a mixture does, with nothing to say about routing."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Float[Array, "B T D"],
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        control: routing.Control | None = None,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], None]:
        """Apply the layer."""
        del segment_ids, control
        return super().__call__(x, dropout_key=dropout_key), None
