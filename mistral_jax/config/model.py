"""What the model is: the decoder's shape, its slots (attention, ffn, rope), adapters.

A model is given by one of three kinds: `decoder` (the whole shape), `preset` (a named shape, see
presets.py) or `checkpoint` (the shape is read from the weights' own header).
"""

from typing import Annotated
from typing import Literal

from pydantic import Field
from pydantic import model_validator

from mistral_jax.config.base import Count
from mistral_jax.config.base import Fraction
from mistral_jax.config.base import Node
from mistral_jax.config.base import Positive


class FullAttention(Node):
    """Causal attention over the whole sequence."""

    kind: Literal["full"] = "full"

    @property
    def reach(self) -> int | None:
        """How many keys a query may see, itself included; None for all."""
        return None


class WindowAttention(Node):
    """Causal attention over the last `window` tokens, the query's own included."""

    kind: Literal["window"] = "window"
    window: Count

    @property
    def reach(self) -> int | None:
        """How many keys a query may see, itself included."""
        return self.window


Attention = Annotated[FullAttention | WindowAttention, Field(discriminator="kind")]


class DenseFfn(Node):
    """A SwiGLU feed-forward layer."""

    kind: Literal["dense"] = "dense"
    width: Count


class DefaultRope(Node):
    """Rotary embedding with one base, as in RoFormer (arXiv:2104.09864)."""

    kind: Literal["default"] = "default"
    theta: Positive


class DecoderConfig(Node):
    """The shape of a decoder. Names follow the legend of CONTRIBUTING.md: width is D, and so on."""

    kind: Literal["decoder"] = "decoder"
    num_layers: Count
    width: Count
    num_heads: Count
    num_kv_heads: Count
    head_width: Count
    vocab_size: Count
    ffn: DenseFfn
    attention: Attention = FullAttention()
    rope: DefaultRope
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
    dropout: Fraction = 0.0
    target_modules: tuple[TargetModule, ...] = ALL_TARGET_MODULES

    @property
    def scale(self) -> float:
        """The factor on the adapter's output, alpha / rank."""
        return self.alpha / self.rank


Adapter = Annotated[NoAdapter | LoraAdapter, Field(discriminator="kind")]
