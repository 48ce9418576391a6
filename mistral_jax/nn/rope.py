"""Rotary positions in the rotate-half form of Hugging Face checkpoints (arXiv:2104.09864).

Computed from explicit positions, so that packed documents each start at 0; once a step, for all
layers. YaRN (arXiv:2309.00071) changes the frequencies and scales the tables, log scaling lets
queries grow with their position.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax.config import model as model_config


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotary:
    """What positions do to queries and keys, in float32.

    Attributes:
        cosine, sine: [B, T, rotary width / 2].
        query_scale: [B, T], or None where queries are not scaled.
    """

    cosine: Float[Array, "B T half"]
    sine: Float[Array, "B T half"]
    query_scale: Float[Array, "B T"] | None = None

    def rotate_query(self, q: Float[Array, "B T H Q"]) -> Float[Array, "B T H Q"]:
        """Rotate and scale every query head; the result has q's dtype."""
        wide = self._rotated(q)
        if self.query_scale is not None:
            wide = wide * self.query_scale[:, :, None, None]
        return wide.astype(q.dtype)

    def rotate_key(self, k: Float[Array, "B T K Q"]) -> Float[Array, "B T K Q"]:
        """Rotate every key head; the result has k's dtype."""
        return self._rotated(k).astype(k.dtype)

    def scale_query(self, q: Float[Array, "B T H Q"]) -> Float[Array, "B T H Q"]:
        """Scale query channels that do not rotate; the result has q's dtype."""
        if self.query_scale is None:
            return q
        return (q.astype(jnp.float32) * self.query_scale[:, :, None, None]).astype(q.dtype)

    def _rotated(self, x: Float[Array, "B T H Q"]) -> Float[Array, "B T H Q"]:
        cosine, sine = self.cosine[:, :, None, :], self.sine[:, :, None, :]
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate(
            [first * cosine - second * sine, second * cosine + first * sine], axis=-1
        )


def rotary(
    positions: Int[Array, "B T"],
    rope: model_config.Rope,
    query_scaling: model_config.QueryScaling,
    rotary_width: int,
) -> Rotary:
    """Return the tables of these positions.

    Args:
        positions: from 0 in each document.
        rope: base, and how it is stretched.
        query_scaling: how queries grow with the position.
        rotary_width: channels of a head that rotate; even.
    """
    frequencies, gain = rotary_frequencies(rope, rotary_width)
    # float32: position times frequency in bf16 is wrong by whole turns past a few hundred.
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    scale = None
    if query_scaling.kind == "log":
        periods = jnp.floor(positions.astype(jnp.float32) / query_scaling.period)
        # Padding in front of a cache has negative positions; nobody reads its queries.
        scale = 1.0 + query_scaling.beta * jnp.log1p(jnp.maximum(periods, 0.0))
    return Rotary(jnp.cos(angles) * gain, jnp.sin(angles) * gain, scale)


def rotary_frequencies(
    rope: model_config.Rope, rotary_width: int
) -> tuple[Float[np.ndarray, " half"], float]:
    """Return radians per position for each pair of channels, and the gain on the tables."""
    exponents = np.arange(0, rotary_width, 2, dtype=np.float64) / rotary_width
    frequencies = rope.theta**-exponents
    if rope.kind == "default":
        return frequencies.astype(np.float32), 1.0
    # A pair of channels that turns more than beta_fast times over the original length keeps its
    # frequency, one that turns less than beta_slow times is slowed by `factor`, in between a ramp
    # over the channel's index.
    first, last = (
        _pair_with_turns(turns, rope, rotary_width) for turns in (rope.beta_fast, rope.beta_slow)
    )
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_width - 1)
    ramp = (np.arange(rotary_width // 2) - first) / max(last - first, 1e-3)
    slowed = np.clip(ramp, 0.0, 1.0)
    frequencies = frequencies * (1 - slowed) + frequencies / rope.factor * slowed
    return frequencies.astype(np.float32), _yarn_gain(rope)


def _pair_with_turns(turns: float, rope: model_config.YarnRope, rotary_width: int) -> float:
    """Return the (fractional) index of the pair that turns so often over the original length."""
    wavelength = rope.original_max_positions / (turns * 2 * math.pi)
    return rotary_width * math.log(wavelength) / (2 * math.log(rope.theta))


def _yarn_gain(rope: model_config.YarnRope) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return log_gain(rope.factor, rope.mscale) / log_gain(rope.factor, rope.mscale_all_dim)
    return log_gain(rope.factor, 1.0)


def score_gain(rope: model_config.Rope) -> float:
    """Return YaRN's factor on latent attention's scores (DeepSeek-V2): 1 without `mscale_all_dim`.

    Where only a part of a head's channels rotates, the gain on cosines and sines does not reach
    the others; it cancels there, and the whole score is scaled instead.
    """
    if rope.kind != "yarn" or not rope.mscale_all_dim:
        return 1.0
    return log_gain(rope.factor, rope.mscale_all_dim) ** 2


def log_gain(factor: float, mscale: float) -> float:
    """Return YaRN's gain for a context `factor` times longer, 0.1 mscale ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
