"""LoRA (arXiv:2106.09685): low-rank adapters beside named projections, in PEFT's parametrisation.

y = base(x) + (alpha / rank) * dropout(x) @ A @ B, with A uniform as in PEFT and B zero, so that an
adapted model starts equal to its base. Stacked layers have stacked adapters: A is [L, in, R].
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import PRNGKeyArray

from mistral_jax import rng
from mistral_jax.config import model as model_config
from mistral_jax.nn import layers

ADAPTER_NAMES = ("lora_a", "lora_b")
EXPERT_MODULES = ("gate_proj", "up_proj", "down_proj")
_ROOMS = ("attention", "mlp")


class LoraLinear(layers.Linear):
    """A Linear with an adapter; the base's kernel and bias keep their names and places."""

    def __init__(
        self, base: layers.Linear, adapter: model_config.LoraAdapter, *, key: PRNGKeyArray
    ) -> None:
        self.kernel = base.kernel
        self.bias = base.bias
        self.compute_dtype = base.compute_dtype
        *stack, in_width, out_width = base.kernel.shape
        in_axis, out_axis = base.kernel.get_metadata()["axes"]
        bound = 1.0 / np.sqrt(in_width)  # kaiming_uniform with a = sqrt(5), as PEFT draws A
        shape = (*stack, in_width, adapter.rank)
        lora_a = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
        self.lora_a = nnx.Param(lora_a, axes=(in_axis, "rank"))
        lora_b = jnp.zeros((*stack, adapter.rank, out_width), jnp.float32)
        self.lora_b = nnx.Param(lora_b, axes=("rank", out_axis))
        self.scale = adapter.scale
        self.dropout = adapter.dropout

    def __call__(
        self, x: Float[Array, "... n_in"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "... n_out"]:
        """Apply base and adapter; dropout acts on the adapter's input, and only with a key."""
        base = super().__call__(x)
        x = x.astype(self.compute_dtype)
        if dropout_key is not None and self.dropout > 0:
            is_kept = jax.random.bernoulli(dropout_key, 1 - self.dropout, x.shape)
            x = jnp.where(is_kept, x / (1 - self.dropout), 0).astype(self.compute_dtype)
        low_rank = layers.project(x, self.lora_a[...].astype(self.compute_dtype))
        # The scale acts on [.., R], not on [.., out]: one pass less over the wide array.
        low_rank = low_rank * jnp.asarray(self.scale, self.compute_dtype)
        return base + layers.project(low_rank, self.lora_b[...].astype(self.compute_dtype))

    def whole_kernel(self) -> Float[Array, "n_in n_out"]:
        """Return base and adapter as one matrix, in the compute dtype."""
        # float32: the update is small beside the kernel.
        update = (self.lora_a[...] @ self.lora_b[...]) * self.scale
        return (self.kernel[...].astype(jnp.float32) + update).astype(self.compute_dtype)


def adapt(
    stacks: Sequence[nnx.Module], adapter: model_config.LoraAdapter, *, key: PRNGKeyArray
) -> None:
    """Put adapters on the projections of a decoder's stacks of layers, in place.

    Raises:
        ValueError: a requested module is not there, so that adapted == requested always holds.
    """
    has_experts = any(getattr(stack.mlp, "router", None) is not None for stack in stacks)
    if has_experts and set(adapter.target_modules) & set(EXPERT_MODULES):
        raise ValueError(
            "adapter.target_modules: adapters on a mixture's experts (gate_proj, up_proj, "
            f"down_proj) are not written yet; choose among {', '.join(_projections(stacks))}"
        )
    adapted: set[str] = set()
    for index, stack in enumerate(stacks):
        stack_key = key if index == 0 else rng.counter_key(key, index)
        for room_name, name in itertools.product(_ROOMS, adapter.target_modules):
            room = getattr(stack, room_name)
            base = getattr(room, name, None)
            if isinstance(base, layers.Linear):
                module_key = rng.purpose_key(stack_key, name)
                setattr(room, name, LoraLinear(base, adapter, key=module_key))
                adapted.add(name)
    missing = set(adapter.target_modules) - adapted
    if missing:
        raise ValueError(
            f"adapter.target_modules: the model has no {', '.join(sorted(missing))}; it has "
            f"{', '.join(_projections(stacks))}"
        )


def _projections(stacks: Sequence[nnx.Module]) -> list[str]:
    """Return the projections that an adapter can stand beside."""
    found = [
        name
        for room in _ROOMS
        for name, value in vars(getattr(stacks[0], room)).items()
        if isinstance(value, layers.Linear)
    ]
    return sorted(found)


def is_adapter_path(path: str) -> bool:
    """Tell whether a parameter path belongs to an adapter."""
    return path.rpartition("/")[2] in ADAPTER_NAMES


def merged(
    kernel: Float[np.ndarray, "... n_in n_out"],
    lora_a: Float[np.ndarray, "... n_in R"],
    lora_b: Float[np.ndarray, "... R n_out"],
    scale: float,
) -> Float[np.ndarray, "... n_in n_out"]:
    """Return the kernel with its adapter folded in, in the kernel's dtype."""
    # float32: the update is small beside the kernel; a bf16 product would lose it.
    update = (np.asarray(lora_a, np.float32) @ np.asarray(lora_b, np.float32)) * scale
    return (np.asarray(kernel, np.float32) + update).astype(kernel.dtype)
