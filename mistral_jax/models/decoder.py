"""THE decoder: embed, a scanned stack of blocks, norm, head. One class for the whole family.

What varies between models sits in slots (attention, ffn) chosen by the config's unions. Layers
are built by vmap, stacked on a leading `layer` axis and run by scan, so that compile time does
not grow with depth.
"""

import dataclasses
import functools
import operator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import PRNGKeyArray

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.nn import attention
from mistral_jax.nn import cache as kv_cache
from mistral_jax.nn import ffn
from mistral_jax.nn import layers
from mistral_jax.nn import masks
from mistral_jax.nn import rope

Remat = Literal["none", "dots", "full"]
REMAT_POLICIES = {
    # Keep matmul outputs, recompute norms, activations and softmax.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keep the layer's input only.
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How a decoder computes; nothing here changes what it computes.

    Attributes:
        compute_dtype: of matmuls and activations.
        attention: an implementation's name in nn/attention.py.
        remat: what the backward pass recomputes.
    """

    compute_dtype: np.dtype = dataclasses.field(default_factory=lambda: np.dtype(np.float32))
    attention: str = "banded"
    remat: Remat = "none"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The whole decoder's cache: layers stacked [L, B, S, K, Q], slot positions shared [B, S]."""

    layers: kv_cache.LayerCache
    positions: Int[Array, "B S"]


class Block(nnx.Module):
    """One layer: attention and feed-forward, each behind a norm and around a residual."""

    def __init__(
        self, config: model_config.DecoderConfig, runtime: Runtime, *, rngs: nnx.Rngs
    ) -> None:
        norm = functools.partial(layers.RmsNorm, config.width, epsilon=config.norm_epsilon)
        self.attention_norm = norm()
        self.attention = attention.GroupedQueryAttention(
            config,
            compute_dtype=runtime.compute_dtype,
            implementation=runtime.attention,
            rngs=rngs,
        )
        self.mlp_norm = norm()
        self.mlp = ffn.feed_forward(config, compute_dtype=runtime.compute_dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        spec: masks.AttentionSpec,
        rotary: rope.Rotary,
        *,
        cache: kv_cache.LayerCache | None,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], kv_cache.LayerCache | None]:
        """Apply the layer."""
        first, second = (
            (None, None)
            if dropout_key is None
            else (rng.counter_key(dropout_key, 0), rng.counter_key(dropout_key, 1))
        )
        attended, cache = self.attention(
            self.attention_norm(x), spec, rotary, cache=cache, dropout_key=first
        )
        x = x + attended
        x = x + self.mlp(self.mlp_norm(x), dropout_key=second)
        return sharding.constrain(x, ("batch", "sequence", "width")), cache


class Decoder(nnx.Module):
    """A causal language model; `hidden` for training, `logits` for looking.

    The head is a Linear without bias, or the embedding itself when tied.
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
        self.layers = jax.vmap(lambda key: Block(config, runtime, rngs=nnx.Rngs(key)))(keys)
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
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Return the final hidden states, normed, and the cache after these tokens.

        Args:
            tokens: ids below vocab_size.
            positions: from 0 in each document; negative for padding in front of a cache.
            segment_ids: documents of packed rows, or None when a row is one document.
            cache: None in training. One token a row reads the cache; several (a prompt, into an
                empty cache) attend among themselves and are written to it.
            dropout_key: adapters' dropout; None turns it off.
        """
        x = self.embed(tokens)
        x = sharding.constrain(x, ("batch", "sequence", "width"))
        x, cache = self.run_layers(x, positions, segment_ids, cache=cache, dropout_key=dropout_key)
        return self.final_norm(x), cache

    def run_layers(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        *,
        cache: Cache | None = None,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Return what the stack makes of embedded tokens, before the final norm; see `hidden`."""
        rotary = rope.rotary(
            positions, self.config.rope, self.config.query_scaling, self.config.head_width
        )
        is_decoding = cache is not None and x.shape[1] == 1
        if cache is not None:
            cache = dataclasses.replace(
                cache, positions=kv_cache.write_positions(cache.positions, positions)
            )
        if cache is not None and is_decoding:
            spec = masks.AttentionSpec(positions, cache.positions)
        else:
            spec = masks.row_spec(positions, segment_ids)
        x, layer_caches = self._scan(x, spec, rotary, cache, dropout_key)
        if cache is None or layer_caches is None:
            return x, None
        return x, dataclasses.replace(cache, layers=layer_caches)

    def _scan(
        self,
        x: Float[Array, "B T D"],
        spec: masks.AttentionSpec,
        rotary: rope.Rotary,
        cache: Cache | None,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], kv_cache.LayerCache | None]:
        """Scan over the periods of the stack; a period's layers differ in their reach alone."""
        graph, state = nnx.split(self.layers)

        def run_layer(
            x: Float[Array, "B T D"], inputs: tuple, *, reach: int | None
        ) -> tuple[Float[Array, "B T D"], kv_cache.LayerCache | None]:
            layer_state, layer_cache, index = inputs
            key = None if dropout_key is None else rng.counter_key(dropout_key, index)
            block = nnx.merge(graph, layer_state)
            layer_spec = dataclasses.replace(spec, reach=reach)
            return block(x, layer_spec, rotary, cache=layer_cache, dropout_key=key)

        runs = [
            functools.partial(run_layer, reach=reach) for reach in self.config.attention.reaches
        ]
        if self.runtime.remat != "none":
            policy = REMAT_POLICIES[self.runtime.remat]
            runs = [jax.checkpoint(run, policy=policy, prevent_cse=False) for run in runs]

        def run_period(x: Float[Array, "B T D"], inputs: tuple) -> tuple:
            caches = []
            for offset, run in enumerate(runs):
                x, layer_cache = run(x, jax.tree.map(operator.itemgetter(offset), inputs))
                caches.append(layer_cache)
            return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches)

        indices = jnp.arange(self.config.num_layers, dtype=jnp.uint32)
        stacked = (state, None if cache is None else cache.layers, indices)
        periods = jax.tree.map(lambda leaf: leaf.reshape(-1, len(runs), *leaf.shape[1:]), stacked)
        x, caches = jax.lax.scan(run_period, x, periods)
        return x, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), caches)

    def head_kernel(self) -> Float[Array, "D V"]:
        """Return the output projection, tied or not."""
        return self.embed.head_kernel() if self.head is None else self.head.kernel[...]

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Return float32 logits of hidden states."""
        kernel = self.head_kernel().astype(self.runtime.compute_dtype)
        return jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)
