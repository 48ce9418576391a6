"""What a run looks at while it trains: held-out loss, samples, the stop rule, checkpoints."""

from mistral_jax.config.base import Count
from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegative
from mistral_jax.config.base import NonNegativeInt


class StopRule(Node):
    """Stop when the held-out loss has not fallen by `min_delta` nats in `patience` evaluations."""

    patience: Count
    min_delta: NonNegative = 0.0


class EvaluateConfig(Node):
    """Held-out loss per source and sample generations, every `every_steps` and at the end."""

    every_steps: Count = 100
    max_rows: Count = 64
    sample_prompts: tuple[str, ...] = ()
    sample_max_tokens: Count = 48
    stop: StopRule | None = None


class CheckpointConfig(Node):
    """When to save and what to keep; the best is chosen by held-out loss."""

    every_steps: Count = 100
    keep_last: Count = 2
    keep_best: NonNegativeInt = 1
