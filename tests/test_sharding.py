"""The table of axes, on meshes that need no device."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec

from mistral_jax import sharding


def mesh(**sizes: int) -> AbstractMesh:
    return AbstractMesh(
        tuple(sizes.get(axis, 1) for axis in sharding.MESH_AXES), sharding.MESH_AXES
    )


def parts(axes: tuple, shape: tuple, where: AbstractMesh) -> tuple:
    return tuple(sharding.spec(axes, shape, where))


def test_parameters_are_split_as_the_table_says() -> None:
    where = mesh(data=2, fsdp=4, tensor=2)
    assert parts(("layer", "embed", "mlp"), (2, 8, 6), where) == (None, "fsdp", "tensor")
    assert parts(("layer", "heads", "embed"), (2, 8, 8), where) == (None, "tensor", "fsdp")
    assert parts(("vocab", "embed"), (10, 8), where) == ("tensor", "fsdp")
    assert parts(("batch", "sequence", "width"), (8, 5, 7), where) == (
        ("data", "fsdp"), "context", None,
    )  # fmt: skip


def test_a_dimension_that_does_not_divide_is_replicated() -> None:
    where = mesh(data=2, fsdp=4, tensor=2)
    assert parts(("embed", "mlp"), (6, 7), where) == (None, None)
    assert parts(("batch", None), (3, 3), where) == (None, None)


def test_a_dimension_is_split_over_the_longest_run_of_axes_that_divides_it() -> None:
    where = mesh(data=2, fsdp=4, expert=2)
    assert parts(("batch", None), (4, 3), where) == ("data", None)
    assert parts(("embed", "mlp"), (8, 7), where) == (("fsdp", "expert"), "tensor")
    assert parts(("embed", "mlp"), (4, 7), where) == ("fsdp", "tensor")


def test_the_expert_axis_splits_groups_or_else_the_experts_of_each() -> None:
    axes = ("layer", "group", "expert", "expert_embed", "mlp")
    where = mesh(fsdp=2, expert=4)
    assert parts(axes, (1, 8, 4, 2, 2), where) == (None, "expert", None, "fsdp", "tensor")
    assert parts(axes, (1, 1, 4, 2, 2), where) == (None, None, "expert", "fsdp", "tensor")


def test_mistakes_in_axes_are_refused() -> None:
    where = mesh(fsdp=4)
    with pytest.raises(ValueError, match="'emded' is not in the table"):
        sharding.spec(("emded",), (4,), where)
    with pytest.raises(ValueError, match=r"1 logical axes \('embed',\) for an array of shape"):
        sharding.spec(("embed",), (4, 4), where)
    with pytest.raises(ValueError, match=r"use mesh axis \['fsdp'\] twice"):
        sharding.spec(("embed", "batch"), (4, 4), where)


def test_data_parallel_size_counts_the_axes_of_the_batch() -> None:
    assert sharding.data_parallel_size(mesh(data=2, fsdp=4, tensor=2)) == 8
    assert sharding.data_parallel_size(mesh(tensor=8)) == 1


def test_meshes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown mesh axes \['fdsp'\]; known: data, fsdp"):
        sharding.make_mesh({"fdsp": 1})
    with pytest.raises(ValueError, match="needs 3 devices, got 1"):
        sharding.make_mesh({"data": 3}, jax.devices()[:1])
    assert dict(sharding.single_device_mesh().shape) == dict.fromkeys(sharding.MESH_AXES, 1)


def test_leaves_below_a_parameters_path_follow_the_parameter() -> None:
    where = sharding.single_device_mesh()
    shardings = {"a/kernel": sharding.named(("embed", "mlp"), (4, 2), where)}
    tree = {
        "mu": {"a/kernel": jnp.zeros((4, 2))},
        "count": jnp.int32(0),
        "factored": {"a/kernel": jnp.zeros(4)},
    }
    found = sharding.like_parameters(tree, shardings, where)
    assert found["mu"]["a/kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert found["count"].spec == PartitionSpec()
    # Of rows, without columns.
    assert found["factored"]["a/kernel"].spec == PartitionSpec("fsdp")


def test_constrain_outside_a_mesh_is_the_identity() -> None:
    x = jnp.ones((2, 3))
    assert sharding.constrain(x, ("batch", "width")) is x
    with jax.set_mesh(sharding.single_device_mesh()):
        assert sharding.constrain(x, ("batch", "width")) is x
