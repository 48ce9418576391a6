"""Keys are pure functions of seed, purpose and counters, and differ wherever these differ."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from mistral_jax import rng

GOLDEN = (1931865937, 2671785081)


def bits(key: jax.Array) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_keys_repeat_and_differ_by_seed_purpose_and_counter() -> None:
    seen = set()
    for seed, purpose, step, layer in itertools.product(
        (0, 1), ("init", "dropout"), (0, 1, 300), (0, 1)
    ):
        root = rng.purpose_key(rng.seed_key(seed), purpose)
        assert bits(root) == bits(rng.purpose_key(rng.seed_key(seed), purpose))
        seen.add(bits(rng.counter_key(root, step, layer)))
    assert len(seen) == 24


def test_counters_count_one_after_the_other() -> None:
    key = rng.seed_key(0)
    assert bits(rng.counter_key(key, 1, 2)) == bits(rng.counter_key(rng.counter_key(key, 1), 2))
    assert bits(rng.counter_key(key, 1, 2)) != bits(rng.counter_key(key, 2, 1))


def test_a_traced_counter_gives_the_same_key() -> None:
    traced = jax.jit(lambda step: jax.random.key_data(rng.counter_key(rng.seed_key(4), step)))
    assert tuple(np.asarray(traced(jnp.int32(17))).tolist()) == bits(
        rng.counter_key(rng.seed_key(4), 17)
    )


def test_keys_are_the_same_on_every_machine() -> None:
    """Numbers of this test written down once: a change would change every run."""
    key = rng.counter_key(rng.purpose_key(rng.seed_key(7), "dropout"), 3)
    assert bits(key) == GOLDEN
