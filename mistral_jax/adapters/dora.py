"""DoRA (arXiv:2402.09353): a low-rank adapter turns each output's weights, a magnitude scales them.

W' = magnitude * (W + scale A B) / |W + scale A B|, norms over the inputs of each output. The norm
gets no gradient (section 4.3), and the magnitude starts as |W|, so that an adapted model starts
equal to its base. Dropout acts on the adapter's input alone; PEFT drops the base's input as well.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import PRNGKeyArray

from mistral_jax.adapters import lora
from mistral_jax.config import model as model_config
from mistral_jax.nn import layers

# An output whose weights are all zero has the magnitude 0; its ratio is 0 and not 0 / 0.
SMALLEST_SQUARE = 1e-30


class DoraLinear(lora.LoraLinear):
    """A Linear with a low-rank adapter and a magnitude.

    Attributes:
        lora_magnitude: [out].
    """

    def __init__(
        self, base: layers.Linear, adapter: model_config.LowRankAdapter, *, key: PRNGKeyArray
    ) -> None:
        super().__init__(base, adapter, key=key)
        # Right for this base; `base_norms` is asked again where another base is loaded.
        norms = column_norms(base.kernel[...].astype(self.compute_dtype))
        self.lora_magnitude = nnx.Param(norms, axes=(base.kernel.get_metadata()["axes"][-1],))

    def __call__(
        self, x: Float[Array, "... n_in"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "... n_out"]:
        """Apply base, adapter and magnitude; dropout only with a key."""
        base = layers.Linear.__call__(self, x).astype(jnp.float32)
        unbiased = base if self.bias is None else base - self.bias[...].astype(jnp.float32)
        turned = self.low_rank(x, dropout_key).astype(jnp.float32)
        ratio = self._ratio()
        # float32: the ratio stays near 1, and bf16 has no number between 1 and 1.0078. In this
        # form the base's output comes back bit by bit while the ratio is 1.
        return (base + (ratio - 1) * unbiased + ratio * turned).astype(self.compute_dtype)

    def _ratio(self) -> Float[Array, " n_out"]:
        lora_a = self.lora_a[...].astype(self.compute_dtype)
        lora_b = self.lora_b[...].astype(self.compute_dtype)
        norms = column_norms(self.base_kernel(), lora_a, lora_b, self.scale)
        return self.lora_magnitude[...] / jax.lax.stop_gradient(norms)

    def base_norms(self) -> Float[Array, " n_out"]:
        """Return the norms of the base alone, with which a magnitude starts."""
        return column_norms(self.base_kernel())

    def whole_kernel(self) -> Float[Array, "n_in n_out"]:
        """Return base, adapter and magnitude as one matrix, in the compute dtype."""
        update = (self.lora_a[...] @ self.lora_b[...]) * self.scale
        turned = self.base_kernel().astype(jnp.float32) + update
        return (turned * self._ratio()).astype(self.compute_dtype)


def column_norms(
    kernel: Float[Array, "*stack n_in n_out"],
    lora_a: Float[Array, "*stack n_in R"] | None = None,
    lora_b: Float[Array, "*stack R n_out"] | None = None,
    scale: float = 1.0,
) -> Float[Array, "*stack n_out"]:
    """Return |kernel + scale * lora_a @ lora_b| over the inputs, without making that sum.

    |W + sAB|^2 = |W|^2 + 2 s <A^T W, B> + s^2 <A^T A B, B>, output by output: 2 in out R FLOPs a
    step and nothing of the kernel's size in memory.
    """
    # float32: sums over thousands of squares.
    square = jnp.sum(jnp.square(kernel.astype(jnp.float32)), axis=-2)
    if lora_a is not None and lora_b is not None:
        wide_b = lora_b.astype(jnp.float32)
        across = jnp.einsum(
            "...ir,...io->...ro", lora_a, kernel, preferred_element_type=jnp.float32
        )
        gram = jnp.einsum("...ir,...is->...rs", lora_a, lora_a, preferred_element_type=jnp.float32)
        square += 2 * scale * jnp.sum(across * wide_b, axis=-2)
        square += scale**2 * jnp.sum(wide_b * (gram @ wide_b), axis=-2)
    return jnp.sqrt(jnp.maximum(square, SMALLEST_SQUARE))
