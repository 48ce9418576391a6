"""Splash attention on a mesh: each device its own rows and heads, and a TPU can compile it.

The numbers come from interpret mode; that the real kernel lowers is asked of the compiler, which
needs no TPU for it.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.config import stage as stage_config
from mistral_jax.models import decoder
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import masks
from mistral_jax.nn.kernels import splash
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib

pytestmark = pytest.mark.sharded

B, T, H, K, Q = 4, 128, 4, 2, 128
# Over rows, over rows and heads, and heads in a number that does not divide the two of the keys.
MESHES = ({"fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "tensor": 4})


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_mesh_gives_the_numbers_of_one_device(sizes: dict[str, int]) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (B, T, heads, Q), jnp.float32)
        for key, heads in zip(keys, (H, K, K), strict=True)
    )
    positions = jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1))
    segments = 1 + (positions >= jnp.arange(30, 30 + B)[:, None]).astype(jnp.int32)
    spec = masks.row_spec(positions, segments, reach=50)
    spec = dataclasses.replace(spec, has_logsumexp=True)
    call = jax.jit(functools.partial(splash.attend, scale=0.1, is_interpreted=True))
    expected = call(q, k, v, spec)
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    mesh = sharding.make_mesh(sizes, devices)
    rows = sharding.named(("batch", None, None, None), q.shape, mesh)
    with jax.set_mesh(mesh):
        found = call(*(jax.device_put(each, rows) for each in (q, k, v)), spec)
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_a_training_step_on_a_slice_lowers_for_tpu() -> None:
    shape = model_config.DecoderConfig(
        num_layers=2, width=128, num_heads=2, num_kv_heads=1, head_width=128, vocab_size=256,
        ffn=model_config.DenseFfn(width=128), rope=model_config.DefaultRope(theta=1e4),
        max_positions=T,
    )  # fmt: skip
    runtime = decoder.Runtime(jnp.dtype("bfloat16"), attention="splash", remat="full")
    definition = definition_lib.define(shape, runtime=runtime)
    mesh = sharding.make_mesh({"fsdp": 8})
    optimizer = optimizer_config.AdamW.model_validate_json(
        json.dumps({"learning_rate": 1e-3, "max_steps": 4})
    )
    made = optimizers.make_optimizer(optimizer)
    params = definition_lib.initialise(definition, rng.seed_key(0), mesh)
    state = state_lib.create(params, made, 0, mesh, definition.shardings(mesh))
    ones = np.ones((2, 8, T), np.int32)
    names = ("tokens", "targets", "loss_weights", "positions", "segment_ids")
    batch = {name: jax.device_put(ones, sharding.micro_batch_sharding(mesh)) for name in names}
    train_step = step_lib.make_train_step(
        definition, stage_config.LmStage(), made, optimizers.learning_rate(optimizer)
    )
    with jax.set_mesh(mesh):
        lowered = train_step.trace(state, {}, batch).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()
