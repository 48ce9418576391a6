"""Hugging Face's config.json (and Mistral's params.json) to our decoder's fields, and back.

Model types mistral, llama and qwen2; what our decoder cannot compute exactly (scaled rotary
embeddings, interleaved windows, other biases, quantised weights) is refused by name.
Defaults of absent fields are those of transformers' own config classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral_jax.formats.fields import Fields

MODEL_TYPES = ("mistral", "llama", "qwen2")
DTYPES = ("float32", "float16", "bfloat16")


def decoder_from_hf(config: Mapping[str, Any], path: Path | str, *, has_head: bool) -> dict:
    """Return our decoder's fields.

    Args:
        config: the content of config.json.
        path: named in errors.
        has_head: the weights hold their own output matrix; decides where the config is silent.

    Raises:
        ValueError: an architecture or option that our decoder does not compute; the message names
            the field, the value and what is supported.
    """
    fields = Fields(config, path)
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise fields.error("model_type", model_type, ", ".join(MODEL_TYPES))
    if config.get("quantization_config") is not None:
        raise fields.error("quantization_config", "present", "unquantised weights or GGUF")
    fields.refuse_unless("hidden_act", ("silu",))
    fields.refuse_unless("partial_rotary_factor", (1.0, 1))
    for name in ("attention_bias", "mlp_bias"):
        fields.refuse_unless(name, (False,))
    width, num_heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    return {
        "kind": "decoder",
        "num_layers": fields.count("num_hidden_layers"),
        "width": width,
        "num_heads": num_heads,
        "num_kv_heads": fields.count("num_key_value_heads", num_heads),
        "head_width": fields.count("head_dim", width // num_heads),
        "vocab_size": fields.count("vocab_size"),
        "ffn": {"kind": "dense", "width": fields.count("intermediate_size")},
        "attention": _attention(fields, model_type),
        "rope": {"kind": "default", "theta": _rope_theta(fields)},
        "norm_epsilon": fields.number("rms_norm_eps", 1e-6),
        "tied_head": fields.flag("tie_word_embeddings", not has_head),
        "qkv_bias": model_type == "qwen2",
        "max_positions": fields.count("max_position_embeddings", 32768),
    }


def _attention(fields: Fields, model_type: str) -> dict:
    kinds = fields.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list)
        or len(set(map(str, kinds))) > 1
        or not set(map(str, kinds)) <= {"full_attention", "sliding_attention"}
    ):
        raise fields.error("layer_types", kinds, "the same attention in every layer")
    if model_type == "qwen2":
        # With windows on, Qwen2 mixes full and windowed layers by max_window_layers.
        fields.refuse_unless("use_sliding_window", (False,))
        window = None
    elif model_type == "mistral":
        # transformers' MistralConfig has 4096 where the field is absent; null means none.
        window = 4096 if "sliding_window" not in fields.values else fields.get("sliding_window")
    else:
        window = None
    if kinds is not None and ("sliding_attention" in kinds) != (window is not None):
        raise fields.error("layer_types", kinds[0], f"one that agrees with sliding_window {window}")
    if window is None:
        return {"kind": "full"}
    return {"kind": "window", "window": fields.count("sliding_window", 4096)}


def _rope_theta(fields: Fields) -> float:
    """Read the rotary base from `rope_parameters` (transformers 5) or `rope_theta`."""
    parameters = fields.get("rope_parameters") or {}
    scaling = fields.get("rope_scaling") or {}
    for name, options in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if not isinstance(options, dict):
            raise fields.error(name, options, "an object with rope_theta and rope_type")
        kind = options.get("rope_type", options.get("type", "default"))
        if kind not in ("default", None):
            raise fields.error(f"{name}.rope_type", kind, "'default'")
        Fields(options, f"{fields.path}: {name}").refuse_unless("partial_rotary_factor", (1.0, 1))
    if "rope_theta" in parameters:
        return Fields(parameters, f"{fields.path}: rope_parameters").number("rope_theta")
    return fields.number("rope_theta", 10_000.0)


def hf_config(decoder: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the config.json with which transformers loads our decoder's weights.

    Args:
        decoder: our decoder's fields, as `decoder_from_hf` gives them.
        dtype: the dtype of the written weights: float32, float16 or bfloat16.

    Raises:
        ValueError: a decoder that no supported model type can express.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} for config.json: expected one of {', '.join(DTYPES)}")
    attention, rope = decoder["attention"], decoder["rope"]
    if decoder["ffn"]["kind"] != "dense" or rope["kind"] != "default":
        raise ValueError(
            f"cannot export ffn {decoder['ffn']['kind']!r} with rope {rope['kind']!r} to Hugging "
            f"Face; supported: dense with default"
        )
    window = attention["window"] if attention["kind"] == "window" else None
    if attention["kind"] not in ("full", "window") or (decoder["qkv_bias"] and window):
        raise ValueError(
            f"cannot export attention {dict(attention)} with qkv_bias {decoder['qkv_bias']} to "
            f"Hugging Face; supported: full, or window without biases"
        )
    config = {
        "architectures": ["Qwen2ForCausalLM" if decoder["qkv_bias"] else "MistralForCausalLM"],
        "model_type": "qwen2" if decoder["qkv_bias"] else "mistral",
        "hidden_size": decoder["width"],
        "intermediate_size": decoder["ffn"]["width"],
        "num_hidden_layers": decoder["num_layers"],
        "num_attention_heads": decoder["num_heads"],
        "num_key_value_heads": decoder["num_kv_heads"],
        "head_dim": decoder["head_width"],
        "vocab_size": decoder["vocab_size"],
        "max_position_embeddings": decoder["max_positions"],
        "hidden_act": "silu",
        "rms_norm_eps": decoder["norm_epsilon"],
        # Both spellings: transformers 5 reads rope_parameters and dtype, 4 the other two.
        "rope_parameters": {"rope_type": "default", "rope_theta": rope["theta"]},
        "rope_theta": rope["theta"],
        "dtype": dtype,
        "torch_dtype": dtype,
        "sliding_window": window,
        "tie_word_embeddings": decoder["tied_head"],
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    if decoder["qkv_bias"]:
        config |= {"use_sliding_window": False}
    return config


def decoder_from_params(params: Mapping[str, Any], path: Path | str, *, has_head: bool) -> dict:
    """Return our decoder's fields from the params.json of a consolidated Mistral folder.

    Raises:
        ValueError: mixtures of experts, scaled rotary embeddings, quantised or multimodal weights.
    """
    fields = Fields(params, path)
    for name in ("moe", "yarn", "quantization", "llama_4_scaling", "q_lora_rank", "vision_encoder"):
        if params.get(name):
            raise fields.error(name, "present", "dense text models without it")
    window = params.get("sliding_window", params.get("_sliding_window"))
    if window is not None and (type(window) is not int or window < 1):
        raise fields.error("sliding_window", window, "a whole number >= 1 or null")
    width, num_heads = fields.count("dim"), fields.count("n_heads")
    positions = fields.count("max_seq_len", fields.count("max_position_embeddings", 32768))
    return {
        "kind": "decoder",
        "num_layers": fields.count("n_layers"),
        "width": width,
        "num_heads": num_heads,
        "num_kv_heads": fields.count("n_kv_heads", num_heads),
        "head_width": fields.count("head_dim", width // num_heads),
        "vocab_size": fields.count("vocab_size"),
        "ffn": {"kind": "dense", "width": fields.count("hidden_dim")},
        "attention": {"kind": "window", "window": window} if window else {"kind": "full"},
        # 10000 is the reference implementation's base where v0.1's params.json has none.
        "rope": {"kind": "default", "theta": fields.number("rope_theta", 10_000.0)},
        "norm_epsilon": fields.number("norm_eps", 1e-5),
        "tied_head": fields.flag("tied_embeddings", not has_head),
        "qkv_bias": False,
        "max_positions": positions,
    }


def params_json(decoder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params.json of a consolidated export; inverse of `decoder_from_params`."""
    if decoder["qkv_bias"] or decoder["ffn"]["kind"] != "dense":
        raise ValueError("cannot export biases or experts as consolidated; use the format hf")
    params = {
        "dim": decoder["width"],
        "n_layers": decoder["num_layers"],
        "head_dim": decoder["head_width"],
        "hidden_dim": decoder["ffn"]["width"],
        "n_heads": decoder["num_heads"],
        "n_kv_heads": decoder["num_kv_heads"],
        "norm_eps": decoder["norm_epsilon"],
        "vocab_size": decoder["vocab_size"],
        "rope_theta": decoder["rope"]["theta"],
        "max_seq_len": decoder["max_positions"],
        "tied_embeddings": decoder["tied_head"],
    }
    if decoder["attention"]["kind"] == "window":
        params["sliding_window"] = decoder["attention"]["window"]
    return params
