"""Adam's moments in 8 bits: the dynamic map, blocks that share a scale, and the update on them.

A block is a tile of an array's last two axes (config/optimizer.py), so that codes have their
parameter's shape and sharding, and scales its rank. Source: 8-bit optimizers (arXiv:2110.02861);
the map's values and their order are bitsandbytes'.
"""

import functools
from typing import Any
from typing import NamedTuple
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import UInt8

from mistral_jax.config import optimizer as optimizer_config

# Decades from 1e-6 to 1; decade i has 2**i values of either sign, twice as many without signs.
NUM_DECADES = 7
SIGNED_ZERO = 127
LARGEST_CODE = 255
# A stack of layers this large is updated layer by layer: the moments of one layer at a time are
# in float32. Smaller ones go at once.
MAPPED_SIZE = 1 << 26

Block = tuple[int, int] | None


class Moment(NamedTuple):
    """One array's moment in 8 bits.

    Attributes:
        codes: of the array's shape.
        scales: the largest magnitude of each block, float32, of the array's rank.
    """

    codes: UInt8[Array, "..."]
    scales: Float[Array, "..."]


def dynamic_map(*, is_signed: bool) -> Float[np.ndarray, " 256"]:
    """Return the 256 values in order of their codes: from -1 or 0, to 1."""
    decades = []
    for decade in range(NUM_DECADES):
        count = _counts(is_signed)[decade]
        fractions = 0.1 + 0.9 * (np.arange(count) + 0.5) / count
        decades.append(10.0 ** (decade - NUM_DECADES + 1) * fractions)
    positive = np.concatenate(decades)
    below = -positive[::-1] if is_signed else []
    return np.concatenate([below, [0.0], positive, [1.0]]).astype(np.float32)


def _counts(is_signed: bool) -> list[int]:
    return [1 << (decade + (0 if is_signed else 1)) for decade in range(NUM_DECADES)]


def encode(x: Float[Array, "..."], *, is_signed: bool) -> UInt8[Array, "..."]:
    """Return the code of the nearest value; x lies in [-1, 1], or in [0, 1] without a sign.

    By arithmetic, for a search of 256 values is a gather. A positive number without a sign never
    becomes 0: a second moment of 0 under a first one that is not would make an unbounded update.
    """
    size = jnp.abs(x)
    counts = _counts(is_signed)
    decade = jnp.zeros(x.shape, jnp.int32)
    for number in range(NUM_DECADES - 1):
        # Between the last value of this decade and the first one of the next.
        edge = 10.0 ** (number - NUM_DECADES + 1) * (1 + 0.9 / counts[number])
        decade += size > edge
    count = jnp.left_shift(counts[0], decade)
    place = (size * _power_of_ten(NUM_DECADES - 1 - decade) - 0.1) / 0.9 * count
    place = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, count - 1)
    number = count - counts[0] + 1 + place  # from 1: the decades before have this many
    table = dynamic_map(is_signed=is_signed)
    number = jnp.where(size > (float(table[-2]) + 1) / 2, _last(is_signed), number)
    smallest = float(table[SIGNED_ZERO + 1 if is_signed else 1])
    is_zero = size < smallest / 2 if is_signed else size <= 0
    number = jnp.where(is_zero, 0, number)
    if is_signed:
        # There is no -1: the most negative value stands for it.
        negative = jnp.minimum(number, _last(is_signed) - 1)
        number = SIGNED_ZERO + jnp.where(x < 0, -negative, number)
    return number.astype(jnp.uint8)


def _last(is_signed: bool) -> int:
    return LARGEST_CODE - (SIGNED_ZERO if is_signed else 0)


def _power_of_ten(exponent: Int[Array, "..."]) -> Float[Array, "..."]:
    """Return 10**exponent for exponents from -6 to 6, to the last bit, without a gather."""
    found = jnp.ones(exponent.shape, jnp.float32)
    for value in range(1, NUM_DECADES):
        found = jnp.where(exponent == value, jnp.float32(10.0**value), found)
        found = jnp.where(exponent == -value, jnp.float32(10.0**-value), found)
    return found


def decode(codes: UInt8[Array, "..."], *, is_signed: bool) -> Float[Array, "..."]:
    """Return the values of codes, `dynamic_map`'s to a rounding of float32."""
    first = _counts(is_signed)[0]
    distance = codes.astype(jnp.int32) - (SIGNED_ZERO if is_signed else 0)
    number = jnp.abs(distance)
    # Numbers of a decade begin at count - first + 1, where count is a power of two.
    shifted = number + first - 1
    decade = jnp.zeros(codes.shape, jnp.int32)
    for power in range(1, NUM_DECADES):
        decade += shifted >= first << power
    count = jnp.left_shift(first, decade)
    fraction = 0.1 + 0.9 * ((shifted - count).astype(jnp.float32) + 0.5) / count
    size = fraction * _power_of_ten(decade - NUM_DECADES + 1)
    size = jnp.where(number == _last(is_signed), 1.0, size)
    return jnp.where(number == 0, 0.0, jnp.where(distance < 0, -size, size))


def quantise(x: Float[Array, "..."], block: tuple[int, int], *, is_signed: bool) -> Moment:
    """Return an array in 8 bits."""
    scales = _block_maximum(jnp.abs(x), block)
    divisor = _spread(jnp.where(scales > 0, scales, 1.0), block)
    return Moment(encode(x / divisor, is_signed=is_signed), scales)


def dequantise(moment: Moment, block: tuple[int, int], *, is_signed: bool) -> Float[Array, "..."]:
    """Return an array in float32."""
    return decode(moment.codes, is_signed=is_signed) * _spread(moment.scales, block)


def _block_maximum(x: Float[Array, "..."], block: tuple[int, int]) -> Float[Array, "..."]:
    shape = optimizer_config.scales_shape(x.shape, block)
    if x.ndim == 1:
        return x.reshape(*shape, block[1]).max(-1)
    tiled = x.reshape(*shape[:-1], block[0], shape[-1], block[1])
    return tiled.max((-3, -1))


def _spread(scales: Float[Array, "..."], block: tuple[int, int]) -> Float[Array, "..."]:
    """Return each block's scale at all of its places."""
    if scales.ndim > 1 and block[0] > 1:
        scales = jnp.repeat(scales, block[0], axis=-2)
    return jnp.repeat(scales, block[1], axis=-1)


def scale_by_adam(config: optimizer_config.AdamW) -> optax.GradientTransformation:
    """Return Adam's direction with moments in 8 bits; it is computed in float32.

    The state is optax's, with a `Moment` for each array that is large enough. Updates use the
    moments before they are rounded.
    """
    inner = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)

    def init(params: Any) -> optax.ScaleByAdamState:
        state = cast(optax.ScaleByAdamState, inner.init(params))
        mu, nu = (
            {
                path: _rounded(moment, _block(path, moment), is_signed)
                for path, moment in tree.items()
            }
            for tree, is_signed in ((cast(dict, state.mu), True), (cast(dict, state.nu), False))
        )
        return state._replace(mu=mu, nu=nu)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        directions, mu, nu = {}, {}, {}
        for path, gradient in updates.items():
            one = functools.partial(_update_array, inner, state.count, _block(path, gradient))
            arrays = (gradient, state.mu[path], state.nu[path])
            is_mapped = gradient.ndim > 2 and gradient.size > MAPPED_SIZE
            updated = jax.lax.map(one, arrays) if is_mapped else one(arrays)
            directions[path], mu[path], nu[path] = updated
        count = optax.safe_increment(state.count)
        return directions, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _update_array(
    inner: optax.GradientTransformation, count: Int[Array, ""], block: Block, arrays: tuple
) -> tuple:
    """Return one array's direction and its rounded moments, from gradient and moments."""
    gradient, mu, nu = arrays
    state = optax.ScaleByAdamState(count, _exact(mu, block, True), _exact(nu, block, False))
    direction, state = inner.update(gradient, cast(optax.OptState, state))
    new = cast(optax.ScaleByAdamState, state)
    return direction, _rounded(new.mu, block, True), _rounded(new.nu, block, False)


def _block(path: str, x: Array) -> Block:
    return optimizer_config.eight_bit_block(path, x.shape)


def _rounded(x: Any, block: Block, is_signed: bool) -> Any:
    return x if block is None else quantise(x, block, is_signed=is_signed)


def _exact(x: Any, block: Block, is_signed: bool) -> Any:
    return x if block is None else dequantise(x, block, is_signed=is_signed)
