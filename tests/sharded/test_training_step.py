"""The same step on every mesh: losses, parameters, and where each array lies."""

import types
from typing import Any

import jax
import numpy as np
import pytest

from launch import arithmetic
from mistral_jax.models import definition as definition_lib

pytestmark = pytest.mark.sharded

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2), (4, 1, 2)]  # data, fsdp, tensor
TOLERANCE = 1e-5


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("sizes", MESHES)
def test_five_steps_on_a_mesh_equal_those_on_one_device(
    tiny: types.ModuleType, sizes: tuple[int, int, int], kind: str, accumulation: int
) -> None:
    losses, params = tiny.on_one_device(kind, accumulation)
    run = tiny.start(kind, sizes)
    found = run.steps(0, tiny.NUM_STEPS, accumulation)
    np.testing.assert_allclose(found, losses, rtol=0, atol=TOLERANCE)
    assert losses[0] != losses[-1], "the steps must change something"
    assert run.state.params.keys() == params.keys()
    for path, expected in params.items():
        array = np.asarray(run.state.params[path])
        np.testing.assert_allclose(array, expected, rtol=0, atol=TOLERANCE, err_msg=path)
    assert_state_lies_as_the_table_says(run)


def assert_state_lies_as_the_table_says(run: Any) -> None:
    """Every leaf, the optimizer's too, has the table's sharding after the steps."""
    leaves = jax.tree_util.tree_leaves_with_path(run.state)
    targets = jax.tree.leaves(run.expected_shardings())
    for (path, leaf), target in zip(leaves, targets, strict=True):
        name = jax.tree_util.keystr(path)
        assert leaf.sharding.is_equivalent_to(target, leaf.ndim), (name, leaf.sharding, target)


def test_table_gives_known_partitions_to_known_parameters(tiny: types.ModuleType) -> None:
    run = tiny.start("full", (1, 4, 2))
    partitions = {path: tuple(array.sharding.spec) for path, array in run.state.params.items()}
    assert partitions == {
        "embed/embedding": ("tensor", "fsdp"),
        "head/kernel": ("fsdp", "tensor"),
        "final_norm/scale": (None,),
        "layers/attention_norm/scale": (None, None),
        "layers/mlp_norm/scale": (None, None),
        "layers/attention/q_proj/kernel": (None, "fsdp", "tensor"),
        "layers/attention/k_proj/kernel": (None, "fsdp", "tensor"),
        "layers/attention/v_proj/kernel": (None, "fsdp", "tensor"),
        "layers/attention/o_proj/kernel": (None, "tensor", "fsdp"),
        "layers/attention/q_proj/bias": (None, "tensor"),
        "layers/attention/k_proj/bias": (None, "tensor"),
        "layers/attention/v_proj/bias": (None, "tensor"),
        "layers/mlp/gate_proj/kernel": (None, "fsdp", "tensor"),
        "layers/mlp/up_proj/kernel": (None, "fsdp", "tensor"),
        "layers/mlp/down_proj/kernel": (None, "tensor", "fsdp"),
    }


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 4, 2)])
def test_no_kernel_is_whole_on_a_device(
    tiny: types.ModuleType, sizes: tuple[int, int, int]
) -> None:
    # That states lie so, before and after steps, is held by the tests of five steps.
    for kind in ("full", "lora"):
        definition = definition_lib.define(tiny.DECODER, adapter=tiny.ADAPTERS[kind])
        for name, target in definition.shardings(tiny.mesh_of(sizes)).items():
            # An adapter's rank side is whole; with fsdp alone one of its two sides is.
            is_table = not name.endswith(("scale", "bias")) and not _has_no_axis_here(name, sizes)
            assert not (is_table and target.is_fully_replicated), (kind, name)


def _has_no_axis_here(name: str, sizes: tuple[int, int, int]) -> bool:
    """Tell whether an adapter's only long side lies on a mesh axis of size 1."""
    is_column = not ("o_proj" in name or "down_proj" in name)
    uses_fsdp = ("lora_a" in name) == is_column
    return "lora" in name and sizes[1 if uses_fsdp else 2] == 1


@pytest.mark.parametrize("sizes", MESHES)
def test_each_device_holds_the_bytes_that_the_plan_predicts(
    tiny: types.ModuleType, sizes: tuple[int, int, int]
) -> None:
    decoder = tiny.DECODER.model_copy(update={"qkv_bias": False})
    run = tiny.start("full", sizes, decoder)
    mesh = dict(run.mesh.shape)
    predicted = arithmetic.shard_bytes(decoder, mesh, 4)
    assert bytes_by_device(run.state.params) == [predicted] * 8
    adam = bytes_by_device(run.state.opt_state)
    # Two moments, and a few counters.
    assert all(0 <= found - 2 * predicted <= 64 for found in adam), (adam, predicted)


def bytes_by_device(tree: object) -> list[int]:
    """Return how many bytes of a tree's arrays lie on each device."""
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return list(held.values())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_initial_numbers_do_not_depend_on_the_mesh(tiny: types.ModuleType, kind: str) -> None:
    one = tiny.start(kind, (1, 1, 1))
    for sizes in MESHES:
        other = tiny.start(kind, sizes)
        for path, expected in tiny.whole(one.state.params | one.frozen).items():
            found = np.asarray((other.state.params | other.frozen)[path])
            # The bits drawn are the same; XLA's loops over shards round a few values otherwise.
            np.testing.assert_allclose(
                found, expected, rtol=1e-6, atol=0, err_msg=f"{path} on {sizes}"
            )


def test_fewer_kv_heads_than_tensor_devices_gives_the_same_numbers(
    tiny: types.ModuleType,
) -> None:
    expected, _ = tiny.on_one_device("full", 1)
    found = tiny.start("full", (2, 1, 4)).steps(0, 3, 1)
    np.testing.assert_allclose(found, expected[:3], rtol=0, atol=TOLERANCE)


def test_a_width_that_does_not_divide_is_replicated_with_the_same_numbers(
    tiny: types.ModuleType,
) -> None:
    # Keys are 2 x 6 = 12 wide, on 8 tensor devices; the vocabulary of 65 does not divide either.
    decoder = tiny.DECODER.model_copy(update={"head_width": 6, "vocab_size": 65})
    one, many = (tiny.start("full", sizes, decoder) for sizes in [(1, 1, 1), (1, 1, 8)])
    for name in ("layers/attention/k_proj/kernel", "embed/embedding", "head/kernel"):
        assert many.state.params[name].sharding.is_fully_replicated, name
    assert not many.state.params["layers/attention/q_proj/kernel"].sharding.is_fully_replicated
    np.testing.assert_allclose(many.steps(0, 3, 1), one.steps(0, 3, 1), rtol=0, atol=TOLERANCE)


def test_a_step_does_not_compile_again(tiny: types.ModuleType) -> None:
    run = tiny.start("full", (2, 2, 2))
    run.steps(0, 3, 1)
    assert run.train_step._cache_size() == 1
