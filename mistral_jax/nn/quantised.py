"""A frozen kernel in NF4 or int8: dequantised where it is multiplied, once forward, once backward.

The numbers are formats/nf4.py's, permuted for the device: NF4 codes lie as [in / 64, 32, out], so
that making [in, out] of them moves nothing, and a device's part of `in` is whole blocks of 64. No
gradient is formed for a kernel, and nothing but the codes is kept for the backward pass.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Float32
from jaxtyping import Int8
from jaxtyping import UInt8

from mistral_jax import sharding
from mistral_jax.formats import nf4

Kind = Literal["nf4", "int8"]
Axes = tuple[str | None, str | None]
# Split over data parallel devices, and whole where they are multiplied by.
GATHERED = ("embed",)
PAIRS = nf4.BLOCK // 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nf4Codes:
    """A kernel in NF4.

    Attributes:
        codes: of inputs 2i (high nibble) and 2i + 1 of a block.
        absmax: 8-bit codes of the blocks' largest values.
        scales: of each 256 of these in the order of [out, in / 64].
        offset: added to them.
    """

    codes: UInt8[Array, "*stack blocks 32 n_out"]
    absmax: UInt8[Array, "*stack blocks n_out"]
    scales: Float32[Array, "*stack groups"]
    offset: Float32[Array, "*stack"]

    @staticmethod
    def axes(in_axis: str | None, out_axis: str | None) -> dict[str, tuple[str | None, ...]]:
        """Return each array's logical axes; `in` is split in whole blocks."""
        return {
            "codes": (in_axis, None, out_axis),
            "absmax": (in_axis, out_axis),
            "scales": (None,),
            "offset": (),
        }

    def dequantise(self, dtype: np.dtype) -> Float[Array, "n_in n_out"]:
        """Return the kernel."""
        num_blocks, num_out = self.absmax.shape
        block = jax.lax.broadcasted_iota(jnp.int32, (num_blocks, num_out), 0)
        row = jax.lax.broadcasted_iota(jnp.int32, (num_blocks, num_out), 1)
        scales = _lookup(self.scales, (row * num_blocks + block) // nf4.GROUP)
        largest = _lookup(jnp.asarray(nf4.DYNAMIC), self.absmax) * scales + self.offset
        table = jnp.asarray(nf4.NF4)
        pairs = jnp.stack([_lookup(table, self.codes >> 4), _lookup(table, self.codes & 15)], 2)
        # float32 up to here, as bitsandbytes has it: one rounding, to the compute dtype.
        values = (pairs * largest[:, None, None, :]).astype(dtype)
        return values.reshape(num_blocks * nf4.BLOCK, num_out)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Codes:
    """A kernel in int8.

    Attributes:
        codes: -127 to 127.
        absmax: each output's largest weight.
    """

    codes: Int8[Array, "*stack n_in n_out"]
    absmax: Float32[Array, "*stack n_out"]

    @staticmethod
    def axes(in_axis: str | None, out_axis: str | None) -> dict[str, tuple[str | None, ...]]:
        """Return each array's logical axes."""
        return {"codes": (in_axis, out_axis), "absmax": (out_axis,)}

    def dequantise(self, dtype: np.dtype) -> Float[Array, "n_in n_out"]:
        """Return the kernel."""
        scales = self.absmax * np.float32(1 / nf4.INT8_LARGEST)
        return (self.codes.astype(jnp.float32) * scales).astype(dtype)


Codes = Nf4Codes | Int8Codes
FORMS: dict[str, type[Codes]] = {"nf4": Nf4Codes, "int8": Int8Codes}


def product(
    x: Float[Array, "... n_in"], codes: Codes, axes: Axes = (None, None)
) -> Float[Array, "... n_out"]:
    """Return x @ kernel; the backward pass dequantises again and gives no gradient of the kernel.

    `axes` are the kernel's logical axes, by which it lies on a mesh.
    """
    return _product(x, dict(vars(codes)), type(codes), axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: Array, arrays: dict[str, Array], form: type[Codes], axes: Axes) -> Array:
    return x @ _gathered(form(**arrays), axes).dequantise(x.dtype)


def _product_forward(
    x: Array, arrays: dict[str, Array], form: type[Codes], axes: Axes
) -> tuple[Array, dict[str, Array]]:
    return _product(x, arrays, form, axes), arrays


def _product_backward(
    form: type[Codes], axes: Axes, arrays: dict[str, Array], dy: Array
) -> tuple[Array, None]:
    return dy @ _gathered(form(**arrays), axes).dequantise(dy.dtype).T, None


_product.defvjp(_product_forward, _product_backward)


def _gathered(codes: Codes, axes: Axes) -> Codes:
    """Return the codes whole but for the axes that matmuls are split over.

    Bytes a device and layer: those of the codes, a quarter of a gathered bfloat16 kernel's.
    """
    split = [None if axis in GATHERED else axis for axis in axes]
    own = type(codes).axes(*split)
    return type(codes)(
        **{name: sharding.constrain(value, own[name]) for name, value in vars(codes).items()}
    )


class QuantisedKernel(nnx.Module):
    """What stands in the place of a projection's `kernel` parameter.

    It answers as the parameter did (`kernel[...]`, `.shape`, axes in the metadata), so that what
    reads a kernel need not know. Groups and experts are leading axes of every array.

    Attributes:
        kind: nf4 or int8.
        axes: logical axes of the kernel that it stands for.
        widths: its inputs and outputs.
        codes, absmax, scales, offset: as in Nf4Codes and Int8Codes.
    """

    codes: nnx.Param

    def __init__(self, kernel: nnx.Param, kind: Kind) -> None:
        self.kind = kind
        self.axes = tuple(kernel.get_metadata()["axes"])
        # Stacked layers are not among the axes.
        self.widths = tuple(kernel.shape[-2:])
        stack_axes = self.axes[:-2]
        for name, value in vars(quantise(kernel[...], kind)).items():
            own = FORMS[kind].axes(*self.axes[-2:])[name]
            setattr(self, name, nnx.Param(value, axes=(*stack_axes, *own)))

    @property
    def packed(self) -> Codes:
        """The arrays as one value."""
        form = FORMS[self.kind]
        return form(
            **{field.name: getattr(self, field.name)[...] for field in dataclasses.fields(form)}
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel that it stands for."""
        num_last = 3 if self.kind == "nf4" else 2
        return (*self.codes.shape[:-num_last], *self.widths)

    def get_metadata(self) -> dict[str, Any]:
        """Return the axes of the kernel that it stands for."""
        return {"axes": self.axes}

    def __getitem__(self, index: Any) -> Float32[Array, "..."]:
        return self.dequantised(np.dtype(np.float32))[index]

    def dequantised(self, dtype: np.dtype) -> Float[Array, "*stack n_in n_out"]:
        """Return the kernel in a dtype."""

        def make(packed: Codes) -> Float[Array, "n_in n_out"]:
            return packed.dequantise(dtype)

        for _ in self.shape[:-2]:
            make = jax.vmap(make)
        return make(self.packed)

    def project(self, x: Float[Array, "... n_in"]) -> Float[Array, "... n_out"]:
        """Return x @ kernel in x's dtype; without leading axes."""
        return product(x, self.packed, self.axes[-2:])


def replace_kernels(stacks: Mapping[str, nnx.Module], kind: Kind) -> None:
    """Put a QuantisedKernel in the place of every projection's kernel, in place.

    Projections are the modules with a `base_kernel`; routers, norms and biases stay as they are.

    Args:
        stacks: a decoder's stacks of layers by name.
        kind: nf4 or int8.

    Raises:
        ValueError: a projection's inputs are not whole blocks; the message names it.
    """
    for stack_name, stack in stacks.items():
        modules: list[tuple[Any, Any]] = list(nnx.iter_modules(stack))
        for path, module in modules:
            if not hasattr(module, "base_kernel"):
                continue
            if kind == "nf4":
                name = "/".join([stack_name, *map(str, path)])
                nf4.check_width(module.kernel.shape[-2], name)
            module.kernel = QuantisedKernel(module.kernel, kind)


def quantise(kernel: Float[Array, "*stack n_in n_out"], kind: Kind) -> Codes:
    """Return kernels in their stored form, one after the other on the stack's axes.

    As formats/nf4.py does it on the host; for kernels that were drawn and not read.
    """
    stack = kernel.shape[:-2]
    packed = jax.lax.map(_QUANTISE[kind], kernel.reshape(-1, *kernel.shape[-2:]))
    return jax.tree.map(lambda leaf: leaf.reshape(*stack, *leaf.shape[1:]), packed)


def from_host(weight: Float[np.ndarray, "n_out n_in"], kind: Kind, *, name: str) -> dict[str, Any]:
    """Quantise an [out, in] weight on the host; return its arrays as the device stores them."""
    if kind == "int8":
        rows = nf4.quantise_int8(weight)
        return {"codes": rows.codes.T, "absmax": rows.absmax}
    found = nf4.quantise(weight, name=name)
    num_out = weight.shape[0]
    return {
        "codes": found.codes.T.reshape(-1, PAIRS, num_out),
        "absmax": found.absmax.T,
        "scales": found.scales,
        "offset": found.offset,
    }


def to_host(arrays: Mapping[str, Any]) -> Float32[np.ndarray, "*stack n_in n_out"]:
    """Return the kernels that a projection's arrays stand for, in NumPy."""
    own = {name: np.asarray(value) for name, value in arrays.items()}
    num_last = 3 if "scales" in own else 2
    stack = own["codes"].shape[:-num_last]
    if stack:
        parts = [{name: value[i] for name, value in own.items()} for i in range(stack[0])]
        return np.stack([to_host(part) for part in parts])
    if "scales" not in own:
        return nf4.dequantise_int8(nf4.Int8Weight(own["codes"].T, own["absmax"])).T
    codes = own["codes"].reshape(-1, own["codes"].shape[-1]).T
    weight = nf4.Nf4Weight(codes, own["absmax"].T, own["scales"], own["offset"])
    return nf4.dequantise(weight).T


def num_weights(path: str, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Return how many weights of the model a parameter stands for; scales stand for none."""
    room, _, name = path.rpartition("/")
    if not room.endswith("/kernel"):
        return math.prod(shape)
    if name != "codes":
        return 0
    return math.prod(shape) * (2 if dtype == np.uint8 else 1)


def _quantise_nf4(kernel: Float[Array, "n_in n_out"]) -> Nf4Codes:
    num_out = kernel.shape[1]
    blocks = kernel.astype(jnp.float32).reshape(-1, nf4.BLOCK, num_out)
    largest = jnp.max(jnp.abs(blocks), axis=1)
    nearest = _nearest(blocks * (1 / jnp.maximum(largest, nf4.SMALLEST))[:, None], nf4.NF4_BORDERS)
    codes = nearest[:, ::2] << 4 | nearest[:, 1::2]
    offset = jnp.mean(largest)
    rows = (largest - offset).T.reshape(-1)
    padded = jnp.pad(rows, (0, -rows.size % nf4.GROUP)).reshape(-1, nf4.GROUP)
    scales = jnp.max(jnp.abs(padded), axis=1)
    parts = padded * (1 / jnp.maximum(scales, nf4.SMALLEST))[:, None]
    absmax = jnp.searchsorted(jnp.asarray(nf4.DYNAMIC_BORDERS), parts.reshape(-1)[: rows.size])
    absmax = absmax.astype(jnp.uint8).reshape(num_out, -1).T
    return Nf4Codes(codes, absmax, scales, offset)


def _quantise_int8(kernel: Float[Array, "n_in n_out"]) -> Int8Codes:
    wide = kernel.astype(jnp.float32)
    absmax = jnp.max(jnp.abs(wide), axis=0)
    factor = 1 / jnp.maximum(absmax, nf4.SMALLEST_ROW) * nf4.INT8_LARGEST
    return Int8Codes(jnp.rint(wide * factor).astype(jnp.int8), absmax)


_QUANTISE = {"nf4": _quantise_nf4, "int8": _quantise_int8}


def _nearest(values: Float32[Array, "..."], borders: np.ndarray) -> UInt8[Array, "..."]:
    """Return the number of borders below each value."""
    found = jnp.zeros(values.shape, jnp.uint8)
    for border in borders:
        found += values > border
    return found


def _lookup(table: Float32[Array, " entries"], codes: Array) -> Float32[Array, "..."]:
    return table.at[codes].get(mode="promise_in_bounds")
