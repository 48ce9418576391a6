"""The `lm` stage: next-token loss over the tokens that carry weight (pretraining and SFT)."""

import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import PRNGKeyArray

from mistral_jax.config import stage as stage_config
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.nn import loss as loss_lib
from mistral_jax.nn import routing

BatchArrays = dict[str, Array]


def loss_sum(
    model: decoder_lib.Decoder,
    batch: BatchArrays,
    stage: stage_config.LmStage,
    *,
    is_head_trained: bool,
    dropout_key: PRNGKeyArray | None,
) -> tuple[Float[Array, ""], routing.Aux | None]:
    """Return the weighted sum of token losses of one micro batch, in nats, float32, and routing.

    The caller divides by the weights of the whole global batch, so that accumulation over micro
    batches equals one big batch.
    """
    hidden, _, aux = model.hidden(
        batch["tokens"], batch["positions"], batch["segment_ids"], dropout_key=dropout_key
    )
    total = loss_lib.linear_cross_entropy(
        hidden,
        model.head_kernel(),
        batch["targets"],
        batch["loss_weights"].astype(jnp.float32),
        z_loss=stage.z_loss,
        has_kernel_gradient=is_head_trained,
    )
    return total, aux


def row_losses(
    model: decoder_lib.Decoder, batch: BatchArrays
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Return, for each row, the weighted sum of token losses and the sum of weights."""
    hidden, *_ = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    losses = loss_lib.token_losses(hidden, model.head_kernel(), batch["targets"])
    weights = batch["loss_weights"].astype(jnp.float32)
    return jnp.sum(losses * weights, axis=1), jnp.sum(weights, axis=1)
