"""Numbers that JAX and torch make alike from a name and an index, so that none need to travel.

A 32-bit mixing function (multiply, shift, xor) of the flat index; exact in both, so that a peer has
the same 7B weights without 14 GB of files. The torch twin is peer_scripts/gpu_peer.py.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import UInt32

MULTIPLIERS = (0x7FEB352D, 0x846CA68B)


def salt(name: str) -> np.uint32:
    """Return the number that tells one array from another."""
    return np.uint32(zlib.crc32(name.encode()))


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    first, second = (jnp.uint32(number) for number in MULTIPLIERS)
    x = (x ^ (x >> 16)) * first
    x = (x ^ (x >> 15)) * second
    return x ^ (x >> 16)


@functools.partial(jax.jit, static_argnames=("shape", "scale", "dtype"))
def _values(salts: UInt32[Array, "..."], shape: tuple[int, ...], scale: float, dtype: str) -> Array:
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]

    def one(number: Array) -> Array:
        bits = _mixed(_mixed(index) ^ number) >> 8
        # 24 bits are exact in float32; the uniform distribution on [-1, 1] has variance 1/3.
        unit = bits.astype(jnp.float32) * np.float32(2.0**-23) - np.float32(1)
        return (unit * np.float32(scale * 3**0.5)).astype(dtype)

    return one(salts) if salts.ndim == 0 else jax.vmap(one)(salts)


def array(
    name: str, shape: tuple[int, ...], *, scale: float = 1.0, dtype: np.dtype
) -> Float[Array, "..."]:
    """Return numbers of mean 0 and standard deviation `scale`; fewer than 2^32 of them."""
    return _values(jnp.asarray(salt(name)), shape, scale, np.dtype(dtype).name)


def stack(
    name: str, shape: tuple[int, ...], *, scale: float, dtype: np.dtype
) -> Float[Array, "L ..."]:
    """Return arrays named `name:0`, `name:1`, .. on a leading axis."""
    salts = jnp.asarray([salt(f"{name}:{layer}") for layer in range(shape[0])])
    return _values(salts, shape[1:], scale, np.dtype(dtype).name)
