"""Bytes of a quantised base: the arrays of the real model, and their parts on a mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from launch import memory
from launch import stored
from launch import tensors
from mistral_jax import sharding
from mistral_jax.config import presets
from mistral_jax.config.model import DenseFfn
from mistral_jax.config.model import LatentAttention
from mistral_jax.config.model import LoraAdapter
from mistral_jax.config.model import MoeFfn
from mistral_jax.config.model import SigmoidRouter
from mistral_jax.config.optimizer import AdamW
from mistral_jax.models import definition as definition_lib
from mistral_jax.train import compile as compile_lib
from tests import tiny

ONE_DEVICE = dict.fromkeys(sharding.MESH_AXES, 1)
MESHES = (
    ONE_DEVICE,
    ONE_DEVICE | {"fsdp": 2, "tensor": 2},
    ONE_DEVICE | {"fsdp": 4, "expert": 2, "context": 2},
)
MIXTURE = MoeFfn(
    width=192, num_experts=4, top_k=2, num_groups=2, groups_per_token=1, router=SigmoidRouter(),
    num_shared_experts=1, num_dense_layers=1, dense_width=320,
)  # fmt: skip
WIDE = {"width": 256, "num_heads": 4, "head_width": 64}
LATENT = LatentAttention(
    latent_rank=64, query_rank=128, content_width=32, rotary_width=32, value_width=64
)
SHAPES = {
    "dense": tiny.decoder(96, **WIDE, ffn=DenseFfn(width=384), qkv_bias=True),
    "mixture": tiny.decoder(96, **WIDE, ffn=MIXTURE),
    "latent": tiny.decoder(96, **WIDE | {"num_kv_heads": 4}, attention=LATENT),
}
ADAPTER = LoraAdapter(rank=4, alpha=8.0, target_modules=("q_proj",))
SHAPES["latent"] = SHAPES["latent"].model_copy(update={"ffn": DenseFfn(width=128)})
ADAPTERS = {"latent": LoraAdapter(rank=4, alpha=8.0, target_modules=("o_proj",))}


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", SHAPES)
def test_stored_arrays_are_those_of_the_model_to_the_byte(name, kind):
    adapter = ADAPTERS.get(name, ADAPTER)
    definition = definition_lib.define(SHAPES[name], adapter=adapter, frozen=kind)
    trained = set(definition.trainable_paths())
    found = [
        array
        for tensor in tensors.tensors(SHAPES[name])
        for array in stored.arrays(tensor, kind, 2)
    ]
    shapes = {array.tensor.path: array.tensor.shape for array in found}
    real = {path: shape for path, shape in definition.shapes.items() if path not in trained}
    assert shapes == {path: shape.shape for path, shape in real.items()}
    axes = {array.tensor.path: array.tensor.axes for array in found}
    assert axes == {path: definition.axes[path] for path in real}
    for mesh in MESHES:
        # Nothing is placed: one device may stand for all.
        shape = [mesh[axis] for axis in sharding.MESH_AXES]
        abstract = Mesh(np.full(shape, jax.devices()[0], dtype=object), sharding.MESH_AXES)
        frozen = compile_lib.abstract_frozen(definition, abstract, jax.numpy.bfloat16.dtype)
        layout = memory.Layout(
            mesh=mesh, num_tokens=64, micro_batch=1, accumulation=1, attention="banded",
            remat="none", compute_bytes=2, frozen_bytes=2, frozen=kind,
        )  # fmt: skip
        optimizer = AdamW(learning_rate=1e-3, max_steps=1)
        held = memory.device_bytes(SHAPES[name], adapter, optimizer, layout)
        assert held.frozen_parameters == compile_lib.device_bytes(frozen), mesh


def test_no_shard_splits_a_block():
    mesh = ONE_DEVICE | {"fsdp": 128, "tensor": 16}
    for tensor in tensors.tensors(presets.PRESETS["mistral_7b_v0_3"]):
        if stored.is_quantised(tensor, "nf4"):
            codes, absmax = (
                array.tensor.local_shape(mesh) for array in stored.arrays(tensor, "nf4", 2)[:2]
            )
            assert codes[-2] == 32
            assert (codes[-3], codes[-1]) == absmax[-2:], tensor.path


@pytest.mark.parametrize("name", ["mistral_7b_v0_3", "mixtral_8x7b"])
def test_a_quantised_base_is_a_quarter_of_bfloat16(name):
    decoder = presets.PRESETS[name]
    kernels = [t for t in tensors.tensors(decoder) if stored.is_quantised(t, "nf4")]
    in_codes = sum(a.local_bytes(ONE_DEVICE) for t in kernels for a in stored.arrays(t, "nf4", 2))
    assert in_codes / sum(2 * tensor.size for tensor in kernels) <= 0.27
    assert 8 * in_codes / sum(tensor.size for tensor in kernels) <= 4.25
    whole = stored.device_bytes(decoder, ONE_DEVICE, "nf4", 2)
    assert whole / stored.device_bytes(decoder, ONE_DEVICE, "bfloat16", 2) <= 0.30


def test_qlora_of_mistral_7b_holds_what_the_arithmetic_says():
    # Codes half a byte, largest values 1/64 byte, scales 4/64/256 byte for each of 6.98e9 weights.
    decoder = presets.PRESETS["mistral_7b_v0_3"]
    kernels = 32 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14336)
    codes = kernels // 2 + kernels // 64 + 4 * kernels // 64 // 256 + 4 * 32 * 7
    rest = 2 * 32768 * 4096 + 65 * 4096
    assert stored.device_bytes(decoder, ONE_DEVICE, "nf4", 2) == codes + 2 * rest


def test_a_width_without_whole_blocks_is_named():
    decoder = tiny.decoder(96)
    with pytest.raises(ValueError, match=r"layers/attention/q_proj has 32 inputs"):
        stored.device_bytes(decoder, ONE_DEVICE, "nf4", 2)
    assert stored.device_bytes(decoder, ONE_DEVICE, "int8", 2) > 0
