"""Sorted pairs and tokamax's grouped matmul kernels: NVIDIA GPUs, bf16 or fp16; extra `kernels`.

Mosaic where tokamax has it for the GPU (forward sm80, sm90, sm100; weight gradient sm90), Triton
otherwise; never its XLA form, which is dense. Not yet run on a GPU here: checked against the
oracle through the XLA form only.
"""

import functools
import importlib.util
from typing import TYPE_CHECKING

import jax
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax.nn import routing
from mistral_jax.nn.kernels import experts_ragged

if TYPE_CHECKING:
    from mistral_jax.nn import experts as experts_lib

INSTALL = "pip install 'mistral_jax[kernels]'"
MISSING = (
    f"the experts implementation 'grouped' needs tokamax, which is not here: {INSTALL}, "
    "or choose 'blocks'"
)
ROWS_BY_KERNEL = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (1,)), ((), ())),
    lhs_ragged_dimensions=(0,),
    rhs_group_dimensions=(0,),
)
ROWS_BY_TRANSPOSED_KERNEL = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())),
    lhs_ragged_dimensions=(0,),
    rhs_group_dimensions=(0,),
)
ROWS_BY_ROWS = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=(0,),
    rhs_group_dimensions=(),
)


def is_installed() -> bool:
    """Tell whether tokamax is here; it is looked up, not imported."""
    return importlib.util.find_spec("tokamax") is not None


def kernel_names() -> tuple[str, ...]:
    """Return tokamax's names of the kernels to try, in order."""
    has_triton = all(importlib.util.find_spec(name) for name in ("triton", "jax_triton"))
    return ("mosaic", "triton") if has_triton else ("mosaic",)


def run(
    x: Float[Array, "N D"],
    choice: routing.Choice,
    kernels: "experts_lib.Kernels",
    *,
    max_pairs: int | None = None,
    names: tuple[str, ...] | None = None,
) -> Float[Array, "N D"]:
    """Return the weighted sum of the chosen experts' outputs; see experts.run_experts.

    Args:
        x, choice, kernels, max_pairs: as there.
        names: tokamax's kernels to try; None for `kernel_names()`.

    Raises:
        ValueError: tokamax is missing, or none of its kernels takes this GPU, shape or dtype.
    """
    matmul = functools.partial(_matmul, kernel_names() if names is None else names)
    return experts_ragged.run(
        x, choice, kernels, max_pairs=max_pairs, matmul=matmul, is_tail_cleared=True
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(names: tuple[str, ...], rows: Array, kernels: Array, sizes: Array) -> Array:
    return _product(names, rows, kernels, sizes, ROWS_BY_KERNEL)


def _forward(
    names: tuple[str, ...], rows: Array, kernels: Array, sizes: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return _matmul(names, rows, kernels, sizes), (rows, kernels, sizes)


# tokamax differentiates each kernel by itself, so that a GPU whose Mosaic kernels lack the weight
# gradient (sm80, sm100) fails in the backward pass: here each of the three products is tried anew.
def _backward(
    names: tuple[str, ...], kept: tuple[Array, Array, Array], gradient: Array
) -> tuple[Array, Array, None]:
    rows, kernels, sizes = kept
    return (
        _product(names, gradient, kernels, sizes, ROWS_BY_TRANSPOSED_KERNEL),
        _product(names, rows, gradient, sizes, ROWS_BY_ROWS),
        None,
    )


_matmul.defvjp(_forward, _backward)


def _product(
    names: tuple[str, ...],
    left: Array,
    right: Array,
    sizes: Int[Array, " E"],
    dimensions: jax.lax.RaggedDotDimensionNumbers,
) -> Array:
    try:
        import tokamax
    except ImportError as error:
        raise ValueError(MISSING) from error
    try:
        return tokamax.ragged_dot_general(
            left,
            right,
            sizes,
            dimensions,
            preferred_element_type=left.dtype,
            implementation=names,
            # A kernel that is named alone would otherwise not look at the device.
            bypass_device_check=False,
        )
    except (NotImplementedError, ExceptionGroup) as error:
        reasons = error.exceptions if isinstance(error, ExceptionGroup) else [error]
        raise ValueError(
            f"tokamax's kernels {', '.join(names)} do not take {left.dtype}{list(left.shape)} by "
            f"{right.dtype}{list(right.shape)} on this device "
            f"({'; '.join(str(reason) for reason in reasons)}): install triton and jax-triton "
            "beside tokamax, or choose the experts implementation 'blocks'"
        ) from error
