"""Shapes known by name: published text models, of which several may share one, and our own (msem).

Figures are from the checkpoints' own configurations or from public code that loads them; those
marked `recalled` were not read from an official file. Only shapes live here: weights, tokenizers
and templates come with a checkpoint.
"""

import dataclasses
from typing import Any

from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.model import DefaultRope
from mistral_jax.config.model import DenseFfn
from mistral_jax.config.model import InterleavedAttention
from mistral_jax.config.model import LatentAttention
from mistral_jax.config.model import LogQueryScaling
from mistral_jax.config.model import MoeFfn
from mistral_jax.config.model import SigmoidRouter
from mistral_jax.config.model import SoftmaxRouter
from mistral_jax.config.model import WindowAttention
from mistral_jax.config.model import YarnRope


@dataclasses.dataclass(frozen=True)
class Release:
    """What is known of a preset beside its shape.

    Attributes:
        title: the published names that have this shape.
        tokenizers: versions of Mistral's chat format that its files carry; empty for others.
        recalled: fields that no official file was read for.
    """

    title: str
    tokenizers: tuple[str, ...] = ()
    recalled: tuple[str, ...] = ()


_7B_V0_3 = DecoderConfig(
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


def _like(base: DecoderConfig, **changes: Any) -> DecoderConfig:
    return base.model_copy(update=changes)


_22B = _like(_7B_V0_3, num_layers=56, width=6144, num_heads=48, ffn=DenseFfn(width=16384))
_NEMO = _like(_7B_V0_3, num_layers=40, width=5120, vocab_size=131072, max_positions=131072)
_SMALL_3 = _like(_NEMO, ffn=DenseFfn(width=32768), rope=DefaultRope(theta=1e8), max_positions=32768)
_MINISTRAL_3_8B = _like(
    _7B_V0_3,
    num_layers=34,
    vocab_size=131072,
    rope=YarnRope(
        theta=1e6, factor=16.0, original_max_positions=16384, mscale=1.0, mscale_all_dim=1.0
    ),
    query_scaling=LogQueryScaling(beta=0.1, period=16384),
    max_positions=262144,
)
_LARGE_2 = _like(
    _7B_V0_3,
    num_layers=88,
    width=12288,
    num_heads=96,
    ffn=DenseFfn(width=28672),
    max_positions=131072,
)

_DEEPSEEK_V3 = DecoderConfig(
    num_layers=61,
    width=7168,
    num_heads=128,
    num_kv_heads=128,
    head_width=192,
    vocab_size=129280,
    ffn=MoeFfn(
        width=2048,
        num_experts=256,
        num_groups=8,
        groups_per_token=4,
        top_k=8,
        router=SigmoidRouter(),
        weights_scale=2.5,
        num_shared_experts=1,
        num_dense_layers=3,
        dense_width=18432,
    ),
    attention=LatentAttention(
        query_rank=1536, latent_rank=512, content_width=128, rotary_width=64, value_width=128
    ),
    rope=YarnRope(
        theta=1e4, factor=40.0, original_max_positions=4096, mscale=1.0, mscale_all_dim=1.0
    ),
    norm_epsilon=1e-6,
    max_positions=163840,
)
# YaRN without any gain, as params.json's `apply_scale: false` says of both.
_LARGE_3 = _like(
    _DEEPSEEK_V3,
    vocab_size=131072,
    ffn=MoeFfn(
        width=4096,
        num_experts=128,
        top_k=4,
        num_shared_experts=1,
        num_dense_layers=3,
        dense_width=16384,
    ),
    rope=YarnRope(theta=1e4, factor=36.0, original_max_positions=8192, attention_factor=1.0),
    query_scaling=LogQueryScaling(beta=0.1, period=8192),
    max_positions=294912,
)
_SMALL_4 = _like(
    _LARGE_3,
    num_layers=36,
    width=4096,
    num_heads=32,
    num_kv_heads=32,
    head_width=128,
    ffn=MoeFfn(width=2048, num_experts=128, top_k=4, num_shared_experts=1),
    attention=LatentAttention(
        query_rank=1024, latent_rank=256, content_width=64, rotary_width=64, value_width=128
    ),
    rope=YarnRope(theta=1e4, factor=128.0, original_max_positions=8192, attention_factor=1.0),
    max_positions=1048576,
)

# The sparse model that this project is for: a group of experts for each domain.
DOMAINS = (
    "code", "math", "language", "reasoning", "multimodal", "scientific", "creative", "general",
)  # fmt: skip


def _domain_experts(**fields: Any) -> MoeFfn:
    own = {"router": SigmoidRouter(), "weights_scale": 2.5} | fields
    return MoeFfn(num_groups=len(DOMAINS), group_names=DOMAINS, **own)


_MSEM_671B = _like(
    _DEEPSEEK_V3,
    vocab_size=131072,
    ffn=_domain_experts(
        width=2048,
        num_experts=256,
        groups_per_token=3,
        top_k=24,
        num_shared_experts=1,
        num_dense_layers=3,
        dense_width=18432,
    ),
    rope=_DEEPSEEK_V3.rope.model_copy(update={"factor": 64.0}),
    max_positions=262144,
)
_MSEM_1_6B = _like(
    _MSEM_671B,
    num_layers=16,
    width=1024,
    num_heads=16,
    num_kv_heads=16,
    vocab_size=32768,
    ffn=_domain_experts(
        width=512, num_experts=64, groups_per_token=3, top_k=6, num_dense_layers=1, dense_width=4096
    ),
    attention=_DEEPSEEK_V3.attention.model_copy(update={"query_rank": 256, "latent_rank": 128}),
)
_MSEM_16B = _like(
    _MSEM_1_6B,
    num_layers=27,
    width=2048,
    vocab_size=131072,
    ffn=_domain_experts(
        width=1408,
        num_experts=64,
        groups_per_token=3,
        top_k=6,
        num_shared_experts=1,
        num_dense_layers=1,
        dense_width=11264,
    ),
    attention=_DEEPSEEK_V3.attention.model_copy(update={"query_rank": 768}),
)
_MSEM_TINY = _like(
    _MSEM_671B,
    num_layers=4,
    width=256,
    num_heads=4,
    num_kv_heads=4,
    head_width=80,
    vocab_size=4096,
    ffn=_domain_experts(
        width=128, num_experts=16, groups_per_token=2, top_k=2, num_dense_layers=1, dense_width=1024
    ),
    attention=LatentAttention(
        query_rank=48, latent_rank=32, content_width=64, rotary_width=16, value_width=64
    ),
)
_MSEM_671B_GQA = _like(
    _7B_V0_3,
    num_layers=70,
    width=6144,
    num_heads=48,
    vocab_size=131072,
    ffn=_domain_experts(
        width=4096,
        num_experts=128,
        groups_per_token=3,
        top_k=12,
        num_shared_experts=1,
        num_dense_layers=2,
        dense_width=24576,
        router=SoftmaxRouter(),
    ),
)

PRESETS: dict[str, DecoderConfig] = {
    "mistral_7b_v0_1": _like(
        _7B_V0_3,
        vocab_size=32000,
        attention=WindowAttention(window=4096),
        rope=DefaultRope(theta=1e4),
    ),
    "mistral_7b_v0_2": _like(_7B_V0_3, vocab_size=32000),
    "mistral_7b_v0_3": _7B_V0_3,
    "mixtral_8x7b": _like(
        _7B_V0_3, vocab_size=32000, ffn=MoeFfn(width=14336, num_experts=8, top_k=2)
    ),
    "mixtral_8x22b": _like(
        _22B, ffn=MoeFfn(width=16384, num_experts=8, top_k=2), max_positions=65536
    ),
    "mistral_22b": _22B,
    "mistral_nemo_12b": _NEMO,
    "mistral_small_3": _SMALL_3,
    "mistral_small_3_1": _like(_SMALL_3, rope=DefaultRope(theta=1e9), max_positions=131072),
    "ministral_8b": _like(
        _7B_V0_3,
        num_layers=36,
        vocab_size=131072,
        ffn=DenseFfn(width=12288),
        attention=InterleavedAttention(window=32768, period=("full", "window", "window", "window")),
        rope=DefaultRope(theta=1e8),
        max_positions=131072,
    ),
    "ministral_3_3b": _like(
        _MINISTRAL_3_8B, num_layers=26, width=3072, ffn=DenseFfn(width=9216), tied_head=True
    ),
    "ministral_3_8b": _MINISTRAL_3_8B,
    "ministral_3_14b": _like(
        _MINISTRAL_3_8B,
        num_layers=40,
        width=5120,
        ffn=DenseFfn(width=16384),
        rope=_MINISTRAL_3_8B.rope.model_copy(update={"theta": 1e9}),
    ),
    "mistral_large_2": _LARGE_2,
    "devstral_2": _like(
        _LARGE_2, vocab_size=131072, rope=_MINISTRAL_3_8B.rope, max_positions=262144
    ),
    "mistral_large_3": _LARGE_3,
    "mistral_small_4": _SMALL_4,
    "deepseek_v3": _DEEPSEEK_V3,
    "msem_tiny": _MSEM_TINY,
    "msem_1_6b": _MSEM_1_6B,
    "msem_16b": _MSEM_16B,
    "msem_671b": _MSEM_671B,
    "msem_671b_gqa": _MSEM_671B_GQA,
    "msem_671b_wide": _like(
        _MSEM_671B,
        ffn=_MSEM_671B.ffn.model_copy(update={"width": 4096, "num_experts": 128, "top_k": 12}),
    ),
    "qwen2_5_3b": DecoderConfig(
        num_layers=36,
        width=2048,
        num_heads=16,
        num_kv_heads=2,
        head_width=128,
        vocab_size=151936,
        ffn=DenseFfn(width=11008),
        rope=DefaultRope(theta=1e6),
        norm_epsilon=1e-6,
        tied_head=True,
        qkv_bias=True,
        max_positions=32768,
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

RELEASES: dict[str, Release] = {
    "mistral_7b_v0_1": Release("Mistral 7B v0.1, Instruct v0.1", ("v1",)),
    "mistral_7b_v0_2": Release("Mistral 7B v0.2, Instruct v0.2", ("v1",)),
    "mistral_7b_v0_3": Release("Mistral 7B v0.3, Instruct v0.3, Mathstral 7B", ("v2", "v3")),
    "mixtral_8x7b": Release("Mixtral 8x7B v0.1, Instruct v0.1", ("v1",)),
    "mixtral_8x22b": Release("Mixtral 8x22B Instruct v0.1", ("v3",)),
    "mistral_22b": Release(
        "Codestral 22B, Mistral Small 2409", ("v3",), ("num_layers", "width", "ffn")
    ),
    "mistral_nemo_12b": Release("Mistral Nemo 12B, text of Pixtral 12B", ("v3",)),
    "mistral_small_3": Release("Mistral Small 3 (2501)", ("v7",)),
    "mistral_small_3_1": Release(
        "Mistral Small 3.1 and 3.2, Magistral Small, Devstral Small", ("v7", "v11", "v13")
    ),
    "ministral_8b": Release(
        "Ministral 8B (2410)", ("v3",), ("num_layers", "ffn", "attention.period", "rope.theta")
    ),
    "ministral_3_3b": Release("Ministral 3 3B", ("v13",)),
    "ministral_3_8b": Release("Ministral 3 8B", ("v13",)),
    "ministral_3_14b": Release("Ministral 3 14B", ("v13",), ("ffn", "rope.theta")),
    "mistral_large_2": Release("Mistral Large 2 (2407, 2411)", ("v3", "v7"), ("vocab_size",)),
    "devstral_2": Release(
        "Devstral 2, Mistral Medium 3.5", ("v13",), ("num_layers", "width", "rope")
    ),
    "mistral_large_3": Release("Mistral Large 3 675B"),
    "mistral_small_4": Release("Mistral Small 4 119B"),
    "deepseek_v3": Release("DeepSeek-V3, R1 671B"),
    "msem_tiny": Release("msem-tiny, for tests (ours)"),
    "msem_1_6b": Release("msem-1.6b (ours)"),
    "msem_16b": Release("msem-16b (ours)"),
    "msem_671b": Release("msem-671b (ours)"),
    "msem_671b_gqa": Release("msem-671b with grouped-query attention (ours)"),
    "msem_671b_wide": Release("msem-671b with half as many experts, twice as wide (ours)"),
    "qwen2_5_3b": Release("Qwen2.5 3B", (), ("every field",)),
    "smollm2_135m": Release("SmolLM2 135M"),
}
# What the tensors' shapes tell; the rest a config may say wrongly.
SHAPE_FIELDS = (
    "num_layers", "width", "num_heads", "num_kv_heads", "head_width", "vocab_size", "ffn",
    "tied_head", "qkv_bias",
)  # fmt: skip
CONFIG_FIELDS = ("attention", "rope", "query_scaling", "norm_epsilon")


def same_shape(decoder: DecoderConfig) -> list[str]:
    """Return the presets whose tensors have the same shapes."""
    return [name for name, preset in PRESETS.items() if not _apart(decoder, preset, SHAPE_FIELDS)]


def differences(decoder: DecoderConfig, preset: str) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which a decoder computes otherwise than a preset: theirs, then ours."""
    return _apart(decoder, PRESETS[preset], SHAPE_FIELDS + CONFIG_FIELDS)


def _apart(
    first: DecoderConfig, second: DecoderConfig, fields: tuple[str, ...]
) -> dict[str, tuple[Any, Any]]:
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in fields}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
