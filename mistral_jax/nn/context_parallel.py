"""Attention over rows that several devices share: keys travel over the `context` mesh axis.

Two forms: `all_gather` brings every key to every device at once; `ring` hands them on, one
device's share at a time (arXiv:2310.01889). Rows lie in zigzag order: of 2c chunks device i holds
chunks i and 2c-1-i, so that under a causal mask every device has the same work (Llama 3,
arXiv:2407.21783, section 3.3.2). What travels is what the caller names, keys and values or a
latent, and is expanded to keys and values block by block, in the backward pass again.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh
from jax.sharding import Mesh
from jax.sharding import PartitionSpec
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Shaped

from mistral_jax import sharding
from mistral_jax.nn import masks
from mistral_jax.nn.kernels import blockwise
from mistral_jax.nn.kernels import splash
from mistral_jax.nn.kernels import splash_blocks

AXIS = "context"

# Named arrays [B, T, ..], the logical axes of each, and so for the parameters.
Arrays = dict[str, Array]
Axes = dict[str, tuple[str | None, ...]]
# (parameters, source) -> (keys [B, s, K, Q], values [B, s, K, W]), token by token.
Expand = Callable[[Arrays, Arrays], tuple[Array, Array]]


def size_of(mesh: Mesh | AbstractMesh) -> int:
    """Return how many devices share a row."""
    return 1 if mesh.empty else mesh.shape[AXIS]


def zigzag_order(num_tokens: int, size: int) -> Int[np.ndarray, " T"]:
    """Return, for each slot of a row that `size` devices share, the index of its token.

    Raises:
        ValueError: the row cannot be cut into two chunks for each device.
    """
    if num_tokens % (2 * size):
        raise ValueError(
            f"a context axis of {size} needs rows in multiples of {2 * size} tokens, got "
            f"{num_tokens}; change data.sequence_length or the target's context axis"
        )
    chunks = np.arange(num_tokens, dtype=np.int32).reshape(2 * size, -1)
    pairs = [(index, 2 * size - 1 - index) for index in range(size)]
    return np.concatenate([chunks[index] for pair in pairs for index in pair])


def reordered(
    array: Shaped[np.ndarray, "*rows T"], mesh: Mesh | AbstractMesh
) -> Shaped[np.ndarray, "*rows T"]:
    """Return a batch array whose rows lie as the devices of a mesh share them.

    Every array of a batch takes the same order, so that sums over tokens stay what they are.
    """
    size = size_of(mesh)
    return array if size == 1 else array[..., zigzag_order(array.shape[-1], size)]


def row_spec(
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"] | None,
    form: masks.ContextForm | None,
) -> masks.AttentionSpec:
    """Return the spec of self-attention over packed rows, which are `reordered` if shared."""
    spec = masks.row_spec(positions, segment_ids)
    size = size_of(jax.sharding.get_abstract_mesh())
    if form is None or size == 1:
        return spec
    rows = jnp.asarray(zigzag_order(positions.shape[1], size))
    return dataclasses.replace(spec, rows=rows, context=form)


@dataclasses.dataclass(frozen=True)
class _Call:
    """What is static in one call."""

    expand: Expand
    form: masks.ContextForm
    size: int
    scale: float
    reach: int | None
    block: int
    kernel: blockwise.Kernel

    @property
    def how(self) -> dict[str, Any]:
        """Arguments of the blocks."""
        return {"scale": self.scale, "reach": self.reach, "kernel": self.kernel}


def attend(
    q: Float[Array, "B T H Q"],
    k: Float[Array, "B T K Q"],
    v: Float[Array, "B T K W"],
    spec: masks.AttentionSpec,
    *,
    scale: float,
    implementation: str,
) -> Float[Array, "B T H W"]:
    """Attend over shared rows; keys and values travel."""
    axes = ("batch", "sequence", "kv_heads", None)
    return attend_expanded(
        q, {"k": k, "v": v}, {}, _as_they_are, spec,
        source_axes={"k": axes, "v": axes}, parameter_axes={}, num_kv_heads=k.shape[2],
        scale=scale, implementation=implementation,
    )  # fmt: skip


def _as_they_are(parameters: Arrays, source: Arrays) -> tuple[Array, Array]:
    del parameters
    return source["k"], source["v"]


def attend_expanded(
    q: Float[Array, "B T H Q"],
    source: Arrays,
    parameters: Arrays,
    expand: Expand,
    spec: masks.AttentionSpec,
    *,
    source_axes: Axes,
    parameter_axes: Axes,
    num_kv_heads: int,
    scale: float,
    implementation: str,
) -> Float[Array, "B T H W"]:
    """Attend over shared rows; `source` travels and is expanded where it arrives.

    Args:
        q: queries.
        source: what keys and values are made of.
        parameters: of `expand`; each device has its heads' part.
        expand: makes keys and values of some tokens; called again in the backward pass.
        spec: of a row, with `rows` and `context`.
        source_axes: logical axes of the source.
        parameter_axes: logical axes of the parameters.
        num_kv_heads: of the whole array.
        scale: of the scores.
        implementation: of attention; `splash` takes its kernel where the blocks suit it, and
            every other name means plain XLA.

    Raises:
        ValueError: the spec has a field that this attention does not take.
    """
    extras = (spec.score_bias, spec.block_table)
    is_plain = spec.is_row and not spec.has_logsumexp and all(extra is None for extra in extras)
    if not is_plain or spec.rows is None or spec.context is None:
        raise ValueError(
            "attention over a context axis takes rows with their indices, and no bias, block "
            "table or logsumexp"
        )
    mesh = jax.sharding.get_abstract_mesh()
    batch, num_tokens, num_heads, _ = q.shape
    shape = (batch, num_tokens, num_kv_heads, 1)
    rows, tokens, heads, _ = sharding.spec(("batch", "sequence", "kv_heads", None), shape, mesh)

    def specs(axes: Axes, arrays: Arrays) -> dict[str, PartitionSpec]:
        found = {}
        for name, array in arrays.items():
            # Heads that do not divide are whole, and so must be what they are made of; the
            # inputs of `expand` are always whole.
            left = ("embed",) if heads else ("embed", "heads", "kv_heads")
            own = (None if axis in left else axis for axis in axes[name])
            found[name] = sharding.spec(tuple(own), array.shape, mesh)
        return found

    segments = spec.query_segments
    if segments is None:
        segments = jnp.ones((batch, num_tokens), jnp.int32)
    block, kernel = _choose_blocks(num_tokens // size_of(mesh) // 2, spec.reach, implementation)
    call = _Call(
        expand=expand,
        form=spec.context,
        size=size_of(mesh),
        scale=scale,
        reach=spec.reach,
        block=block,
        kernel=kernel,
    )

    def on_shard(
        q: Array, source: Arrays, parameters: Arrays, index: Array, segments: Array
    ) -> Array:
        out_heads = q.shape[2]
        # [B, T, H, Q] -> [B, T, K, G, Q]; num_heads // num_kv_heads queries share a key head.
        grouped = q.reshape(*q.shape[:2], -1, num_heads // num_kv_heads, q.shape[-1])
        where = blockwise.Where(index, segments)
        out = _attend_shard(call, grouped, source, parameters, where)
        return out.reshape(*out.shape[:2], out_heads, out.shape[-1])

    whole = PartitionSpec(rows, tokens, heads, None)
    return jax.shard_map(
        on_shard,
        mesh=mesh,
        in_specs=(
            whole,
            specs(source_axes, source),
            specs(parameter_axes, parameters),
            PartitionSpec(tokens),
            PartitionSpec(rows, tokens),
        ),
        out_specs=whole,
        check_vma=False,
    )(q, source, parameters, spec.rows, segments)


def _choose_blocks(
    chunk: int, reach: int | None, implementation: str
) -> tuple[int, blockwise.Kernel]:
    """Return how long the blocks of a chunk are, and what works a pair of them out."""
    if implementation == "splash" and reach is None and chunk % splash.LANE == 0:
        lanes = blockwise.block_size(chunk // splash.LANE, splash_blocks.MAX_BLOCK // splash.LANE)
        return lanes * splash.LANE, blockwise.Kernel(splash_blocks.absorb, splash_blocks.pull_back)
    if implementation == "splash":
        warnings.warn(
            f"shared rows are attended to in plain XLA, slower than splash: it takes chunks in "
            f"multiples of {splash.LANE} tokens and no window, got {chunk} and {reach}",
            stacklevel=2,
        )
    return blockwise.block_size(chunk, blockwise.MAX_BLOCK), blockwise.XLA


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_shard(
    call: _Call,
    q: Float[Array, "B T K G Q"],
    source: Arrays,
    parameters: Arrays,
    where: blockwise.Where,
) -> Float[Array, "B T K G W"]:
    return _forward(call, q, source, parameters, where)[0]


def _forward(
    call: _Call,
    q: Float[Array, "B T K G Q"],
    source: Arrays,
    parameters: Arrays,
    where: blockwise.Where,
) -> tuple[Float[Array, "B T K G W"], tuple]:
    """Return the output, and what the backward pass needs."""
    # The masks depend on no layer's numbers: a differentiated scan over layers would compute them
    # all in front of it and keep them, 4.9 TiB at 256K tokens. Tied to the queries, they stay here.
    q, where = jax.lax.optimization_barrier((q, where))
    queries = blockwise.Queries(blockwise.in_blocks(q, 1, call.block), _where_blocks(call, where))

    def absorb(sums: blockwise.Sums, arrival: tuple[Arrays, blockwise.Where]) -> blockwise.Sums:
        def one(sums: blockwise.Sums, block: tuple) -> tuple[blockwise.Sums, None]:
            part, where = block
            k, v = call.expand(parameters, part)
            keys = blockwise.Keys(k, v, where)
            return blockwise.absorb(sums, queries, keys, **call.how), None

        return jax.lax.scan(one, sums, _arrival_blocks(call, arrival))[0]

    value_width = jax.eval_shape(call.expand, parameters, source)[1].shape[-1]
    sums = blockwise.nothing_seen(queries.q, value_width)
    if call.form == "all_gather":
        # Bytes received a layer and pass: (c - 1) times the device's source.
        arrivals = jax.lax.all_gather((source, where), AXIS)
        sums = jax.lax.scan(lambda sums, each: (absorb(sums, each), None), sums, arrivals)[0]
    else:

        def hand_on(carry: tuple, _: None) -> tuple[tuple, None]:
            sums, here = carry
            # Sent before it is used, so that the transfer hides behind the work. Bytes received
            # a layer and pass: c times the device's source; the last brings it home, unused.
            return (absorb(sums, here), _to_next(call, here)), None

        sums = jax.lax.scan(hand_on, (sums, (source, where)), length=call.size)[0][0]
    out, logsumexp = blockwise.finish(sums)
    out = out.astype(q.dtype)
    whole = blockwise.joined(jnp.moveaxis(out, 4, 2), 1)  # [n, B, K, G, t, W] -> [B, T, K, G, W]
    return whole, (q, source, parameters, where, out, logsumexp)


def _backward(call: _Call, kept: tuple, d_whole: Float[Array, "B T K G W"]) -> tuple:
    q, source, parameters, where, out, logsumexp = kept
    d_out = jnp.moveaxis(blockwise.in_blocks(d_whole, 1, call.block), 2, 4)  # [n, B, K, G, t, W]
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    results = blockwise.Results(out, d_out, logsumexp, delta)
    queries = blockwise.Queries(blockwise.in_blocks(q, 1, call.block), _where_blocks(call, where))

    def pull_back(sums: tuple, arrival: tuple[Arrays, blockwise.Where]) -> tuple[tuple, Arrays]:
        """Return the gradients of queries and parameters so far, and of the arrived source."""

        def one(sums: tuple, block: tuple) -> tuple[tuple, Arrays]:
            d_q, d_parameters = sums
            part, where = block
            (k, v), back = jax.vjp(call.expand, parameters, part)
            keys = blockwise.Keys(k, v, where)
            d_q, d_k, d_v = blockwise.pull_back(d_q, queries, results, keys, **call.how)
            more, d_part = back((d_k.astype(k.dtype), d_v.astype(v.dtype)))
            return (d_q, jax.tree.map(jnp.add, d_parameters, _wide(more))), _wide(d_part)

        sums, d_blocks = jax.lax.scan(one, sums, _arrival_blocks(call, arrival))
        return sums, jax.tree.map(lambda blocks: blockwise.joined(blocks, 1), d_blocks)

    sums = (jnp.zeros(queries.q.shape, jnp.float32), _zeros(parameters))
    if call.form == "all_gather":
        arrivals = jax.lax.all_gather((source, where), AXIS)
        sums, d_arrivals = jax.lax.scan(pull_back, sums, arrivals)
        # Bytes received a layer: (c - 1) times the device's source in float32.
        d_source = jax.lax.psum_scatter(d_arrivals, AXIS, scatter_dimension=0)
    else:

        def hand_on(carry: tuple, _: None) -> tuple[tuple, None]:
            sums, here, d_here = carry
            there = _to_next(call, here)
            sums, more = pull_back(sums, here)
            # The gradient travels with its source, in float32, and both come home.
            return (sums, there, _to_next(call, jax.tree.map(jnp.add, d_here, more))), None

        carry = (sums, (source, where), _zeros(source))
        sums, _, d_source = jax.lax.scan(hand_on, carry, length=call.size)[0]
    d_q, d_parameters = sums

    def like(gradients: Arrays, arrays: Arrays) -> Arrays:
        return jax.tree.map(lambda gradient, array: gradient.astype(array.dtype), gradients, arrays)

    d_q = blockwise.joined(d_q, 1).astype(q.dtype)
    return d_q, like(d_source, source), like(d_parameters, parameters), None


_attend_shard.defvjp(_forward, _backward)


def _to_next(call: _Call, tree: Any) -> Any:
    """Send a tree to the next device of the ring, and receive the one before's."""
    return jax.lax.ppermute(
        tree, AXIS, [(index, (index + 1) % call.size) for index in range(call.size)]
    )


def _where_blocks(call: _Call, where: blockwise.Where) -> blockwise.Where:
    rows = blockwise.in_blocks(where.rows, 0, call.block)
    return blockwise.Where(rows, blockwise.in_blocks(where.segments, 1, call.block))


def _arrival_blocks(call: _Call, arrival: tuple[Arrays, blockwise.Where]) -> tuple:
    source, where = arrival
    parts = {name: blockwise.in_blocks(array, 1, call.block) for name, array in source.items()}
    return parts, _where_blocks(call, where)


def _wide(tree: Arrays) -> Arrays:
    return jax.tree.map(lambda array: array.astype(jnp.float32), tree)


def _zeros(tree: Arrays) -> Arrays:
    return jax.tree.map(lambda array: jnp.zeros(array.shape, jnp.float32), tree)
