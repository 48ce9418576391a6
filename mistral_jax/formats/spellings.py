"""What other people's files call the parts of a layer. Tables only; names.py puts them to use.

Sources of the names of latent attention and its mixtures: transformers' deepseek_v3 and mistral4,
and for Mistral's consolidated layout what vLLM and transformers map from it.
"""

import dataclasses
from collections.abc import Mapping

OUTER = {
    "embed/embedding": {
        "hf": "model.embed_tokens.weight",
        "gguf": "token_embd.weight",
        "consolidated": "tok_embeddings.weight",
    },
    "final_norm/scale": {
        "hf": "model.norm.weight",
        "gguf": "output_norm.weight",
        "consolidated": "norm.weight",
    },
    "head/kernel": {
        "hf": "lm_head.weight",
        "gguf": "output.weight",
        "consolidated": "output.weight",
    },
}
LAYER_PREFIX = {"hf": "model.layers.{}.", "gguf": "blk.{}.", "consolidated": "layers.{}."}
LAYER = {
    "attention_norm": {
        "hf": "input_layernorm",
        "gguf": "attn_norm",
        "consolidated": "attention_norm",
    },
    "mlp_norm": {
        "hf": "post_attention_layernorm",
        "gguf": "ffn_norm",
        "consolidated": "ffn_norm",
    },
    "q_proj": {"hf": "self_attn.q_proj", "gguf": "attn_q", "consolidated": "attention.wq"},
    "k_proj": {"hf": "self_attn.k_proj", "gguf": "attn_k", "consolidated": "attention.wk"},
    "v_proj": {"hf": "self_attn.v_proj", "gguf": "attn_v", "consolidated": "attention.wv"},
    "o_proj": {"hf": "self_attn.o_proj", "gguf": "attn_output", "consolidated": "attention.wo"},
    "q_a_proj": {"hf": "self_attn.q_a_proj", "consolidated": "attention.wq_a"},
    "q_a_norm": {"hf": "self_attn.q_a_layernorm", "consolidated": "attention.q_a_norm"},
    "q_b_proj": {"hf": "self_attn.q_b_proj", "consolidated": "attention.wq_b"},
    "kv_a_proj": {
        "hf": "self_attn.kv_a_proj_with_mqa",
        "consolidated": "attention.wkv_a_with_mqa",
    },
    "kv_a_norm": {"hf": "self_attn.kv_a_layernorm", "consolidated": "attention.kv_a_norm"},
    "kv_b_proj": {"hf": "self_attn.kv_b_proj", "consolidated": "attention.wkv_b"},
    "gate_proj": {"hf": "mlp.gate_proj", "gguf": "ffn_gate", "consolidated": "feed_forward.w1"},
    "up_proj": {"hf": "mlp.up_proj", "gguf": "ffn_up", "consolidated": "feed_forward.w3"},
    "down_proj": {"hf": "mlp.down_proj", "gguf": "ffn_down", "consolidated": "feed_forward.w2"},
}


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How a layout spells a mixture's tensors.

    Attributes:
        router, bias: whole names; None where the layout has no such thing.
        experts: name of each projection of an expert, {} for its number; without it one tensor
            stacks them all.
        shared: name of each projection of the shared experts, or None.
        parts: projections that share one tensor: which part of its rows, of how many.
    """

    router: str
    experts: Mapping[str, str]
    bias: str | None = None
    shared: Mapping[str, str] | None = None
    parts: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


def _three(gate: str, up: str, down: str) -> dict[str, str]:
    return {"gate_proj": gate, "up_proj": up, "down_proj": down}


_SHARED = _three(*(f"mlp.shared_experts.{name}_proj.weight" for name in ("gate", "up", "down")))
_W132 = ("w1.weight", "w3.weight", "w2.weight")  # gate, up, down
MIXTURES = {
    ("mixtral", "hf"): Mixture(
        "block_sparse_moe.gate.weight",
        _three(*(f"block_sparse_moe.experts.{{}}.{name}" for name in _W132)),
    ),
    ("mixtral", "gguf"): Mixture(
        "ffn_gate_inp.weight",
        _three("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"),
    ),
    ("mixtral", "consolidated"): Mixture(
        "feed_forward.gate.weight",
        _three(*(f"feed_forward.experts.{{}}.{name}" for name in _W132)),
    ),
    ("deepseek_v3", "hf"): Mixture(
        "mlp.gate.weight",
        _three(*(f"mlp.experts.{{}}.{name}_proj.weight" for name in ("gate", "up", "down"))),
        bias="mlp.gate.e_score_correction_bias",
        shared=_SHARED,
    ),
    ("mistral4", "hf"): Mixture(
        "mlp.gate.weight",
        _three("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
        shared=_SHARED,
        parts={"gate_proj": (0, 2), "up_proj": (1, 2)},
    ),
    ("mistral4", "consolidated"): Mixture(
        "gate.weight",
        _three(*(f"experts.{{}}.{name}" for name in _W132)),
        shared=_three(*(f"shared_experts.{name}" for name in _W132)),
    ),
}
