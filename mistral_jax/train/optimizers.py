"""Optimizers and schedules from their configuration, on optax. No own update rule."""

from typing import cast

import jax.numpy as jnp
import optax
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax.config import optimizer as optimizer_config

# Weight decay spares norms, biases and embeddings, as GPT-3 and its successors do.
DECAYED_NAMES = ("kernel", "lora_a", "lora_b")


def learning_rate(config: optimizer_config.Optimizer) -> optax.Schedule:
    """Return the learning rate as a function of the step, counted from 0.

    The warm-up ends at its peak: step `warmup_steps - 1` already has the full rate, and step 0
    is never wasted on a rate of zero.
    """
    peak, warmup = config.learning_rate, config.warmup_steps

    def decayed(step: Int[Array, ""]) -> Float[Array, ""]:
        match config.schedule:
            case optimizer_config.CosineSchedule(final_fraction=final):
                progress = jnp.clip((step - warmup) / max(config.max_steps - warmup, 1), 0.0, 1.0)
                return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
            case optimizer_config.WsdSchedule(decay_fraction=fraction, final_fraction=final):
                steps_left = config.max_steps - step
                decay_steps = max(fraction * config.max_steps, 1e-9)
                return 1 - (1 - final) * jnp.clip(1 - steps_left / decay_steps, 0.0, 1.0)
            case optimizer_config.ConstantSchedule():
                return jnp.float32(1.0)

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        warming = (step + 1) / max(warmup, 1)
        return peak * jnp.where(step < warmup, warming, decayed(step))

    return cast(optax.Schedule, schedule)


def make_optimizer(config: optimizer_config.Optimizer) -> optax.GradientTransformation:
    """Return clipping and AdamW, as configured."""
    clip = (
        optax.identity()
        if config.max_grad_norm is None
        else optax.clip_by_global_norm(config.max_grad_norm)
    )
    adamw = optax.adamw(
        learning_rate(config),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=is_decayed,
    )
    return optax.chain(clip, adamw)


def is_decayed(params: dict) -> dict[str, bool]:
    """Return, by path, which parameters weight decay acts on."""
    return {path: path.rpartition("/")[2] in DECAYED_NAMES for path in params}
