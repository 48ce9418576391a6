"""Frozen parameters as a run stores them: plain numbers, or NF4 and int8 codes with their scales.

The same arrays as mistral_jax/nn/quantised.py makes, written down without jax; a test holds the
two equal.
"""

import dataclasses

from launch import tensors as tensors_lib
from mistral_jax.config.model import DecoderConfig

QUANTISED = ("nf4", "int8")
FLOAT32_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Stored:
    """One array on the devices.

    Attributes:
        tensor: its path, shape and axes.
        bytes_each: of one of its numbers.
    """

    tensor: tensors_lib.Tensor
    bytes_each: int

    def local_bytes(self, mesh: dict[str, int]) -> int:
        """Return the bytes of one device's part."""
        return self.bytes_each * self.tensor.local_size(mesh)


def is_quantised(tensor: tensors_lib.Tensor, frozen: str) -> bool:
    """Tell whether a tensor of the base is stored in codes: a projection of a layer."""
    is_projection = tensor.is_stacked and tensor.path.endswith("/kernel")
    return frozen in QUANTISED and is_projection and tensor.part != "router"


def arrays(tensor: tensors_lib.Tensor, frozen: str, bytes_each: int) -> list[Stored]:
    """Return what is stored for one tensor of the base.

    Args:
        tensor: a parameter of the model.
        frozen: a run's `precision.frozen`.
        bytes_each: of a number of what is not quantised.

    Raises:
        ValueError: nf4, and the inputs are not whole blocks of 64; the message names the tensor.
    """
    # Not at the top: they bring numpy, which plans without a frozen base do not need.
    from mistral_jax.formats import names
    from mistral_jax.formats import nf4

    if not is_quantised(tensor, frozen):
        is_wide = tensor.path in names.FLOAT32_PATHS
        return [Stored(tensor, FLOAT32_BYTES if is_wide else bytes_each)]
    *stack, in_width, out_width = tensor.shape
    *stack_axes, in_axis, out_axis = tensor.axes
    if frozen == "int8":
        rows = [
            ("codes", (in_width, out_width), (in_axis, out_axis), 1),
            ("absmax", (out_width,), (out_axis,), FLOAT32_BYTES),
        ]
    else:
        nf4.check_width(in_width, tensor.path.removesuffix("/kernel"))
        blocks, groups = in_width // nf4.BLOCK, nf4.num_groups(in_width * out_width)
        codes = (blocks, nf4.BLOCK // 2, out_width)
        rows = [
            ("codes", codes, (in_axis, None, out_axis), 1),
            ("absmax", (blocks, out_width), (in_axis, out_axis), 1),
            ("scales", (groups,), (None,), FLOAT32_BYTES),
            ("offset", (), (), FLOAT32_BYTES),
        ]
    return [
        Stored(
            tensors_lib.Tensor(
                f"{tensor.path}/{name}", (*stack, *shape), (*stack_axes, *axes), tensor.part
            ),
            size,
        )
        for name, shape, axes, size in rows
    ]


def device_bytes(decoder: DecoderConfig, mesh: dict[str, int], frozen: str, bytes_each: int) -> int:
    """Return the bytes of the whole base on one device; see `arrays`."""
    return sum(
        stored.local_bytes(mesh)
        for tensor in tensors_lib.tensors(decoder)
        for stored in arrays(tensor, frozen, bytes_each)
    )
