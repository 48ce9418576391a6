"""Adapters folded into kernels, and several adapters added up, in NumPy on the host.

Arrays may have any axes in front of [in, out]: layers, groups, experts.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mistral_jax.adapters import lora

SMALLEST_NORM = 1e-15


def merged(
    kernel: Float[np.ndarray, "*stack n_in n_out"],
    lora_a: Float[np.ndarray, "*stack n_in R"],
    lora_b: Float[np.ndarray, "*stack R n_out"],
    scale: float,
    magnitude: Float[np.ndarray, "*stack n_out"] | None = None,
) -> Float[np.ndarray, "*stack n_in n_out"]:
    """Return the kernel with its adapter folded in, in the kernel's dtype."""
    # float32: the update is small beside the kernel; a bf16 product would lose it.
    whole = np.asarray(lora_a, np.float32) @ np.asarray(lora_b, np.float32)
    whole *= np.float32(scale)
    whole += kernel
    if magnitude is not None:
        norms = np.sqrt(np.einsum("...io,...io->...o", whole, whole))
        whole *= (np.asarray(magnitude, np.float32) / np.maximum(norms, SMALLEST_NORM))[
            ..., None, :
        ]
    return whole.astype(kernel.dtype)


def weighted_sum(
    adapters: Sequence[Mapping[str, np.ndarray]], weights: Sequence[float]
) -> dict[str, np.ndarray]:
    """Return one adapter whose update is the weighted sum of the updates, of all ranks together.

    Exact: the pairs stand side by side, [A1 A2] and [w1 B1; w2 B2]. All have one scale.

    Args:
        adapters: lora_a and lora_b by path, the same paths in each.
        weights: one for each adapter.
    """
    out = {}
    for path in adapters[0]:
        own = [np.asarray(adapter[path], np.float32) for adapter in adapters]
        if path.endswith(lora.A):
            out[path] = np.concatenate(own, axis=-1)
        else:
            weighted = [array * weight for array, weight in zip(own, weights, strict=True)]
            out[path] = np.concatenate(weighted, axis=-2)
    return out


def with_rank(path: str, array: np.ndarray, rank: int) -> np.ndarray:
    """Return an adapter's array at a higher rank: filled up with zeros, which change nothing."""
    if path.endswith(lora.MAGNITUDE):
        return array
    axis = array.ndim - (1 if path.endswith(lora.A) else 2)
    more = [(0, rank - array.shape[axis] if own == axis else 0) for own in range(array.ndim)]
    return np.pad(array, more)
