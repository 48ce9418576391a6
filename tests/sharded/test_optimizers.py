"""Every update rule on a mesh: the numbers of one device, and a state that lies as its parameters.

Only the optimizers run here, on a mixture's shapes; tests/sharded/test_training_step.py runs steps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mistral_jax import sharding
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib

pytestmark = pytest.mark.sharded

AXES = {
    "embed/embedding": ("vocab", "embed"),
    "layers/mlp_norm/scale": ("layer", "norm"),
    "layers/attention/q_proj/kernel": ("layer", "embed", "heads"),
    "layers/mlp/gate_proj/kernel": ("layer", "group", "expert", "expert_embed", "mlp"),
    "layers/mlp/down_proj/kernel": ("layer", "group", "expert", "mlp", "expert_embed"),
}
SHAPES = {
    "embed/embedding": (160, 128),
    "layers/mlp_norm/scale": (2, 128),
    "layers/attention/q_proj/kernel": (2, 128, 136),
    "layers/mlp/gate_proj/kernel": (2, 2, 2, 128, 136),
    "layers/mlp/down_proj/kernel": (2, 2, 2, 136, 128),
}
COMMON = {
    "learning_rate": 0.01, "max_steps": 10, "weight_decay": 0.1,
    "schedule": optimizer_config.ConstantSchedule(),
}  # fmt: skip
OPTIMIZERS = {
    "adamw": optimizer_config.AdamW(**COMMON, moments="bfloat16"),
    "adamw_int8": optimizer_config.AdamW(**COMMON, moments="int8"),
    "muon": optimizer_config.Muon(**COMMON),
    "adafactor": optimizer_config.Adafactor(**COMMON),
}
MESHES = ({"fsdp": 2, "expert": 2, "tensor": 2}, {"fsdp": 8}, {"fsdp": 2, "expert": 4})


def draw(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {path: generator.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def run(kind: str, sizes: dict[str, int]) -> state_lib.TrainState:
    """Return the state after two updates on a mesh."""
    optimizer = optimizers.make_optimizer(OPTIMIZERS[kind])
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    mesh = sharding.make_mesh(sizes, devices)
    lies = {path: sharding.named(AXES[path], shape, mesh) for path, shape in SHAPES.items()}
    state = state_lib.create(jax.device_put(draw(0), lies), optimizer, 0, mesh, lies)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

    def step(state: state_lib.TrainState, gradients: dict) -> state_lib.TrainState:
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state_lib.TrainState(state.step + 1, params, opt_state, state.key_data)

    with jax.set_mesh(mesh):
        jitted = jax.jit(step, out_shardings=shardings)
        for seed in (1, 2):
            state = jitted(state, jax.device_put(draw(seed), lies))
    return state


@functools.cache
def on_one_device(kind: str) -> state_lib.TrainState:
    return jax.tree.map(np.asarray, run(kind, {}))


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_mesh_gives_the_numbers_of_one_device(kind: str, sizes: dict[str, int]) -> None:
    found, expected = run(kind, sizes), on_one_device(kind)
    for (path, left), right in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        # One unit in the last place of bfloat16 moments, whose sums round differently.
        atol = 1e-2 if left.dtype == jnp.bfloat16 else 1e-5
        left, right = np.asarray(left, np.float32), np.asarray(right, np.float32)
        np.testing.assert_allclose(left, right, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_no_large_part_of_the_state_is_whole_on_a_device(kind: str) -> None:
    state = run(kind, {"fsdp": 2, "expert": 2, "tensor": 2})
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        if leaf.size > max(SHAPES["layers/mlp_norm/scale"]) * 2:
            name = jax.tree_util.keystr(path)
            assert not leaf.sharding.is_fully_replicated, (name, leaf.shape)
