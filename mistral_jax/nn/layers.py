"""Linear, RMSNorm, Embedding: parameters with logical axes. No mesh and no run configuration.

Kernels are stored [in, out] (performance: bf16 matmul on CPU is twice as fast so). Modules are
flax.nnx definitions only; every transform in this project is plain jax over `nnx.split`.
"""

import functools

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
from mistral_jax.nn import quantised


@jax.custom_vjp
def project(
    x: Float[Array, "... n_in"], kernel: Float[Array, "n_in n_out"]
) -> Float[Array, "... n_out"]:
    """Return x @ kernel, with a backward pass that chooses what is transposed.

    The kernel's gradient transposes the narrower of x and dy, where jax always takes dy: with a
    low-rank x, XLA on CPU wrote the wide dy in strides, a quarter of a LoRA step.
    """
    return x @ kernel


def _project_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _project_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    tokens = tuple(range(dy.ndim - 1))
    if x.shape[-1] <= dy.shape[-1]:
        kernel_gradient = jax.lax.dot_general(x, dy, ((tokens, tokens), ((), ())))
    else:
        kernel_gradient = jax.lax.dot_general(dy, x, ((tokens, tokens), ((), ()))).T
    return dy @ kernel.T, kernel_gradient


project.defvjp(_project_forward, _project_backward)


class Linear(nnx.Module):
    """y = x @ kernel (+ bias), computed in `compute_dtype`.

    Attributes:
        kernel: [in, out]; of a frozen projection it may be a quantised.QuantisedKernel.
        bias: [out], or None.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        axes: tuple[str | None, str | None],
        init_std: float,
        compute_dtype: np.dtype,
        has_bias: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (in_width, out_width)
        kernel = jax.random.normal(rngs.params(), shape, jnp.float32) * init_std
        self.kernel = nnx.Param(kernel, axes=axes)
        self.bias = (
            nnx.Param(jnp.zeros((out_width,), jnp.float32), axes=(axes[1],)) if has_bias else None
        )
        self.compute_dtype = compute_dtype

    def __call__(
        self, x: Float[Array, "... n_in"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "... n_out"]:
        """Apply the projection; a plain Linear takes no notice of `dropout_key`."""
        del dropout_key
        y = self.base_product(x.astype(self.compute_dtype))
        if self.bias is not None:
            y = y + self.bias[...].astype(self.compute_dtype)
        return y

    def base_product(self, x: Float[Array, "... n_in"]) -> Float[Array, "... n_out"]:
        """Return x @ kernel, without bias and adapters."""
        if isinstance(self.kernel, quantised.QuantisedKernel):
            return self.kernel.project(x)
        return project(x, self.base_kernel())

    def base_kernel(self) -> Float[Array, "n_in n_out"]:
        """Return the kernel without adapters, in the compute dtype."""
        return self.kernel[...].astype(self.compute_dtype)

    def whole_kernel(self) -> Float[Array, "n_in n_out"]:
        """Return the matrix that the projection multiplies by, in the compute dtype."""
        return self.base_kernel()


class SwiGlu(nnx.Module):
    """down(silu(gate(x)) * up(x)), arXiv:2002.05202."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        init_std: float,
        out_std: float,
        compute_dtype: np.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        linear = functools.partial(Linear, compute_dtype=compute_dtype, rngs=rngs)
        self.gate_proj = linear(width, hidden, axes=("embed", "mlp"), init_std=init_std)
        self.up_proj = linear(width, hidden, axes=("embed", "mlp"), init_std=init_std)
        self.down_proj = linear(hidden, width, axes=("mlp", "embed"), init_std=out_std)

    def __call__(
        self, x: Float[Array, "B T D"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        """Apply the layer."""
        keys = [None] * 3 if dropout_key is None else rng.counter_keys(dropout_key, 3)
        gate = jax.nn.silu(self.gate_proj(x, dropout_key=keys[0]))
        hidden = gate * self.up_proj(x, dropout_key=keys[1])
        hidden = sharding.constrain(hidden, ("batch", "sequence", "mlp"))
        return self.down_proj(hidden, dropout_key=keys[2])


class RmsNorm(nnx.Module):
    """Root-mean-square norm with a learned scale (arXiv:1910.07467)."""

    def __init__(self, width: int, *, epsilon: float) -> None:
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes=("norm",))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalise the last axis; the result has x's dtype."""
        # float32: the mean of squares of a bf16 row loses the small terms.
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        return (normed * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Embedding(nnx.Module):
    """Token embeddings; a tied head reads them through `attend`.

    Attributes:
        embedding: [V, D].
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        *,
        init_std: float,
        compute_dtype: np.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        table = jax.random.normal(rngs.params(), (vocab_size, width), jnp.float32) * init_std
        self.embedding = nnx.Param(table, axes=("vocab", "embed"))
        self.compute_dtype = compute_dtype

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Look tokens up; ids outside the vocabulary give NaN (they must not reach here)."""
        # Not jnp.take: there -1 is the last row.
        rows = (
            self.embedding[...]
            .at[tokens]
            .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        )
        return rows.astype(self.compute_dtype)

    def head_kernel(self) -> Float[Array, "D V"]:
        """Return the table as an output projection, for a tied head."""
        return self.embedding[...].T
