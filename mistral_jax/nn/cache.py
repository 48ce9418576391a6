"""The key/value cache of one layer: rolling slots with explicit positions.

Slot = position modulo the number of slots. With a window of W, W slots are enough: a slot is
overwritten exactly when its key leaves the window. Empty slots have position -1.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer; of all layers, stacked, outside the scan.

    Attributes:
        keys: [B, S, K, Q], rotated already.
        values: [B, S, K, W]; W is 0 where values are a part of the keys (nn/mla.py).
    """

    keys: Float[Array, "*L B S K Q"]
    values: Float[Array, "*L B S K W"]

    def write(
        self,
        keys: Float[Array, "B T K Q"],
        values: Float[Array, "B T K W"],
        positions: Int[Array, "B T"],
    ) -> "LayerCache":
        """Return the cache with new tokens in their slots; negative positions are not written.

        Of more tokens than slots only the last ones stay, as in a window.
        """
        num_slots = self.keys.shape[1]
        slots = write_slots(positions, num_slots)
        rows = jnp.arange(positions.shape[0])[:, None]
        return LayerCache(
            keys=self.keys.at[rows, slots].set(keys.astype(self.keys.dtype), mode="drop"),
            values=self.values.at[rows, slots].set(values.astype(self.values.dtype), mode="drop"),
        )


def write_slots(positions: Int[Array, "B T"], num_slots: int) -> Int[Array, "B T"]:
    """Return each token's slot; out of range (dropped) for padding and overwritten tokens."""
    newest = jnp.max(positions, axis=1, keepdims=True)
    is_kept = (positions >= 0) & (positions > newest - num_slots)
    return jnp.where(is_kept, positions % num_slots, num_slots)


def write_positions(
    slot_positions: Int[Array, "B S"], positions: Int[Array, "B T"]
) -> Int[Array, "B S"]:
    """Return the slots' positions after new tokens; shared by all layers."""
    slots = write_slots(positions, slot_positions.shape[1])
    rows = jnp.arange(positions.shape[0])[:, None]
    return slot_positions.at[rows, slots].set(positions, mode="drop")
