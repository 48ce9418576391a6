"""What a stage trains: which loss, over which tokens. More kinds join the union as they work."""

from typing import Literal

from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegative


class LmStage(Node):
    """Next-token prediction: pretraining on text, fine-tuning on the assistant's tokens."""

    kind: Literal["lm"] = "lm"
    z_loss: NonNegative = 0.0


Stage = LmStage
