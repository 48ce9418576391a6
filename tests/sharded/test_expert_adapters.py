"""Adapters on several devices: experts' and DoRA's, with the numbers of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import sharding
from mistral_jax.adapters import lora
from mistral_jax.config import model as model_config
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import expert_parallel
from tests import tiny

pytestmark = pytest.mark.sharded

MIXTURE = model_config.MoeFfn(width=16, num_experts=8, num_groups=2, top_k=2, num_shared_experts=1)
CASES = {
    "experts": (
        tiny.decoder(61, ffn=MIXTURE, init_std=0.2),
        model_config.LoraAdapter(rank=2, alpha=4.0),
    ),
    "dora": (
        tiny.decoder(61, init_std=0.2, qkv_bias=True),
        model_config.DoraAdapter(rank=2, alpha=4.0),
    ),
}
MESHES = {
    "expert 4 tensor 2": {"expert": 4, "tensor": 2},
    "expert 2 fsdp 2 tensor 2": {"expert": 2, "fsdp": 2, "tensor": 2},
    "fsdp 4 tensor 2": {"fsdp": 4, "tensor": 2},
}


@functools.cache
def definition_of(name: str, implementation: str = "blocks") -> definition_lib.Definition:
    config, adapter = CASES[name]
    placement = expert_parallel.Placement(implementation, buffer_factor=float("inf"))
    runtime = decoder_lib.Runtime(experts=placement)
    return definition_lib.define(config, adapter=adapter, runtime=runtime)


@functools.cache
def numbers(name: str) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        path: (generator.normal(size=leaf.shape) * 0.2 + path.endswith(("scale", lora.MAGNITUDE)))
        .astype(np.float32)
        for path, leaf in definition_of(name).shapes.items()
    }  # fmt: skip


def loss_and_gradients(
    name: str, mesh: jax.sharding.Mesh, implementation: str = "blocks"
) -> tuple[float, dict[str, np.ndarray]]:
    definition = definition_of(name, implementation)
    shardings = definition.shardings(mesh)
    params = {path: jax.device_put(value, shardings[path]) for path, value in numbers(name).items()}
    trained = {path: params.pop(path) for path in definition.trainable_paths()}
    tokens = np.random.default_rng(1).integers(0, 61, (8, 6), np.int32)

    @jax.jit
    def run(trained, frozen, tokens):
        def loss(trained):
            model = definition.bind(frozen | trained)
            positions = jnp.broadcast_to(jnp.arange(6, dtype=jnp.int32), tokens.shape)
            return jnp.mean(jnp.square(model.logits(model.hidden(tokens, positions)[0])))

        return jax.value_and_grad(loss)(trained)

    with jax.set_mesh(mesh):
        placed = jax.device_put(tokens, sharding.named(("batch", "sequence"), tokens.shape, mesh))
        loss, gradients = run(trained, params, placed)
    return float(loss), {path: np.asarray(value) for path, value in gradients.items()}


@functools.cache
def on_one_device(name: str) -> tuple[float, dict[str, np.ndarray]]:
    return loss_and_gradients(name, sharding.single_device_mesh())


@pytest.mark.parametrize(
    ("name", "mesh", "implementation"),
    [
        ("experts", "expert 4 tensor 2", "blocks"),
        ("experts", "expert 2 fsdp 2 tensor 2", "ragged"),
        ("dora", "fsdp 4 tensor 2", "blocks"),
    ],
)
def test_loss_and_gradients_are_those_of_one_device(
    name: str, mesh: str, implementation: str
) -> None:
    sizes = dict.fromkeys(sharding.MESH_AXES, 1) | MESHES[mesh]
    loss, gradients = loss_and_gradients(
        name, sharding.make_mesh(sizes, jax.devices()[:8]), implementation
    )
    expected_loss, expected = on_one_device(name)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for path, gradient in expected.items():
        assert np.abs(gradient).max() > 0, path
        limit = 1e-5 * max(1.0, float(np.abs(gradient).max()))
        np.testing.assert_allclose(gradients[path], gradient, atol=limit, err_msg=path)
