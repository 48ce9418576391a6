"""config.json of transformers' deepseek_v3 and mistral4: latent attention, experts in groups.

Both compute the same but for the router's scores (sigmoid with a bias, or softmax) and log query
scaling, which mistral4 alone has. Used by hf_config.py.
"""

from collections.abc import Mapping
from typing import Any

from mistral_jax.formats.fields import Fields

# The router's scores of each model type.
ROUTERS = {"deepseek_v3": "sigmoid", "mistral4": "softmax"}
_CLASSES = {"deepseek_v3": "DeepseekV3ForCausalLM", "mistral4": "Mistral4ForCausalLM"}


def attention(fields: Fields, num_heads: int) -> dict:
    """Return the fields of the attention.

    Raises:
        ValueError: fewer key heads than heads, or ranks and widths that are none.
    """
    fields.refuse_unless("num_key_value_heads", (num_heads,))
    found = {
        "kind": "latent",
        "latent_rank": fields.count("kv_lora_rank"),
        "content_width": fields.count("qk_nope_head_dim"),
        "rotary_width": fields.count("qk_rope_head_dim"),
        "value_width": fields.count("v_head_dim"),
    }
    if fields.get("q_lora_rank") is not None:
        found["query_rank"] = fields.count("q_lora_rank")
    return found


def rotary_fractions(model_type: str, latent: Mapping[str, Any]) -> tuple[float | int, ...]:
    """Return what config.json may give as partial_rotary_factor.

    transformers takes it of head_dim, which for deepseek_v3 is the rotary part alone.
    """
    if model_type == "deepseek_v3":
        return (1.0, 1)
    return (latent["rotary_width"] / (latent["content_width"] + latent["rotary_width"]),)


def ffn(fields: Fields, model_type: str, num_layers: int) -> dict:
    """Return the fields of the feed-forward: a mixture, or a dense one in every layer."""
    kind = ROUTERS[model_type]
    fields.refuse_unless("scoring_func", (kind,))
    fields.refuse_unless("moe_layer_freq", (1,))
    if kind == "sigmoid":
        fields.refuse_unless("topk_method", ("noaux_tc",))
    num_dense = _count_or_zero(fields, "first_k_dense_replace")
    if num_dense >= num_layers:
        return {"kind": "dense", "width": fields.count("intermediate_size")}
    groups = fields.count("n_group", 1)
    chosen = fields.count("topk_group", groups)
    found = {
        "kind": "moe",
        "width": fields.count("moe_intermediate_size"),
        "num_experts": fields.count("n_routed_experts"),
        "num_groups": groups,
        "top_k": fields.count("num_experts_per_tok"),
        "router": {"kind": kind},
        "weights_scale": fields.number("routed_scaling_factor", 1.0),
        "is_normalised": fields.flag("norm_topk_prob", True),
        "num_shared_experts": _count_or_zero(fields, "n_shared_experts"),
        "num_dense_layers": num_dense,
    }
    if chosen != groups:
        found["groups_per_token"] = chosen
    if num_dense:
        found["dense_width"] = fields.count("intermediate_size")
    if fields.get("group_names"):  # ours: transformers keeps the field and has no use for it
        found["group_names"] = group_names(fields)
    return found


def group_names(fields: Fields) -> list[str]:
    """Return the names of the groups, which have no place in anybody else's config."""
    names = fields.get("group_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise fields.error("group_names", names, "a list of texts")
    return names


def _count_or_zero(fields: Fields, name: str) -> int:
    value = fields.get(name)
    return 0 if value is None or (type(value) is int and value == 0) else fields.count(name)


def model_type(decoder: Mapping[str, Any]) -> tuple[str, str]:
    """Return the model type and class of transformers that compute this decoder.

    Raises:
        ValueError: none does.
    """
    mixture, scaling = decoder["ffn"], decoder["query_scaling"]["kind"]
    if mixture["kind"] == "moe" and mixture["within_groups"] == "even":
        raise ValueError(
            "no model of transformers takes equally many experts of each group; this decoder "
            "(ffn.within_groups: even) cannot be exported to Hugging Face"
        )
    is_sigmoid = mixture["kind"] == "moe" and mixture["router"]["kind"] == "sigmoid"
    if is_sigmoid and scaling != "none":
        raise ValueError(
            "no model of transformers has sigmoid routing and log query scaling together; this "
            "decoder cannot be exported to Hugging Face"
        )
    is_deepseeks = is_sigmoid or (mixture["kind"] == "dense" and scaling == "none")
    name = "deepseek_v3" if is_deepseeks else "mistral4"
    return name, _CLASSES[name]


def config(decoder: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the fields of attention, feed-forward and rotary options that are not every model's.

    Args:
        decoder: our decoder's fields.
        name: the model type, of `model_type`.
    """
    latent, mixture = decoder["attention"], decoder["ffn"]
    found = {
        "q_lora_rank": latent["query_rank"],
        "kv_lora_rank": latent["latent_rank"],
        "qk_nope_head_dim": latent["content_width"],
        "qk_rope_head_dim": latent["rotary_width"],
        "v_head_dim": latent["value_width"],
        "rope_interleave": True,
        "attention_bias": False,
        "num_nextn_predict_layers": 0,
    }
    if mixture["kind"] == "dense":
        return found | {"first_k_dense_replace": decoder["num_layers"]}
    found |= {
        "intermediate_size": mixture["dense_width"] or mixture["width"],
        "moe_intermediate_size": mixture["width"],
        "n_routed_experts": mixture["num_experts"],
        "n_shared_experts": mixture["num_shared_experts"],
        "num_experts_per_tok": mixture["top_k"],
        "n_group": mixture["num_groups"],
        "topk_group": mixture["groups_per_token"] or mixture["num_groups"],
        "routed_scaling_factor": mixture["weights_scale"],
        "norm_topk_prob": mixture["is_normalised"],
        "first_k_dense_replace": mixture["num_dense_layers"],
    }
    if mixture["group_names"]:
        found["group_names"] = list(mixture["group_names"])
    if name == "deepseek_v3":
        # transformers needs none of these; servers read them.
        found |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
    return found
