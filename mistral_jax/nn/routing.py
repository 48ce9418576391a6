"""Which experts a token uses, how much each counts, and what keeps them balanced.

Scores to a choice under the group limit of DeepSeek-V3 (arXiv:2412.19437, section 2.1.2), the
losses that balance, the counts that move a router's bias. No expert is run here.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax.config import model as model_config

# A group is judged by its two best experts (DeepSeek-V3's rule).
BEST_OF_GROUP = 2
# Keeps the division of weights finite where every score is 0.
SUM_EPSILON = 1e-20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """The experts of each token.

    Attributes:
        experts: [.., k] indices over all groups; `num_experts` for a token that uses none.
        weights: [.., k] float32; 0 for a token that uses none.
    """

    experts: Int[Array, "*tokens k"]
    weights: Float[Array, "*tokens k"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Control:
    """What decides in place of the router, and what is written down.

    Attributes:
        force_group: [B], the group that every token of a row has to use; None is free.
        replay: [L, B, T, k], the experts chosen in an earlier pass; weights are computed anew.
        is_recorded: return the choice of every layer. Static.
    """

    force_group: Int[Array, " B"] | None = None
    replay: Int[Array, "*L B T k"] | None = None
    is_recorded: bool = dataclasses.field(default=False, metadata={"static": True})


# The router decides and nothing is written down.
FREE = Control()


class Aux(NamedTuple):
    """What routing leaves behind, layer by layer where stacked; all of it float32 but `experts`.

    A NamedTuple, so that it can be made of shapes too.

    Attributes:
        counts: [E], tokens that chose each expert, over the global batch; no gradient.
        sequence_loss: sum over tokens of their row's balance loss; divide by the tokens.
        z_loss: sum over tokens of the squared logsumexp; divide by the tokens.
        num_tokens: tokens that are not padding.
        overflow: assignments that found no room on their expert's device.
        experts: [B, T, k] if recorded, else None.
    """

    counts: Float[Array, "*L E"]
    sequence_loss: Float[Array, "*L"]
    z_loss: Float[Array, "*L"]
    num_tokens: Float[Array, "*L"]
    overflow: Float[Array, "*L"]
    experts: Int[Array, "*L B T k"] | None = None

    def with_overflow(self, overflow: Float[Array, ""]) -> "Aux":
        """Return the same with this overflow."""
        return self._replace(overflow=overflow)


def scores_of(
    logits: Float[Array, "*tokens E"], router: model_config.Router
) -> Float[Array, "*tokens E"]:
    """Return each expert's score, in float32."""
    logits = logits.astype(jnp.float32)
    if router.kind == "sigmoid":
        return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits, axis=-1)


def choose(
    scores: Float[Array, "B T E"],
    ffn: model_config.MoeFfn,
    *,
    bias: Float[Array, " E"] | None,
    is_token: Bool[Array, "B T"] | None,
    control: Control,
) -> Choice:
    """Return each token's experts and their weights.

    Args:
        scores: from `scores_of`.
        ffn: groups, limits and scale.
        bias: added for the choice only.
        is_token: False for padding, which uses no expert; None where there is none.
        control: a forced group, or a choice to replay.
    """
    if control.replay is not None:
        experts = control.replay
    else:
        # The choice is a step function of the scores: it has no gradient to follow.
        biased = jax.lax.stop_gradient(scores if bias is None else scores + bias)
        if ffn.within_groups == "even":
            experts = _best_of_each(biased, ffn, control.force_group)
        else:
            experts = jax.lax.top_k(_within_groups(biased, ffn, control.force_group), ffn.top_k)[1]
    is_used = experts < ffn.num_experts
    weights = jnp.take_along_axis(scores, jnp.minimum(experts, ffn.num_experts - 1), axis=-1)
    weights = jnp.where(is_used, weights, 0.0)
    if ffn.is_normalised:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + SUM_EPSILON)
    weights = weights * ffn.weights_scale
    if is_token is not None:
        is_used &= is_token[..., None]
    return Choice(
        experts=jnp.where(is_used, experts, ffn.num_experts).astype(jnp.int32),
        weights=jnp.where(is_used, weights, 0.0),
    )


def _within_groups(
    biased: Float[Array, "B T E"],
    ffn: model_config.MoeFfn,
    force_group: Int[Array, " B"] | None,
) -> Float[Array, "B T E"]:
    """Return the scores with those of groups that a token may not use at minus infinity."""
    if ffn.num_groups == 1:
        return biased
    grouped = biased.reshape(*biased.shape[:-1], ffn.num_groups, ffn.group_size)
    if force_group is not None:
        is_allowed = jnp.arange(ffn.num_groups) == force_group[:, None, None]  # [B, 1, G]
    elif ffn.chosen_groups == ffn.num_groups:
        return biased
    else:
        groups = _best_groups(grouped, ffn)
        is_allowed = jnp.any(jax.nn.one_hot(groups, ffn.num_groups, dtype=bool), axis=-2)
    return jnp.where(is_allowed[..., None], grouped, -jnp.inf).reshape(biased.shape)


def _best_groups(grouped: Float[Array, "B T G e"], ffn: model_config.MoeFfn) -> Int[Array, "B T g"]:
    best = jax.lax.top_k(grouped, min(BEST_OF_GROUP, ffn.group_size))[0]
    return jax.lax.top_k(jnp.sum(best, axis=-1), ffn.chosen_groups)[1]


def _best_of_each(
    biased: Float[Array, "B T E"], ffn: model_config.MoeFfn, force_group: Int[Array, " B"] | None
) -> Int[Array, "B T k"]:
    """Return equally many experts of each chosen group; a forced one gives its share alone."""
    grouped = biased.reshape(*biased.shape[:-1], ffn.num_groups, ffn.group_size)
    groups = _best_groups(grouped, ffn)
    if force_group is not None:  # the first place is the forced group's, the others are nobody's
        places = jnp.arange(ffn.chosen_groups)
        groups = jnp.where(places == 0, force_group[:, None, None], ffn.num_groups)
        groups = jnp.broadcast_to(groups, (*biased.shape[:-1], ffn.chosen_groups))
    members = jax.lax.top_k(grouped, ffn.max_per_group)[1]  # [B, T, G, k / g]
    index = jnp.minimum(groups, ffn.num_groups - 1)[..., None]
    experts = groups[..., None] * ffn.group_size + jnp.take_along_axis(members, index, axis=-2)
    experts = jnp.minimum(experts, ffn.num_experts)
    return experts.reshape(*biased.shape[:-1], ffn.top_k)


def aux_of(
    logits: Float[Array, "B T E"],
    scores: Float[Array, "B T E"],
    choice: Choice,
    is_token: Bool[Array, "B T"] | None,
    *,
    is_recorded: bool,
) -> Aux:
    """Return counts and balance losses of one layer; `overflow` is still 0."""
    num_experts, top_k = scores.shape[-1], choice.experts.shape[-1]
    mask = jnp.ones(scores.shape[:2], jnp.float32) if is_token is None else is_token
    mask = mask.astype(jnp.float32)
    # [B, T, E]: 1 for a chosen expert; a token without experts has a row of zeros.
    chosen = jnp.sum(jax.nn.one_hot(choice.experts, num_experts, dtype=jnp.float32), axis=-2)
    share = scores / (jnp.sum(scores, axis=-1, keepdims=True) + SUM_EPSILON)
    logsumexp = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    return Aux(
        counts=jax.lax.stop_gradient(jnp.sum(chosen, axis=(0, 1))),
        sequence_loss=_sequence_loss(chosen, share * mask[..., None], top_k),
        z_loss=jnp.sum(jnp.square(logsumexp) * mask),
        num_tokens=jnp.sum(mask),
        overflow=jnp.float32(0),
        experts=choice.experts if is_recorded else None,
    )


def _sequence_loss(
    chosen: Float[Array, "B T E"], share: Float[Array, "B T E"], top_k: int
) -> Float[Array, ""]:
    """Return the sum over rows of tokens * sum over experts of f * P (DeepSeek-V3, equation 17).

    f is how often an expert was chosen in the row against an even share, P its mean score share
    there: 1 at perfect balance. Padding has rows of zeros.
    """
    num_experts = chosen.shape[-1]
    lengths = jnp.sum(chosen, axis=(1, 2)) / top_k
    frequency = jax.lax.stop_gradient(jnp.sum(chosen, axis=1)) * (num_experts / top_k)  # [B, E]
    products = jnp.sum(frequency * jnp.sum(share, axis=1), axis=-1)
    return jnp.sum(products / jnp.maximum(lengths, 1.0))


def moved_bias(
    bias: Float[Array, "*L E"], counts: Float[Array, "*L E"], *, num_groups: int, rate: float
) -> Float[Array, "*L E"]:
    """Return a router's bias after a step: up for the idle of a group, down for the busy.

    Groups are not balanced against each other: domains are not equally frequent. The step has a
    zero mean in each group, so that biases do not drift (arXiv:2408.15664).

    Args:
        bias: before.
        counts: tokens of each expert, over the global batch.
        num_groups: equal runs of experts.
        rate: size of a step.
    """
    grouped = counts.reshape(*counts.shape[:-1], num_groups, -1)
    step = rate * jnp.sign(jnp.mean(grouped, axis=-1, keepdims=True) - grouped)
    step = step - jnp.mean(step, axis=-1, keepdims=True)
    return bias + step.reshape(bias.shape)
