"""Hugging Face's config.json to our decoder's fields, and back.

What our decoder cannot compute exactly (other rotary scalings, biases, hybrid layers) is refused
by name. Defaults of absent fields are those of transformers' own config classes.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral_jax.formats import hf_latent
from mistral_jax.formats.fields import Fields

DTYPES = ("float32", "float16", "bfloat16")
QUANTIZATIONS = ("fp8",)


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a model type has where its config.json is silent; None is "as many as heads"."""

    max_positions: int
    epsilon: float = 1e-6
    num_kv_heads: int | None = None
    window: int | None = None
    theta: float = 10_000.0


MODEL_TYPES = {
    "mistral": Defaults(131072, num_kv_heads=8, window=4096),
    "mixtral": Defaults(131072, 1e-5, num_kv_heads=8, theta=1e6),
    "ministral": Defaults(131072, num_kv_heads=8, window=4096),
    "ministral3": Defaults(262144, 1e-5, num_kv_heads=8, theta=1e6),
    "llama": Defaults(2048),
    "qwen2": Defaults(32768, num_kv_heads=32),
    "deepseek_v3": Defaults(4096),
    "mistral4": Defaults(1048576),
}
# Text models inside a multimodal one; what sees and hears is left out.
WRAPPERS = ("mistral3", "llava")
# Known, and not computed: what to say.
KNOWN_UNSUPPORTED = {
    "mistral_large4": "Mistral Large 4 (indexed sparse attention over a shared latent cache)",
    "mistral_large4_text": "Mistral Large 4 (indexed sparse attention over a shared latent cache)",
    "voxtral": "Voxtral (audio)",
    "mamba2": "Codestral Mamba (a state space model)",
}
_WHOLE_HEAD: tuple[float | int, ...] = (1.0, 1)
_LAYER_TYPES = {"full_attention": "full", "sliding_attention": "window"}


def text_config(config: Mapping[str, Any], path: Path | str) -> Mapping[str, Any]:
    """Return the part of config.json that describes the text model.

    Raises:
        ValueError: a multimodal model's config without its text part.
    """
    if config.get("model_type") not in WRAPPERS:
        return config
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        raise Fields(config, path).error("text_config", inner, "an object, the text model's config")
    # The wrapper's class has Mistral's as default, and says what both share.
    shared = {name: config[name] for name in ("quantization_config",) if config.get(name)}
    return {"model_type": "mistral", **shared, **inner}


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
    is_wrapped = config.get("model_type") in WRAPPERS
    config = text_config(config, path)
    fields = Fields(config, path)
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        if model_type in KNOWN_UNSUPPORTED:
            raise ValueError(
                f"{path}: this is {KNOWN_UNSUPPORTED[model_type]}, which can be inspected but "
                f"not computed here yet; supported: {', '.join((*MODEL_TYPES, *WRAPPERS))}"
            )
        raise fields.error("model_type", model_type, ", ".join((*MODEL_TYPES, *WRAPPERS)))
    defaults = MODEL_TYPES[model_type]
    _check_quantization(fields)
    fields.refuse_unless("hidden_act", ("silu",))
    for name in ("attention_bias", "mlp_bias"):
        fields.refuse_unless(name, (False,))
    width, num_heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    max_positions = fields.count("max_position_embeddings", defaults.max_positions)
    num_layers = fields.count("num_hidden_layers")
    num_kv_heads = fields.count("num_key_value_heads", defaults.num_kv_heads or num_heads)
    fractions = _WHOLE_HEAD
    if model_type in hf_latent.ROUTERS:
        attention = hf_latent.attention(fields, num_heads)
        fractions = hf_latent.rotary_fractions(model_type, attention)
        head_width = attention["content_width"] + attention["rotary_width"]
        ffn = hf_latent.ffn(fields, model_type, num_layers)
    else:
        attention = _attention(fields, model_type, defaults, num_layers)
        head_width = fields.count("head_dim", width // num_heads)
        ffn = _ffn(fields, model_type)
    has_rope = fields.get("rope_parameters") or fields.get("rope_scaling")
    if model_type == "mistral4" and not has_rope:
        raise fields.error("rope_parameters", None, "an object, as every mistral4 has it")
    rope, query_scaling = _rope(fields, defaults, max_positions, fractions)
    return {
        "kind": "decoder",
        "num_layers": num_layers,
        "width": width,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_width": head_width,
        "vocab_size": fields.count("vocab_size"),
        "ffn": ffn,
        "attention": attention,
        "rope": rope,
        "query_scaling": query_scaling,
        "norm_epsilon": fields.number("rms_norm_eps", defaults.epsilon),
        # A wrapper's two flags may differ; what lies in the file decides.
        "tied_head": (
            not has_head if is_wrapped else fields.flag("tie_word_embeddings", not has_head)
        ),
        "qkv_bias": model_type == "qwen2",
        "max_positions": max_positions,
    }


def is_interleaved(config: Mapping[str, Any], path: Path | str) -> bool:
    """Tell whether the rows of latent attention that rotate lie in pairs, and not in halves."""
    return Fields(text_config(config, path), path).flag("rope_interleave", True)


def _check_quantization(fields: Fields) -> None:
    quantization = fields.get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method not in QUANTIZATIONS:
        raise fields.error(
            "quantization_config.quant_method", method, "fp8, unquantised weights, or GGUF"
        )


def _ffn(fields: Fields, model_type: str) -> dict:
    width = fields.count("intermediate_size")
    if model_type != "mixtral":
        return {"kind": "dense", "width": width}
    return {
        "kind": "moe",
        "width": width,
        "num_experts": fields.count("num_local_experts", 8),
        "top_k": fields.count("num_experts_per_tok", 2),
    }


def _attention(fields: Fields, model_type: str, defaults: Defaults, num_layers: int) -> dict:
    if model_type == "llama":
        window = None
    elif model_type == "qwen2":
        # With windows on, Qwen2 mixes full and windowed layers by max_window_layers.
        fields.refuse_unless("use_sliding_window", (False,))
        window = None
    elif fields.values.get("sliding_window", defaults.window) is None:
        # A null means none, an absent field the class's default.
        window = None
    else:
        window = fields.count("sliding_window", defaults.window)
    kinds = fields.get("layer_types")
    if kinds is None:
        return {"kind": "full"} if window is None else {"kind": "window", "window": window}
    if not isinstance(kinds, list) or not kinds or not set(map(str, kinds)) <= set(_LAYER_TYPES):
        raise fields.error("layer_types", kinds, f"a list of {' and '.join(_LAYER_TYPES)}")
    if len(kinds) != num_layers:
        raise fields.error(
            "layer_types", f"{len(kinds)} entries", f"num_hidden_layers {num_layers}"
        )
    if ("sliding_attention" in kinds) != (window is not None):
        raise fields.error("layer_types", kinds[0], f"one that agrees with sliding_window {window}")
    return attention_of_layers([_LAYER_TYPES[kind] for kind in kinds], window)


def attention_of_layers(layers: list[str], window: int | None) -> dict:
    """Return the attention's fields for a list of `window` and `full`, one for each layer."""
    if window is None or "window" not in layers:
        return {"kind": "full"}
    if "full" not in layers:
        return {"kind": "window", "window": window}
    period = next(
        size
        for size in range(1, len(layers) + 1)
        if len(layers) % size == 0 and layers == layers[:size] * (len(layers) // size)
    )
    return {"kind": "interleaved", "window": window, "period": layers[:period]}


def _rope(
    fields: Fields,
    defaults: Defaults,
    max_positions: int,
    fractions: tuple[float | int, ...] = _WHOLE_HEAD,
) -> tuple[dict, dict]:
    """Read rotary options: `rope_parameters` (transformers 5), or rope_theta and rope_scaling.

    `fractions` are what partial_rotary_factor may be.
    """
    options: dict[str, Any] = {}
    where = "rope_parameters"
    for name in ("rope_scaling", "rope_parameters"):
        found = fields.get(name) or {}
        if not isinstance(found, dict):
            raise fields.error(name, found, "an object with rope_theta and rope_type")
        if found:
            options, where = {**options, **found}, name
    for source in (fields, Fields(options, f"{fields.path}: {where}")):
        source.refuse_unless("partial_rotary_factor", fractions)
    inner = Fields(options, f"{fields.path}: {where}")
    theta = inner.number("rope_theta", fields.number("rope_theta", defaults.theta))
    kind = options.get("rope_type", options.get("type", "default")) or "default"
    scaling: dict = {"kind": "none"}
    if options.get("llama_4_scaling_beta"):  # mistral4 must have it, and says 0 for none
        scaling = {
            "kind": "log",
            "beta": inner.number("llama_4_scaling_beta"),
            "period": inner.count("original_max_position_embeddings"),
        }
    if kind == "default":
        return {"kind": "default", "theta": theta}, scaling
    if kind != "yarn":
        raise fields.error(f"{where}.rope_type", kind, "'default' or 'yarn'")
    original = inner.count("original_max_position_embeddings", max_positions)
    rope = {
        "kind": "yarn",
        "theta": theta,
        "factor": inner.number("factor", max_positions / original),
        "original_max_positions": original,
        "beta_fast": inner.number("beta_fast", 32.0),
        "beta_slow": inner.number("beta_slow", 1.0),
        "mscale": _number_or_zero(inner, "mscale"),
        "mscale_all_dim": _number_or_zero(inner, "mscale_all_dim"),
        "truncate": inner.flag("truncate", True),
    }
    if options.get("attention_factor") is not None:
        rope["attention_factor"] = inner.number("attention_factor")
    return rope, scaling


def _number_or_zero(fields: Fields, name: str) -> float:
    return 0.0 if fields.get(name) in (None, 0) else fields.number(name)


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
    attention, rope, ffn = decoder["attention"], decoder["rope"], decoder["ffn"]
    is_latent = attention["kind"] == "latent"
    model_type, architecture = (hf_latent.model_type if is_latent else _model_type)(decoder)
    options = rope_parameters(rope, decoder["query_scaling"])
    if model_type == "mistral4":
        (options["partial_rotary_factor"],) = hf_latent.rotary_fractions(model_type, attention)
        options.setdefault("original_max_position_embeddings", decoder["max_positions"])
        options.setdefault("llama_4_scaling_beta", 0.0)
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": decoder["width"],
        "intermediate_size": ffn["width"],
        "num_hidden_layers": decoder["num_layers"],
        "num_attention_heads": decoder["num_heads"],
        "num_key_value_heads": decoder["num_kv_heads"],
        "head_dim": decoder["head_width"],
        "vocab_size": decoder["vocab_size"],
        "max_position_embeddings": decoder["max_positions"],
        "hidden_act": "silu",
        "rms_norm_eps": decoder["norm_epsilon"],
        # Both spellings: transformers 5 reads rope_parameters and dtype, 4 the other two.
        "rope_parameters": options,
        "rope_theta": rope["theta"],
        "dtype": dtype,
        "torch_dtype": dtype,
        "tie_word_embeddings": decoder["tied_head"],
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    if is_latent:
        # transformers makes head_dim itself, and not the same in both types.
        del config["head_dim"]
        config |= hf_latent.config(decoder, model_type)
    else:
        config["sliding_window"] = attention.get("window")
    if rope["kind"] != "default":
        config["rope_scaling"] = {k: v for k, v in options.items() if k != "rope_theta"}
    if model_type == "qwen2":
        config |= {"use_sliding_window": False}
    if model_type == "mixtral":
        config |= {"num_local_experts": ffn["num_experts"], "num_experts_per_tok": ffn["top_k"]}
    if attention["kind"] == "interleaved":
        repeats = decoder["num_layers"] // len(attention["period"])
        names = {ours: theirs for theirs, ours in _LAYER_TYPES.items()}
        config["layer_types"] = [names[layer] for layer in attention["period"]] * repeats
    return config


def _model_type(decoder: Mapping[str, Any]) -> tuple[str, str]:
    """Return the model type and class of transformers that compute this decoder."""
    has_window = decoder["attention"]["kind"] != "full"
    is_interleaved = decoder["attention"]["kind"] == "interleaved"
    is_scaled = decoder["query_scaling"]["kind"] != "none"
    needs = {
        "q/k/v biases": decoder["qkv_bias"],
        "experts": decoder["ffn"]["kind"] == "moe",
        "interleaved windows": is_interleaved,
        "log query scaling": is_scaled,
    }
    if sum(needs.values()) > 1 or (decoder["qkv_bias"] and has_window):
        asked = [name for name, needed in needs.items() if needed]
        raise ValueError(
            f"no model of transformers has {' and '.join(asked)}"
            f"{' with a window' if has_window else ''} together; this decoder cannot be exported "
            "to Hugging Face"
        )
    if decoder["ffn"].get("num_groups", 1) > 1:
        raise ValueError("experts in named groups cannot be exported to Hugging Face's mixtral")
    if decoder["qkv_bias"]:
        return "qwen2", "Qwen2ForCausalLM"
    if decoder["ffn"]["kind"] == "moe":
        return "mixtral", "MixtralForCausalLM"
    if is_interleaved:
        return "ministral", "MinistralForCausalLM"
    if is_scaled:
        return "ministral3", "Ministral3ForCausalLM"
    return "mistral", "MistralForCausalLM"


def rope_parameters(rope: Mapping[str, Any], query_scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Return transformers' rope_parameters.

    Raises:
        ValueError: query scaling with another period than the rotary embedding's original length:
            transformers has one number for both.
    """
    options: dict[str, Any] = {"rope_type": rope["kind"], "rope_theta": rope["theta"]}
    if rope["kind"] == "yarn":
        options |= {
            "factor": rope["factor"],
            "original_max_position_embeddings": rope["original_max_positions"],
            "beta_fast": rope["beta_fast"],
            "beta_slow": rope["beta_slow"],
            "truncate": rope["truncate"],
        }
        for name in ("mscale", "mscale_all_dim", "attention_factor"):
            if rope.get(name):
                options[name] = rope[name]
    if query_scaling["kind"] == "log":
        if options.get("original_max_position_embeddings") != query_scaling["period"]:
            raise ValueError(
                f"query_scaling.period {query_scaling['period']} is not the rotary embedding's "
                "original_max_positions; transformers has one number for both"
            )
        options["llama_4_scaling_beta"] = query_scaling["beta"]
    return options
