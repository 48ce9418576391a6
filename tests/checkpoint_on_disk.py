"""Tiny checkpoints of the tests as files by name, to be served: Hugging Face and consolidated."""

import json

import numpy as np
from safetensors.numpy import save

CONFIG = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 384, "rope_theta": 10000.0,
    "max_position_embeddings": 64, "sliding_window": None, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def tensors() -> dict[str, np.ndarray]:
    """Return every tensor of the checkpoint."""
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (384, 32), "model.norm.weight": (32,),
              "lm_head.weight": (384, 32)}  # fmt: skip
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (32, 32), f"{at}.self_attn.k_proj.weight": (16, 32),
            f"{at}.self_attn.v_proj.weight": (16, 32), f"{at}.self_attn.o_proj.weight": (32, 32),
            f"{at}.mlp.gate_proj.weight": (48, 32), f"{at}.mlp.up_proj.weight": (48, 32),
            f"{at}.mlp.down_proj.weight": (32, 48), f"{at}.input_layernorm.weight": (32,),
            f"{at}.post_attention_layernorm.weight": (32,),
        }  # fmt: skip
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def files() -> dict[str, bytes]:
    """Return a Hugging Face checkpoint in two shards with a tokenizer, and what lies beside it."""
    everything = tensors()
    names = sorted(everything)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    shards = {
        shard: save({name: everything[name] for name in half}, {"format": "pt"})
        for shard, half in zip(SHARDS, halves)
    }
    weight_map = {name: shard for shard, half in zip(SHARDS, halves) for name in half}
    index = {"metadata": {}, "weight_map": weight_map}
    return shards | {
        "config.json": json.dumps(CONFIG).encode(),
        INDEX: json.dumps(index).encode(),
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": b'{"eos_token": "</s>", "bos_token": "<s>"}',
        "params.json": b'{"dim": 32}',
        "consolidated.safetensors": b"the same weights once more",
        "pytorch_model.bin": b"a pickle",
        "README.md": b"a model",
    }


def tokenizer_json() -> bytes:
    """Return a byte-level tokenizer of 384 tokens as tokenizers writes it."""
    import tokenizers
    from tokenizers import decoders
    from tokenizers import models
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    vocab |= {f"<extra_{number}>": number for number in range(len(vocab), 384)}
    built = tokenizers.Tokenizer(models.BPE(vocab, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(["<s>", "</s>"])
    return built.to_str().encode()
