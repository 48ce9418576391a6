"""Random keys, all of them: pure functions of (seed, purpose, counters).

Nothing is split by host, device or worker, so that the draws of a run depend on its seed and on
the step alone.
"""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Integer
from jaxtyping import PRNGKeyArray


def seed_key(seed: int) -> PRNGKeyArray:
    """Return the root key of a run."""
    return jax.random.key(seed)


def purpose_key(key: PRNGKeyArray, purpose: str) -> PRNGKeyArray:
    """Return the key of a named purpose, such as "init" or "dropout"."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()) & 0x7FFFFFFF)


def counter_key(key: PRNGKeyArray, *counters: Integer[Array, ""] | int) -> PRNGKeyArray:
    """Return the key at the given counters, for instance (step, micro batch, layer)."""
    for counter in counters:
        key = jax.random.fold_in(key, jnp.uint32(counter))
    return key


def counter_keys(key: PRNGKeyArray, count: int) -> list[PRNGKeyArray]:
    """Return the keys at the counters below `count`."""
    return [counter_key(key, index) for index in range(count)]
