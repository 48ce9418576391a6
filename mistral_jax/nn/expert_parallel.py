"""Experts on several devices: tokens travel to their experts and back. One device needs none.

Attention uses the mesh axis `expert` as more data parallelism; here the same devices hold different
experts. Inside one shard_map over the whole mesh: parts of kernels over `fsdp` are gathered, hidden
channels over `tensor` make partial sums, tokens travel over `expert` (nn/expert_exchange.py).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax import sharding
from mistral_jax.config import expert_shards
from mistral_jax.nn import expert_exchange
from mistral_jax.nn import expert_transport
from mistral_jax.nn import experts
from mistral_jax.nn import routing

AXIS = expert_transport.AXIS
INTO_AXES = ("group", "expert", "expert_embed", "mlp")
OUT_OF_AXES = ("group", "expert", "expert_hidden", None)
# Of adapters' A and B, into the hidden channels and out of them.
INTO_ADAPTER_AXES = (*INTO_AXES[:3], "rank"), (*INTO_AXES[:2], "rank", INTO_AXES[3])
OUT_OF_ADAPTER_AXES = (*OUT_OF_AXES[:3], "rank"), (*OUT_OF_AXES[:2], "rank", OUT_OF_AXES[3])


@dataclasses.dataclass(frozen=True)
class Placement:
    """How the experts run; nothing here changes what they compute but an overflow.

    Attributes:
        implementation: a name in experts.IMPLEMENTATIONS.
        transport: `padded` all-to-all everywhere, or `ragged`, which TPUs have.
        buffer_factor: how many times the even share of rows (config/expert_shards.py) a buffer
            holds; infinity leaves room for every token on every device.
        chunk_tokens: on a mesh, how many of its tokens a device sends at a time, each chunk
            recomputed in the backward pass; None is all at once. A chunk's rows are what a layer
            under full remat holds most of, and sending in turns costs no other work there.
    """

    implementation: str = "blocks"
    transport: str = "padded"
    buffer_factor: float = 1.5
    chunk_tokens: int | None = None


def choose_transport(name: str, platform: str) -> str:
    """Return the transport that `auto` means on a platform, or the name itself.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name == "auto":
        return "ragged" if platform == "tpu" else "padded"
    if name not in expert_transport.TRANSPORTS:
        known = ", ".join(["auto", *expert_transport.TRANSPORTS])
        raise ValueError(f"unknown experts transport {name!r}; known: {known}")
    return name


def run(
    x: Float[Array, "B T D"],
    choice: routing.Choice,
    kernels: experts.Kernels,
    placement: Placement,
    *,
    groups_per_token: int | None = None,
    max_per_group: int | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
    """Return the weighted outputs and how many assignments found no room.

    Args:
        x: tokens in the compute dtype.
        choice: [B, T, k].
        kernels: as they are stored, [groups, experts of a group, in, out].
        placement: how.
        groups_per_token: how many groups a token may use, which bounds the devices it is sent
            to; None is all. An assignment beyond it counts as overflow.
        max_per_group: how many experts of one group a token may use; None is all.

    Raises:
        ValueError: the mesh axis `expert` divides neither groups nor the experts of a group.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        limits = groups_per_token, max_per_group
        return _run_on_mesh(x, choice, kernels, placement, limits, mesh)
    out = _run_local(
        x.reshape(-1, x.shape[-1]),
        _flat(choice),
        kernels=_flat_kernels(kernels, x),
        implementation=placement.implementation,
    )
    return out.reshape(x.shape), jnp.float32(0)


def _run_on_mesh(
    x: Float[Array, "B T D"],
    choice: routing.Choice,
    kernels: experts.Kernels,
    placement: Placement,
    limits: tuple[int | None, int | None],
    mesh: AbstractMesh,
) -> tuple[Float[Array, "B T D"], Float[Array, ""]]:
    num_groups, group_size = kernels.gate.shape[:2]
    groups_per_token, max_per_group = limits
    shards = expert_shards.ExpertShards(
        num_groups,
        group_size,
        groups_per_token or num_groups,
        choice.experts.shape[-1],
        mesh.shape[AXIS],
        max_per_group,
    )
    rows, length, _ = sharding.spec(("batch", "sequence", None), x.shape, mesh)
    token_axes = sharding.names(rows) + sharding.names(length)
    into = sharding.spec(INTO_AXES, kernels.gate.shape, mesh)
    out_of = sharding.spec(OUT_OF_AXES, kernels.down.shape, mesh)
    tokens = PartitionSpec(rows, length, None)
    leaves, structure = jax.tree.flatten(kernels)
    specs = [
        sharding.spec(axes, leaf.shape, mesh)
        for axes, leaf in zip(_axes_of(kernels), leaves, strict=True)
    ]
    on_device = functools.partial(
        _run_on_device,
        structure=structure,
        shards=shards,
        placement=placement,
        embed_axes=sharding.names(into[2]),
        hidden_axes=tuple(
            axis for axis in sharding.names(out_of[2]) if axis not in sharding.names(into[3])
        ),
        token_axes=token_axes,
    )
    # Partial sums of one token lie on several devices: of hidden channels, and of experts where
    # rows do not divide over them (a few prompts to continue), so that no token needs to travel.
    summed = sharding.names(into[3]) + sharding.names(None if AXIS in token_axes else AXIS)
    parts, overflow = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(tokens, tokens, tokens, specs),
        out_specs=(PartitionSpec(summed, *tokens), PartitionSpec()),
        check_vma=False,
    )(x, choice.experts, choice.weights, leaves)
    # Added outside, where the gradient is a plain copy; a psum inside would be one more backward.
    # Bytes a device and layer: tokens here * D * itemsize, all-reduced.
    return jnp.sum(parts, axis=0), overflow


def _run_on_device(
    x: Float[Array, "B T D"],
    chosen: Int[Array, "B T k"],
    weights: Float[Array, "B T k"],
    leaves: list[Float[Array, "G E _ _"]],
    *,
    structure: Any,
    shards: expert_shards.ExpertShards,
    placement: Placement,
    embed_axes: tuple[str, ...],
    hidden_axes: tuple[str, ...],
    token_axes: tuple[str, ...],
) -> tuple[Float[Array, "1 B T D"], Float[Array, ""]]:
    """Return this device's tokens' outputs, of this device's hidden channels, and the overflow.

    `leaves` and `structure` are its part of an experts.Kernels.
    """

    def gather(kernel: Array, axes: tuple[str, ...]) -> Array:
        kernel = kernel.astype(x.dtype)
        if not axes:
            return kernel
        # Bytes a device and layer, each kernel: experts here * D * F here * itemsize, of which
        # (fsdp - 1) / fsdp arrive; the gradient is reduce-scattered in the same dtype and number.
        return jax.lax.all_gather(kernel, axes, axis=2, tiled=True)

    def gather_pair(pair: experts.LowRank | None, axes: tuple[str, ...]) -> experts.LowRank | None:
        # As the kernels, R numbers instead of F or D; B's rows are not split.
        return None if pair is None else experts.LowRank(gather(pair.a, axes), gather(pair.b, ()))

    own = jax.tree.unflatten(structure, leaves)
    # Side by side before they are gathered: joined afterwards, whole kernels would be copied.
    is_joined = placement.implementation in experts.JOINED
    joined = jnp.concatenate([own.gate, own.up], axis=-1) if is_joined else None
    whole = experts.Kernels(
        None if is_joined else gather(own.gate, embed_axes),
        None if is_joined else gather(own.up, embed_axes),
        gather(own.down, hidden_axes),
        gather_pair(own.gate_adapter, embed_axes),
        gather_pair(own.up_adapter, embed_axes),
        gather_pair(own.down_adapter, hidden_axes),
        None if joined is None else gather(joined, embed_axes),
    )
    run_local = functools.partial(
        _run_local,
        kernels=_flat_kernels(whole, x),
        implementation=placement.implementation,
    )
    tokens = x.reshape(-1, x.shape[-1])
    choice = _flat(routing.Choice(chosen, weights))
    if AXIS not in token_axes or shards.count == 1:
        choice = expert_exchange.local_choice(choice, shards)
        return run_local(tokens, choice).reshape(1, *x.shape), jnp.float32(0)

    def send(part: tuple[Array, routing.Choice]) -> tuple[Array, Array]:
        return expert_exchange.exchange(
            *part,
            run_local,
            shards,
            transport=placement.transport,
            buffer_factor=placement.buffer_factor,
        )

    chunk = expert_shards.chunk_of(tokens.shape[0], placement.chunk_tokens)
    if chunk == tokens.shape[0]:
        out, overflow = send((tokens, choice))
    else:
        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk, leaf.shape[-1]), (tokens, choice))
        out, overflow = jax.lax.map(jax.checkpoint(send), parts)
        overflow = jnp.sum(overflow)
    # 4 bytes a layer.
    return out.reshape(1, *x.shape), jax.lax.psum(overflow, token_axes)


def _axes_of(kernels: experts.Kernels) -> list[tuple[str | None, ...]]:
    """Return the logical axes of each array of kernels and adapters, as they flatten."""
    axes: list[tuple[str | None, ...]] = [INTO_AXES, INTO_AXES, OUT_OF_AXES]
    for adapter, own in (
        (kernels.gate_adapter, INTO_ADAPTER_AXES),
        (kernels.up_adapter, INTO_ADAPTER_AXES),
        (kernels.down_adapter, OUT_OF_ADAPTER_AXES),
    ):
        axes += [] if adapter is None else own
    return axes


def _run_local(
    tokens: Float[Array, "N D"],
    choice: routing.Choice,
    max_pairs: int | None = None,
    *,
    kernels: experts.Kernels,
    implementation: str,
) -> Float[Array, "N D"]:
    return experts.run_experts(
        tokens, choice, kernels, implementation=implementation, max_pairs=max_pairs
    )


def _flat(choice: routing.Choice) -> routing.Choice:
    """Return a choice of [B, T, k] as [N, k]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), choice)


def _flat_kernels(kernels: experts.Kernels, x: Float[Array, "B T D"]) -> experts.Kernels:
    """Return kernels of [groups, experts of a group, ..] as [experts, ..] in x's dtype."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]).astype(x.dtype), kernels)
