"""The seam of a mixture's experts: tokens and their choice in, the weighted outputs out.

`run_experts(x, choice, kernels, *, implementation)`; implementations live in nn/kernels and all
equal `all`, the oracle, in value and gradient. None drops a token. Where the experts lie on
several devices, nn/expert_parallel.py moves the tokens and calls this on each device.
"""

import dataclasses
import warnings

import jax
import numpy as np
from jaxtyping import Array
from jaxtyping import Float

from mistral_jax.nn import routing
from mistral_jax.nn.kernels import experts_all
from mistral_jax.nn.kernels import experts_blocks
from mistral_jax.nn.kernels import experts_grouped
from mistral_jax.nn.kernels import experts_ragged


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """A low-rank adapter of one projection of every expert: x @ a @ b is added to x @ kernel.

    Attributes:
        a: [E, in, R], with the kernels' own leading axes.
        b: [E, R, out].
    """

    a: Float[Array, "*E n_in R"]
    b: Float[Array, "*E R n_out"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernels:
    """The three projections of every expert, and their adapters where there are any.

    Attributes:
        gate, up: [E, D, F], group after group; as parameters [groups, experts of a group, D, F].
        down: [E, F, D], likewise.
        gate_adapter, up_adapter, down_adapter: of each, or None.
        gate_up: [E, D, 2 F], gate and up side by side in place of both, for the implementations in
            JOINED: a row is then read once for the two, and so is its gradient written.
    """

    gate: Float[Array, "*E D F"] | None
    up: Float[Array, "*E D F"] | None
    down: Float[Array, "*E f d"]  # a device may hold other parts of it than of gate
    gate_adapter: LowRank | None = None
    up_adapter: LowRank | None = None
    down_adapter: LowRank | None = None
    gate_up: Float[Array, "*E D F2"] | None = None


IMPLEMENTATIONS = {
    "all": experts_all.run,
    "blocks": experts_blocks.run,
    "ragged": experts_ragged.run,
    "grouped": experts_grouped.run,
}
JOINED = ("ragged", "grouped")
PLATFORM_DEFAULTS = {"cpu": "blocks", "gpu": "grouped", "tpu": "ragged"}


def choose_implementation(name: str, platform: str, compute_dtype: np.dtype) -> str:
    """Return the implementation that `auto` means on a platform, or the name itself.

    Warns where a GPU gets a slower one because the extra `kernels` is not installed.

    Raises:
        ValueError: the name is unknown or needs what is not installed; the message tells.
    """
    if name == "auto":
        chosen = PLATFORM_DEFAULTS.get(platform, "blocks")
        if chosen != "grouped":
            return chosen
        # The GPU kernels multiply float32 as TF32, three digits short of it.
        if compute_dtype == np.float32:
            return "blocks"
        if not experts_grouped.is_installed():
            warnings.warn(
                "experts run as 'blocks', which is slow on a GPU: 'grouped' needs tokamax "
                f"({experts_grouped.INSTALL})",
                stacklevel=2,
            )
            return "blocks"
        return chosen
    if name not in IMPLEMENTATIONS:
        known = ", ".join(["auto", *IMPLEMENTATIONS])
        raise ValueError(f"unknown experts implementation {name!r}; known: {known}")
    if name == "grouped" and not experts_grouped.is_installed():
        raise ValueError(experts_grouped.MISSING)
    return name


def run_experts(
    x: Float[Array, "N D"],
    choice: routing.Choice,
    kernels: Kernels,
    *,
    implementation: str,
    max_pairs: int | None = None,
) -> Float[Array, "N D"]:
    """Return sum over k of weight_k * down_e(silu(gate_e(x)) * up_e(x)), in x's dtype.

    Args:
        x: tokens, in the compute dtype.
        choice: [N, k] experts and weights; an index of E (no expert) adds nothing.
        kernels: of all E experts.
        implementation: a name in IMPLEMENTATIONS.
        max_pairs: how many of the N * k pairs have an expert at most, where that is known: rows
            for more are not made. None is all.
    """
    with jax.named_scope(f"experts_{implementation}"):
        return IMPLEMENTATIONS[implementation](x, choice, kernels, max_pairs=max_pairs)
