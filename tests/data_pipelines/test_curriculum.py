"""The controller against the plain formula, on a noisy ramp, at borders; shares; plans; state."""

import json
import math

import numpy as np
import pytest

from data_pipelines import curriculum
from mistral_jax.config import curriculum as config_lib

ADAPTIVE = config_lib.AdaptiveCurriculum(measure=config_lib.LikelihoodMeasure())


def loss_of(known: float) -> float:
    """Return the loss whose likelihood is `known`."""
    return -math.log(max(known, 1e-12))


def follow(values: np.ndarray, config: config_lib.AdaptiveCurriculum = ADAPTIVE) -> list[int]:
    controller = curriculum.Controller(config)
    return [controller.observe({0: loss_of(value)}) for value in values]


def num_switches(found: list[int]) -> int:
    return int(np.count_nonzero(np.diff([0, *found])))


@pytest.mark.parametrize("known", range(0, 1_000_001, 12_500))
def test_the_candidate_is_the_plain_formula(known: int) -> None:
    assert curriculum.candidate(known) == min(known * 5 // 1_000_000, 4)


def test_borders_are_exact_where_binary_fractions_are_not() -> None:
    assert int(0.29 * 100) == 28
    assert curriculum.candidate(290_000, num_levels=100) == 29


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_a_noisy_ramp_switches_four_times_and_the_raw_rule_many(noise: float) -> None:
    ramp = np.linspace(0, 1, 5_000) + noise * np.random.default_rng(0).normal(size=5_000)
    ramp = np.clip(ramp, 0, 1)
    found = follow(ramp)
    raw = [curriculum.candidate(round(value * curriculum.ONE)) for value in ramp]
    assert num_switches(found) == 4 and found[-1] == 4
    assert sorted(found) == found
    assert num_switches(raw) > 100


@pytest.mark.parametrize("border", [0.2, 0.4, 0.6, 0.8])
def test_at_a_border_the_level_stands_still(border: float) -> None:
    noise = 0.02 * np.random.default_rng(1).normal(size=3_000)
    assert num_switches(follow(border + noise)) <= 1  # the first climb, from level 0


def test_a_level_lasts_its_evaluations_and_falls_only_below_the_lower_margin() -> None:
    quick = ADAPTIVE.model_copy(update={"smoothing": 0.0, "dwell_evaluations": 3})
    assert follow(np.array([0.5] * 5), quick) == [0, 0, 2, 2, 2]
    assert follow(np.array([0.5] * 3 + [0.36] * 6), quick)[-1] == 2
    assert follow(np.array([0.5] * 3 + [0.34] * 3), quick) == [0, 0, 2, 2, 2, 1]
    exact = quick.model_copy(update={"dwell_evaluations": 1})
    assert follow(np.array([0.22]), exact) == [0], "0.2 + 0.02 must be exceeded"
    assert follow(np.array([0.2201]), exact) == [1]


def test_a_loss_counts_from_its_first_value_level_by_level() -> None:
    controller = curriculum.Controller(
        config_lib.AdaptiveCurriculum(measure=config_lib.LossMeasure(floor=1.0), smoothing=0.0)
    )
    controller.observe({0: 3.0, 1: 5.0})
    assert controller.known == 0
    controller.observe({0: 2.0, 1: 5.0})  # half of the way, and nothing
    assert controller.known == 250_000
    controller.observe({0: float("nan"), 1: 0.5})
    assert controller.known == 500_000


@pytest.mark.parametrize(
    ("level", "wanted"),
    [(0, (0.6, 0.1, 0, 0, 0)), (2, (0.15, 0.15, 0.6, 0.1, 0)), (4, (0.075,) * 4 + (0.6,))],
)
def test_shares_are_of_the_current_the_next_and_the_easier_levels(level, wanted) -> None:
    assert curriculum.shares_of(level, config_lib.LevelShares()) == pytest.approx(wanted)


def test_a_plan_goes_by_steps_and_fractions() -> None:
    plan = [{"level": 1, "at_fraction": 0.25}, {"level": 3, "at_step": 60}]
    config = config_lib.ScheduleCurriculum.model_validate_json(json.dumps({"plan": plan}))
    guide = curriculum.Curriculum(config, ["a", "b"])
    guide.settle(100)
    assert [guide.levels(step)["b"] for step in (0, 24, 25, 59, 60, 99)] == [0, 0, 1, 1, 3, 3]


@pytest.mark.parametrize("time", [{}, {"at_step": 1, "at_fraction": 0.1}])
def test_a_plan_needs_one_time_each(time) -> None:
    with pytest.raises(ValueError, match="exactly one of at_step and at_fraction"):
        config_lib.ScheduledLevel(level=1, **time)


def test_decisions_go_on_from_a_state() -> None:
    config = config_lib.AdaptiveCurriculum(dwell_evaluations=3)
    losses = 5 * np.exp(-np.arange(60) / 20)
    whole, first, second = (curriculum.Curriculum(config, ["a"]) for _ in range(3))
    seen = []
    for number, loss in enumerate(losses.tolist()):
        whole.observe({("a", 0): loss, ("a", 1): loss + 1})
        seen.append(whole.levels(0)["a"])
        (first if number < 31 else second).observe({("a", 0): loss, ("a", 1): loss + 1})
        if number == 30:
            second.set_state(json.loads(json.dumps(first.get_state())))
    assert seen[0] == 0 and seen[-1] > seen[30] > 0
    assert second.get_state() == whole.get_state()
    with pytest.raises(ValueError, match="no held-out documents"):
        whole.observe({("b", 0): 1.0})
