"""The optimizer, its learning-rate schedule, and what its state weighs.

Muon works on hidden matrices alone: the kernels of the stacked layers, the router's aside.
"""

import math
from typing import Annotated
from typing import Any
from typing import Literal

from pydantic import Discriminator
from pydantic import Field
from pydantic import Tag
from pydantic import model_validator

from mistral_jax.config.base import BelowOne
from mistral_jax.config.base import Count
from mistral_jax.config.base import Fraction
from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegative
from mistral_jax.config.base import NonNegativeInt
from mistral_jax.config.base import Positive


class CosineSchedule(Node):
    """Cosine decay to `final_fraction` of the peak at max_steps, after the warm-up."""

    kind: Literal["cosine"] = "cosine"
    final_fraction: Fraction = 0.1


class WsdSchedule(Node):
    """Warm-up, stable, decay: linear decay over the last `decay_fraction` of max_steps."""

    kind: Literal["wsd"] = "wsd"
    decay_fraction: Fraction = 0.2
    final_fraction: Fraction = 0.0


class ConstantSchedule(Node):
    """The peak learning rate after the warm-up."""

    kind: Literal["constant"] = "constant"


Schedule = Annotated[CosineSchedule | WsdSchedule | ConstantSchedule, Field(discriminator="kind")]


# A factored second moment pays off from this many rows and columns (arXiv:1804.04235's code).
MIN_FACTORED_SIZE = 128
# A bfloat16 number does not change by less than its 2**-8th part: a moment that decays more slowly
# would never decay.
MAX_BFLOAT16_BETA = 0.99

Moments = Literal["float32", "bfloat16"]
BYTES_OF = {"float32": 4, "bfloat16": 2}

# Numbers that share a scale, and arrays too small to be worth it (arXiv:2110.02861, sections 2.1
# and 5; bitsandbytes' defaults).
BLOCK_SIZE = 256
MIN_BLOCK_SIZE = 64
MIN_EIGHT_BIT_SIZE = 4096


class _Shared(Node):
    """What every optimizer has.

    Attributes:
        b_learning_rate_ratio: how many times the learning rate the B of low-rank adapters gets
            (LoRA+, arXiv:2402.12354, which takes 16); 1 is plain LoRA.
        max_steps: of the run; None where data.epochs says how long it is, until the data is open.
    """

    kind: str
    learning_rate: Positive
    b_learning_rate_ratio: Positive = 1.0
    warmup_steps: NonNegativeInt = 0
    max_steps: Count | None = None
    schedule: Schedule = CosineSchedule()
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive | None = 1.0

    @property
    def num_steps(self) -> int:
        """The steps of a run whose length is settled."""
        assert self.max_steps is not None, "RunConfig.with_steps sets them"
        return self.max_steps


class _WithMoments(_Shared):
    """AdamW's numbers; `moments` is how the state is stored, it is computed in float32."""

    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.95
    epsilon: Positive = 1e-8
    moments: Moments = "float32"

    @model_validator(mode="after")
    def _moments_can_decay(self) -> "_WithMoments":
        slowest = max(self.beta1, self.beta2)
        if self.moments == "bfloat16" and slowest > MAX_BFLOAT16_BETA:
            raise ValueError(
                f"moments in bfloat16 need beta1 and beta2 up to {MAX_BFLOAT16_BETA}, got "
                f"{slowest}: a slower moment would never decay; use moments: float32"
            )
        return self


class AdamW(_WithMoments):
    """AdamW (arXiv:1711.05101); weight decay spares norms, biases and embeddings.

    `moments: int8` keeps both moments in 8 bits (arXiv:2110.02861): a quarter of the state.
    """

    kind: Literal["adamw"] = "adamw"
    moments: Moments | Literal["int8"] = "float32"  # pyright: ignore

    @property
    def state_bytes(self) -> int | float:
        """Bytes of state for each trained parameter."""
        if self.moments == "int8":
            return 2 * (1 + 4 / BLOCK_SIZE)
        return 2 * BYTES_OF[self.moments]

    def array_state_bytes(
        self, path: str, shape: tuple[int, ...], local_shape: tuple[int, ...] | None = None
    ) -> int:
        """Return the bytes of state of one trained array, or of a device's part of it."""
        local = local_shape or shape
        if self.moments != "int8":
            return 2 * BYTES_OF[self.moments] * math.prod(local)
        block = eight_bit_block(path, shape)
        if block is None:
            return 2 * 4 * math.prod(local)
        # A scale's axis that its parameter's devices do not divide lies whole on each of them.
        scales = math.prod(
            size // (full // part) if size % (full // part) == 0 else size
            for size, full, part in zip(scales_shape(shape, block), shape, local, strict=True)
        )
        return 2 * (math.prod(local) + 4 * scales)


class Muon(_WithMoments):
    """Muon for hidden matrices (arXiv:2502.16982), AdamW for everything else.

    Attributes:
        momentum: decay of the matrices' momentum, Nesterov's.
        update_rms: size of a matrix's update, before the learning rate; 0.2 is what AdamW's
            updates have, so that its learning rates and weight decay carry over.
    """

    kind: Literal["muon"] = "muon"
    momentum: BelowOne = 0.95
    update_rms: Positive = 0.2

    @model_validator(mode="after")
    def _momentum_can_decay(self) -> "Muon":
        if self.moments == "bfloat16" and self.momentum > MAX_BFLOAT16_BETA:
            raise ValueError(
                f"moments in bfloat16 need a momentum up to {MAX_BFLOAT16_BETA}, got "
                f"{self.momentum}; use moments: float32"
            )
        return self

    @property
    def state_bytes(self) -> int:
        """Bytes of state for each parameter of a hidden matrix."""
        return BYTES_OF[self.moments]

    def array_state_bytes(
        self, path: str, shape: tuple[int, ...], local_shape: tuple[int, ...] | None = None
    ) -> int:
        """Return the bytes of state of one trained array, or of a device's part of it."""
        copies = 1 if is_hidden_matrix(path) else 2
        return copies * BYTES_OF[self.moments] * math.prod(local_shape or shape)


class Adafactor(_Shared):
    """Adafactor (arXiv:1804.04235): the second moment as a row and a column, no first moment.

    Updates are not scaled by the parameter's size, so that AdamW's learning rates are of the right
    order (arXiv:2106.04560).

    Attributes:
        decay_exponent: the second moment of step t decays by 1 - t ** -decay_exponent.
        max_update_rms: a larger update is scaled down to it.
    """

    kind: Literal["adafactor"] = "adafactor"
    decay_exponent: Annotated[float, Field(gt=0, le=1)] = 0.8
    max_update_rms: Positive = 1.0

    @property
    def state_bytes(self) -> int:
        """Bytes of state for each parameter of a large matrix: next to nothing."""
        return 0

    def array_state_bytes(
        self, path: str, shape: tuple[int, ...], local_shape: tuple[int, ...] | None = None
    ) -> int:
        """Return the bytes of state of one trained array, or of a device's part of it.

        The whole shape decides what is factored; rows and columns lie as what is left of the
        array. Placeholders of 4 bytes are included.
        """
        local = local_shape or shape
        size = math.prod(local)
        *_, second, largest = (-1, -1, *sorted(range(len(shape)), key=shape.__getitem__))
        if second < 0 or shape[second] < MIN_FACTORED_SIZE:
            return 4 * (size + 2)
        kept = (size // local[_first_alike(shape, axis)] for axis in (second, largest))
        return 4 * (sum(kept) + 1)


def is_hidden_matrix(path: str) -> bool:
    """Tell whether a parameter is a matrix inside the stack, or a stack of such; no router is."""
    *_, parent, name = ("", *path.split("/"))
    is_stacked = path.startswith(("layers/", "dense_layers/"))
    return is_stacked and name == "kernel" and parent != "router"


def eight_bit_block(path: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return rows and columns of the blocks of an array's 8-bit moments; None: it stays float32.

    A block lies in the last two axes and divides them: a row's 256 numbers, or of a narrow array
    several rows'. No array is padded, and none is flattened, since that would gather a split one.
    Small arrays stay in float32, and embeddings, whose rows' gradients differ too much (section
    2.3 of the paper).
    """
    if math.prod(shape) < MIN_EIGHT_BIT_SIZE or path.endswith("/embedding"):
        return None
    columns = math.gcd(BLOCK_SIZE, shape[-1])
    rows = math.gcd(BLOCK_SIZE // columns, shape[-2] if len(shape) > 1 else 1)
    return (rows, columns) if rows * columns >= MIN_BLOCK_SIZE else None


def scales_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of the scales of an array's blocks; it has the array's rank."""
    if len(shape) == 1:
        return (shape[0] // block[1],)
    return (*shape[:-2], shape[-2] // block[0], shape[-1] // block[1])


def _first_alike(shape: tuple[int, ...], axis: int) -> int:
    """Return the first axis without which the shape is the same: of equal neighbours the first."""
    while axis and shape[axis - 1] == shape[axis]:
        axis -= 1
    return axis


def _kind_of(value: Any) -> str:
    kind = value.get("kind", "adamw") if isinstance(value, dict) else getattr(value, "kind", "")
    return str(kind)


# Not `discriminator="kind"`: a config without a kind means AdamW.
Optimizer = Annotated[
    Annotated[AdamW, Tag("adamw")]
    | Annotated[Muon, Tag("muon")]
    | Annotated[Adafactor, Tag("adafactor")],
    Discriminator(
        _kind_of,
        custom_error_type="optimizer_kind",
        custom_error_message="kind should be adamw, muon or adafactor",
    ),
]
