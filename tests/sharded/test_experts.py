"""Experts on several devices: the numbers of one device, the bytes that travel, what overflows."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from mistral_jax import sharding
from mistral_jax.config import expert_shards
from mistral_jax.nn import expert_exchange
from mistral_jax.nn import expert_parallel
from mistral_jax.nn import experts
from mistral_jax.nn import routing

pytestmark = pytest.mark.sharded

B, T, D, F, TOP_K = 8, 6, 16, 8, 4
# Tokens of a row where bytes are counted: several tiles of rows for each pair of devices.
LENGTH = 512
# expert, fsdp, tensor: every way to make 8.
MESHES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(sizes) == 8]
# Two groups of eight: an axis of 2 splits groups, one of 4 or 8 the experts of each. Eight of two,
# of which a token uses three: every axis splits groups.
FEW_GROUPS, MANY_GROUPS = (2, 8, 2), (8, 2, 3)
ROOM = float("inf")


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs; `choice` gives no expert to padding."""

    x: jax.Array
    choice: routing.Choice
    kernels: experts.Kernels
    groups_per_token: int
    max_per_group: int | None = None


def make_case(
    shape: tuple[int, int, int], *, kind: str = "mixed", rows: int = B, length: int = T
) -> Case:
    """Return tokens that draw groups, then experts; kinds change who is drawn.

    Kinds: `even`; `mixed` has padding, an expert that gets nothing and one that gets every
    token; `one_group` has every token in group 1.
    """
    num_groups, group_size, chosen_groups = shape
    num_experts = num_groups * group_size
    generator = np.random.default_rng(3)
    scores = generator.random((rows, length, num_groups, group_size))
    groups = np.argsort(generator.random((rows, length, num_groups)), axis=-1)[..., :chosen_groups]
    if kind == "one_group":
        groups = np.ones((rows, length, 1), np.int64)
    is_open = (groups[..., None] == np.arange(num_groups)).any(axis=-2)
    if kind == "mixed":
        # Group 0 is always open for its busy expert 0; expert 1 of it gets nothing.
        is_open[..., 0] = True
        is_open &= np.cumsum(is_open, axis=-1) <= chosen_groups
        scores[..., 0, 0], scores[..., 0, 1] = 2, -1
    scores = np.where(is_open[..., None], scores, -2).reshape(rows, length, num_experts)
    top_k = TOP_K if kind != "one_group" else min(TOP_K, group_size)
    chosen = np.argsort(-scores, axis=-1)[..., :top_k].astype(np.int32)
    weights = generator.random(chosen.shape).astype(np.float32)
    if kind == "mixed":
        is_padding = np.arange(length) >= length - 2
        chosen[:, is_padding], weights[:, is_padding] = num_experts, 0
    draw = functools.partial(generator.normal, scale=0.3)
    stack = (num_groups, group_size)
    kernels = experts.Kernels(
        *(
            jnp.asarray(draw(size=(*stack, *sides)), jnp.float32)
            for sides in ((D, F), (D, F), (F, D))
        )
    )
    x = jnp.asarray(generator.normal(size=(rows, length, D)), jnp.float32)
    choice = routing.Choice(jnp.asarray(chosen), jnp.asarray(weights))
    return Case(x, choice, kernels, chosen_groups)


def value_and_gradients(case: Case, placement: expert_parallel.Placement) -> tuple:
    """Return ((output, overflow), gradients by x, weights, kernels) of a weighted sum, jitted."""
    direction = np.random.default_rng(5).normal(size=case.x.shape).astype(np.float32)

    @jax.jit
    def run(x: jax.Array, weights: jax.Array, kernels: experts.Kernels, chosen: jax.Array) -> tuple:
        def loss(x: jax.Array, weights: jax.Array, kernels: experts.Kernels) -> tuple:
            found = expert_parallel.run(
                x, routing.Choice(chosen, weights), kernels, placement,
                groups_per_token=case.groups_per_token, max_per_group=case.max_per_group,
            )  # fmt: skip
            return jnp.sum(found[0] * direction), found

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, weights, kernels)

    args = (case.x, case.choice.weights, case.kernels, case.choice.experts)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        args = place(args, jax.sharding.get_mesh())
    gradients, found = run(*args)
    return found, gradients


def place(args: tuple, mesh: jax.sharding.Mesh) -> tuple:
    """Put arguments where the table says."""
    into, rows = expert_parallel.INTO_AXES, ("batch", "sequence", None)
    axes = (rows, rows, into, into, expert_parallel.OUT_OF_AXES, rows)
    leaves, tree = jax.tree.flatten(args)
    placed = [
        jax.device_put(np.asarray(leaf), sharding.named(names, leaf.shape, mesh))
        for leaf, names in zip(leaves, axes, strict=True)
    ]
    return jax.tree.unflatten(tree, placed)


def assert_all_close(found: tuple, expected: tuple, atol: float = 1e-5) -> None:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for left, right in pairs:
        np.testing.assert_allclose(left, right, atol=atol, rtol=0)


@functools.cache
def on_one_device(shape: tuple[int, int, int], kind: str) -> tuple:
    """Return value and gradients of the oracle."""
    return value_and_gradients(make_case(shape, kind=kind), expert_parallel.Placement("all"))


def on_mesh(
    case: Case, sizes: dict[str, int], implementation: str = "all", **how: float | str
) -> tuple:
    """Return value and gradients on a mesh over the first devices."""
    mesh = sharding.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh):
        return value_and_gradients(case, expert_parallel.Placement(implementation, **how))


@pytest.mark.parametrize("sizes", [{"expert": 4, "fsdp": 2}, {"expert": 2, "tensor": 2}], ids=str)
def test_joined_kernels_and_even_choices_equal_the_oracle(sizes: dict[str, int]) -> None:
    """A grouped matmul reads gate and up at once; of each device a token uses so many at most."""
    case = make_case((8, 4, 2), kind="even")
    generator = np.random.default_rng(11)
    groups = np.argsort(generator.random((B, T, 8)), axis=-1)[..., :2, None]
    members = np.argsort(generator.random((B, T, 2, 4)), axis=-1)[..., :2]
    chosen = (4 * groups + members).reshape(B, T, 4).astype(np.int32)
    weights = generator.random(chosen.shape).astype(np.float32)
    choice = routing.Choice(jnp.asarray(chosen), jnp.asarray(weights))
    case = dataclasses.replace(case, choice=choice, max_per_group=2)
    expected = value_and_gradients(case, expert_parallel.Placement("all"))
    found = on_mesh(case, sizes, "ragged", transport="padded", buffer_factor=ROOM)
    assert_all_close(found, expected)


def test_a_choice_beyond_the_known_limit_of_a_group_is_counted() -> None:
    case = make_case((8, 4, 2), kind="one_group")
    case = dataclasses.replace(case, max_per_group=1)
    (_, overflow), _ = on_mesh(case, {"expert": 8}, transport="padded", buffer_factor=ROOM)
    used = int((np.asarray(case.choice.experts) < 32).sum())
    assert overflow == used - used // case.choice.experts.shape[-1]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_mesh_gives_values_and_gradients_of_one_device(sizes: tuple[int, ...]) -> None:
    named = dict(zip(("expert", "fsdp", "tensor"), sizes, strict=True))
    found = on_mesh(make_case(FEW_GROUPS), named, buffer_factor=ROOM)
    assert_all_close(found, on_one_device(FEW_GROUPS, "mixed"))


@pytest.mark.parametrize(
    "sizes", [{"expert": 8}, {"expert": 4, "fsdp": 2}, {"data": 2, "expert": 2, "context": 2}],
    ids=str,
)  # fmt: skip
def test_limited_groups_and_split_sequences_give_the_numbers_of_one_device(
    sizes: dict[str, int],
) -> None:
    found = on_mesh(make_case(MANY_GROUPS), sizes, buffer_factor=ROOM)
    assert_all_close(found, on_one_device(MANY_GROUPS, "mixed"))


def test_rows_that_do_not_divide_over_experts_give_the_numbers_of_one_device() -> None:
    # Too few rows to split: every device runs its own experts on all of them; none overflows.
    case = make_case(MANY_GROUPS, rows=3)
    expected = value_and_gradients(case, expert_parallel.Placement("all"))
    assert_all_close(on_mesh(case, {"expert": 4, "tensor": 2}, buffer_factor=1.0), expected)


def test_an_axis_that_divides_neither_groups_nor_their_experts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expert=4 .* num_groups \(3\) .* of a group \(2\)"):
        on_mesh(make_case((3, 2, 3)), {"expert": 4})


def ragged_by_gathering(
    operand: jax.Array, output: jax.Array, input_offsets: jax.Array, send_sizes: jax.Array,
    output_offsets: jax.Array, recv_sizes: jax.Array, *, axis_name: str,
) -> jax.Array:  # fmt: skip
    """Do what the documentation of ragged_all_to_all says, with collectives that CPUs have."""
    gather = functools.partial(jax.lax.all_gather, axis_name=axis_name)
    here = jax.lax.axis_index(axis_name)
    parts = [gather(each) for each in (operand, input_offsets, send_sizes, output_offsets)]
    rows = jnp.arange(output.shape[0])
    for source in range(jax.lax.axis_size(axis_name)):
        sent, start, size, place = parts[0][source], *(each[source, here] for each in parts[1:])
        size = jnp.where(size == recv_sizes[source], size, -1)  # both sides have to agree
        is_written = (rows >= place) & (rows < place + size)
        output = jnp.where(
            is_written[:, None], sent.at[rows - place + start].get(mode="clip"), output
        )
    return output


def test_the_ragged_transport_gives_the_numbers_of_one_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_by_gathering)
    sizes = {"expert": 4, "tensor": 2}
    found = on_mesh(make_case(FEW_GROUPS), sizes, transport="ragged", buffer_factor=ROOM)
    assert_all_close(found, on_one_device(FEW_GROUPS, "mixed"))


@pytest.mark.parametrize("transport", ["padded", "ragged"])
def test_overflow_is_counted_exactly_and_only_those_assignments_are_left_out(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_by_gathering)
    case = make_case(MANY_GROUPS, kind="one_group", length=32)
    shards = expert_shards.ExpertShards(*MANY_GROUPS, top_k=2, count=8)
    is_kept = kept_assignments(case, shards, transport, 1.0)
    lost = int(np.sum(~is_kept))
    assert 0 < lost < is_kept.size
    less = dataclasses.replace(
        case,
        choice=routing.Choice(case.choice.experts, jnp.where(is_kept, case.choice.weights, 0.0)),
    )
    (expected, _), (by_x, by_weights, by_kernels) = value_and_gradients(
        less, expert_parallel.Placement("all")
    )
    found, gradients = on_mesh(case, {"expert": 8}, transport=transport, buffer_factor=1.0)
    assert float(found[1]) == lost
    by_weights = jnp.where(is_kept, by_weights, 0.0)
    assert_all_close((found[0], *gradients), (expected, by_x, by_weights, by_kernels))


def kept_assignments(
    case: Case, shards: expert_shards.ExpertShards, transport: str, factor: float
) -> np.ndarray:
    """Return which assignments have room, one token after another; groups lie whole."""
    chosen = np.asarray(case.choice.experts).reshape(shards.count, -1, shards.top_k)
    num_tokens = chosen.shape[1]
    room = (
        np.full((shards.count, shards.count), shards.rows_to_one(num_tokens, factor))
        if transport == "padded"
        # One buffer for all sources: the first device's rows come first.
        else np.full(shards.count, shards.rows_of_all(num_tokens, factor))
    )
    is_kept = np.zeros(chosen.shape, bool)
    for source, token in np.ndindex(chosen.shape[:2]):
        wanted = chosen[source, token] // shards.experts_per_shard
        for shard in set(wanted.tolist()):
            left = (source, shard) if transport == "padded" else shard
            if room[left] > 0:
                room[left] -= 1
                is_kept[source, token] |= wanted == shard
    # Of the rows that came, a device runs so many assignments, the first ones.
    left = np.full(shards.count, shards.pairs_of_all(num_tokens, factor))
    for place in zip(*np.nonzero(is_kept), strict=True):
        shard = chosen[place] // shards.experts_per_shard
        is_kept[place] = left[shard] > 0
        left[shard] -= 1
    return is_kept.reshape(case.choice.experts.shape)


def least_rows(chosen: np.ndarray, shards: expert_shards.ExpertShards) -> int:
    """Return how many (token, device) pairs have an expert in common; groups lie whole."""
    places = chosen.reshape(-1, chosen.shape[-1]) // shards.experts_per_shard
    return sum(len(set(row.tolist())) for row in places)


def shapes_on(
    mesh: jax.sharding.Mesh, *, width: int = 256, dtype: str = "bfloat16"
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return a layer's arguments without numbers: LENGTH tokens a row, MANY_GROUPS of experts."""
    rows = ("batch", "sequence", None)
    into, out_of = expert_parallel.INTO_AXES, expert_parallel.OUT_OF_AXES

    def lay(shape: tuple[int, ...], dtype: str, axes: tuple) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            shape, jnp.dtype(dtype), sharding=sharding.named(axes, shape, mesh)
        )

    return (
        lay((B, LENGTH, width), dtype, rows),
        lay((B, LENGTH, TOP_K), "float32", rows),
        *(lay((8, 2, width, 128), "float32", into) for _ in range(2)),
        lay((8, 2, 128, width), "float32", out_of),
        lay((B, LENGTH, TOP_K), "int32", rows),
    )


def run_layer(
    x: jax.Array, weights: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array,
    chosen: jax.Array, *, transport: str, buffer_factor: float = 1.5,
) -> tuple:  # fmt: skip
    """Run experts whose tokens use three groups."""
    placement = expert_parallel.Placement("all", transport, buffer_factor)
    kernels, choice = experts.Kernels(gate, up, down), routing.Choice(chosen, weights)
    return expert_parallel.run(x, choice, kernels, placement, groups_per_token=MANY_GROUPS[2])


def layer_with_gradients(*args: jax.Array, transport: str) -> tuple:
    """Return a loss on the layer and its gradients by all but the choice."""

    def loss(*args: jax.Array) -> jax.Array:
        out, overflow = run_layer(*args, transport=transport)
        return jnp.sum(jnp.square(out.astype(jnp.float32))) + overflow

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))(*args)


def test_sent_and_buffer_bytes_stay_near_the_deduplicated_minimum() -> None:
    factor = 1.5
    case = make_case(MANY_GROUPS, kind="even", length=LENGTH)
    shards = expert_shards.ExpertShards(*MANY_GROUPS, TOP_K, 8)
    chosen = np.asarray(case.choice.experts)
    wide = 1024  # so that notes, 8 bytes an expert of a token, are as little as in a real model
    least = 2 * least_rows(chosen, shards) * wide * 4  # there and back, float32
    by_device = chosen.reshape(8, -1, TOP_K)
    rows = sum(
        int(jnp.sum(expert_exchange.sent_rows(jnp.asarray(each), shards))) for each in by_device
    )
    notes = rows * 2 * TOP_K * 4
    assert least <= 2 * rows * wide * 4 + notes <= 1.01 * least

    mesh = sharding.make_mesh({"expert": 8})
    layer = jax.jit(functools.partial(run_layer, transport="padded", buffer_factor=factor))
    with jax.set_mesh(mesh):
        module = layer.lower(*shapes_on(mesh, width=wide, dtype="float32")).compile().as_text()
    # A module is of one device; the buffers of all eight against the rows of all eight.
    buffers = 8 * all_to_all_bytes(module)
    # Over the factor itself: notes, and runs in whole tiles of 8 rows.
    assert least < buffers <= 1.02 * factor * least


def all_to_all_bytes(module: str) -> int:
    """Return the bytes of all results of all-to-all in a compiled module; float32 only."""
    found = 0
    for line in module.splitlines():
        result, is_call, _ = line.partition(" all-to-all(")
        if not is_call:
            continue
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", result.partition("=")[2])
        assert shapes
        assert {kind for kind, _ in shapes} == {"f32"}, line
        found += sum(
            4 * int(np.prod([int(side) for side in sides.split(",")])) for _, sides in shapes
        )
    return found


def test_the_ragged_transport_lowers_for_tpu_with_three_exchanges_each_way() -> None:
    mesh = sharding.make_mesh({"expert": 4, "fsdp": 2})
    step = jax.jit(functools.partial(layer_with_gradients, transport="ragged"))
    with jax.set_mesh(mesh):
        text = step.trace(*shapes_on(mesh)).lower(lowering_platforms=("tpu",)).as_text()
    # Rows and notes there, rows back; then the same backward, with no exchange of offsets.
    assert text.count("@ragged_all_to_all") == 6
    assert text.count("stablehlo.all_to_all") == 0


@pytest.mark.parametrize("transport", ["padded", "ragged"])
def test_a_tpu_compiler_takes_both_transports(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("libtpu", reason="libtpu is not installed; see requirements/tpu.lock")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topologies.get_topology_desc("v5e:2x4", "tpu").devices
    mesh = sharding.make_mesh({"expert": 2, "fsdp": 2, "tensor": 2}, devices)
    step = jax.jit(functools.partial(layer_with_gradients, transport=transport))
    with jax.set_mesh(mesh):
        module = step.lower(*shapes_on(mesh)).compile().as_text()
    name = "ragged-all-to-all" if transport == "ragged" else "all-to-all"
    assert len(re.findall(rf" {name}(?:-start)?\(", module)) == 6
