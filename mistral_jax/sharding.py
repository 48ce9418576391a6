"""THE table: logical axes to mesh axes. Only this file knows the mesh.

Modules name axes ("embed", "heads"); a plan names mesh sizes; this file joins the two. A
dimension is split over the longest run of its mesh axes that divides it, or replicated.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
from jaxtyping import Array
from jaxtyping import Shaped

MESH_AXES = ("data", "fsdp", "expert", "tensor", "context")

# Of parameters, a wide dimension is split into whole tiles (TPU: 8 rows of 32 bits): XLA makes an
# all-reduce of the scatter of less.
TILED = ("embed", "expert_embed", "expert_hidden")
TILE_ROWS = 8
WIDE = 1024

MeshAxes = str | tuple[str, ...] | None
RULES: dict[str, MeshAxes] = {
    # parameters
    "layer": None,
    # Outside the experts the expert axis is one more way to split data and parameters; the context
    # axis splits parameters too, or long rows would leave too few ways to.
    "embed": ("fsdp", "expert", "context"),
    "mlp": "tensor",
    # Whole groups where the axis divides them, else the experts of each group.
    "group": "expert",
    "expert": "expert",
    # An expert's kernels are split in the rows of [in, out], which lie in whole tiles.
    "expert_embed": ("fsdp", "context"),
    "expert_hidden": ("tensor", "fsdp", "context"),
    "latent": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "vocab": "tensor",
    "rank": None,
    "norm": None,
    # activations
    "batch": ("data", "fsdp", "expert"),
    "sequence": "context",
    "width": None,
}


def make_mesh(
    sizes: dict[str, int],
    devices: Iterable[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """Return the mesh of a plan.

    Args:
        sizes: devices along each mesh axis; axes that are not named have one.
        devices: which devices, in order; all of them if None.

    Raises:
        ValueError: an axis is unknown, or the sizes do not multiply to the device count.
    """
    unknown = set(sizes) - set(MESH_AXES)
    if unknown:
        raise ValueError(f"unknown mesh axes {sorted(unknown)}; known: {', '.join(MESH_AXES)}")
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    chosen = list(jax.devices() if devices is None else devices)
    if int(np.prod(shape)) != len(chosen):
        raise ValueError(f"mesh {dict(sizes)} needs {np.prod(shape)} devices, got {len(chosen)}")
    # Neighbours of a torus next to each other; a mesh axis may need a part of a physical one.
    grid = (
        mesh_utils.create_device_mesh(shape, chosen, allow_split_physical_axes=True)
        if chosen[0].platform == "tpu"
        else np.asarray(chosen).reshape(shape)
    )
    # Auto axis types: jax 0.12 makes Explicit meshes by default, where a plain matmul over a
    # sharded contraction raises.
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def single_device_mesh() -> Mesh:
    """Return a mesh of the first device alone."""
    return make_mesh({}, jax.devices()[:1])


def _axis_size(mesh: Mesh | AbstractMesh, mesh_axes: MeshAxes) -> int:
    return int(np.prod([mesh.shape[name] for name in names(mesh_axes)], dtype=np.int64))


def spec(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Return the partition of an array.

    Args:
        axes: one logical axis for each dimension; None is replicated.
        shape: the global shape; a dimension that does not divide is replicated.
        mesh: where.

    Raises:
        ValueError: an axis is not in the table, two dimensions claim one mesh axis, or the
            number of axes is not the rank.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} logical axes {axes} for an array of shape {shape}")
    used: set[str] = set()
    parts: list[MeshAxes] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in RULES:
            raise ValueError(f"logical axis {axis!r} is not in the table of sharding.py")
        mesh_axes = _dividing(mesh, axis, size) if axis is not None else None
        taken = set(names(mesh_axes))
        if axis == "expert" and used & taken:  # the groups are split already
            mesh_axes, taken = None, set()
        if used & taken:
            raise ValueError(f"axes {axes} use mesh axis {sorted(used & taken)} twice")
        used |= taken
        parts.append(mesh_axes)
    return PartitionSpec(*parts)


def _dividing(mesh: Mesh | AbstractMesh, axis: str, size: int) -> MeshAxes:
    """Return the mesh axes, over most devices, that divide a dimension.

    Of an activation the first ones of its rule; of a parameter any of them.
    """
    mesh_axes = RULES[axis]
    if isinstance(mesh_axes, str) or mesh_axes is None:
        return None if mesh_axes and size % _axis_size(mesh, mesh_axes) else mesh_axes
    counts = range(1, len(mesh_axes) + 1)
    runs = (
        [run for count in counts for run in itertools.combinations(mesh_axes, count)]
        if axis in TILED
        else [mesh_axes[:count] for count in counts]
    )
    tile = TILE_ROWS if axis in TILED and size >= WIDE else 1
    parts = {run: _axis_size(mesh, run) for run in runs}
    # Axes of one device divide everything; the first of a rule is named for them all.
    dividing = [
        run
        for run in runs
        if (size % (parts[run] * tile) == 0 if parts[run] > 1 else run == mesh_axes[:1])
    ]
    # The first of the largest: axes of one device are not named.
    best = max(dividing, key=lambda run: parts[run], default=None)
    return best[0] if best is not None and len(best) == 1 else best


def names(mesh_axes: MeshAxes) -> tuple[str, ...]:
    """Return the mesh axes that one entry of a partition names."""
    return (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes or ())


def named(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array on a mesh; see `spec`."""
    return NamedSharding(mesh, spec(axes, shape, mesh))


def of_slice(whole: NamedSharding, num_axes: int) -> NamedSharding:
    """Return the sharding of a slice at an index on the first axes of an array."""
    return NamedSharding(whole.mesh, PartitionSpec(*whole.spec[num_axes:]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that holds a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of [B, T] batch arrays."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"], RULES["sequence"]))


def micro_batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of [micro batches, B, T] arrays."""
    return NamedSharding(mesh, PartitionSpec(None, RULES["batch"], RULES["sequence"]))


def data_parallel_size(mesh: Mesh | AbstractMesh) -> int:
    """Return over how many shards a batch's rows are spread."""
    return _axis_size(mesh, RULES["batch"])


def constrain(x: Shaped[Array, "..."], axes: tuple[str | None, ...]) -> Shaped[Array, "..."]:
    """Pin an activation's layout at a block border; outside a mesh, return it as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh))


def like_parameters(tree: Any, shardings: dict[str, NamedSharding], mesh: Mesh) -> Any:
    """Return shardings for a tree (a training state) that repeats the parameters' paths.

    A leaf below a key that is a parameter's path, and of its rank, is sharded as the parameter;
    where it is smaller (scales of blocks), on the axes that still divide. One that is the
    parameter without one axis (a factored moment) is sharded as what is left of it; every other
    leaf is replicated.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def name_of(path: tuple) -> str | None:
        keys = (str(getattr(step, "key", "")) for step in path)
        return next((key for key in keys if key in shardings), None)

    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = name_of(path)
        if name is not None and len(leaf.shape) == len(shardings[name].spec):
            shapes.setdefault(name, leaf.shape)

    def choose(path: tuple, leaf: Any) -> NamedSharding:
        name = name_of(path)
        if name is None:
            return replicated(mesh)
        whole = tuple(shardings[name].spec)
        if len(whole) == len(leaf.shape):
            parts = zip(whole, leaf.shape, strict=True)
            kept = (part if size % _axis_size(mesh, part) == 0 else None for part, size in parts)
            return NamedSharding(mesh, PartitionSpec(*kept))
        shape = shapes.get(name, ())
        for axis in range(len(shape)):
            if leaf.shape == shape[:axis] + shape[axis + 1 :]:
                return NamedSharding(mesh, PartitionSpec(*whole[:axis], *whole[axis + 1 :]))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(choose, tree)
