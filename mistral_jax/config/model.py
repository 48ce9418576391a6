"""What the model is: the decoder's shape, its slots (attention, ffn, rope), adapters.

A model is given by one of three kinds: `decoder` (the whole shape), `preset` (a named shape, see
presets.py) or `checkpoint` (the shape is read from the weights' own header).
"""

import math
from typing import Annotated
from typing import Literal

from pydantic import Field
from pydantic import model_validator

from mistral_jax.config.base import BelowOne
from mistral_jax.config.base import Count
from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegative
from mistral_jax.config.base import NonNegativeInt
from mistral_jax.config.base import Positive

Reach = int | None


class FullAttention(Node):
    """Causal attention over the whole sequence."""

    kind: Literal["full"] = "full"

    @property
    def reaches(self) -> tuple[Reach, ...]:
        """How many keys a query may see, itself included, layer by layer; repeats. None is all."""
        return (None,)


class WindowAttention(Node):
    """Causal attention over the last `window` tokens, the query's own included."""

    kind: Literal["window"] = "window"
    window: Count

    @property
    def reaches(self) -> tuple[Reach, ...]:
        """How many keys a query may see, itself included, layer by layer; repeats."""
        return (self.window,)


class InterleavedAttention(Node):
    """Layers with and without a window in turns (Ministral 8B).

    Attributes:
        window: of the windowed layers.
        period: which layers have it; the sequence repeats over the depth.
    """

    kind: Literal["interleaved"] = "interleaved"
    window: Count
    period: tuple[Literal["window", "full"], ...] = Field(min_length=2)

    @property
    def reaches(self) -> tuple[Reach, ...]:
        """How many keys a query may see, itself included, layer by layer; repeats. None is all."""
        return tuple(self.window if layer == "window" else None for layer in self.period)


class LatentAttention(Node):
    """Multi-head latent attention (MLA, DeepSeek-V2, arXiv:2405.04434): keys and values of all
    heads are read from one narrow latent a token, which is all that a cache keeps.

    A head's query and key have `content_width` channels without positions and `rotary_width`
    rotated ones; the rotated key is shared by all heads.

    Attributes:
        query_rank: the queries' own bottleneck; None where they come straight from the width.
        latent_rank: of keys and values together.
        content_width, rotary_width, value_width: channels of one head.
    """

    kind: Literal["latent"] = "latent"
    query_rank: Count | None = None
    latent_rank: Count
    content_width: Count
    rotary_width: Count
    value_width: Count

    @property
    def reaches(self) -> tuple[Reach, ...]:
        """How many keys a query may see, itself included, layer by layer; None is all."""
        return (None,)


Attention = Annotated[
    FullAttention | WindowAttention | InterleavedAttention | LatentAttention,
    Field(discriminator="kind"),
]


class DenseFfn(Node):
    """A SwiGLU feed-forward layer."""

    kind: Literal["dense"] = "dense"
    width: Count


class SoftmaxRouter(Node):
    """Scores are a softmax over all experts (Mixtral, arXiv:2401.04088)."""

    kind: Literal["softmax"] = "softmax"


class SigmoidRouter(Node):
    """Scores are independent sigmoids, and a bias that no gradient moves balances the choice.

    The bias decides who is chosen, never how much a chosen expert counts (DeepSeek-V3,
    arXiv:2412.19437, section 2.1.2); `stage.experts.bias_rate` moves it.
    """

    kind: Literal["sigmoid"] = "sigmoid"


Router = Annotated[SoftmaxRouter | SigmoidRouter, Field(discriminator="kind")]


class MoeFfn(Node):
    """A mixture of SwiGLU experts, of which each token uses the `top_k` that its router favours.

    A token first chooses `groups_per_token` groups, each by the sum of its two best scores, then
    its experts among theirs: the best of all of them together (`pooled`), or equally many of each
    (`even`), so that a group works as it did when it was trained alone, and every device that a
    token reaches has the same work. Their weights are their scores, divided by the sum.

    Attributes:
        width: of one expert.
        num_experts: in all groups together.
        num_groups: experts are stored by group, [group, expert in group].
        group_names: what the groups are called, where they are domains.
        groups_per_token: how many a token may use; None is all.
        top_k: experts of a token.
        within_groups: how they divide over its groups.
        router: how scores come about.
        weights_scale: factor on the weights after the division.
        is_normalised: whether the weights are divided by their sum.
        num_shared_experts: experts that every token uses, beside its `top_k`.
        num_dense_layers: first layers that have a dense feed-forward instead.
        dense_width: its width.
    """

    kind: Literal["moe"] = "moe"
    width: Count
    num_experts: Count
    num_groups: Count = 1
    group_names: tuple[str, ...] = ()
    groups_per_token: Count | None = None
    top_k: Count
    within_groups: Literal["pooled", "even"] = "pooled"
    router: Router = SoftmaxRouter()
    weights_scale: Positive = 1.0
    is_normalised: bool = True
    num_shared_experts: NonNegativeInt = 0
    num_dense_layers: NonNegativeInt = 0
    dense_width: Count | None = None

    @property
    def group_size(self) -> int:
        """How many experts a group has."""
        return self.num_experts // self.num_groups

    @property
    def chosen_groups(self) -> int:
        """How many groups a token may use."""
        return self.groups_per_token or self.num_groups

    @property
    def max_per_group(self) -> int:
        """How many experts of one group a token may use."""
        if self.within_groups == "even":
            return self.top_k // self.chosen_groups
        return min(self.top_k, self.group_size)

    @model_validator(mode="after")
    def _check_experts(self) -> "MoeFfn":
        if self.num_experts % self.num_groups:
            raise ValueError(
                f"num_experts ({self.num_experts}) must be a multiple of "
                f"num_groups ({self.num_groups})"
            )
        if self.chosen_groups > self.num_groups:
            raise ValueError(
                f"groups_per_token ({self.groups_per_token}) must not be above "
                f"num_groups ({self.num_groups})"
            )
        available = self.chosen_groups * self.group_size
        if self.top_k > available:
            raise ValueError(
                f"top_k ({self.top_k}) must not be above the {available} experts of the "
                f"{self.chosen_groups} groups that a token may use"
                if self.num_groups > 1
                else f"top_k ({self.top_k}) must not be above num_experts ({self.num_experts})"
            )
        if self.within_groups == "even" and self.top_k % self.chosen_groups:
            raise ValueError(
                f"within_groups: even needs a top_k in multiples of the {self.chosen_groups} "
                f"groups that a token uses, got {self.top_k}"
            )
        if self.group_names and len(self.group_names) != self.num_groups:
            raise ValueError(
                f"group_names has {len(self.group_names)} names for {self.num_groups} groups"
            )
        if self.num_dense_layers and self.dense_width is None:
            raise ValueError(f"dense_width is needed for {self.num_dense_layers} dense layers")
        return self


Ffn = Annotated[DenseFfn | MoeFfn, Field(discriminator="kind")]


class DefaultRope(Node):
    """Rotary embedding with one base, as in RoFormer (arXiv:2104.09864)."""

    kind: Literal["default"] = "default"
    theta: Positive


class YarnRope(Node):
    """Rotary embedding stretched by YaRN (arXiv:2309.00071).

    Attributes:
        theta: the base.
        factor: how many times longer than in pretraining.
        original_max_positions: positions of the pretraining.
        beta_fast, beta_slow: rotations over the original length above which a frequency stays,
            and below which it is divided by `factor`; between them a ramp.
        mscale, mscale_all_dim: their logarithmic gains, numerator and denominator of the factor
            on cosines and sines; 0 means not given.
        attention_factor: that factor itself, where a checkpoint fixes it.
        truncate: round the ends of the ramp outwards to whole dimensions.
    """

    kind: Literal["yarn"] = "yarn"
    theta: Positive
    factor: Positive
    original_max_positions: Count
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    mscale: NonNegative = 0.0
    mscale_all_dim: NonNegative = 0.0
    attention_factor: Positive | None = None
    truncate: bool = True


Rope = Annotated[DefaultRope | YarnRope, Field(discriminator="kind")]


class NoQueryScaling(Node):
    """Queries are scaled by the head's width alone."""

    kind: Literal["none"] = "none"


class LogQueryScaling(Node):
    """Queries grow as 1 + beta * log(1 + floor(position / period)), as in Llama 4.

    Keeps attention sharp where many keys compete; 1 at every position below `period`.
    """

    kind: Literal["log"] = "log"
    beta: Positive
    period: Count


QueryScaling = Annotated[NoQueryScaling | LogQueryScaling, Field(discriminator="kind")]


class DecoderConfig(Node):
    """The shape of a decoder. Names follow the legend of CONTRIBUTING.md: width is D, and so on."""

    kind: Literal["decoder"] = "decoder"
    num_layers: Count
    width: Count
    num_heads: Count
    num_kv_heads: Count
    head_width: Count
    vocab_size: Count
    ffn: Ffn
    attention: Attention = FullAttention()
    rope: Rope
    query_scaling: QueryScaling = NoQueryScaling()
    norm_epsilon: Positive = 1e-5
    tied_head: bool = False
    qkv_bias: bool = False
    max_positions: Count
    init_std: Positive = 0.02
    weights: str | None = None

    @model_validator(mode="after")
    def _check_shape(self) -> "DecoderConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of "
                f"num_kv_heads ({self.num_kv_heads})"
            )
        latent = self.attention if self.attention.kind == "latent" else None
        if latent is not None:
            width = latent.content_width + latent.rotary_width
            if self.head_width != width or self.num_kv_heads != self.num_heads:
                raise ValueError(
                    f"latent attention has as many key heads as heads ({self.num_heads}), of "
                    f"content_width + rotary_width ({width}); got num_kv_heads "
                    f"{self.num_kv_heads}, head_width {self.head_width}"
                )
            if self.qkv_bias:
                raise ValueError("latent attention has no qkv_bias")
        if self.rotary_width % 2:
            raise ValueError(
                f"{'rotary_width' if latent else 'head_width'} must be even for rotary positions, "
                f"got {self.rotary_width}"
            )
        if self.num_layers % len(self.attention.reaches):
            raise ValueError(
                f"num_layers ({self.num_layers}) must be a multiple of the attention's period "
                f"({len(self.attention.reaches)})"
            )
        if self.num_dense_layers and len(self.attention.reaches) > 1:
            raise ValueError("num_dense_layers needs an attention without interleaved layers")
        if self.num_dense_layers >= self.num_layers:
            raise ValueError(
                f"num_dense_layers ({self.num_dense_layers}) must be below num_layers "
                f"({self.num_layers}), or the feed-forward dense"
            )
        return self

    @property
    def num_dense_layers(self) -> int:
        """How many first layers of a mixture have a dense feed-forward."""
        return self.ffn.num_dense_layers if self.ffn.kind == "moe" else 0

    @property
    def stack_depths(self) -> tuple[int, ...]:
        """Layers of each stack of equal layers, in the order in which they run."""
        dense = self.num_dense_layers
        return (dense, self.num_layers - dense) if dense else (self.num_layers,)

    @property
    def rotary_width(self) -> int:
        """Channels of a head that rotate."""
        latent = self.attention.kind == "latent"
        return self.attention.rotary_width if latent else self.head_width

    @property
    def value_width(self) -> int:
        """Channels of a head's values."""
        return self.attention.value_width if self.attention.kind == "latent" else self.head_width


class PresetModel(Node):
    """A shape known by name (config/presets.py), with or without weights."""

    kind: Literal["preset"] = "preset"
    name: str
    weights: str | None = None


class CheckpointModel(Node):
    """A checkpoint whose own header gives the shape: a folder, a file or a URI."""

    kind: Literal["checkpoint"] = "checkpoint"
    weights: str


Model = Annotated[DecoderConfig | PresetModel | CheckpointModel, Field(discriminator="kind")]

TargetModule = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    "q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj",
]  # fmt: skip
ALL_TARGET_MODULES: tuple[TargetModule, ...] = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip


class NoAdapter(Node):
    """Train every parameter."""

    kind: Literal["none"] = "none"


# What the adapter's output is divided by: its rank, or the root of it (rsLoRA, arXiv:2312.03732),
# with which a high rank learns as much as a low one.
Scaling = Literal["rank", "sqrt_rank"]


class _LowRankAdapter(Node):
    """What LoRA and DoRA share; the base stays frozen.

    The default is every projection: of a mixture, gate_proj, up_proj and down_proj are those of
    each expert, of the shared experts and of dense first layers. Latent attention has q_a_proj,
    q_b_proj (or q_proj), kv_a_proj, kv_b_proj and o_proj; kv_a_proj is PEFT's kv_a_proj_with_mqa.
    """

    rank: Count
    alpha: Positive
    scaling: Scaling = "rank"
    dropout: BelowOne = 0.0
    target_modules: tuple[TargetModule, ...] = ALL_TARGET_MODULES

    @property
    def scale(self) -> float:
        """The factor on the adapter's output."""
        return self.alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))


class LoraAdapter(_LowRankAdapter):
    """Low-rank adapters on named projections (arXiv:2106.09685)."""

    kind: Literal["lora"] = "lora"


class DoraAdapter(_LowRankAdapter):
    """Low-rank adapters that turn each output's weights, and its magnitude trained by itself
    (arXiv:2402.09353). Not on a mixture's routed experts.
    """

    kind: Literal["dora"] = "dora"


LowRankAdapter = LoraAdapter | DoraAdapter
Adapter = Annotated[NoAdapter | LoraAdapter | DoraAdapter, Field(discriminator="kind")]
