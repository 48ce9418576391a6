"""The checks as data: one frozen class for each kind; what the keys mean stands in __init__.py."""

import json
from typing import Annotated
from typing import Any
from typing import Literal

from pydantic import Field
from pydantic import TypeAdapter
from pydantic import ValidationError
from pydantic import model_validator

from mistral_jax.config.base import Count
from mistral_jax.config.base import Fraction
from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegative
from mistral_jax.config.base import NonNegativeInt


class BadCheck(ValueError):
    """A check of unknown kind, or with wrong keys."""


class Answered(Node):
    """What is checked on the row's answer, or on what stands behind the last mark in it."""

    after: str | None = None


class PythonTests(Answered):
    """The tests run through after the code."""

    kind: Literal["python_tests"]
    tests: str
    files: dict[str, str] = Field(default_factory=dict)


class Mutants(Answered):
    """The tests notice small changes of the code."""

    kind: Literal["mutants"]
    tests: str
    files: dict[str, str] = Field(default_factory=dict)
    min_killed: Fraction | None = None


class Sympy(Answered):
    """The answer equals a formula, or makes one zero."""

    kind: Literal["sympy"]
    expected: str | None = None
    zero: str | None = None
    positive: tuple[str, ...] = ()
    integer: tuple[str, ...] = ()
    constant: bool = False
    tolerance: NonNegative = 0.0

    @model_validator(mode="after")
    def _one_of(self) -> "Sympy":
        if (self.expected is None) == (self.zero is None):
            raise ValueError("needs either `expected` or `zero`")
        return self


class ReasoningGym(Answered):
    """The dataset's own verifier says yes."""

    kind: Literal["reasoning_gym"]
    dataset: str
    entry: dict[str, Any]
    min_score: Fraction = 1.0


class Proof(Answered):
    """A proof checker accepts it."""

    kind: Literal["proof"]
    checker: Literal["coq", "lean", "agda"]
    statement: str | None = None


class Span(Node):
    """The answer is a quote, and the quote is where it is said to be."""

    kind: Literal["span"]
    start: NonNegativeInt
    end: Count
    quote: str
    document: str | None = None
    within: Literal["document", "prompt"] = Field("document", alias="in")
    exact: bool = False


class Constraints(Answered):
    """The text keeps rules."""

    kind: Literal["constraints"]
    rules: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]


class Exact(Answered):
    """The answer is one of some texts."""

    kind: Literal["exact"]
    expected: str | Annotated[tuple[str, ...], Field(min_length=1)]
    fold: bool = False


class Number(Answered):
    """The answer is near a number."""

    kind: Literal["number"]
    expected: float
    relative: NonNegative = 1e-6
    absolute: NonNegative = 0.0
    unit: str | None = None


Check = Annotated[
    PythonTests | Mutants | Sympy | ReasoningGym | Proof | Span | Constraints | Exact | Number,
    Field(discriminator="kind"),
]
_ADAPTER: TypeAdapter[tuple[Check, ...]] = TypeAdapter(
    Annotated[tuple[Check, ...], Field(min_length=1)]
)


def parse(check: object) -> tuple[Check, ...]:
    """Return the checks of a row's fact: one object or a list of them.

    Raises:
        BadCheck: a kind is unknown, or keys are missing, unknown or of a wrong type.
    """
    listed = check if isinstance(check, list | tuple) else [check]
    try:
        return _ADAPTER.validate_json(json.dumps(listed))
    except (ValidationError, TypeError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"][1:]))
            why = f"{where}: {first['msg']}" if where else first["msg"]
        else:
            why = str(error)
        raise BadCheck(f"a check must be as data_pipelines/verify describes it; {why}") from error
