"""The feed-forward slot as a mixture of SwiGLU experts: router, experts by group, shared experts.

The router chooses (nn/routing.py), the seam runs the chosen (nn/experts.py), and where the experts
lie on several devices the tokens travel (nn/expert_parallel.py).
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

from mistral_jax.config import model as model_config
from mistral_jax.nn import expert_parallel
from mistral_jax.nn import experts
from mistral_jax.nn import layers
from mistral_jax.nn import quantised
from mistral_jax.nn import routing


class ExpertKernel(nnx.Module):
    """One projection of every expert.

    Attributes:
        kernel: [groups, experts of a group, in, out]; frozen, it may be quantised.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        *,
        axes: tuple[str | None, str | None],
        init_std: float,
        rngs: nnx.Rngs,
    ) -> None:
        kernel = jax.random.normal(rngs.params(), shape, jnp.float32) * init_std
        self.kernel = nnx.Param(kernel, axes=("group", "expert", *axes))

    def base_kernel(self, dtype: np.dtype) -> Float[Array, "groups experts n_in n_out"]:
        """Return the kernels as they are stored (expert_parallel.py casts them), or dequantised."""
        if isinstance(self.kernel, quantised.QuantisedKernel):
            return self.kernel.dequantised(dtype)
        return self.kernel[...]

    def low_rank(self) -> experts.LowRank | None:
        """Return the experts' adapters; a plain projection has none."""
        return None


class Router(nnx.Module):
    """Scores of every expert for a token, computed in float32.

    Attributes:
        kernel: [D, E].
        bias: [E] of a sigmoid router, else None; train/step.py moves it, no gradient does.
    """

    def __init__(
        self, width: int, ffn: model_config.MoeFfn, *, init_std: float, rngs: nnx.Rngs
    ) -> None:
        shape = (width, ffn.num_experts)
        kernel = jax.random.normal(rngs.params(), shape, jnp.float32) * init_std
        self.kernel = nnx.Param(kernel, axes=("embed", None))
        zeros = jnp.zeros((ffn.num_experts,), jnp.float32)
        has_bias = ffn.router.kind == "sigmoid"
        self.bias = nnx.Param(zeros, axes=(None,)) if has_bias else None

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        """Return the logits, without the bias."""
        # float32: a bf16 score moves tokens between experts.
        return x.astype(jnp.float32) @ self.kernel[...].astype(jnp.float32)


class MoeSwiGlu(nnx.Module):
    """Shared experts + sum over the chosen experts e of weight_e(x) * swiglu_e(x)."""

    def __init__(
        self,
        config: model_config.DecoderConfig,
        ffn: model_config.MoeFfn,
        *,
        compute_dtype: np.dtype,
        placement: expert_parallel.Placement,
        rngs: nnx.Rngs,
    ) -> None:
        width, hidden = config.width, ffn.width
        stack = (ffn.num_groups, ffn.group_size)
        out_std = config.init_std / np.sqrt(2 * config.num_layers)
        self.router = Router(width, ffn, init_std=config.init_std, rngs=rngs)
        into = functools.partial(
            ExpertKernel, axes=("expert_embed", "mlp"), init_std=config.init_std, rngs=rngs
        )
        self.gate_proj = into((*stack, width, hidden))
        self.up_proj = into((*stack, width, hidden))
        self.down_proj = ExpertKernel(
            (*stack, hidden, width), axes=("expert_hidden", None), init_std=out_std, rngs=rngs
        )
        self.shared = (
            layers.SwiGlu(
                width,
                hidden * ffn.num_shared_experts,
                init_std=config.init_std,
                out_std=out_std,
                compute_dtype=compute_dtype,
                rngs=rngs,
            )
            if ffn.num_shared_experts
            else None
        )
        self.ffn = ffn
        self.compute_dtype = compute_dtype
        self.placement = placement

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        control: routing.Control,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T D"], routing.Aux]:
        """Apply the layer.

        Args:
            x: normed hidden states.
            segment_ids: documents of packed rows; 0 is padding, which uses no expert.
            control: forced groups, replayed choices, recording.
            dropout_key: of adapters on the shared experts.
        """
        is_token = None if segment_ids is None else segment_ids != 0
        logits = self.router(x)
        scores = routing.scores_of(logits, self.ffn.router)
        bias = None if self.router.bias is None else self.router.bias[...]
        choice = routing.choose(scores, self.ffn, bias=bias, is_token=is_token, control=control)
        aux = routing.aux_of(logits, scores, choice, is_token, is_recorded=control.is_recorded)
        projections = (self.gate_proj, self.up_proj, self.down_proj)

        def run(x: Float[Array, "B T D"], choice: routing.Choice) -> tuple[Array, Array]:
            gate, up, down = (each.base_kernel(self.compute_dtype) for each in projections)
            kernels = experts.Kernels(
                gate, up, down, self.gate_proj.low_rank(), self.up_proj.low_rank(),
                self.down_proj.low_rank(),
            )  # fmt: skip
            return expert_parallel.run(
                x, choice, kernels, self.placement,
                groups_per_token=self.ffn.groups_per_token, max_per_group=self.ffn.max_per_group,
            )  # fmt: skip

        if isinstance(self.gate_proj.kernel, quantised.QuantisedKernel):
            # Kernels are dequantised again in the backward pass, and the experts run again, the
            # sending of tokens included: only `all` has matmuls whose outputs this policy keeps.
            run = jax.checkpoint(run, policy=jax.checkpoint_policies.dots_saveable)
        x = x.astype(self.compute_dtype)
        out, overflow = run(x, choice)
        if self.shared is not None:
            out = out + self.shared(x, dropout_key=dropout_key)
        return out, aux.with_overflow(overflow)
