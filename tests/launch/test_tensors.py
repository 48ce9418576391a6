"""launch/tensors.py: the same parameters, axes and shards as the model itself, without jax."""

import jax
import pytest
from jax.sharding import AbstractMesh

from launch import tensors
from mistral_jax import sharding
from mistral_jax.config import presets
from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.model import DefaultRope
from mistral_jax.config.model import DenseFfn
from mistral_jax.config.model import DoraAdapter
from mistral_jax.config.model import LatentAttention
from mistral_jax.config.model import LoraAdapter
from mistral_jax.config.model import MoeFfn
from mistral_jax.config.model import NoAdapter
from mistral_jax.config.model import SigmoidRouter
from mistral_jax.models import definition as definition_lib


def decoder(**changes):
    fields = {
        "num_layers": 3, "width": 64, "num_heads": 4, "num_kv_heads": 2, "head_width": 16,
        "vocab_size": 128, "ffn": DenseFfn(width=96), "rope": DefaultRope(theta=1e4),
        "max_positions": 64,
    }  # fmt: skip
    return DecoderConfig(**(fields | changes))


LATENT = {
    "num_kv_heads": 4,
    "head_width": 24,
    "attention": LatentAttention(
        query_rank=32, latent_rank=16, content_width=16, rotary_width=8, value_width=12
    ),
}
MIXTURE = MoeFfn(
    width=32, num_experts=8, num_groups=4, groups_per_token=2, top_k=2, router=SigmoidRouter(),
    num_shared_experts=2, num_dense_layers=1, dense_width=48,
)  # fmt: skip
NO_QUERY_RANK = LATENT["attention"].model_copy(update={"query_rank": None})
SHAPES = {
    "dense": decoder(tied_head=True, qkv_bias=True),
    "mixtral": decoder(ffn=MoeFfn(width=32, num_experts=4, top_k=2)),
    "latent": decoder(ffn=MIXTURE, **LATENT),
    "latent without a query rank": decoder(**(LATENT | {"attention": NO_QUERY_RANK})),
}
MESHES = (
    {"data": 2, "fsdp": 2, "expert": 2, "tensor": 2, "context": 2},
    {"data": 1, "fsdp": 8, "expert": 8, "tensor": 1, "context": 1},
    {"data": 1, "fsdp": 3, "expert": 1, "tensor": 4, "context": 16},
    # Too many devices for whole tiles of some rows.
    {"data": 1, "fsdp": 128, "expert": 8, "tensor": 1, "context": 1},
    {"data": 1, "fsdp": 32, "expert": 8, "tensor": 1, "context": 2},
)


def test_axes_are_those_of_the_table():
    def flat(axes):
        return (axes,) if isinstance(axes, str) else tuple(axes or ())

    assert {axis: flat(sharding.RULES[axis]) for axis in tensors.AXES} == tensors.AXES
    tiles = (sharding.TILED, sharding.TILE_ROWS, sharding.WIDE)
    assert tiles == (tensors.TILED, tensors.TILE_ROWS, tensors.WIDE)


MLP = ("gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "adapter",
    [
        NoAdapter(),
        LoraAdapter(rank=4, alpha=4.0, target_modules=("o_proj", *MLP)),
        DoraAdapter(rank=4, alpha=4.0, target_modules=("o_proj",)),
    ],
    ids=["base", "lora", "dora"],
)
def test_tensors_are_the_parameters_of_the_model(name, adapter):
    definition = definition_lib.define(SHAPES[name], adapter=adapter)
    found = {tensor.path: tensor for tensor in tensors.tensors(SHAPES[name], adapter)}
    assert {path: tensor.shape for path, tensor in found.items()} == {
        path: shape.shape for path, shape in definition.shapes.items()
    }
    assert {path: tensor.axes for path, tensor in found.items()} == definition.axes


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("name", ["msem_671b", "msem_16b", "mixtral_8x7b", "ministral_3_3b"])
def test_shards_are_those_of_the_sharding_table(name, mesh):
    axes = tuple(sharding.MESH_AXES)
    abstract = AbstractMesh(tuple(mesh[axis] for axis in axes), axes)
    for tensor in tensors.tensors(presets.PRESETS[name]):
        partition = sharding.spec(tensor.axes, tensor.shape, abstract)
        shard = jax.sharding.NamedSharding(abstract, partition).shard_shape(tensor.shape)
        assert tensor.local_shape(mesh) == shard, tensor.path


def test_whole_weights_are_split_by_experts_and_tensor_alone():
    mesh = {"data": 2, "fsdp": 4, "expert": 2, "tensor": 2, "context": 2}
    found = {tensor.path: tensor for tensor in tensors.tensors(SHAPES["latent"])}
    expert = found["layers/mlp/gate_proj/kernel"]
    shared = found["layers/mlp/shared/gate_proj/kernel"]
    assert expert.gathered_size(mesh) == expert.size // 4
    assert shared.gathered_size(mesh) == shared.size // 2
