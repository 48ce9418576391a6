"""train/hlo_traffic.py on real modules of eight devices: kinds, axes, bytes, turns; the verb."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from launch import target as target_lib
from mistral_jax import compile_run
from mistral_jax import sharding
from mistral_jax.config import load
from mistral_jax.train import hlo_traffic

ROOT = Path(__file__).parents[2]
TURNS = 5
SIZES = {"fsdp": 4, "expert": 2}
ROWS, WIDTH = 8, 256  # of one device
SHARD = ROWS * WIDTH * 4


def gather(x, axis, size):
    return jax.lax.all_gather(x, axis, tiled=True)[:ROWS] * 0.5


def reduce(x, axis, size):
    return jax.lax.psum(x, axis) * 0.5


def scatter(x, axis, size):
    return jnp.tile(jax.lax.psum_scatter(x, axis, tiled=True), (size, 1))


def exchange(x, axis, size):
    return jax.lax.all_to_all(x, axis, 0, 0, tiled=True) * 0.5


def rotate(x, axis, size):
    return jax.lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)]) * 0.5


@pytest.mark.sharded
@pytest.mark.parametrize("axis", ["fsdp", "expert"])
@pytest.mark.parametrize(
    "operation, kind, sent",
    [
        (gather, "all-gather", lambda g: (g - 1) * SHARD),
        (reduce, "all-reduce", lambda g: 2 * SHARD * (g - 1) / g),
        (scatter, "reduce-scatter", lambda g: SHARD * (g - 1) / g),
        (exchange, "all-to-all", lambda g: SHARD * (g - 1) / g),
        (rotate, "collective-permute", lambda g: SHARD),
    ],
)
def test_collectives_in_a_loop_count_by_its_turns(operation, kind, sent, axis):
    mesh = sharding.make_mesh(SIZES)
    size = SIZES[axis]
    spec = PartitionSpec(("fsdp", "expert"))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    def on_device(x):
        return jax.lax.scan(lambda x, _: (operation(x, axis, size), None), x, length=TURNS)[0]

    x = jax.ShapeDtypeStruct((8 * ROWS, WIDTH), jnp.float32)
    text = jax.jit(on_device).lower(x).compile().as_text()
    found = hlo_traffic.read(text, dict(mesh.shape)).collectives
    assert {(each.kind, each.axes) for each in found} == {(kind, (axis,))}
    assert sum(each.times for each in found) == TURNS
    assert sum(each.times * each.sent_bytes for each in found) == TURNS * sent(size)


@pytest.mark.sharded
def test_the_verb_compiles_for_eight_devices():
    target = target_lib.Target.model_validate(
        {
            "name": "eight", "platform": "cpu", "accelerator_type": "cpu", "num_chips": 8,
            "chips_per_host": 8, "topology": (8,), "hbm_gb_per_s": 20.0,
            "peak_tflops": {"bfloat16": 0.3, "float32": 0.15}, "assumed_utilization": 0.4,
            "host_memory_gib": 8.0, "host_cores": 2, "micro_batch_sequences": 1,
            "mesh": {"fsdp": 8},
        }
    )  # fmt: skip
    changes = ["data.global_batch_sequences=8", "data.sequence_length=32", "model.num_layers=2"]
    run = load.load_run(ROOT / "configs" / "tiny" / "dense.yaml", changes)
    report = compile_run.compile_run(run, target, say=lambda line: None)
    assert report.mesh["fsdp"] == 8
    assert any(each.axes == ("fsdp",) and each.group == 8 for each in report.collectives)
    # Kernels are split eight ways; norms (0.1 % here) are whole.
    assert report.memory.parameters < report.parameters * 4 / 8 * 1.05
    assert not report.unknown_loops
