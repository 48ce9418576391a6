"""Training steps whose rows several devices share: the losses and parameters of one device."""

import functools

import jax
import numpy as np
import pytest

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.config import stage as stage_config
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import context_parallel
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib
from tests import tiny
from tests.sharded import tiny_training

pytestmark = pytest.mark.sharded

LATENT = model_config.LatentAttention(
    query_rank=None, latent_rank=16, content_width=8, rotary_width=4, value_width=8
)
MODELS = {
    "grouped": tiny.decoder(64, attention=model_config.WindowAttention(window=6)),
    "latent": tiny.decoder(64, attention=LATENT, num_kv_heads=4, head_width=12),
}


def run(kind: str, sizes: dict[str, int], context: str) -> tuple[list[float], dict]:
    """Return losses and parameters after three steps."""
    mesh = sharding.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    runtime = decoder_lib.Runtime(context=context, remat="full")
    definition = definition_lib.define(MODELS[kind], runtime=runtime)
    optimizer = optimizers.make_optimizer(tiny_training.OPTIMIZER)
    params = definition_lib.initialise(definition, rng.seed_key(0), mesh)
    state = state_lib.create(params, optimizer, 0, mesh, definition.shardings(mesh))
    train_step = step_lib.make_train_step(
        definition, stage_config.LmStage(z_loss=1e-4), optimizer,
        optimizers.learning_rate(tiny_training.OPTIMIZER),
        state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    )  # fmt: skip
    losses = []
    with jax.set_mesh(mesh):
        for number in range(3):
            arrays = tiny_training.batch(number, 1)
            arrays = {
                name: context_parallel.reordered(array, mesh) for name, array in arrays.items()
            }
            state, metrics = train_step(state, {}, tiny_training.place(arrays, mesh))
            losses.append(float(metrics["loss"]))
    return losses, jax.tree.map(np.asarray, state.params)


@functools.cache
def on_one_device(kind: str) -> tuple[list[float], dict]:
    return run(kind, {}, "all_gather")


@pytest.mark.parametrize(
    ("kind", "sizes", "context"),
    [
        ("grouped", {"fsdp": 2, "context": 4}, "ring"),
        ("latent", {"tensor": 2, "context": 2}, "all_gather"),
    ],
)
def test_three_steps_equal_those_of_one_device(
    kind: str, sizes: dict[str, int], context: str
) -> None:
    losses, params = run(kind, sizes, context)
    expected, expected_params = on_one_device(kind)
    np.testing.assert_allclose(losses, expected, atol=2e-5)
    for path, right in expected_params.items():
        np.testing.assert_allclose(params[path], right, atol=2e-5, err_msg=path)
