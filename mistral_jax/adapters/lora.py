"""LoRA (arXiv:2106.09685): low-rank adapters beside projections, in PEFT's parametrisation.

y = base(x) + scale * dropout(x) @ A @ B, with A uniform as in PEFT and B zero, so that an adapted
model starts equal to its base. Stacked layers have stacked adapters: A is [L, in, R]; each expert
of a mixture has its own: [L, groups, experts, in, R].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import PRNGKeyArray

from mistral_jax.config import model as model_config
from mistral_jax.nn import experts
from mistral_jax.nn import layers
from mistral_jax.nn import moe

A, B, MAGNITUDE = ADAPTER_NAMES = ("lora_a", "lora_b", "lora_magnitude")


def is_adapter_path(path: str) -> bool:
    """Tell whether a parameter path belongs to an adapter."""
    return path.rpartition("/")[2] in ADAPTER_NAMES


def low_rank_pair(
    base: layers.Linear | moe.ExpertKernel,
    adapter: model_config.LowRankAdapter,
    key: PRNGKeyArray,
) -> tuple[nnx.Param, nnx.Param]:
    """Return a fresh A and B beside a kernel; further axes in front of [in, out] are kept."""
    *stack, in_width, out_width = base.kernel.shape
    *names, in_axis, out_axis = base.kernel.get_metadata()["axes"]
    bound = 1.0 / np.sqrt(in_width)  # kaiming_uniform with a = sqrt(5), as PEFT draws A
    shape = (*stack, in_width, adapter.rank)
    lora_a = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
    lora_b = jnp.zeros((*stack, adapter.rank, out_width), jnp.float32)
    return (
        nnx.Param(lora_a, axes=(*names, in_axis, "rank")),
        nnx.Param(lora_b, axes=(*names, "rank", out_axis)),
    )


class LoraLinear(layers.Linear):
    """A Linear with an adapter; the base's kernel and bias keep their names and places.

    Attributes:
        lora_a: [in, R].
        lora_b: [R, out].
    """

    def __init__(
        self, base: layers.Linear, adapter: model_config.LowRankAdapter, *, key: PRNGKeyArray
    ) -> None:
        self.kernel = base.kernel
        self.bias = base.bias
        self.compute_dtype = base.compute_dtype
        self.lora_a, self.lora_b = low_rank_pair(base, adapter, key)
        self.scale = adapter.scale
        self.dropout = adapter.dropout

    def __call__(
        self, x: Float[Array, "... n_in"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "... n_out"]:
        """Apply base and adapter; dropout acts on the adapter's input, and only with a key."""
        return super().__call__(x) + self.low_rank(x, dropout_key)

    def low_rank(
        self, x: Float[Array, "... n_in"], dropout_key: PRNGKeyArray | None
    ) -> Float[Array, "... n_out"]:
        """Return the adapter's own output, scaled."""
        x = x.astype(self.compute_dtype)
        lora_a = self.lora_a[...].astype(self.compute_dtype)
        if dropout_key is not None and self.dropout > 0:
            is_kept = jax.random.bernoulli(dropout_key, 1 - self.dropout, x.shape)
            narrow = _project_kept(x, is_kept, lora_a, self.dropout)
        else:
            narrow = layers.project(x, lora_a)
        # The scale acts on [.., R], not on [.., out]: one pass less over the wide array.
        narrow = narrow * jnp.asarray(self.scale, self.compute_dtype)
        return layers.project(narrow, self.lora_b[...].astype(self.compute_dtype))

    def whole_kernel(self) -> Float[Array, "n_in n_out"]:
        """Return base and adapter as one matrix, in the compute dtype."""
        # float32: the update is small beside the kernel.
        update = (self.lora_a[...] @ self.lora_b[...]) * self.scale
        return (self.base_kernel().astype(jnp.float32) + update).astype(self.compute_dtype)


@functools.partial(jax.checkpoint, static_argnums=3)
def _project_kept(
    x: Float[Array, "... n_in"],
    is_kept: Bool[Array, "... n_in"],
    kernel: Float[Array, "n_in R"],
    dropout: float,
) -> Float[Array, "... R"]:
    """Drop inputs and project; the backward pass keeps a byte for each, not the dropped input."""
    return layers.project(jnp.where(is_kept, x / (1 - dropout), 0).astype(x.dtype), kernel)


class LoraExpertKernel(moe.ExpertKernel):
    """One projection of every expert of a mixture, and of each expert an adapter of its own.

    Attributes:
        lora_a: [groups, experts of a group, in, R].
        lora_b: [groups, experts of a group, R, out].
    """

    def __init__(
        self, base: moe.ExpertKernel, adapter: model_config.LowRankAdapter, *, key: PRNGKeyArray
    ) -> None:
        self.kernel = base.kernel
        self.lora_a, self.lora_b = low_rank_pair(base, adapter, key)
        self.scale = adapter.scale

    def low_rank(self) -> experts.LowRank:
        """Return the adapters; the scale is in B."""
        return experts.LowRank(self.lora_a[...], self.lora_b[...] * self.scale)
