"""In what order of difficulty a run reads its sources: not at all, by a plan, or by what it knows.

It concerns the sources that have levels (five, 0 the easiest; see data_pipelines/levels.py). How
much of the data comes from each source stays with the sources' weights.
"""

from typing import Annotated
from typing import Literal

from pydantic import Field
from pydantic import model_validator

from mistral_jax.config.base import BelowOne
from mistral_jax.config.base import Count
from mistral_jax.config.base import Fraction
from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegative
from mistral_jax.config.base import NonNegativeInt
from mistral_jax.config.base import Positive

Level = Annotated[int, Field(ge=0, le=4)]


class LevelShares(Node):
    """What a source's tokens come from: its current level, the next one, all the easier ones.

    Against each other: a share that has no level (there is nothing easier than the first) goes to
    the others. The easier levels share evenly; harder ones than the next wait.
    """

    current: Positive = 0.6
    next: NonNegative = 0.1
    easier: NonNegative = 0.3


class NoCurriculum(Node):
    """All levels together, as much of each as there is."""

    kind: Literal["none"] = "none"


class ScheduledLevel(Node):
    """From when on a level is the current one: a step, or a fraction of the run's steps."""

    level: Level
    at_step: NonNegativeInt | None = None
    at_fraction: Fraction | None = None

    @model_validator(mode="after")
    def _has_one_time(self) -> "ScheduledLevel":
        if (self.at_step is None) == (self.at_fraction is None):
            got = "neither" if self.at_step is None else "both"
            raise ValueError(f"expected exactly one of at_step and at_fraction, got {got}")
        return self


class ScheduleCurriculum(Node):
    """Every source has the level that the plan says; level 0 before the plan's first entry."""

    kind: Literal["schedule"] = "schedule"
    plan: Annotated[tuple[ScheduledLevel, ...], Field(min_length=1)]
    shares: LevelShares = LevelShares()


class LossMeasure(Node):
    """How much of the way from `ceiling` down to `floor` the held-out loss has come, 0 to 1.

    Attributes:
        ceiling: nats per token; None for that of the first evaluation, level by level.
        floor: nats per token that count as knowing it all.
    """

    kind: Literal["loss"] = "loss"
    ceiling: Positive | None = None
    floor: NonNegative = 0.0

    @model_validator(mode="after")
    def _is_a_range(self) -> "LossMeasure":
        if self.ceiling is not None and self.ceiling <= self.floor:
            raise ValueError(
                f"expected a ceiling above the floor, got {self.ceiling:g} and {self.floor:g}"
            )
        return self


class LikelihoodMeasure(Node):
    """exp(-loss): the model's likelihood of the right held-out token, geometric mean."""

    kind: Literal["likelihood"] = "likelihood"


Measure = Annotated[LossMeasure | LikelihoodMeasure, Field(discriminator="kind")]


class AdaptiveCurriculum(Node):
    """Each source's level follows what the model knows of its held-out documents of all levels.

    Attributes:
        measure: what counts as knowing, 0 to 1; the mean over the levels.
        smoothing: of its moving average over evaluations: how much of the old one stays.
        up_margin: how far above the next level's border the average must be to move up.
        down_margin: how far below the level's own border it must be to move down.
        dwell_evaluations: evaluations that a level lasts at least.
        shares: what is read at a level.
    """

    kind: Literal["adaptive"] = "adaptive"
    measure: Measure = LossMeasure()
    smoothing: BelowOne = 0.9
    up_margin: BelowOne = 0.02
    down_margin: BelowOne = 0.05
    dwell_evaluations: Count = 20
    shares: LevelShares = LevelShares()


Curriculum = Annotated[
    NoCurriculum | ScheduleCurriculum | AdaptiveCurriculum, Field(discriminator="kind")
]
