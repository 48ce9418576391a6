"""Mistral's own params.json (beside consolidated.safetensors) to our decoder's fields, and back.

Latent attention and its mixtures (Small 4, Large 3) are read as vLLM and transformers read them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral_jax.formats.fields import Fields
from mistral_jax.formats.hf_config import attention_of_layers

TEKKEN_SIZE, TEKKEN_POSITIONS = 131072, 131072


def decoder_from_params(params: Mapping[str, Any], path: Path | str, *, has_head: bool) -> dict:
    """Return our decoder's fields; a vision encoder beside the text model is left out.

    Raises:
        ValueError: a router with a bias, or another number format than bf16 and fp8.
    """
    fields = Fields(params, path)
    if params.get("model_type", "transformer") != "transformer":
        raise fields.error("model_type", params["model_type"], "transformer")
    _check_quantization(fields)
    fields.refuse_unless("activation", ("silu",))
    width, num_heads = fields.count("dim"), fields.count("n_heads")
    num_layers = fields.count("n_layers")
    # Silent in the 7Bs (32,768) and in Devstral (131,072, with the tekken vocabulary).
    silent = TEKKEN_POSITIONS if fields.get("vocab_size") == TEKKEN_SIZE else 32768
    positions = fields.count("max_seq_len", fields.count("max_position_embeddings", silent))
    is_latent = bool(fields.get("kv_lora_rank"))
    rope, query_scaling = _rope(fields, is_latent=is_latent)
    head_width, num_kv_heads = width // num_heads, num_heads
    if is_latent:
        fields.refuse_unless("n_kv_heads", (num_heads,))
        attention, ffn = _latent(fields), _mixture(fields, num_layers)
        head_width = attention["content_width"] + attention["rotary_width"]
    else:
        attention, ffn = _attention(fields, num_layers), _ffn(fields)
        head_width = fields.count("head_dim", width // num_heads)
        num_kv_heads = fields.count("n_kv_heads", num_heads)
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
        "norm_epsilon": fields.number("norm_eps", 1e-5),
        "tied_head": fields.flag("tied_embeddings", not has_head),
        "qkv_bias": False,
        "max_positions": positions,
    }


def _check_quantization(fields: Fields) -> None:
    if fields.get("quantization"):
        quantization = _inner(fields, "quantization")
        if quantization.get("qformat_weight") != "fp8_e4m3":
            raise fields.error(
                "quantization", quantization.values, "qformat_weight fp8_e4m3, or none"
            )
    if fields.get("quantization_config"):
        groups = _inner(fields, "quantization_config").get("config_groups")
        formats = (
            {group.get("format") if isinstance(group, dict) else None for group in groups.values()}
            if isinstance(groups, dict)
            else {None}
        )
        if formats != {"float-quantized"}:
            raise fields.error(
                "quantization_config", f"of {', '.join(sorted(map(str, formats)))}",
                "the format float-quantized (FP8), or none",
            )  # fmt: skip


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
        raise moe.error(
            "num_shared_experts", moe.get("num_shared_experts"), "none without kv_lora_rank"
        )
    return {
        "kind": "moe",
        "width": width,
        "num_experts": moe.count("num_experts"),
        "top_k": moe.count("num_experts_per_tok"),
    }


def _latent(fields: Fields) -> dict:
    found = {
        "kind": "latent",
        "latent_rank": fields.count("kv_lora_rank"),
        "content_width": fields.count("qk_nope_head_dim"),
        "rotary_width": fields.count("qk_rope_head_dim"),
        "value_width": fields.count("v_head_dim"),
    }
    if fields.get("q_lora_rank") is not None:
        found["query_rank"] = fields.count("q_lora_rank")
    if fields.get("sliding_window") is not None:
        raise fields.error("sliding_window", fields.get("sliding_window"), "none with kv_lora_rank")
    return found


def _mixture(fields: Fields, num_layers: int) -> dict:
    """Read the mixture of a model with latent attention; without one it is dense."""
    dense_width = fields.count("hidden_dim")
    if not fields.get("moe"):
        return {"kind": "dense", "width": dense_width}
    moe = _inner(fields, "moe")
    moe.refuse_unless("route_every_n", (1,))
    moe.refuse_unless("use_load_balancing_bias", (False,))
    num_dense = _count_or_zero(moe, "first_k_dense_replace")
    if num_dense >= num_layers:
        return {"kind": "dense", "width": dense_width}
    groups = moe.count("num_expert_groups", 1)
    chosen = moe.count("num_expert_groups_per_tok", groups)
    found = {
        "kind": "moe",
        "width": moe.count("expert_hidden_dim"),
        "num_experts": moe.count("num_experts"),
        "num_groups": groups,
        "top_k": moe.count("num_experts_per_tok"),
        "weights_scale": moe.number("routed_scale", 1.0),
        "num_shared_experts": _count_or_zero(moe, "num_shared_experts"),
        "num_dense_layers": num_dense,
    }
    if chosen != groups:
        found["groups_per_token"] = chosen
    return found | ({"dense_width": dense_width} if num_dense else {})


def _count_or_zero(fields: Fields, name: str) -> int:
    value = fields.get(name)
    return 0 if value is None or (type(value) is int and value == 0) else fields.count(name)


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


def _rope(fields: Fields, *, is_latent: bool) -> tuple[dict, dict]:
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
    has_gain = yarn.flag("apply_scale", True)
    if is_latent and not has_gain:
        # Not as below: with latent attention mscale_all_dim scales the scores too.
        rope["attention_factor"] = 1.0
    elif is_latent or not has_gain:
        # Both logarithmic gains cancel on the tables: transformers' "no gain" for others, for
        # latent attention DeepSeek's gain on the whole score.
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
    is_latent = attention["kind"] == "latent"
    if is_latent:
        params |= _latent_params(attention)
    if ffn["kind"] == "moe" and is_latent:
        params["hidden_dim"] = ffn["dense_width"] or ffn["width"]
        params["moe"] = _mixture_params(ffn)
    elif ffn["kind"] == "moe":
        if ffn.get("num_groups", 1) > 1:
            raise ValueError("experts in named groups cannot be exported as consolidated")
        params["moe"] = {"num_experts": ffn["num_experts"], "num_experts_per_tok": ffn["top_k"]}
    if rope["kind"] == "yarn":
        params["yarn"] = _yarn(rope, is_latent=is_latent)
    scaling = decoder["query_scaling"]
    if scaling["kind"] == "log":
        params["llama_4_scaling"] = {
            "original_max_position_embeddings": scaling["period"],
            "beta": scaling["beta"],
        }
    return params


def _latent_params(attention: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "q_lora_rank": attention["query_rank"],
        "kv_lora_rank": attention["latent_rank"],
        "qk_nope_head_dim": attention["content_width"],
        "qk_rope_head_dim": attention["rotary_width"],
        "v_head_dim": attention["value_width"],
    }


def _mixture_params(ffn: Mapping[str, Any]) -> dict[str, Any]:
    if ffn["router"]["kind"] != "softmax" or not ffn["is_normalised"]:
        raise ValueError(
            "params.json knows routers with softmax scores and normalised weights only; use the "
            "format hf"
        )
    if ffn["within_groups"] == "even":
        raise ValueError("params.json cannot say ffn.within_groups: even; there is no other format")
    return {
        "num_experts": ffn["num_experts"],
        "num_experts_per_tok": ffn["top_k"],
        "expert_hidden_dim": ffn["width"],
        "first_k_dense_replace": ffn["num_dense_layers"],
        "num_shared_experts": ffn["num_shared_experts"],
        "routed_scale": ffn["weights_scale"],
        "route_every_n": 1,
        "num_expert_groups": ffn["num_groups"],
        "num_expert_groups_per_tok": ffn["groups_per_token"] or ffn["num_groups"],
    }


def _yarn(rope: Mapping[str, Any], *, is_latent: bool) -> dict[str, Any]:
    factor, gains = rope.get("attention_factor"), (rope["mscale"], rope["mscale_all_dim"])
    if is_latent:
        # The whole score's gain is read from mscale_all_dim, whatever the tables' factor.
        has_no_gain = factor == 1.0 and not gains[1]
        is_plain = factor is None and gains == (1.0, 1.0)
    else:
        has_no_gain = factor == 1.0 or (gains[0] and gains[0] == gains[1])
        is_plain = factor is None and not all(gains)
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
