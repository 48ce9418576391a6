"""Multi-head latent attention (MLA): DeepSeek-V2, arXiv:2405.04434, section 2.1.

Training expands keys and values from the latent and calls the seam of attention. Decoding never
expands: the up-projection of keys is absorbed into the query and that of values into the output,
so that the cache holds latent_rank + rotary_width numbers a token, whatever the heads.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import PRNGKeyArray

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.nn import attention
from mistral_jax.nn import cache as kv_cache
from mistral_jax.nn import context_parallel
from mistral_jax.nn import layers
from mistral_jax.nn import masks
from mistral_jax.nn import quantised
from mistral_jax.nn import rope

# Of the norms inside the layer, in every published model; the config's is for the others.
LATENT_NORM_EPSILON = 1e-6


class LatentAttention(nnx.Module):
    """Attention whose keys and values come from one latent a token.

    Names as in Hugging Face: q_a, q_b are the queries' down- and up-projection, kv_a gives
    latent and shared rotary key, kv_b expands the latent to keys and values of all heads.
    """

    def __init__(
        self,
        config: model_config.DecoderConfig,
        latent: model_config.LatentAttention,
        *,
        compute_dtype: np.dtype,
        implementation: str,
        rngs: nnx.Rngs,
    ) -> None:
        linear = functools.partial(layers.Linear, compute_dtype=compute_dtype, rngs=rngs)
        into = functools.partial(linear, init_std=config.init_std)
        query_width = config.num_heads * config.head_width
        if latent.query_rank is None:
            self.q_proj = into(config.width, query_width, axes=("embed", "heads"))
        else:
            self.q_a_proj = into(config.width, latent.query_rank, axes=("embed", "latent"))
            self.q_a_norm = layers.RmsNorm(latent.query_rank, epsilon=LATENT_NORM_EPSILON)
            self.q_b_proj = into(latent.query_rank, query_width, axes=("embed", "heads"))
        narrow = latent.latent_rank + latent.rotary_width
        self.kv_a_proj = into(config.width, narrow, axes=("embed", "latent"))
        self.kv_a_norm = layers.RmsNorm(latent.latent_rank, epsilon=LATENT_NORM_EPSILON)
        wide = config.num_heads * (latent.content_width + latent.value_width)
        self.kv_b_proj = into(latent.latent_rank, wide, axes=("embed", "heads"))
        # The output projection starts smaller with depth, as in GPT-2, section 2.3.
        out_std = config.init_std / np.sqrt(2 * config.num_layers)
        self.o_proj = linear(
            config.num_heads * latent.value_width,
            config.width,
            axes=("heads", "embed"),
            init_std=out_std,
        )
        self.config = config
        self.latent = latent
        self.implementation = implementation
        self.scale = config.head_width**-0.5 * rope.score_gain(config.rope)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        spec: masks.AttentionSpec,
        rotary: rope.Rotary,
        *,
        cache: kv_cache.LayerCache | None = None,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], kv_cache.LayerCache | None]:
        """Return the layer's output, and the cache with this call's latents in it."""
        keys = [None] * 5 if dropout_key is None else rng.counter_keys(dropout_key, 5)
        q_content, q_rotary = self._queries(x, rotary, keys)
        latents, k_rotary = self._latents(x, rotary, keys[2])
        if cache is not None:
            joined = jnp.concatenate([latents, k_rotary], axis=-1)[:, :, None, :]
            # Values are a part of the keys: the cache keeps none.
            cache = cache.write(joined, joined[..., :0], spec.query_positions)
        if cache is not None and not spec.is_row:
            out = self._absorbed(q_content, q_rotary, cache, spec)
        else:
            out = self._expanded(q_content, q_rotary, latents, k_rotary, spec, keys[3])
        return self.o_proj(out.reshape(*x.shape[:2], -1), dropout_key=keys[4]), cache

    def _queries(
        self, x: Float[Array, "B T D"], rotary: rope.Rotary, keys: list
    ) -> tuple[Float[Array, "B T H c"], Float[Array, "B T H r"]]:
        """Return the heads' queries: content and rotated part, both scaled by position."""
        if self.latent.query_rank is None:
            q = self.q_proj(x, dropout_key=keys[0])
        else:
            narrow = self.q_a_norm(self.q_a_proj(x, dropout_key=keys[0]))
            q = self.q_b_proj(narrow, dropout_key=keys[1])
        q = q.reshape(*x.shape[:2], self.config.num_heads, self.config.head_width)
        q = sharding.constrain(q, ("batch", "sequence", "heads", None))
        content, rotated = jnp.split(q, [self.latent.content_width], axis=-1)
        return rotary.scale_query(content), rotary.rotate_query(rotated)

    def _latents(
        self, x: Float[Array, "B T D"], rotary: rope.Rotary, dropout_key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "B T c"], Float[Array, "B T r"]]:
        """Return each token's normed latent and its rotated key, shared by all heads."""
        narrow = self.kv_a_proj(x, dropout_key=dropout_key)
        latents, k_rotary = jnp.split(narrow, [self.latent.latent_rank], axis=-1)
        return self.kv_a_norm(latents), rotary.rotate_key(k_rotary[:, :, None, :])[:, :, 0]

    def _expanded(
        self,
        q_content: Float[Array, "B T H c"],
        q_rotary: Float[Array, "B T H r"],
        latents: Float[Array, "B T l"],
        k_rotary: Float[Array, "B T r"],
        spec: masks.AttentionSpec,
        dropout_key: PRNGKeyArray | None,
    ) -> Float[Array, "B T H v"]:
        q = jnp.concatenate([q_content, q_rotary], axis=-1)
        source = {"latents": latents, "k_rotary": k_rotary}
        if spec.context is not None:
            return self._over_context(q, source, spec, dropout_key)
        k, v = _keys_values(
            functools.partial(self.kv_b_proj, dropout_key=dropout_key), self.latent, source
        )
        k = sharding.constrain(k, ("batch", "sequence", "heads", None))
        v = sharding.constrain(v, ("batch", "sequence", "heads", None))
        out, _ = attention.attend(
            q, k, v, spec, scale=self.scale, implementation=self.implementation
        )
        return out

    def _over_context(
        self,
        q: Float[Array, "B T H Q"],
        source: dict[str, Array],
        spec: masks.AttentionSpec,
        dropout_key: PRNGKeyArray | None,
    ) -> Float[Array, "B T H v"]:
        """Attend over rows that devices share: the latents travel, and are expanded by blocks.

        Raises:
            ValueError: an adapter on kv_b_proj has dropout.
        """
        if dropout_key is not None and getattr(self.kv_b_proj, "dropout", 0) > 0:
            raise ValueError(
                "adapter.dropout on kv_b_proj does not work on a context axis, where latents are "
                "expanded twice; set it to 0, or leave kv_b_proj out of adapter.target_modules"
            )
        graph, state = nnx.split(self._plain_kv_b_proj())
        variables = {str(name): variable for (name,), variable in nnx.to_flat_state(state)}

        def expand(
            parameters: context_parallel.Arrays, source: context_parallel.Arrays
        ) -> tuple[Array, Array]:
            return _keys_values(nnx.merge(graph, nnx.State(parameters)), self.latent, source)

        per_token = ("batch", "sequence", None)
        return context_parallel.attend_expanded(
            q, source, {name: variable[...] for name, variable in variables.items()}, expand, spec,
            source_axes=dict.fromkeys(source, per_token),
            parameter_axes={
                name: variable.get_metadata()["axes"] for name, variable in variables.items()
            },
            num_kv_heads=self.config.num_heads,
            scale=self.scale,
            implementation=self.implementation,
        )  # fmt: skip

    def _plain_kv_b_proj(self) -> layers.Linear:
        """Return kv_b_proj with its kernel as numbers, of which `expand` has a gradient."""
        if not isinstance(self.kv_b_proj.kernel, quantised.QuantisedKernel):
            return self.kv_b_proj
        plain = nnx.merge(*nnx.split(self.kv_b_proj))
        axes = plain.kernel.get_metadata()["axes"]
        plain.kernel = nnx.Param(plain.base_kernel(), axes=axes)
        return plain

    def _absorbed(
        self,
        q_content: Float[Array, "B T H c"],
        q_rotary: Float[Array, "B T H r"],
        cache: kv_cache.LayerCache,
        spec: masks.AttentionSpec,
    ) -> Float[Array, "B T H v"]:
        """Attend to cached latents as to one shared key head (equation 10 of the paper)."""
        wide = self.kv_b_proj.whole_kernel().astype(q_content.dtype)
        wide = wide.reshape(self.latent.latent_rank, self.config.num_heads, -1)  # [l, H, c + v]
        to_keys, to_values = jnp.split(wide, [self.latent.content_width], axis=-1)
        q_latent = jnp.einsum("bthc,lhc->bthl", q_content, to_keys)
        q = jnp.concatenate([q_latent, q_rotary], axis=-1)
        k = cache.keys.astype(q.dtype)
        v = k[..., : self.latent.latent_rank]
        out, _ = attention.attend(q, k, v, spec, scale=self.scale, implementation="reference")
        return jnp.einsum("bthl,lhv->bthv", out, to_values)


def _keys_values(
    up: Callable[[Array], Array], latent: model_config.LatentAttention, source: dict[str, Array]
) -> tuple[Float[Array, "B T H Q"], Float[Array, "B T H v"]]:
    """Return all heads' keys and values of tokens whose latents and rotated keys are given."""
    latents, k_rotary = source["latents"], source["k_rotary"]
    wide = up(latents)
    wide = wide.reshape(*latents.shape[:2], -1, latent.content_width + latent.value_width)
    k_content, v = jnp.split(wide, [latent.content_width], axis=-1)
    shared = jnp.broadcast_to(k_rotary[:, :, None, :], (*k_content.shape[:3], k_rotary.shape[-1]))
    return jnp.concatenate([k_content, shared], axis=-1), v


def cache_width(latent: model_config.LatentAttention) -> int:
    """Return how many numbers a layer caches for each token."""
    return latent.latent_rank + latent.rotary_width
