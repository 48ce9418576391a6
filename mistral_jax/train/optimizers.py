"""Optimizers and schedules from their configuration, on optax. No own update rule.

State lies under the parameters' paths, so that it is sharded as they are.
"""

import math
from collections.abc import Callable
from typing import Any
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.train import eight_bit

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
                progress = jnp.clip((step - warmup) / max(config.num_steps - warmup, 1), 0.0, 1.0)
                return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
            case optimizer_config.WsdSchedule(decay_fraction=fraction, final_fraction=final):
                steps_left = config.num_steps - step
                decay_steps = max(fraction * config.num_steps, 1e-9)
                return 1 - (1 - final) * jnp.clip(1 - steps_left / decay_steps, 0.0, 1.0)
            case optimizer_config.ConstantSchedule():
                return jnp.float32(1.0)

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        warming = (step + 1) / max(warmup, 1)
        return peak * jnp.where(step < warmup, warming, decayed(step))

    return cast(optax.Schedule, schedule)


def make_optimizer(config: optimizer_config.Optimizer) -> optax.GradientTransformation:
    """Return clipping and the update rule, as configured."""
    clip = (
        optax.identity()
        if config.max_grad_norm is None
        else optax.clip_by_global_norm(config.max_grad_norm)
    )
    match config:
        case optimizer_config.AdamW():
            rule = _decayed(_adam(config), config)
        case optimizer_config.Muon():
            rule = optax.partition(
                {
                    "matrix": _decayed(_muon(config), config),
                    "other": _decayed(_adam(config), config),
                },
                lambda params: {
                    path: "matrix" if optimizer_config.is_hidden_matrix(path) else "other"
                    for path in params
                },
            )
        case optimizer_config.Adafactor():
            rule = _decayed(_adafactor(config), config)
    if config.b_learning_rate_ratio != 1:
        return optax.chain(clip, rule, _faster_b(config.b_learning_rate_ratio))
    return optax.chain(clip, rule)


def _faster_b(ratio: float) -> optax.GradientTransformation:
    """Return a factor on the updates of adapters' B, their decay included: LoRA+."""

    def scale(updates: dict[str, Array], params: Any = None) -> dict[str, Array]:
        del params
        return {
            path: update * ratio if path.endswith("/lora_b") else update
            for path, update in updates.items()
        }

    return optax.stateless(scale)


def is_decayed(params: dict) -> dict[str, bool]:
    """Return, by path, which parameters weight decay acts on."""
    return {path: path.rpartition("/")[2] in DECAYED_NAMES for path in params}


def with_state_on_host(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return a transformation whose state waits in host memory between its updates.

    The step's output shardings put it there (state.on_host); here it comes to the device.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return inner.update(updates, jax.device_put(state, jax.memory.Space.Device), params)

    return optax.GradientTransformation(inner.init, update)


def _decayed(
    direction: optax.GradientTransformation, config: optimizer_config.Optimizer
) -> optax.GradientTransformation:
    """Return a direction with decoupled weight decay, times the learning rate."""
    return optax.chain(
        direction,
        optax.add_decayed_weights(config.weight_decay, mask=is_decayed),
        optax.scale_by_learning_rate(learning_rate(config)),
    )


def _adam(
    config: optimizer_config.AdamW | optimizer_config.Muon,
) -> optax.GradientTransformation:
    if isinstance(config, optimizer_config.AdamW) and config.moments == "int8":
        return eight_bit.scale_by_adam(config)
    inner = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)
    return _stored(inner, config.moments, ("mu", "nu"))


def _adafactor(config: optimizer_config.Adafactor) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=config.decay_exponent,
            min_dim_size_to_factor=optimizer_config.MIN_FACTORED_SIZE,
        ),
        _per_matrix(optax.clip_by_block_rms(config.max_update_rms)),
    )


def _muon(config: optimizer_config.Muon) -> optax.GradientTransformation:
    """Return momentum, Newton-Schulz matrix by matrix, and one size of update for all shapes.

    Newton-Schulz runs where the momentum lies: a matrix that is split over devices is not
    gathered, its products are summed over them.
    """
    momentum = optax.trace(decay=config.momentum, nesterov=True)
    # Without a momentum of its own this is Newton-Schulz alone; what it keeps is thrown away.
    newton_schulz = optax.contrib.scale_by_muon(
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(),
    )

    def resize(updates: Any, params: Any = None) -> Any:
        del params
        # arXiv:2502.16982, section 2.2.
        return jax.tree.map(
            lambda leaf: leaf * (config.update_rms * math.sqrt(max(leaf.shape[-2:]))), updates
        )

    return optax.chain(
        _stored(momentum, config.moments, ("trace",)),
        _per_matrix(newton_schulz),
        optax.stateless(resize),
    )


def _per_matrix(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return a transformation without memory, applied to each matrix of a stack by itself.

    Layers go one after the other, so that one layer's temporaries live at a time. Axes are mapped
    and not merged: a merged axis that is split over devices would have to be gathered.
    """

    def alone(update: Array) -> Array:
        return cast(Array, inner.update(update, inner.init(update), update)[0])

    def stack(update: Array) -> Array:
        if update.ndim <= 2:
            return alone(update)
        mapped: Callable[[Array], Array] = alone
        for _ in range(update.ndim - 3):
            mapped = jax.vmap(mapped)
        return jax.lax.map(mapped, update)

    return optax.stateless(lambda updates, params=None: jax.tree.map(stack, updates))


def _stored(
    inner: optax.GradientTransformation, dtype: str, fields: tuple[str, ...]
) -> optax.GradientTransformation:
    """Return a transformation that computes in float32 and keeps these fields in `dtype`."""
    if dtype == "float32":
        return inner

    def cast_fields(state: Any, target: Any) -> Any:
        trees = {name: optax.tree.cast(getattr(state, name), target) for name in fields}
        return state._replace(**trees)

    def init(params: Any) -> Any:
        return cast_fields(inner.init(params), dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(updates, cast_fields(state, jnp.float32), params)
        return updates, cast_fields(state, dtype)

    return optax.GradientTransformation(init, update)
