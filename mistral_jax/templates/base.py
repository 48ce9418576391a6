"""What every chat format gives, and how it refuses."""

import dataclasses
from collections.abc import Mapping
from typing import Any

Message = Mapping[str, Any]
Tool = Mapping[str, Any]


class TemplateError(ValueError):
    """A chat that its format cannot express, or a template that cannot be used for training."""


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A chat as tokens; `loss_mask[i]` says that token i is one the model should produce."""

    tokens: list[int]
    loss_mask: list[bool]
