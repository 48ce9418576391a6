"""The base class of every configuration node, and the number types that the nodes use.

Nodes are frozen and refuse unknown keys. They are validated from JSON in strict mode, so that a
quoted number is not taken for a number and `true` is not taken for 1.
"""

from typing import Annotated

from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field


class Node(BaseModel):
    """A frozen, strict configuration node without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]  # jax.random.key takes 32 bits of it
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
