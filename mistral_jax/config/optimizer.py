"""The optimizer and its learning-rate schedule."""

from typing import Annotated
from typing import Literal

from pydantic import Field

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


class AdamW(Node):
    """AdamW (arXiv:1711.05101); weight decay spares norms, biases and embeddings."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: Positive
    warmup_steps: NonNegativeInt = 0
    max_steps: Count
    schedule: Schedule = CosineSchedule()
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.95
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive | None = 1.0


Optimizer = AdamW
