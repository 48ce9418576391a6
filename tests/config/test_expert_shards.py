"""How experts divide over devices, and how many rows that takes."""

import itertools

import numpy as np
import pytest

from mistral_jax.config import expert_shards
from mistral_jax.config import model as model_config


def brute_reach(shards: expert_shards.ExpertShards) -> float:
    """Return the share of all choices, each as likely, that need device 0."""
    size = shards.group_size
    needs = []
    for groups in itertools.combinations(range(shards.num_groups), shards.groups_per_token):
        available = [group * size + member for group in groups for member in range(size)]
        for chosen in itertools.combinations(available, shards.top_k):
            if shards.are_groups_whole:
                is_first = [expert < shards.experts_per_shard for expert in chosen]
            else:
                is_first = [expert % size < size // shards.count for expert in chosen]
            needs.append(any(is_first))
    return float(np.mean(needs))


@pytest.mark.parametrize(
    "shape",
    [(1, 8, 1, 2, 4), (4, 2, 2, 3, 4), (4, 2, 2, 3, 2), (4, 4, 3, 2, 2), (2, 4, 1, 3, 4),
     (6, 2, 5, 4, 3), (4, 2, 2, 4, 2), (1, 4, 1, 4, 4), (2, 3, 2, 2, 1)],
    ids=str,
)  # fmt: skip
def test_reach_is_the_share_of_choices_that_need_a_device(shape: tuple[int, ...]) -> None:
    shards = expert_shards.ExpertShards(*shape)
    assert shards.reach == pytest.approx(brute_reach(shards), abs=1e-12)
    assert shards.count * shards.reach <= shards.max_copies + 1e-12


def test_a_671b_layer_sends_each_token_to_three_devices_of_eight() -> None:
    shards = expert_shards.ExpertShards(8, 32, 3, 24, 8)
    assert (shards.max_copies, shards.experts_per_shard) == (3, 32)
    assert shards.reach == pytest.approx(3 / 8, abs=1e-4)
    assert shards.rows_to_one(4096, 1.5) == 2304
    assert shards.rows_of_all(4096, 1.5) == 18_432


def test_buffers_hold_every_token_from_a_factor_of_one_over_reach_on() -> None:
    shards = expert_shards.ExpertShards(8, 2, 3, 4, 8)
    for factor in (1 / shards.reach, 100.0, float("inf")):
        assert shards.rows_to_one(1000, factor) == 1000
        assert shards.rows_of_all(1000, factor) == 8000
    assert shards.rows_to_one(1000, 1.0) % 8 == 0
    assert 1000 * shards.reach <= shards.rows_to_one(1000, 1.0) < 1000 * shards.reach + 8
    assert shards.rows_to_one(5, 1.0) == 5, "a tile is not above the tokens that there are"


@pytest.mark.parametrize(("groups", "size", "axis"), [(8, 32, 8), (8, 32, 16), (1, 8, 4)])
def test_axes_that_divide_groups_or_their_experts_pass(groups: int, size: int, axis: int) -> None:
    expert_shards.check_divides(groups, size, axis)


def test_an_axis_that_divides_neither_is_refused_with_all_numbers() -> None:
    with pytest.raises(
        ValueError, match=r"expert=3 must divide num_groups \(8\) or .* group \(32\)"
    ):
        expert_shards.check_divides(8, 32, 3)
    ffn = model_config.MoeFfn(width=8, num_experts=8, top_k=2)
    with pytest.raises(ValueError, match=r"expert=16 .*num_groups \(1\) .*group \(8\)"):
        expert_shards.of_ffn(ffn, 16)
    assert expert_shards.of_ffn(ffn, 4).max_copies == 2


def test_pairs_are_bounded_by_the_factor_and_by_what_rows_can_hold() -> None:
    shards = expert_shards.ExpertShards(
        num_groups=8, group_size=32, groups_per_token=3, top_k=24, count=8
    )
    assert shards.pairs_of_all(4096, 1.5) == 4096 * 24 * 3 // 2
    assert shards.pairs_of_all(4096, float("inf")) == 8 * 4096 * 24
