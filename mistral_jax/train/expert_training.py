"""What a training step does for a mixture's balance: losses, moved biases, figures to look at."""

import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float

from mistral_jax.config import model as model_config
from mistral_jax.config import stage as stage_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import routing

BIAS_PATH = "layers/mlp/router/bias"
OVERFLOW = "expert_overflow"


class ExpertOverflow(ValueError):
    """Tokens found no room on their experts' device, and the run is not to drop any."""

    exit_code = 1


def balance_loss(
    aux: routing.Aux | None, training: stage_config.ExpertTraining, num_tokens: Float[Array, ""]
) -> Float[Array, ""] | float:
    """Return the weighted balance and z losses: means over tokens, summed over layers.

    Args:
        aux: of one micro batch, layers stacked; None in a dense model.
        training: the weights.
        num_tokens: of the whole global batch, so that micro batches add up to one big batch.
    """
    if aux is None:
        return 0.0
    total = 0.0
    if training.sequence_loss:
        total += training.sequence_loss * jnp.sum(aux.sequence_loss) / num_tokens
    if training.z_loss:
        total += training.z_loss * jnp.sum(aux.z_loss) / num_tokens
    return total


def moved_biases(
    params: definition_lib.Params,
    aux: routing.Aux | None,
    config: model_config.DecoderConfig,
    training: stage_config.ExpertTraining,
) -> definition_lib.Params:
    """Return the routers' biases after the step, where they train; else nothing.

    The counts are those of the global batch: moved by micro batch or shard, a bias would forbid
    experts to specialise.
    """
    if aux is None or BIAS_PATH not in params or not training.bias_rate:
        return {}
    moved = routing.moved_bias(
        params[BIAS_PATH], aux.counts, num_groups=config.ffn.num_groups, rate=training.bias_rate
    )
    return {BIAS_PATH: moved}


def routing_metrics(
    aux: routing.Aux | None, config: model_config.DecoderConfig
) -> dict[str, Float[Array, ""]]:
    """Return the figures of a mixture; nothing for a dense model.

    expert_load: of the busiest expert against the mean of its group, the worst of all layers;
    expert_idle: share of experts that no token chose; router_balance: the balance loss per token
    and layer, 1 when even; expert_overflow: assignments without room; group_share: of each group.
    """
    if aux is None:
        return {}
    ffn = config.ffn
    grouped = aux.counts.reshape(-1, ffn.num_groups, ffn.group_size)  # [L, G, n]
    mean = jnp.mean(grouped, axis=-1, keepdims=True)
    tokens = jnp.maximum(jnp.sum(aux.num_tokens), 1.0)
    metrics = {
        "expert_load": jnp.max(grouped / jnp.maximum(mean, 1e-9)),
        "expert_idle": jnp.mean((grouped == 0).astype(jnp.float32)),
        "router_balance": jnp.sum(aux.sequence_loss) / tokens,
        "router_z": jnp.sum(aux.z_loss) / tokens,
        OVERFLOW: jnp.sum(aux.overflow),
    }
    if ffn.num_groups > 1:
        shares = jnp.sum(grouped, axis=(0, 2)) / jnp.maximum(jnp.sum(grouped), 1.0)
        names = ffn.group_names or tuple(map(str, range(ffn.num_groups)))
        metrics |= {f"group_share_{name}": shares[i] for i, name in enumerate(names)}
    return metrics
