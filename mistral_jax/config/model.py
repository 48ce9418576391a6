"""What the model is: the decoder's shape, its slots (attention, ffn, rope), adapters.

A model is given by one of three kinds: `decoder` (the whole shape), `preset` (a named shape, see
presets.py) or `checkpoint` (the shape is read from the weights' own header).
"""

from typing import Annotated
from typing import Literal

from pydantic import Field
from pydantic import model_validator

from mistral_jax.config.base import BelowOne
from mistral_jax.config.base import Count
from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegative
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


Attention = Annotated[
    FullAttention | WindowAttention | InterleavedAttention, Field(discriminator="kind")
]


class DenseFfn(Node):
    """A SwiGLU feed-forward layer."""

    kind: Literal["dense"] = "dense"
    width: Count


class MoeFfn(Node):
    """A mixture of SwiGLU experts, of which each token uses the `top_k` that its router favours.

    Weights are a softmax over all experts, renormalised over the chosen ones (Mixtral,
    arXiv:2401.04088).

    Attributes:
        width: of one expert.
        num_experts: in all groups together.
        num_groups: experts are stored by group, [group, expert in group].
        top_k: experts of a token.
    """

    kind: Literal["moe"] = "moe"
    width: Count
    num_experts: Count
    num_groups: Count = 1
    top_k: Count

    @model_validator(mode="after")
    def _check_experts(self) -> "MoeFfn":
        if self.num_experts % self.num_groups:
            raise ValueError(
                f"num_experts ({self.num_experts}) must be a multiple of "
                f"num_groups ({self.num_groups})"
            )
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k ({self.top_k}) must not be above num_experts ({self.num_experts})"
            )
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
        if self.head_width % 2:
            raise ValueError(f"head_width must be even for rotary positions, got {self.head_width}")
        if self.num_layers % len(self.attention.reaches):
            raise ValueError(
                f"num_layers ({self.num_layers}) must be a multiple of the attention's period "
                f"({len(self.attention.reaches)})"
            )
        return self


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

TargetModule = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_TARGET_MODULES: tuple[TargetModule, ...] = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)  # fmt: skip


class NoAdapter(Node):
    """Train every parameter."""

    kind: Literal["none"] = "none"


class LoraAdapter(Node):
    """Low-rank adapters on named projections (arXiv:2106.09685); the base stays frozen."""

    kind: Literal["lora"] = "lora"
    rank: Count
    alpha: Positive
    dropout: BelowOne = 0.0
    target_modules: tuple[TargetModule, ...] = ALL_TARGET_MODULES

    @property
    def scale(self) -> float:
        """The factor on the adapter's output, alpha / rank."""
        return self.alpha / self.rank


Adapter = Annotated[NoAdapter | LoraAdapter, Field(discriminator="kind")]
