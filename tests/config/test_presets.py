"""The sparse presets: totals and active parameters as published or as designed, to the digit."""

import json
import math

import pytest

from mistral_jax.config import presets
from mistral_jax.config.model import DecoderConfig
from mistral_jax.formats import detect
from mistral_jax.formats import hf_config
from mistral_jax.formats import params_config
from mistral_jax.models import definition as definition_lib

# Total and, where a table prints it, active parameters with the input embedding.
COUNTS = {
    "mistral_small_4": (118_972_826_624, 6_632_588_288),
    # 7,424 above with a router bias, which the published model does not have.
    "mistral_large_3": (673_421_089_792, 39_946_968_064),
    "deepseek_v3": (671_026_419_200, 37_552_297_472),
    "msem_671b": (671_052_109_312, 78_447_285_760),
    "msem_671b_gqa": (671_000_377_344, 75_476_318_208),
    "msem_671b_wide": (673_553_217_792, 80_948_394_240),
    "msem_tiny": (8_104_560, 3_975_792),
    "msem_1_6b": (1_652_531_136, 284_139_456),
    "msem_16b": (15_537_292_672, 2_491_958_656),
}


def active_parameters(config: DecoderConfig, shapes: dict) -> int:
    idle = (config.ffn.num_experts - config.ffn.top_k) / config.ffn.num_experts
    experts = [f"layers/mlp/{name}_proj/kernel" for name in ("gate", "up", "down")]
    all_of_them = sum(math.prod(shapes[path].shape) for path in experts)
    total = sum(math.prod(shape.shape) for shape in shapes.values())
    return total - round(all_of_them * idle)


@pytest.mark.parametrize("name", COUNTS)
def test_sparse_presets_have_their_number_of_parameters(name: str) -> None:
    config = presets.PRESETS[name]
    definition = definition_lib.define(config)
    active = active_parameters(config, definition.shapes)
    assert (definition.num_parameters(), active) == COUNTS[name]


def test_the_siblings_have_the_printed_size_of_the_design() -> None:
    printed = {name: (f"{a:.4g}", f"{b:.3g}") for name, (a, b) in COUNTS.items() if "msem" in name}
    assert printed["msem_tiny"] == ("8.105e+06", "3.98e+06")
    assert printed["msem_1_6b"] == ("1.653e+09", "2.84e+08")
    assert printed["msem_16b"] == ("1.554e+10", "2.49e+09")


@pytest.mark.parametrize("name", [name for name in COUNTS if name.startswith("msem")])
def test_groups_are_the_eight_domains(name: str) -> None:
    ffn = presets.PRESETS[name].ffn
    assert ffn.group_names == presets.DOMAINS and ffn.num_groups == len(presets.DOMAINS) == 8


# As Mistral publishes them (quoted in public tests of servers), without the vision encoder.
LARGE_3 = {
    "dim": 7168, "n_layers": 61, "head_dim": 192, "hidden_dim": 16384, "n_heads": 128,
    "n_kv_heads": 128, "norm_eps": 1e-6, "vocab_size": 131072, "rope_theta": 10000.0,
    "max_position_embeddings": 294912, "tied_embeddings": False, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "moe": {
        "num_experts": 128, "num_experts_per_tok": 4, "num_shared_experts": 1,
        "expert_hidden_dim": 4096, "first_k_dense_replace": 3, "route_every_n": 1,
        "routed_scale": 1.0, "num_expert_groups": 1, "num_expert_groups_per_tok": 1,
        "expert_parallel": 1, "expert_model_parallel": 1,
    },
    "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 8192},
    "yarn": {
        "alpha": 1, "apply_scale": False, "beta": 32, "factor": 36,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


def test_the_published_params_json_of_large_3_is_the_preset() -> None:
    found = params_config.decoder_from_params(LARGE_3, "params.json", has_head=True)
    assert (
        DecoderConfig.model_validate_json(json.dumps(found)) == presets.PRESETS["mistral_large_3"]
    )


# The defaults of transformers' Mistral4Config, which are Small 4's.
SMALL_4 = {
    "model_type": "mistral4", "vocab_size": 131072, "hidden_size": 4096,
    "intermediate_size": 12288, "moe_intermediate_size": 2048, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 32, "n_shared_experts": 1,
    "n_routed_experts": 128, "routed_scaling_factor": 1.0, "kv_lora_rank": 256,
    "q_lora_rank": 1024, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 64,
    "n_group": 1, "topk_group": 1, "num_experts_per_tok": 4, "first_k_dense_replace": 0,
    "norm_topk_prob": True, "max_position_embeddings": 1048576, "rms_norm_eps": 1e-6,
    "rope_interleave": True, "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 128.0,
        "original_max_position_embeddings": 8192, "max_position_embeddings": 1048576,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0,
        "llama_4_scaling_beta": 0.1, "partial_rotary_factor": 0.5,
    },
}  # fmt: skip


def test_the_config_of_small_4_is_the_preset_but_for_the_gain() -> None:
    """transformers' conversion writes a gain that params.json and Mistral's servers do not have."""
    found = hf_config.decoder_from_hf(SMALL_4, "config.json", has_head=True)
    decoder = DecoderConfig.model_validate_json(json.dumps(found))
    preset = presets.PRESETS["mistral_small_4"]
    assert presets.same_shape(decoder) == ["mistral_small_4"]
    assert list(presets.differences(decoder, "mistral_small_4")) == ["rope"]
    gain = {"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": None}
    assert decoder.rope == preset.rope.model_copy(update=gain)


@pytest.mark.parametrize("name", ["mistral_small_4", "mistral_large_3", "deepseek_v3", "msem_671b"])
def test_a_config_written_and_read_is_the_preset(name: str) -> None:
    preset = presets.PRESETS[name]
    written = hf_config.hf_config(preset.model_dump(mode="json"), "bfloat16")
    found = hf_config.decoder_from_hf(written, "config.json", has_head=True)
    assert DecoderConfig.model_validate_json(json.dumps(found)) == preset
    table = detect.names.entries(preset, "hf")
    total = sum(math.prod(entry.shape) for entry in {e.foreign_name: e for e in table}.values())
    assert total == COUNTS[name][0]
