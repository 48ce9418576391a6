"""THE decoder: embed, a scanned stack of blocks, norm, head. One class for the whole family.

What varies between models sits in slots (attention, ffn) chosen by the config's unions. Layers
are built by vmap, stacked on a leading `layer` axis and run by scan, so that compile time does
not grow with depth.
"""

import dataclasses
import functools
import operator
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import ad_checkpoint
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Key
from jaxtyping import PRNGKeyArray

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.nn import attention
from mistral_jax.nn import cache as kv_cache
from mistral_jax.nn import context_parallel
from mistral_jax.nn import expert_parallel
from mistral_jax.nn import ffn
from mistral_jax.nn import layers
from mistral_jax.nn import masks
from mistral_jax.nn import mla
from mistral_jax.nn import rope
from mistral_jax.nn import routing

Remat = Literal["none", "dots", "full", "offload"]
LAYER_INPUT = "layer_input"
REMAT_POLICIES = {
    # Keep matmul outputs, recompute norms, activations and softmax.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keep the layer's input only.
    "full": jax.checkpoint_policies.nothing_saveable,
    # The same, and the layer's input waits in the host's memory.
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How a decoder computes; nothing here changes what it computes.

    Attributes:
        compute_dtype: of matmuls and activations.
        attention: an implementation's name in nn/attention.py.
        experts: how a mixture's experts run, and travel between devices.
        remat: what the backward pass recomputes.
        mlp_chunk_tokens: of a row go through a dense feed-forward at a time, where that divides
            the row; the backward pass then makes each chunk's hidden states again. None: all.
        context: how devices that share a row exchange keys; no matter on a mesh where none do.
            Without a cache, shared rows are expected as context_parallel.reordered gives them.
    """

    compute_dtype: np.dtype = dataclasses.field(default_factory=lambda: np.dtype(np.float32))
    attention: str = "banded"
    experts: expert_parallel.Placement = dataclasses.field(
        default_factory=expert_parallel.Placement
    )
    remat: Remat = "none"
    mlp_chunk_tokens: int | None = None
    context: masks.ContextForm = "all_gather"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The whole decoder's cache: layers stacked [L, B, S, K, Q], slot positions shared [B, S].

    One member for each stack of layers, in the order in which they run.
    """

    stacks: tuple[kv_cache.LayerCache, ...]
    positions: Int[Array, "B S"]


class Output(NamedTuple):
    """What a pass over tokens gives.

    Attributes:
        hidden: final hidden states, normed.
        cache: after these tokens, or None.
        aux: what the mixture layers' routing left, stacked [L, ..]; None in a dense model.
    """

    hidden: Float[Array, "B T D"]
    cache: Cache | None
    aux: routing.Aux | None


@dataclasses.dataclass(frozen=True)
class Pass:
    """What is the same for every layer of one pass."""

    spec: masks.AttentionSpec
    rotary: rope.Rotary
    segment_ids: Int[Array, "B T"] | None
    control: routing.Control
    dropout_key: PRNGKeyArray | None


class Block(nnx.Module):
    """One layer: attention and feed-forward, each behind a norm and around a residual."""

    def __init__(
        self,
        config: model_config.DecoderConfig,
        feed_forward: model_config.Ffn,
        runtime: Runtime,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        norm = functools.partial(layers.RmsNorm, config.width, epsilon=config.norm_epsilon)
        how = {"compute_dtype": runtime.compute_dtype, "rngs": rngs}
        self.attention_norm = norm()
        self.attention = (
            mla.LatentAttention(config, config.attention, implementation=runtime.attention, **how)
            if config.attention.kind == "latent"
            else attention.GroupedQueryAttention(config, implementation=runtime.attention, **how)
        )
        self.mlp_norm = norm()
        self.mlp = ffn.feed_forward(config, feed_forward, placement=runtime.experts, **how)
        self.mlp_chunk_tokens = None if feed_forward.kind == "moe" else runtime.mlp_chunk_tokens

    def __call__(
        self,
        x: Float[Array, "B T D"],
        common: Pass,
        *,
        cache: kv_cache.LayerCache | None,
        control: routing.Control,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], kv_cache.LayerCache | None, routing.Aux | None]:
        """Apply the layer."""
        first, second = [None] * 2 if dropout_key is None else rng.counter_keys(dropout_key, 2)
        attended, cache = self.attention(
            self.attention_norm(x), common.spec, common.rotary, cache=cache, dropout_key=first
        )
        x = x + attended
        chunk = self.mlp_chunk_tokens
        if chunk is not None and x.shape[1] > chunk and x.shape[1] % chunk == 0:
            out, aux = self._mlp_in_chunks(self.mlp_norm(x), chunk, second), None
        else:
            out, aux = self.mlp(
                self.mlp_norm(x),
                segment_ids=common.segment_ids,
                control=control,
                dropout_key=second,
            )
        return sharding.constrain(x + out, ("batch", "sequence", "width")), cache, aux

    def _mlp_in_chunks(
        self, x: Float[Array, "B T D"], chunk: int, dropout_key: PRNGKeyArray | None
    ) -> Float[Array, "B T D"]:
        """Return a dense feed-forward's output, one chunk of each row after the other.

        Hidden states are the widest arrays of a layer: on long rows they would decide its memory.
        """
        num_rows, num_tokens, width = x.shape
        num_chunks = num_tokens // chunk
        chunks = jnp.moveaxis(x.reshape(num_rows, num_chunks, chunk, width), 1, 0)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def one(inputs: tuple) -> Float[Array, "B t D"]:
            part, index = inputs
            key = None if dropout_key is None else rng.counter_key(dropout_key, index)
            return self.mlp(part, control=routing.FREE, dropout_key=key)[0]

        outs = jax.lax.map(one, (chunks, jnp.arange(num_chunks, dtype=jnp.uint32)))
        return jnp.moveaxis(outs, 0, 1).reshape(x.shape)


class Decoder(nnx.Module):
    """A causal language model; `hidden` for training, `logits` for looking.

    The head is a Linear without bias, or the embedding itself when tied. `dense_layers` are the
    first layers of a mixture that has some, before `layers`.
    """

    def __init__(
        self, config: model_config.DecoderConfig, runtime: Runtime, *, rngs: nnx.Rngs
    ) -> None:
        self.embed = layers.Embedding(
            config.vocab_size,
            config.width,
            init_std=config.init_std,
            compute_dtype=runtime.compute_dtype,
            rngs=rngs,
        )
        keys = jax.random.split(rngs.params(), config.num_layers)

        def stack(keys: Key[Array, " L"], feed_forward: model_config.Ffn) -> Block:
            def build(key: PRNGKeyArray) -> Block:
                return Block(config, feed_forward, runtime, rngs=nnx.Rngs(key))

            return jax.vmap(build)(keys)

        num_dense = config.num_dense_layers
        self.dense_layers = stack(keys[:num_dense], _dense_ffn(config)) if num_dense else None
        self.layers = stack(keys[num_dense:], config.ffn)
        self.final_norm = layers.RmsNorm(config.width, epsilon=config.norm_epsilon)
        self.head = (
            None
            if config.tied_head
            else layers.Linear(
                config.width,
                config.vocab_size,
                axes=("embed", "vocab"),
                init_std=config.init_std,
                compute_dtype=runtime.compute_dtype,
                rngs=rngs,
            )
        )
        self.config = config
        self.runtime = runtime

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        *,
        cache: Cache | None = None,
        control: routing.Control = routing.FREE,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Output:
        """Return the final hidden states, the cache after these tokens, and routing's remains.

        Args:
            tokens: ids below vocab_size.
            positions: from 0 in each document; negative for padding in front of a cache.
            segment_ids: documents of packed rows, 0 for padding; None when a row is one document.
            cache: None in training. One token a row reads the cache; several (a prompt, into an
                empty cache) attend among themselves and are written to it.
            control: of a mixture's routing: forced groups, replayed choices, recording.
            dropout_key: adapters' dropout; None turns it off.
        """
        x = self.embed(tokens)
        x = sharding.constrain(x, ("batch", "sequence", "width"))
        x, cache, aux = self.run_layers(
            x, positions, segment_ids, cache=cache, control=control, dropout_key=dropout_key
        )
        return Output(self.final_norm(x), cache, aux)

    def run_layers(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        *,
        cache: Cache | None = None,
        control: routing.Control = routing.FREE,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Output:
        """Return what the stack makes of embedded tokens, before the final norm; see `hidden`."""
        config = self.config
        rotary = rope.rotary(positions, config.rope, config.query_scaling, config.rotary_width)
        is_decoding = cache is not None and x.shape[1] == 1
        if cache is not None:
            cache = dataclasses.replace(
                cache, positions=kv_cache.write_positions(cache.positions, positions)
            )
            # Experts have nothing to do for padding; a prompt is one document.
            segment_ids = (positions >= 0).astype(jnp.int32)
        if cache is not None and is_decoding:
            spec = masks.AttentionSpec(positions, cache.positions)
        elif cache is not None:
            spec = masks.row_spec(positions, None)
        else:
            spec = context_parallel.row_spec(positions, segment_ids, self.runtime.context)
        common = Pass(spec, rotary, segment_ids, control, dropout_key)
        stacks = [stack for stack in (self.dense_layers, self.layers) if stack is not None]
        caches = [None] * len(stacks) if cache is None else list(cache.stacks)
        aux, start = None, 0
        for index, (stack, depth) in enumerate(zip(stacks, config.stack_depths, strict=True)):
            x, caches[index], aux = self._scan(stack, x, common, caches[index], start, depth)
            start += depth
        if cache is None:
            return Output(x, None, aux)
        return Output(x, dataclasses.replace(cache, stacks=tuple(caches)), aux)

    def _scan(
        self,
        stack: Block,
        x: Float[Array, "B T D"],
        common: Pass,
        caches: kv_cache.LayerCache | None,
        start: int,
        depth: int,
    ) -> tuple[Float[Array, "B T D"], kv_cache.LayerCache | None, routing.Aux | None]:
        """Scan over the periods of a stack; a period's layers differ in their reach alone.

        The stack has `depth` layers, of which the first is number `start` of the decoder.
        """
        graph, state = nnx.split(stack)
        reaches = self.config.attention.reaches

        def run_layer(
            x: Float[Array, "B T D"], inputs: tuple, *, reach: int | None, offset: int
        ) -> tuple:
            # A scan keeps its own inputs for the backward pass without a copy, but not slices of
            # them: what a period's layers share is cut in here, under the checkpoint.
            if len(reaches) > 1:
                inputs = jax.tree.map(operator.itemgetter(offset), inputs)
            layer_state, layer_cache, index, replay = inputs
            x = ad_checkpoint.checkpoint_name(x, LAYER_INPUT)
            key = common.dropout_key
            block = nnx.merge(graph, layer_state)
            return block(
                x,
                dataclasses.replace(common, spec=dataclasses.replace(common.spec, reach=reach)),
                cache=layer_cache,
                control=dataclasses.replace(common.control, replay=replay),
                dropout_key=None if key is None else rng.counter_key(key, index),
            )

        runs = [
            functools.partial(run_layer, reach=reach, offset=offset)
            for offset, reach in enumerate(reaches)
        ]
        if self.runtime.remat != "none":
            policy = REMAT_POLICIES[self.runtime.remat]
            runs = [jax.checkpoint(run, policy=policy, prevent_cse=False) for run in runs]

        def run_period(x: Float[Array, "B T D"], inputs: tuple) -> tuple:
            outs = []
            for run in runs:
                x, *out = run(x, inputs)
                outs.append(out)
            if len(runs) == 1:
                return x, outs[0]
            return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)

        indices = jnp.arange(start, start + depth, dtype=jnp.uint32)
        replay = None if stack is self.dense_layers else common.control.replay
        stacked = (state, caches, indices, replay)
        if len(runs) == 1:
            x, (caches, aux) = jax.lax.scan(run_period, x, stacked)
            return x, caches, aux
        shape = (depth // len(runs), len(runs))
        periods = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), stacked)
        x, outs = jax.lax.scan(run_period, x, periods)
        caches, aux = jax.tree.map(lambda leaf: leaf.reshape(depth, *leaf.shape[2:]), outs)
        return x, caches, aux

    def head_kernel(self) -> Float[Array, "D V"]:
        """Return the output projection, tied or not."""
        return self.embed.head_kernel() if self.head is None else self.head.kernel[...]

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Return float32 logits of hidden states."""
        kernel = self.head_kernel().astype(self.runtime.compute_dtype)
        return jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)


def _dense_ffn(config: model_config.DecoderConfig) -> model_config.DenseFfn:
    """Return the feed-forward of a mixture's first layers."""
    return model_config.DenseFfn(width=config.ffn.dense_width)
