"""How rows travel between the devices of the mesh axis `expert`, inside shard_map.

`padded` has room for a fixed number of rows from each device to each other (`all_to_all`,
everywhere); `ragged` sends just the rows there are (`ragged_all_to_all`, which TPUs have) into one
receive buffer. Each has `starts` [S], the first row of the send buffer for each device, `limits`
[S], how many rows may go to each, `size`, the rows of the send buffer, and `there` and `back`,
which are each other's transpose. Which rows: nn/expert_exchange.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax.config import expert_shards

AXIS = "expert"


@dataclasses.dataclass(frozen=True)
class PaddedTransport:
    """The same number of rows from each device to each other, used or not."""

    starts: Int[Array, " S"]
    limits: Int[Array, " S"]
    rows_to_one: int

    @property
    def size(self) -> int:
        """Rows of the send buffer, and of the receive buffer."""
        return self.starts.shape[0] * self.rows_to_one

    def there(self, rows: Float[Array, "M W"]) -> Float[Array, "R W"]:
        """Send each device its run of rows; receive one run from each, in their order."""
        return jax.lax.all_to_all(rows, AXIS, split_axis=0, concat_axis=0, tiled=True)

    def back(self, rows: Float[Array, "R W"]) -> Float[Array, "M W"]:
        """Send each run back to where it came from: the same exchange."""
        return self.there(rows)


def padded_transport(
    counts: Int[Array, " S"],
    shards: expert_shards.ExpertShards,
    num_tokens: int,
    buffer_factor: float,
) -> PaddedTransport:
    """Return the padded way; it depends on no count."""
    del counts
    rows = shards.rows_to_one(num_tokens, buffer_factor)
    starts = jnp.arange(shards.count) * rows
    return PaddedTransport(starts, jnp.full_like(starts, rows), rows)


@dataclasses.dataclass(frozen=True)
class Offsets:
    """Where runs of rows start, and how long they are, between all pairs of devices.

    Attributes:
        in_send: [S, S], first row of [source, destination] in the source's send buffer.
        in_receive: [S, S], its first row in the destination's receive buffer.
        sizes: [S, S], rows that travel.
    """

    in_send: Int[Array, "S S"]
    in_receive: Int[Array, "S S"]
    sizes: Int[Array, "S S"]


def ragged_offsets(counts: Int[Array, "S S"], room: int) -> Offsets:
    """Return the offsets that pack each receive buffer by source, as far as there is room.

    Args:
        counts: rows that each source (first) has for each destination.
        room: rows of a receive buffer.
    """
    in_send = jnp.cumsum(counts, axis=1) - counts
    wanted = jnp.cumsum(counts, axis=0) - counts
    in_receive = jnp.minimum(wanted, room)
    return Offsets(in_send, in_receive, jnp.minimum(counts, room - in_receive))


@dataclasses.dataclass(frozen=True)
class RaggedTransport:
    """Only the rows there are, one run after another, into one buffer for all sources."""

    starts: Int[Array, " S"]
    limits: Int[Array, " S"]
    size: int
    room: int
    offsets: Offsets

    def there(self, rows: Float[Array, "M W"]) -> Float[Array, "R W"]:
        """Send each device its run of rows."""
        return _ragged(self.room, self.size, rows, *self._ways())

    def back(self, rows: Float[Array, "R W"]) -> Float[Array, "M W"]:
        """Send each run back to the rows that it came from; rows that never left are 0."""
        return _ragged(self.size, self.room, rows, *reversed(self._ways()))

    def _ways(self) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Return (input offsets, send sizes, output offsets, receive sizes), there and back."""
        here, table = jax.lax.axis_index(AXIS), self.offsets
        there = (
            table.in_send[here], table.sizes[here], table.in_receive[here], table.sizes[:, here]
        )  # fmt: skip
        back = (
            table.in_receive[:, here], table.sizes[:, here], table.in_send[:, here],
            table.sizes[here],
        )  # fmt: skip
        return there, back


def _ragged_exchange(
    room: int, size: int, rows: Float[Array, "M W"], way: tuple, opposite: tuple
) -> Float[Array, "R W"]:
    del size, opposite
    received = jnp.zeros((room, rows.shape[1]), rows.dtype)
    return jax.lax.ragged_all_to_all(rows, received, *way, axis_name=AXIS)


# Its gradient takes the opposite way, whose offsets are known: the automatic rule would exchange
# them between the devices once more.
_ragged = jax.custom_vjp(_ragged_exchange, nondiff_argnums=(0, 1))
_ragged.defvjp(
    lambda room, size, rows, way, opposite: (
        _ragged_exchange(room, size, rows, way, opposite), (way, opposite)
    ),
    lambda room, size, saved, cotangent: (
        _ragged(size, room, cotangent, *reversed(saved)), None, None
    ),
)  # fmt: skip


def ragged_transport(
    counts: Int[Array, " S"],
    shards: expert_shards.ExpertShards,
    num_tokens: int,
    buffer_factor: float,
) -> RaggedTransport:
    """Return the ragged way, agreed on by all devices of the axis."""
    # Bytes a device and layer: 4 S**2.
    table = jax.lax.all_gather(counts, AXIS)
    room = shards.rows_of_all(num_tokens, buffer_factor)
    offsets = ragged_offsets(table, room)
    here = jax.lax.axis_index(AXIS)
    return RaggedTransport(
        starts=offsets.in_send[here],
        limits=offsets.sizes[here],
        size=num_tokens * shards.max_copies,
        room=room,
        offsets=offsets,
    )


Transport = PaddedTransport | RaggedTransport
TRANSPORTS = {"padded": padded_transport, "ragged": ragged_transport}
