"""Mistral's own params.json (beside consolidated.safetensors) to our decoder's fields, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral_jax.formats.fields import Fields
from mistral_jax.formats.hf_config import attention_of_layers

TEKKEN_SIZE, TEKKEN_POSITIONS = 131072, 131072
_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim")


def decoder_from_params(params: Mapping[str, Any], path: Path | str, *, has_head: bool) -> dict:
    """Return our decoder's fields; a vision encoder beside the text model is left out.

    Raises:
        ValueError: latent attention, shared experts, or another number format than bf16 and fp8.
    """
    fields = Fields(params, path)
    if params.get("model_type", "transformer") != "transformer":
        raise fields.error("model_type", params["model_type"], "transformer")
    for name in _LATENT:
        if params.get(name):
            raise ValueError(
                f"{path}: {name} is {params[name]}: this is a model with latent attention "
                "(Mistral Small 4 or Large 3), which can be inspected but not computed here yet"
            )
    quantization = params.get("quantization") or {}
    if quantization and _inner(fields, "quantization").get("qformat_weight") != "fp8_e4m3":
        raise fields.error("quantization", quantization, "qformat_weight fp8_e4m3, or none")
    fields.refuse_unless("activation", ("silu",))
    width, num_heads = fields.count("dim"), fields.count("n_heads")
    num_layers = fields.count("n_layers")
    # Silent in the 7Bs (32,768) and in Devstral (131,072, with the tekken vocabulary).
    silent = TEKKEN_POSITIONS if fields.get("vocab_size") == TEKKEN_SIZE else 32768
    positions = fields.count("max_seq_len", fields.count("max_position_embeddings", silent))
    rope, query_scaling = _rope(fields)
    return {
        "kind": "decoder",
        "num_layers": num_layers,
        "width": width,
        "num_heads": num_heads,
        "num_kv_heads": fields.count("n_kv_heads", num_heads),
        "head_width": fields.count("head_dim", width // num_heads),
        "vocab_size": fields.count("vocab_size"),
        "ffn": _ffn(fields),
        "attention": _attention(fields, num_layers),
        "rope": rope,
        "query_scaling": query_scaling,
        "norm_epsilon": fields.number("norm_eps", 1e-5),
        "tied_head": fields.flag("tied_embeddings", not has_head),
        "qkv_bias": False,
        "max_positions": positions,
    }


def _inner(fields: Fields, name: str) -> Fields:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise fields.error(name, value, "an object")
    return Fields(value, f"{fields.path}: {name}")


def _ffn(fields: Fields) -> dict:
    width = fields.count("hidden_dim")
    if not fields.get("moe"):
        return {"kind": "dense", "width": width}
    moe = _inner(fields, "moe")
    if moe.get("num_shared_experts"):
        raise moe.error("num_shared_experts", moe.get("num_shared_experts"), "none (Mixtral)")
    return {
        "kind": "moe",
        "width": width,
        "num_experts": moe.count("num_experts"),
        "top_k": moe.count("num_experts_per_tok"),
    }


def _attention(fields: Fields, num_layers: int) -> dict:
    """Read sliding_window: a number, null, or a list of both that repeats over the depth."""
    window = fields.get("sliding_window", fields.get("_sliding_window"))
    pattern = window if isinstance(window, list) else [window]
    windows = {entry for entry in pattern if entry is not None}
    if (
        not pattern
        or num_layers % len(pattern)
        or len(windows) > 1
        or any(type(entry) is not int or entry < 1 for entry in windows)
    ):
        raise fields.error(
            "sliding_window", window, "a whole number >= 1, null, or a list of one such and nulls"
        )
    layers = ["full" if entry is None else "window" for entry in pattern]
    return attention_of_layers(layers * (num_layers // len(pattern)), max(windows, default=None))


def _rope(fields: Fields) -> tuple[dict, dict]:
    # 10000 is the reference implementation's base where v0.1's params.json has none.
    theta = fields.number("rope_theta", 10_000.0)
    scaling: dict = {"kind": "none"}
    if fields.get("llama_4_scaling"):
        llama = _inner(fields, "llama_4_scaling")
        scaling = {
            "kind": "log",
            "beta": llama.number("beta"),
            "period": llama.count("original_max_position_embeddings"),
        }
    if not fields.get("yarn"):
        return {"kind": "default", "theta": theta}, scaling
    yarn = _inner(fields, "yarn")
    rope = {
        "kind": "yarn",
        "theta": theta,
        "factor": yarn.number("factor"),
        "original_max_positions": yarn.count("original_max_position_embeddings"),
        "beta_fast": yarn.number("beta", 32.0),
        "beta_slow": yarn.number("alpha", 1.0),
    }
    if not yarn.flag("apply_scale", True):
        # As transformers spells "no gain": both logarithmic gains, which cancel.
        rope |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    return rope, scaling


def params_json(decoder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params.json of a consolidated export; inverse of `decoder_from_params`.

    Raises:
        ValueError: q/k/v biases, or a rotary gain that this format cannot say.
    """
    if decoder["qkv_bias"]:
        raise ValueError("cannot export q/k/v biases as consolidated; use the format hf")
    attention, rope, ffn = decoder["attention"], decoder["rope"], decoder["ffn"]
    params = {
        "dim": decoder["width"],
        "n_layers": decoder["num_layers"],
        "head_dim": decoder["head_width"],
        "hidden_dim": ffn["width"],
        "n_heads": decoder["num_heads"],
        "n_kv_heads": decoder["num_kv_heads"],
        "norm_eps": decoder["norm_epsilon"],
        "vocab_size": decoder["vocab_size"],
        "rope_theta": rope["theta"],
        "max_seq_len": decoder["max_positions"],
        "max_position_embeddings": decoder["max_positions"],
        "tied_embeddings": decoder["tied_head"],
    }
    if attention["kind"] == "window":
        params["sliding_window"] = attention["window"]
    if attention["kind"] == "interleaved":
        params["sliding_window"] = [
            attention["window"] if layer == "window" else None for layer in attention["period"]
        ]
    if ffn["kind"] == "moe":
        if ffn.get("num_groups", 1) > 1:
            raise ValueError("experts in named groups cannot be exported as consolidated")
        params["moe"] = {"num_experts": ffn["num_experts"], "num_experts_per_tok": ffn["top_k"]}
    if rope["kind"] == "yarn":
        params["yarn"] = _yarn(rope)
    scaling = decoder["query_scaling"]
    if scaling["kind"] == "log":
        params["llama_4_scaling"] = {
            "original_max_position_embeddings": scaling["period"],
            "beta": scaling["beta"],
        }
    return params


def _yarn(rope: Mapping[str, Any]) -> dict[str, Any]:
    has_no_gain = rope.get("attention_factor") == 1.0 or (
        rope["mscale"] and rope["mscale"] == rope["mscale_all_dim"]
    )
    is_plain = rope.get("attention_factor") is None and not (
        rope["mscale"] and rope["mscale_all_dim"]
    )
    if (not has_no_gain and not is_plain) or not rope["truncate"]:
        raise ValueError(
            "params.json cannot say this rotary embedding's gain (mscale, attention_factor, "
            "truncate); use the format hf"
        )
    return {
        "factor": rope["factor"],
        "original_max_position_embeddings": rope["original_max_positions"],
        "beta": rope["beta_fast"],
        "alpha": rope["beta_slow"],
        "apply_scale": not has_no_gain,
    }
