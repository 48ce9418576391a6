"""RunConfig: one experiment. It names no device, no kernel and no bucket of a machine.

The science hash covers every field that can change the numbers; where the run writes, how often
it saves and what it looks at meanwhile are left out, unless a stop rule acts on what it sees.
"""

import hashlib
import json
from typing import Literal

from pydantic import model_validator

from mistral_jax.config import presets
from mistral_jax.config.base import Node
from mistral_jax.config.base import Seed
from mistral_jax.config.data import DataConfig
from mistral_jax.config.evaluate import CheckpointConfig
from mistral_jax.config.evaluate import EvaluateConfig
from mistral_jax.config.model import Adapter
from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.model import Model
from mistral_jax.config.model import NoAdapter
from mistral_jax.config.optimizer import Optimizer
from mistral_jax.config.stage import LmStage
from mistral_jax.config.stage import Stage

NON_SCIENCE_FIELDS = frozenset({"output", "evaluate", "checkpoint"})
LOOKING_FIELDS = ("every_steps", "max_rows")
STOPPING_FIELDS = ("stop", *LOOKING_FIELDS)
NON_SCIENCE_DATA_FIELDS = frozenset({"prefetch_batches", "worker_count"})
# Left out where they are null, so that runs from before they were known keep their hash.
LATER_DATA_FIELDS = frozenset({"max_examples_per_document", "epochs"})


class Precision(Node):
    """Number formats. Parameters that train are always float32; sums and losses too.

    Attributes:
        compute: of matmuls and activations.
        frozen: of an adapter's base. nf4 and int8 store the projections of its layers quantised,
            and the rest (embeddings, head, norms, biases, routers) as the checkpoint has it.
    """

    compute: Literal["bfloat16", "float32"] = "bfloat16"
    frozen: Literal["checkpoint", "bfloat16", "float32", "nf4", "int8"] = "checkpoint"

    @property
    def is_quantised(self) -> bool:
        """Whether the base's projections are stored in fewer than 16 bits."""
        return self.frozen in ("nf4", "int8")


class RunConfig(Node):
    """One experiment: model, data, stage, optimizer, evaluation."""

    name: str
    seed: Seed = 0
    output: str | None = None
    model: Model
    adapter: Adapter = NoAdapter()
    stage: Stage = LmStage()
    data: DataConfig
    optimizer: Optimizer
    precision: Precision = Precision()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _check_length(self) -> "RunConfig":
        steps, epochs = self.optimizer.max_steps, self.data.epochs
        if (steps is None) == (epochs is None):
            got = "neither" if steps is None else f"{steps} steps and {epochs:g} epochs"
            raise ValueError(
                "expected exactly one of optimizer.max_steps and data.epochs, got "
                f"{got}; set one, and leave the other out or null"
            )
        return self

    @model_validator(mode="after")
    def _ratio_has_an_adapter(self) -> "RunConfig":
        ratio = self.optimizer.b_learning_rate_ratio
        if ratio != 1 and self.adapter.kind == "none":
            raise ValueError(
                f"optimizer.b_learning_rate_ratio ({ratio:g}) is for the B of low-rank adapters, "
                "and this run has none; set an adapter, or leave it at 1"
            )
        return self

    @model_validator(mode="after")
    def _check_quantised(self) -> "RunConfig":
        if self.precision.is_quantised and self.adapter.kind == "none":
            raise ValueError(
                f"precision.frozen is {self.precision.frozen}, but without an adapter every "
                "parameter trains, and what trains is not quantised; set adapter.kind=lora, or "
                "precision.frozen=checkpoint"
            )
        return self

    def science(self) -> dict:
        """Return the fields that can change the numbers, as plain JSON values."""
        fields = self.model_dump(mode="json")
        kept = {name: value for name, value in fields.items() if name not in NON_SCIENCE_FIELDS}
        kept["data"] = {
            name: value
            for name, value in kept["data"].items()
            if name not in NON_SCIENCE_DATA_FIELDS
            and not (name in LATER_DATA_FIELDS and value is None)
        }
        if self.data.curriculum.kind == "none":  # as before it was known
            del kept["data"]["curriculum"]
        stop = fields["evaluate"]["stop"]
        if stop is not None:  # these decide where the run ends
            kept["evaluate"] = {name: fields["evaluate"][name] for name in STOPPING_FIELDS}
        elif self.data.curriculum.kind == "adaptive":  # these decide what it reads
            kept["evaluate"] = {name: fields["evaluate"][name] for name in LOOKING_FIELDS}
        return kept

    def with_steps(self, num_steps: int) -> "RunConfig":
        """Return the run with its length settled: what trains, not what identifies it."""
        optimizer = self.optimizer.model_copy(update={"max_steps": num_steps})
        return self.model_copy(update={"optimizer": optimizer})

    def science_hash(self) -> str:
        """Return the sha256, in hex, of the science fields in canonical JSON."""
        text = json.dumps(self.science(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def run_directory(self) -> str:
        """Return `output`, or runs/<name>-<first 8 digits of the science hash>."""
        return self.output or f"runs/{self.name}-{self.science_hash()[:8]}"


def decoder_of(model: Model) -> DecoderConfig | None:
    """Return the shape that the config itself knows; None when only the weights know it.

    Raises:
        ValueError: the preset's name is unknown; the message lists the known ones.
    """
    match model.kind:
        case "decoder":
            return model
        case "preset":
            if model.name not in presets.PRESETS:
                known = ", ".join(sorted(presets.PRESETS))
                raise ValueError(f"model.name: no preset {model.name!r}; known: {known}")
            return presets.PRESETS[model.name].model_copy(update={"weights": model.weights})
        case _:
            return None
