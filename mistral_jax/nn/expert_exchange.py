"""Tokens to the devices of their experts and back, inside shard_map: who is sent, and in which row.

A token is sent once to every device that holds experts of it, with its expert ids and weights; its
weighted sum over those experts comes back in one row. How rows travel is nn/expert_transport.py's.
A token without room is left out in its order in the batch, so that no token's output depends on a
later one of its row; left out assignments are counted.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax.config import expert_shards
from mistral_jax.nn import expert_transport
from mistral_jax.nn import routing

AXIS = expert_transport.AXIS

# Rows, their choice, and the most pairs there are, to outputs.
LocalExperts = Callable[[Float[Array, "R D"], routing.Choice, int], Float[Array, "R D"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Copies:
    """The copies of tokens that want to travel, at most c of each.

    Attributes:
        shard: [N, c], the device that a copy goes to; S where a token needs fewer.
        order: [N, c], how many copies of earlier tokens go to the same device.
        is_here: [N, c, k], which of the token's assignments lie on that device.
        local: [N, k], index of each assignment's expert on its device.
    """

    shard: Int[Array, "N c"]
    order: Int[Array, "N c"]
    is_here: Bool[Array, "N c k"]
    local: Int[Array, "N k"]

    def counts(self, num_shards: int) -> Int[Array, " S"]:
        """Return how many copies want to go to each device."""
        return jnp.sum(self.shard[..., None] == jnp.arange(num_shards), axis=(0, 1))


def exchange(
    tokens: Float[Array, "N D"],
    choice: routing.Choice,
    run_local: LocalExperts,
    shards: expert_shards.ExpertShards,
    *,
    transport: str,
    buffer_factor: float,
) -> tuple[Float[Array, "N D"], Float[Array, ""]]:
    """Return the weighted outputs of this device's tokens and how many assignments had no room.

    Args:
        tokens: in the compute dtype.
        choice: [N, k] over all experts; out of range for "no expert".
        run_local: this device's experts, by local index; out of range for "no expert".
        shards: how the experts lie.
        transport: a name in expert_transport.TRANSPORTS.
        buffer_factor: of rows against the even share.
    """
    num_tokens, top_k = choice.experts.shape
    copies = copies_of(choice.experts, shards)
    make_transport = expert_transport.TRANSPORTS[transport]
    way = make_transport(copies.counts(shards.count), shards, num_tokens, buffer_factor)
    slots = slots_of(copies, way)
    source = sources_of(slots, way.size)
    copy_slots = slots.reshape(-1, 1)
    # Index + 1, so that rows which nobody wrote name no expert. Exact in float32 below 2**24.
    ids = jnp.where(copies.is_here, copies.local[:, None, :] + 1, 0).astype(jnp.float32)
    weights = jnp.where(copies.is_here, choice.weights[:, None, :], 0.0)
    if shards.max_local < top_k:  # those of the device first; there are no more
        first = jax.lax.top_k(jax.lax.stop_gradient(ids), shards.max_local)[1]
        ids, weights = (jnp.take_along_axis(each, first, axis=-1) for each in (ids, weights))
    num_sent = jnp.sum((slots < way.size)[..., None] & (ids > 0))
    notes = jnp.concatenate([weights, ids], axis=-1).reshape(-1, 2 * ids.shape[-1])
    # Bytes a device and layer: rows * (D * itemsize + 8 times the experts of a device that a token
    # can use) there, of which (S - 1) / S leave it.
    rows = way.there(spread(tokens, source // shards.max_copies, slots))
    notes = way.there(spread(notes, source, copy_slots))
    weights, ids = jnp.split(notes, 2, axis=-1)
    ids = jax.lax.stop_gradient(ids).astype(jnp.int32)
    local = jnp.where(ids > 0, ids - 1, shards.experts_per_shard)
    max_pairs = shards.pairs_of_all(num_tokens, buffer_factor)
    choice_here, num_left_out = _bounded(routing.Choice(local, weights), shards, max_pairs)
    out = run_local(rows, choice_here, max_pairs)
    # Bytes a device and layer: rows * D * itemsize back. The backward pass sends both once more.
    total = collect(way.back(out), source // shards.max_copies, slots)
    num_wanted = jnp.sum((choice.experts >= 0) & (choice.experts < num_experts(shards)))
    return total, (num_wanted - num_sent + num_left_out).astype(jnp.float32)


def _bounded(
    choice: routing.Choice, shards: expert_shards.ExpertShards, max_pairs: int
) -> tuple[routing.Choice, Int[Array, ""]]:
    """Return the first `max_pairs` assignments of a device's rows, and how many are left out."""
    is_pair = choice.experts < shards.experts_per_shard
    if choice.experts.size <= max_pairs:
        return choice, jnp.int32(0)
    number = jnp.cumsum(is_pair.reshape(-1)).reshape(is_pair.shape)
    is_kept = is_pair & (number <= max_pairs)
    kept = routing.Choice(
        jnp.where(is_kept, choice.experts, shards.experts_per_shard),
        jnp.where(is_kept, choice.weights, 0.0),
    )
    return kept, jnp.maximum(number[-1, -1] - max_pairs, 0)


def num_experts(shards: expert_shards.ExpertShards) -> int:
    """Return how many experts all devices hold."""
    return shards.num_groups * shards.group_size


def place_of(
    experts: Int[Array, "N k"], shards: expert_shards.ExpertShards
) -> tuple[Int[Array, "N k"], Int[Array, "N k"]]:
    """Return the device of each expert, S for no expert, and the expert's index on it."""
    if shards.are_groups_whole:
        shard, local = jnp.divmod(experts, shards.experts_per_shard)
    else:
        part = shards.group_size // shards.count
        group, member = jnp.divmod(experts, shards.group_size)
        shard, local = member // part, group * part + member % part
    return jnp.where(experts < num_experts(shards), shard, shards.count), local


def local_choice(choice: routing.Choice, shards: expert_shards.ExpertShards) -> routing.Choice:
    """Return the part of a choice that lies on this device, by local index."""
    shard, local = place_of(choice.experts, shards)
    is_here = shard == jax.lax.axis_index(AXIS)
    return routing.Choice(
        jnp.where(is_here, local, shards.experts_per_shard),
        jnp.where(is_here, choice.weights, 0.0),
    )


def copies_of(experts: Int[Array, "N k"], shards: expert_shards.ExpertShards) -> Copies:
    """Return which devices each token needs, each once, and which assignments lie where."""
    shard, local = place_of(experts, shards)
    devices = jnp.arange(shards.count)
    is_needed = jnp.any(shard[..., None] == devices, axis=1)  # [N, S]
    # The needed ones in their order: top_k keeps it among equals.
    found, copy_shard = jax.lax.top_k(is_needed.astype(jnp.int32), shards.max_copies)
    copy_shard = jnp.where(found > 0, copy_shard, shards.count)
    is_kept = jnp.any(copy_shard[..., None] == devices, axis=1)
    earlier = jnp.cumsum(is_kept, axis=0) - is_kept
    order = jnp.take_along_axis(earlier, jnp.minimum(copy_shard, shards.count - 1), axis=1)
    is_here = (shard[:, None, :] == copy_shard[..., None]) & (found > 0)[..., None]
    return Copies(copy_shard, order, is_here, local)


def sent_rows(experts: Int[Array, "N k"], shards: expert_shards.ExpertShards) -> Int[Array, " S"]:
    """Return how many rows a device with these tokens sends to each, itself included.

    These travel there and back; without a limit on room no more and no fewer.
    """
    return copies_of(experts, shards).counts(shards.count)


def slots_of(copies: Copies, way: expert_transport.Transport) -> Int[Array, "N c"]:
    """Return each copy's row in the send buffer; `size` for one that is not or cannot be sent."""
    last = way.starts.shape[0] - 1
    shard = jnp.minimum(copies.shard, last)
    has_room = (copies.shard <= last) & (copies.order < way.limits[shard])
    return jnp.where(has_room, way.starts[shard] + copies.order, way.size)


def sources_of(slots: Int[Array, "N c"], size: int) -> Int[Array, " M"]:
    """Return each row's copy, numbered token by token; N * c for an empty row."""
    empty = jnp.full((size,), slots.size, jnp.int32)
    return empty.at[slots.reshape(-1)].set(jnp.arange(slots.size, dtype=jnp.int32), mode="drop")


@jax.custom_vjp
def spread(
    values: Float[Array, "N W"], source: Int[Array, " M"], slots: Int[Array, "N c"]
) -> Float[Array, "M W"]:
    """Return values at their rows, zeros in empty rows. The transpose of `collect`.

    Both are gathers, forward and backward: automatic differentiation would scatter rows, which
    is slow where memory is wide.
    """
    return values.at[source].get(mode="fill", fill_value=0)


@jax.custom_vjp
def collect(
    rows: Float[Array, "M W"], source: Int[Array, " M"], slots: Int[Array, "N c"]
) -> Float[Array, "N W"]:
    """Return the sum of each token's rows, in the rows' dtype. The transpose of `spread`."""
    total = jnp.zeros((slots.shape[0], rows.shape[1]), jnp.float32)  # float32: c terms add up
    for column in range(slots.shape[1]):
        total = total + rows.at[slots[:, column]].get(mode="fill", fill_value=0)
    return total.astype(rows.dtype)


spread.defvjp(
    lambda values, source, slots: (spread(values, source, slots), (source, slots)),
    lambda saved, cotangent: (collect(cotangent, *saved), None, None),
)
collect.defvjp(
    lambda rows, source, slots: (collect(rows, source, slots), (source, slots)),
    lambda saved, cotangent: (spread(cotangent, *saved), None, None),
)
