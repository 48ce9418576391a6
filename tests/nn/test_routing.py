"""Choice under the group limit, weights, balance losses and bias moves against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from mistral_jax.config import model as model_config
from mistral_jax.nn import routing

GROUPED = model_config.MoeFfn(
    width=4, num_experts=12, num_groups=4, groups_per_token=2, top_k=3,
    router=model_config.SigmoidRouter(), weights_scale=2.0,
)  # fmt: skip


def draw_scores(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def choose(scores: jax.Array, ffn: model_config.MoeFfn = GROUPED, **options) -> routing.Choice:
    options = {"bias": None, "is_token": None, "control": routing.Control()} | options
    return routing.choose(scores, ffn, **options)


def chosen_in_numpy(scores: np.ndarray, ffn: model_config.MoeFfn) -> set[int]:
    groups = scores.reshape(ffn.num_groups, -1)
    value = np.sort(groups, axis=1)[:, -2:].sum(axis=1)
    best = np.argsort(-value)[: ffn.chosen_groups]
    allowed = [e for e in range(ffn.num_experts) if e // ffn.group_size in best]
    return set(sorted(allowed, key=lambda e: -scores[e])[: ffn.top_k])


EVEN = GROUPED.model_copy(update={"top_k": 4, "within_groups": "even"})


def test_even_routing_takes_equally_many_of_each_chosen_group() -> None:
    scores, bias = draw_scores(3, 2, 7, 12), jnp.linspace(-0.2, 0.2, 12)
    choice = choose(scores, EVEN, bias=bias)
    for row, experts, weights in zip(
        np.asarray(scores).reshape(-1, 12), choice.experts.reshape(-1, 4),
        choice.weights.reshape(-1, 4), strict=True,
    ):  # fmt: skip
        grouped = (row + np.asarray(bias)).reshape(4, 3)
        groups = np.argsort(-np.sort(grouped, axis=1)[:, -2:].sum(axis=1))[:2]
        expected = {3 * g + e for g in groups for e in np.argsort(-grouped[g])[:2]}
        assert set(experts.tolist()) == expected
        np.testing.assert_allclose(weights, 2.0 * row[experts] / row[experts].sum(), rtol=1e-5)


def test_a_forced_group_under_even_routing_works_as_if_it_were_alone() -> None:
    scores = draw_scores(4, 2, 5, 12)
    control = routing.Control(force_group=jnp.asarray([3, 1]))
    choice = choose(scores, EVEN, control=control)
    alone = EVEN.model_copy(
        update={"num_experts": 3, "num_groups": 1, "groups_per_token": None, "top_k": 2}
    )
    for row, group in enumerate((3, 1)):
        own = choose(scores[row : row + 1, :, 3 * group : 3 * group + 3], alone)
        np.testing.assert_array_equal(choice.experts[row, :, :2], own.experts[0] + 3 * group)
        np.testing.assert_allclose(choice.weights[row, :, :2], own.weights[0], rtol=1e-6)
    assert (choice.experts[..., 2:] == 12).all() and not choice.weights[..., 2:].any()


def test_even_routing_needs_a_top_k_that_the_groups_divide() -> None:
    with pytest.raises(ValueError, match="multiples of the 2 groups that a token uses, got 3"):
        model_config.MoeFfn.model_validate(
            GROUPED.model_dump(mode="json") | {"within_groups": "even"}, strict=False
        )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    num_groups=st.sampled_from([1, 2, 4]),
    group_size=st.integers(1, 4),
    data=st.data(),
)
def test_experts_come_from_the_groups_with_the_best_pairs(
    seed: int, num_groups: int, group_size: int, data: st.DataObject
) -> None:
    limit = data.draw(st.integers(1, num_groups))
    top_k = data.draw(st.integers(1, limit * group_size))
    ffn = model_config.MoeFfn(
        width=4, num_experts=num_groups * group_size, num_groups=num_groups,
        groups_per_token=limit, top_k=top_k,
    )  # fmt: skip
    scores = draw_scores(seed, 1, 5, ffn.num_experts)
    choice = choose(scores, ffn)
    for row, experts, weights in zip(
        np.asarray(scores[0]), np.asarray(choice.experts[0]), np.asarray(choice.weights[0])
    ):
        assert set(experts.tolist()) == chosen_in_numpy(row, ffn)
        np.testing.assert_allclose(weights, row[experts] / row[experts].sum(), rtol=1e-5)


def test_a_bias_moves_the_choice_and_not_the_weights() -> None:
    scores = draw_scores(0, 2, 7, 12)
    bias = jnp.zeros(12).at[5].set(10.0).at[3].set(10.0)
    choice = choose(scores, bias=bias)
    assert (jnp.any(choice.experts == 5, axis=-1) & jnp.any(choice.experts == 3, axis=-1)).all()
    picked = np.take_along_axis(np.asarray(scores), np.asarray(choice.experts), axis=-1)
    expected = 2.0 * picked / picked.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(choice.weights, expected, rtol=1e-6)


def test_a_forced_group_is_the_only_one_that_is_used() -> None:
    scores = draw_scores(1, 3, 7, 12)
    control = routing.Control(force_group=jnp.asarray([2, 0, 3]))
    experts = np.asarray(choose(scores, control=control).experts)
    assert (experts // 3 == np.asarray([2, 0, 3])[:, None, None]).all()


def test_a_replayed_choice_has_the_weights_of_todays_scores() -> None:
    recorded = choose(draw_scores(2, 2, 7, 12)).experts
    scores = draw_scores(3, 2, 7, 12)
    replayed = choose(scores, control=routing.Control(replay=recorded))
    np.testing.assert_array_equal(replayed.experts, recorded)
    picked = np.take_along_axis(np.asarray(scores), np.asarray(recorded), axis=-1)
    expected = 2.0 * picked / picked.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(replayed.weights, expected, rtol=1e-6)


def test_padding_uses_no_expert_and_is_not_counted() -> None:
    scores = draw_scores(4, 2, 6, 12)
    segments = jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
    is_token = segments != 0
    choice = choose(scores, is_token=is_token)
    assert (np.asarray(choice.experts)[~np.asarray(is_token)] == 12).all()
    assert not np.asarray(choice.weights)[~np.asarray(is_token)].any()
    aux = routing.aux_of(scores, scores, choice, is_token, is_recorded=True)
    assert float(aux.num_tokens) == 9
    assert float(jnp.sum(aux.counts)) == 9 * 3
    np.testing.assert_array_equal(aux.experts, choice.experts)


def test_the_balance_loss_is_one_for_each_token_of_an_even_document() -> None:
    scores = jnp.full((1, 4, 4), 0.5)
    even = routing.Choice(jnp.asarray([[[0], [1], [2], [3]]]), jnp.ones((1, 4, 1)))
    busy = routing.Choice(jnp.zeros((1, 4, 1), jnp.int32), jnp.ones((1, 4, 1)))
    for choice in (even, busy):  # with even scores no choice can be blamed
        aux = routing.aux_of(scores, scores, choice, None, is_recorded=False)
        np.testing.assert_allclose(aux.sequence_loss, 4.0, rtol=1e-6)
    sure = jnp.zeros((1, 4, 4)).at[..., 0].set(1.0)
    aux = routing.aux_of(sure, sure, busy, None, is_recorded=False)
    np.testing.assert_allclose(aux.sequence_loss, 16.0, rtol=1e-6)


def test_the_balance_loss_is_the_formulas_and_leaves_padding_out() -> None:
    scores = draw_scores(5, 2, 9, 12)
    is_token = jnp.asarray([[True] * 9, [True] * 6 + [False] * 3])
    choice = choose(scores, is_token=is_token)
    aux = routing.aux_of(scores, scores, choice, is_token, is_recorded=False)
    by_hand = 0.0
    for row, length in ((0, 9), (1, 6)):
        part = np.asarray(scores)[row, :length]
        experts = np.asarray(choice.experts)[row, :length]
        frequency = np.bincount(experts.ravel(), minlength=12) * 12 / (3 * length)
        share = (part / part.sum(-1, keepdims=True)).mean(axis=0)
        by_hand += length * (frequency * share).sum()
    np.testing.assert_allclose(aux.sequence_loss, by_hand, rtol=1e-5)


def test_gradients_go_through_weights_and_probabilities_only() -> None:
    scores = draw_scores(6, 1, 5, 12)

    def total(scores: jax.Array, bias: jax.Array) -> jax.Array:
        choice = choose(scores, bias=bias)
        aux = routing.aux_of(scores, scores, choice, None, is_recorded=False)
        return jnp.sum(choice.weights * jnp.arange(1.0, 4.0)) + aux.sequence_loss

    by_scores, by_bias = jax.grad(total, argnums=(0, 1))(scores, jnp.zeros(12))
    assert float(jnp.abs(by_scores).max()) > 0
    assert not np.asarray(by_bias).any()


@pytest.mark.parametrize("num_groups", [1, 4])
def test_a_moved_bias_helps_the_idle_of_each_group_and_has_no_drift(num_groups: int) -> None:
    counts = jnp.asarray([[9.0, 1, 2, 100, 100, 100, 0, 0, 3, 5, 5, 5]])
    bias = routing.moved_bias(jnp.zeros((1, 12)), counts, num_groups=num_groups, rate=0.1)
    grouped = np.asarray(bias).reshape(num_groups, -1)
    np.testing.assert_allclose(grouped.sum(axis=1), 0, atol=1e-6)
    load = np.asarray(counts).reshape(num_groups, -1)
    for values, tokens in zip(grouped, load):
        assert (np.diff(values[np.argsort(-tokens, kind="stable")]) >= 0).all()
    if num_groups == 4:  # groups that are even inside stay as they are, busy or not
        assert not grouped[1].any() and not grouped[3].any()
        assert grouped[0].any()
