"""Rotary positions in the rotate-half form of Hugging Face checkpoints (arXiv:2104.09864).

Computed from explicit positions, so that packed documents each start at 0.
"""

import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax.config import model as model_config


def rotary_tables(
    positions: Int[Array, "B T"], rope: model_config.DefaultRope, head_width: int
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Return cosines and sines for half the head width, in float32."""
    exponents = jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width
    frequencies = 1.0 / (rope.theta**exponents)
    # float32: position times frequency in bf16 is wrong by whole turns past a few hundred.
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T H Q"],
    tables: tuple[Float[Array, "B T half"], Float[Array, "B T half"]],
) -> Float[Array, "B T H Q"]:
    """Rotate every head of queries or keys; the result has x's dtype."""
    cosine, sine = (table[:, :, None, :] for table in tables)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
    return rotated.astype(x.dtype)
