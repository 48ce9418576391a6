"""Which level each source is at, and what its tokens come from there: decisions, no data.

The level follows the held-out measure with hysteresis. All is integers (millionths), so that every
host decides alike: 0.29 * 100 is 28.999... in binary fractions, a border no two should differ on.
"""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from data_pipelines import levels
from mistral_jax.config import curriculum as config_lib

ONE = 1_000_000
Shares = dict[str, tuple[float, ...]]
Losses = Mapping[tuple[str, int], float]


def candidate(known: int, num_levels: int = levels.NUM_LEVELS) -> int:
    """Return the level of what is known, in millionths: min(int(p * n), n - 1)."""
    return min(known * num_levels // ONE, num_levels - 1)


class Controller:
    """One source's level, from its held-out measure."""

    def __init__(self, config: config_lib.AdaptiveCurriculum):
        """Begin at level 0, knowing nothing."""
        self._config = config
        self._keep = _millionths(config.smoothing)
        self._up = _millionths(config.up_margin)
        self._down = _millionths(config.down_margin)
        self.level = 0
        self.known: int | None = None
        """The moving average in millionths; None before the first evaluation."""
        self._dwelt = 0
        self._ceilings: dict[int, float] = {}

    def observe(self, losses: Mapping[int, float]) -> int:
        """Return the level after an evaluation.

        Args:
            losses: held-out nats per token by level, always of the same documents.
        """
        found = sum(self._measured(level, losses[level]) for level in sorted(losses))
        new = found // len(losses)
        if self.known is None:
            self.known = new
        else:
            mixed = self._keep * self.known + (ONE - self._keep) * new
            self.known = (mixed + ONE // 2) // ONE
        self._dwelt += 1
        if self._dwelt >= self._config.dwell_evaluations and self._is_past_a_border():
            self.level = candidate(self.known)
            self._dwelt = 0
        return self.level

    def _is_past_a_border(self) -> bool:
        assert self.known is not None, "observe sets it"
        count, top = levels.NUM_LEVELS, levels.NUM_LEVELS - 1
        is_up = self.known * count > (self.level + 1) * ONE + self._up * count
        is_down = self.known * count < self.level * ONE - self._down * count
        return (is_up and self.level < top) or is_down

    def _measured(self, level: int, loss: float) -> int:
        if not math.isfinite(loss):
            return 0
        measure = self._config.measure
        if measure.kind == "likelihood":
            return _millionths(math.exp(-loss))
        ceiling = measure.ceiling
        if ceiling is None:
            ceiling = self._ceilings.setdefault(level, loss)
        if ceiling <= measure.floor:
            return ONE
        share = (ceiling - loss) / (ceiling - measure.floor)
        return min(max(_millionths(share), 0), ONE)

    def get_state(self) -> dict[str, Any]:
        """Return plain JSON values."""
        ceilings = {str(level): loss for level, loss in self._ceilings.items()}
        return {
            "level": self.level, "known": self.known, "dwelt": self._dwelt, "ceilings": ceilings,
        }  # fmt: skip

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.level, self.known, self._dwelt = state["level"], state["known"], state["dwelt"]
        self._ceilings = {int(level): loss for level, loss in state["ceilings"].items()}


class Curriculum:
    """The levels of all sources that have them."""

    def __init__(
        self,
        config: config_lib.ScheduleCurriculum | config_lib.AdaptiveCurriculum,
        names: Sequence[str],
    ):
        """Begin; a plan with fractions of the run is to be `settle`d first.

        Args:
            config: how levels are chosen.
            names: the sources that have levels.
        """
        self.config = config
        self.names = tuple(names)
        self._controllers: dict[str, Controller] = {}
        self._plan: list[tuple[int, int]] = []
        if config.kind == "adaptive":
            self._controllers = {name: Controller(config) for name in names}
        elif not self.has_fractions:
            self.settle(0)

    @property
    def has_fractions(self) -> bool:
        """Whether a plan names fractions of the run's steps."""
        if self.config.kind == "adaptive":
            return False
        return any(entry.at_fraction is not None for entry in self.config.plan)

    def settle(self, num_steps: int) -> None:
        """Turn fractions into steps of a run of so many."""
        assert self.config.kind == "schedule", "a plan"
        timed = [(_step_of(entry, num_steps), entry.level) for entry in self.config.plan]
        self._plan = sorted(timed, key=lambda entry: entry[0])

    def levels(self, step: int) -> dict[str, int]:
        """Return each source's level for the batch of number `step`."""
        if self._controllers:
            return {name: one.level for name, one in self._controllers.items()}
        level = 0
        for start, planned in self._plan:
            level = planned if start <= step else level
        return dict.fromkeys(self.names, level)

    def shares(self, step: int) -> Shares:
        """Return what each source's tokens come from, by level."""
        return {
            name: shares_of(level, self.config.shares) for name, level in self.levels(step).items()
        }

    def observe(self, losses: Losses) -> None:
        """Look at the held-out losses by (source, level); a plan does not care.

        Raises:
            ValueError: a source has no held-out loss at all.
        """
        for name, controller in self._controllers.items():
            mine = {level: loss for (source, level), loss in losses.items() if source == name}
            if not mine:
                raise ValueError(
                    f"data.curriculum: the source {name!r} has levels but no held-out documents to "
                    "know its level by; prepare it with a split, or set data.curriculum.kind=none"
                )
            controller.observe(mine)

    def get_state(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: one.get_state() for name, one in self._controllers.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for name, one in self._controllers.items():
            one.set_state(state[name])


def shares_of(level: int, config: config_lib.LevelShares) -> tuple[float, ...]:
    """Return the weight of each level where `level` is the current one; not yet normalised."""
    weights = [0.0] * levels.NUM_LEVELS
    weights[level] = config.current
    if level + 1 < levels.NUM_LEVELS:
        weights[level + 1] = config.next
    for easier in range(level):
        weights[easier] = config.easier / level
    return tuple(weights)


def _step_of(entry: config_lib.ScheduledLevel, num_steps: int) -> int:
    if entry.at_step is not None:
        return entry.at_step
    assert entry.at_fraction is not None, "the config has one of both"
    return -(-_millionths(entry.at_fraction) * num_steps // ONE)


def _millionths(value: float) -> int:
    return round(value * ONE)
