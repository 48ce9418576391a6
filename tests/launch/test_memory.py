"""launch/memory.py: exact arguments, and estimates that move as they should."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from launch import memory
from mistral_jax import artifact
from mistral_jax import sharding
from mistral_jax.config import load
from mistral_jax.config import presets
from mistral_jax.config.model import DoraAdapter
from mistral_jax.config.model import LoraAdapter
from mistral_jax.config.model import NoAdapter
from mistral_jax.config.optimizer import Adafactor
from mistral_jax.config.optimizer import AdamW
from mistral_jax.config.optimizer import Muon
from mistral_jax.models import definition as definition_lib

MISTRAL = presets.PRESETS["mistral_7b_v0_3"]
MSEM = presets.PRESETS["msem_671b"]
ONE_DEVICE = {"data": 1, "fsdp": 1, "expert": 1, "tensor": 1, "context": 1}
GIB = 1 << 30
ADAMW = AdamW(learning_rate=1e-3, max_steps=1)


def bytes_of(adapter, mesh=ONE_DEVICE, decoder=MISTRAL, optimizer=ADAMW, **changes):
    fields = {
        "num_tokens": 1024, "micro_batch": 4, "accumulation": 1, "attention": "cudnn",
        "remat": "full", "compute_bytes": 2, "frozen_bytes": 2,
    }  # fmt: skip
    layout = memory.Layout(mesh=mesh, **(fields | changes))
    return memory.device_bytes(decoder, adapter, optimizer, layout)


def test_lora_bytes_match_hand_arithmetic():
    held = bytes_of(LoraAdapter(rank=64, alpha=16.0))
    assert held.frozen_parameters == 2 * 7_248_023_552
    # Parameters, two moments and gradients in float32: 16 bytes each, 2.5 GiB.
    states = held.trained_parameters + held.optimizer_state + held.gradients
    assert states == 16 * 167_772_160 + memory.SCALAR_BYTES
    # 32 layer inputs of 4 x 1024 x 4096 in bfloat16: 1 GiB.
    assert held.activations == GIB
    # Five arrays of 4 bytes a token.
    assert held.batch == 5 * 4 * 4 * 1024


def test_full_training_bytes_are_sixteen_for_each_parameter():
    held = bytes_of(NoAdapter())
    states = held.trained_parameters + held.optimizer_state + held.gradients
    assert (held.frozen_parameters, states) == (0, 16 * 7_248_023_552 + memory.SCALAR_BYTES)


def test_fsdp_splits_state_and_norms_stay_whole():
    held = bytes_of(NoAdapter(), mesh=ONE_DEVICE | {"fsdp": 16})
    norms = 65 * 4096
    assert held.trained_parameters == 4 * ((7_248_023_552 - norms) // 16 + norms)


@pytest.mark.parametrize(
    "mesh",
    [
        {"data": 2, "fsdp": 64, "expert": 8},
        {"data": 2, "fsdp": 4, "expert": 8, "context": 16},
        {"fsdp": 128, "expert": 8},
    ],
)
def test_state_of_671b_divides_over_a_pod(mesh):
    # 8 bytes of moments and 4 of parameter. Devices along `data` hold the same. Experts divide
    # over all others (653,908,770,816 numbers, 58 layers of 256), the rest at least over fsdp and
    # context where it comes in whole tiles; 128 devices are too many for 1,536 rows.
    mesh = ONE_DEVICE | mesh
    held = bytes_of(NoAdapter(), mesh, MSEM, micro_batch=1, num_tokens=4096)
    split = mesh["fsdp"] * mesh["context"]
    experts = 58 * 256 * 3 * 7168 * 2048
    rest = 671_052_109_312 - experts
    query = 61 * 1536 * 128 * 192 if split == 128 else 0
    bound = experts / (8 * split) + (rest - query) / split + query / 8
    state = held.trained_parameters + held.optimizer_state
    assert 12 * 671_052_109_312 / (8 * split) <= state <= 1.01 * 12 * bound


@pytest.mark.parametrize(
    ("optimizer", "bytes_each"),
    [
        (ADAMW, 8),
        (AdamW(learning_rate=1e-3, max_steps=1, moments="bfloat16"), 4),
        (Muon(learning_rate=1e-3, max_steps=1), 4),
        (Muon(learning_rate=1e-3, max_steps=1, moments="bfloat16"), 2),
        (Adafactor(learning_rate=1e-3, max_steps=1), 0),
    ],
)
def test_each_optimizer_holds_its_bytes(optimizer, bytes_each):
    held = memory.optimizer_bytes(MSEM, NoAdapter(), optimizer, ONE_DEVICE)
    # Muon leaves embedding, head, router and norms to AdamW: 0.3 % of all, twice the bytes.
    assert held / 671_052_109_312 == pytest.approx(bytes_each, abs=0.02)


def test_each_remat_keeps_less_than_the_one_before():
    kept = [bytes_of(NoAdapter(), remat=remat).activations for remat in ("none", "dots", "full")]
    assert kept[0] > kept[1] > kept[2] > 0


def test_accumulation_holds_a_second_set_of_gradients():
    once, twice = (bytes_of(NoAdapter(), accumulation=count).gradients for count in (1, 2))
    assert twice == 2 * once


def test_adapters_keep_what_their_shapes_say():
    plain = LoraAdapter(rank=16, alpha=16.0)
    dropped = LoraAdapter(rank=16, alpha=16.0, dropout=0.1)
    magnitudes = DoraAdapter(rank=16, alpha=16.0)
    tokens, layers = 4 * 1024, 32
    # q, k, v, o; gate, up, down.
    inputs = 3 * 4096 + 4096 + 2 * 4096 + 14336
    outputs = 4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096

    def kept(adapter, remat, **changes):
        return bytes_of(adapter, remat=remat, **changes).activations

    # The mask is booleans; two outputs in float32.
    assert kept(dropped, "none") - kept(plain, "none") == tokens * layers * inputs
    assert kept(magnitudes, "none") - kept(plain, "none") == tokens * layers * outputs * 8
    # Products: A's and B's of every projection. A base in codes has none that a policy sees.
    codes = bytes_of(plain, remat="dots", frozen="nf4").activations
    assert codes == tokens * layers * 2 * (4096 + 7 * 16 + outputs)
    assert kept(dropped, "dots") - kept(plain, "dots") == tokens * layers * inputs
    assert kept(magnitudes, "dots") == kept(plain, "dots")
    assert kept(dropped, "full") == kept(plain, "full") == 2 * tokens * layers * 4096
    # A tensor axis splits the wide sides: outputs, but of o and down, inputs of these alone.
    halves = ONE_DEVICE | {"tensor": 2}
    split = kept(dropped, "none", mesh=halves) - kept(plain, "none", mesh=halves)
    assert split == tokens * layers * (inputs - 4096 // 2 - 14336 // 2)


def test_adapters_of_routed_experts_keep_nothing_and_codes_keep_no_rows():
    mixture = presets.PRESETS["mixtral_8x7b"]
    modules = ("gate_proj", "up_proj", "down_proj")
    few, many = (LoraAdapter(rank=rank, alpha=8.0, target_modules=modules) for rank in (1, 64))

    def kept(adapter, **changes):
        return bytes_of(adapter, decoder=mixture, remat="none", experts="ragged", **changes)

    assert kept(few).activations == kept(many).activations
    numbers = kept(few), kept(few, frozen="nf4")
    saved = numbers[0].activations - numbers[1].activations
    assert saved == 32 * numbers[0].dispatch > 0


def test_no_remat_keeps_kernels_that_were_cast():
    layers = 7_248_023_552 - 2 * 32768 * 4096 - 65 * 4096
    held = {
        size: bytes_of(NoAdapter(), remat="none", compute_bytes=size).activations for size in (2, 4)
    }
    tokens = 4 * 1024 * 32
    norms = {size: 2 * 4096 * (3 * 4 + size) for size in held}
    rows = {size: size * (3 * 4096 + 3 * 1024 + 6 * 14336) + 32 * 4 for size in held}
    assert held[2] == tokens * (norms[2] + rows[2]) + 2 * layers
    assert held[4] == tokens * (norms[4] + rows[4])


def test_reference_attention_holds_scores_and_cudnn_does_not():
    held = {
        name: bytes_of(NoAdapter(), attention=name, remat="none").activations
        for name in ("reference", "banded", "cudnn")
    }
    assert held["reference"] > held["banded"] > held["cudnn"]


def test_rows_of_experts_grow_with_buffer_and_top_k_and_shrink_with_context():
    mesh = ONE_DEVICE | {"fsdp": 8, "expert": 8}

    def dispatch(mesh=mesh, decoder=MSEM, **changes):
        fields = {"micro_batch": 1, "num_tokens": 4096, "buffer_factor": 1.5} | changes
        return bytes_of(NoAdapter(), mesh, decoder, **fields).dispatch

    assert dispatch(buffer_factor=2.0) > dispatch() > dispatch(mesh=mesh | {"context": 4})
    few = MSEM.model_copy(update={"ffn": MSEM.ffn.model_copy(update={"top_k": 8})})
    assert dispatch() > dispatch(decoder=few)
    assert bytes_of(NoAdapter()).dispatch == 0


def test_one_expert_layer_is_gathered_over_fsdp_and_not_over_experts():
    small, large = (
        bytes_of(NoAdapter(), ONE_DEVICE | {"fsdp": 8, "expert": size}, MSEM).gathered_weights
        for size in (8, 4)
    )
    # This layer's, the next one's and the gradients, in bfloat16.
    experts = 3 * 2 * 256 * 3 * 7168 * 2048
    assert large - small == experts // 4 - experts // 8


def test_sum_of_parts_is_the_total():
    held = bytes_of(NoAdapter(), ONE_DEVICE | {"fsdp": 8, "expert": 8}, MSEM)
    assert held.total == sum(vars(held).values())
    assert math.isclose(
        held.arguments,
        held.frozen_parameters + held.trained_parameters + held.optimizer_state + held.batch,
    )


@pytest.mark.parametrize("remat", ["none", "full"])
def test_rows_of_experts_stop_growing_at_a_chunk_under_full_remat_on_a_mesh(remat):
    def dispatch(num_tokens, mesh=ONE_DEVICE | {"fsdp": 8, "expert": 8}):
        layout = {"micro_batch": 1, "remat": remat, "num_tokens": num_tokens}
        return bytes_of(NoAdapter(), mesh, MSEM, **layout).dispatch

    assert dispatch(2048) < dispatch(4096)
    assert (dispatch(8192) == dispatch(4096)) == (remat == "full")
    assert dispatch(8192, ONE_DEVICE) > 1.5 * dispatch(4096, ONE_DEVICE)


MIXTURE = (
    # Square projections of attention, and experts whose hidden rows come in tiles.
    "model={kind: decoder, num_layers: 3, width: 256, num_heads: 4, num_kv_heads: 4, "
    "head_width: 64, vocab_size: 512, rope: {kind: default, theta: 1e4}, max_positions: 64, "
    "ffn: {kind: moe, width: 1040, num_experts: 8, num_groups: 4, groups_per_token: 2, top_k: 2, "
    "router: {kind: sigmoid}, num_shared_experts: 1, num_dense_layers: 1, dense_width: 384}}"
)


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2}, {"fsdp": 4, "context": 2}], ids=str)
def test_arguments_are_those_of_the_real_state_to_the_byte(kind, sizes):
    config = Path(__file__).parents[2] / "configs" / "tiny" / "dense.yaml"
    run = load.load_run(config, [MIXTURE, f"optimizer.kind={kind}"])
    mesh = ONE_DEVICE | {"expert": 4} | sizes
    # Nothing is placed: one device may stand for all.
    shape = [mesh[axis] for axis in sharding.MESH_AXES]
    devices = np.full(shape, jax.devices()[0], dtype=object)
    abstract = Mesh(devices, sharding.MESH_AXES)
    state = artifact.abstract_state(definition_lib.define(run.model), run, abstract)
    real = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    layout = memory.Layout(
        mesh=mesh, num_tokens=64, micro_batch=1, accumulation=1, attention="banded", remat="none",
        compute_bytes=4, frozen_bytes=4,
    )  # fmt: skip
    held = memory.device_bytes(run.model, run.adapter, run.optimizer, layout)
    # Beside the arrays: counters of the step and of the optimizer, and its constants.
    assert abs(held.arguments - held.batch - real) <= 2 * memory.SCALAR_BYTES
