"""Shapes known by name. Every figure is from the published checkpoint's own configuration.

Only shapes live here; weights, tokenizers and templates come with a checkpoint.
"""

from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.model import DefaultRope
from mistral_jax.config.model import DenseFfn
from mistral_jax.config.model import WindowAttention

_MISTRAL_7B_V0_3 = DecoderConfig(
    num_layers=32,
    width=4096,
    num_heads=32,
    num_kv_heads=8,
    head_width=128,
    vocab_size=32768,
    ffn=DenseFfn(width=14336),
    rope=DefaultRope(theta=1e6),
    max_positions=32768,
)

PRESETS: dict[str, DecoderConfig] = {
    "mistral_7b_v0_1": _MISTRAL_7B_V0_3.model_copy(
        update={
            "vocab_size": 32000,
            "attention": WindowAttention(window=4096),
            "rope": DefaultRope(theta=1e4),
        }
    ),
    "mistral_7b_v0_2": _MISTRAL_7B_V0_3.model_copy(update={"vocab_size": 32000}),
    "mistral_7b_v0_3": _MISTRAL_7B_V0_3,
    "mistral_nemo_12b": _MISTRAL_7B_V0_3.model_copy(
        update={
            "num_layers": 40,
            "width": 5120,
            "vocab_size": 131072,
            "max_positions": 131072,
        }
    ),
    "smollm2_135m": DecoderConfig(
        num_layers=30,
        width=576,
        num_heads=9,
        num_kv_heads=3,
        head_width=64,
        vocab_size=49152,
        ffn=DenseFfn(width=1536),
        rope=DefaultRope(theta=1e5),
        tied_head=True,
        max_positions=8192,
    ),
}
