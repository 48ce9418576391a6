"""What a stage trains: which loss, over which tokens. More kinds join the union as they work."""

from typing import Annotated
from typing import Literal

from pydantic import Field

from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegative


class ExpertTraining(Node):
    """How a mixture's experts are kept balanced, and what happens where one is overrun.

    Attributes:
        bias_rate: step of a sigmoid router's bias towards equal load inside each group, counted
            over the global batch (arXiv:2408.15664).
        sequence_loss: weight of the loss that balances the experts within each row
            (arXiv:2412.19437, section 2.1.2).
        z_loss: weight of the squared logsumexp of the router's logits (arXiv:2202.08906).
        buffer_factor: with experts on several devices, how many times the even share of tokens
            one device's receive buffer holds.
        overflow: what to do with tokens beyond it: stop the run, or drop and count them.
    """

    bias_rate: NonNegative = 1e-3
    sequence_loss: NonNegative = 0.0
    z_loss: NonNegative = 0.0
    buffer_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.5
    overflow: Literal["error", "drop"] = "error"


class LmStage(Node):
    """Next-token prediction: pretraining on text, fine-tuning on the assistant's tokens."""

    kind: Literal["lm"] = "lm"
    z_loss: NonNegative = 0.0
    experts: ExpertTraining = ExpertTraining()


Stage = LmStage
