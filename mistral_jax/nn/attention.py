"""The seam of attention, and the grouped-query attention layer that calls it.

`attend(q, k, v, spec, *, scale, implementation) -> (out, logsumexp)`; implementations live in
nn/kernels and refuse a field of the spec that they cannot honour. Cached keys are just keys with
positions, so the seam takes no cache.
"""

import functools

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import PRNGKeyArray

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.nn import cache as kv_cache
from mistral_jax.nn import context_parallel
from mistral_jax.nn import layers
from mistral_jax.nn import masks
from mistral_jax.nn import rope
from mistral_jax.nn.kernels import banded
from mistral_jax.nn.kernels import reference
from mistral_jax.nn.kernels import sdpa
from mistral_jax.nn.kernels import splash

IMPLEMENTATIONS = {
    "reference": reference.attend,
    "banded": banded.attend,
    "sdpa": sdpa.attend,
    "cudnn": functools.partial(sdpa.attend, implementation="cudnn"),
    "splash": splash.attend,
}
# For rows; decoding from a cache always takes the reference, whose cost there is one row.
PLATFORM_DEFAULTS = {"cpu": "banded", "gpu": "cudnn", "tpu": "splash"}


def choose_implementation(name: str, platform: str, compute_dtype: np.dtype) -> str:
    """Return the implementation that `auto` means on a platform, or the name itself.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name == "auto":
        chosen = PLATFORM_DEFAULTS.get(platform, "banded")
        # cuDNN has no float32 kernel.
        return "banded" if chosen == "cudnn" and compute_dtype == np.float32 else chosen
    if name not in IMPLEMENTATIONS:
        known = ", ".join(["auto", *IMPLEMENTATIONS])
        raise ValueError(f"unknown attention implementation {name!r}; known: {known}")
    return name


def attend(
    q: Float[Array, "B T H Q"],
    k: Float[Array, "B S K Q"],
    v: Float[Array, "B S K W"],
    spec: masks.AttentionSpec,
    *,
    scale: float,
    implementation: str,
) -> tuple[Float[Array, "B T H W"], Float[Array, "B H T"] | None]:
    """Attend by the named implementation; see masks.AttentionSpec for who sees whom.

    Rows that devices share are attended to block by block, by splash's kernel or in plain XLA.

    Raises:
        ValueError: the spec has a field that the implementation does not take.
    """
    if spec.context is not None:
        with jax.named_scope(f"attend_{spec.context}"):
            out = context_parallel.attend(q, k, v, spec, scale=scale, implementation=implementation)
            return out, None
    if spec.rows is not None and implementation != "reference":
        raise ValueError(
            f"{implementation} attention takes rows in order; use the reference, or let devices "
            "share the rows"
        )
    with jax.named_scope(f"attend_{implementation}"):
        return IMPLEMENTATIONS[implementation](q, k, v, spec, scale=scale)


class GroupedQueryAttention(nnx.Module):
    """Grouped-query attention with rotary positions (arXiv:2305.13245)."""

    def __init__(
        self,
        config: model_config.DecoderConfig,
        *,
        compute_dtype: np.dtype,
        implementation: str,
        rngs: nnx.Rngs,
    ) -> None:
        query_width = config.num_heads * config.head_width
        kv_width = config.num_kv_heads * config.head_width
        # The output projection starts smaller with depth, as in GPT-2, section 2.3.
        out_std = config.init_std / np.sqrt(2 * config.num_layers)
        linear = functools.partial(layers.Linear, compute_dtype=compute_dtype, rngs=rngs)
        into = functools.partial(linear, init_std=config.init_std, has_bias=config.qkv_bias)
        self.q_proj = into(config.width, query_width, axes=("embed", "heads"))
        self.k_proj = into(config.width, kv_width, axes=("embed", "kv_heads"))
        self.v_proj = into(config.width, kv_width, axes=("embed", "kv_heads"))
        self.o_proj = linear(query_width, config.width, axes=("heads", "embed"), init_std=out_std)
        self.config = config
        self.implementation = implementation

    def __call__(
        self,
        x: Float[Array, "B T D"],
        spec: masks.AttentionSpec,
        rotary: rope.Rotary,
        *,
        cache: kv_cache.LayerCache | None = None,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], kv_cache.LayerCache | None]:
        """Return the layer's output, and the cache with this call's keys and values in it."""
        shape = self.config
        keys = [None] * 4 if dropout_key is None else rng.counter_keys(dropout_key, 4)

        def heads(array: Float[Array, "B T n"]) -> Float[Array, "B T h Q"]:
            return array.reshape(*array.shape[:2], -1, shape.head_width)

        q = heads(self.q_proj(x, dropout_key=keys[0]))
        k = heads(self.k_proj(x, dropout_key=keys[1]))
        v = heads(self.v_proj(x, dropout_key=keys[2]))
        q = sharding.constrain(rotary.rotate_query(q), ("batch", "sequence", "heads", None))
        k = sharding.constrain(rotary.rotate_key(k), ("batch", "sequence", "kv_heads", None))
        v = sharding.constrain(v, ("batch", "sequence", "kv_heads", None))
        implementation = self.implementation
        if cache is not None:
            cache = cache.write(k, v, spec.query_positions)
            if not spec.is_row:
                k, v = cache.keys.astype(q.dtype), cache.values.astype(q.dtype)
                implementation = "reference"
        out, _ = attend(q, k, v, spec, scale=shape.head_width**-0.5, implementation=implementation)
        return self.o_proj(out.reshape(*x.shape[:2], -1), dropout_key=keys[3]), cache
