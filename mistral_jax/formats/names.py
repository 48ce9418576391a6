"""Where each of our decoder's parameters lives in other people's files, and in which layout.

Ours: kernels `[in, out]`, all layers stacked on a leading axis (experts on two more: group, expert
of the group), rotary embedding in the rotate-half order of Hugging Face. Theirs: one `[out, in]`
tensor per layer and expert, but GGUF stacks a layer's experts; GGUF (llama) and Mistral's
consolidated files order the rows of q and k for interleaved rotary pairs.
The functions here move one tensor's array and never copy more than numpy must.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any
from typing import Protocol
from typing import runtime_checkable

import numpy as np

FORMATS = ("hf", "gguf", "consolidated", "peft")
ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
PROJECTIONS = ATTENTION_PROJECTIONS + MLP_PROJECTIONS

_OUTER_NAMES = {
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
_LAYER_NAMES = {
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
    "gate_proj": {"hf": "mlp.gate_proj", "gguf": "ffn_gate", "consolidated": "feed_forward.w1"},
    "up_proj": {"hf": "mlp.up_proj", "gguf": "ffn_up", "consolidated": "feed_forward.w3"},
    "down_proj": {"hf": "mlp.down_proj", "gguf": "ffn_down", "consolidated": "feed_forward.w2"},
}
# Mixtral's: the router, and an expert's three matrices ({} is the expert; GGUF stacks them).
_ROUTER_NAMES = {
    "hf": "block_sparse_moe.gate",
    "gguf": "ffn_gate_inp",
    "consolidated": "feed_forward.gate",
}
_EXPERT_NAMES = {
    "gate_proj": {
        "hf": "block_sparse_moe.experts.{}.w1",
        "gguf": "ffn_gate_exps",
        "consolidated": "feed_forward.experts.{}.w1",
    },
    "up_proj": {
        "hf": "block_sparse_moe.experts.{}.w3",
        "gguf": "ffn_up_exps",
        "consolidated": "feed_forward.experts.{}.w3",
    },
    "down_proj": {
        "hf": "block_sparse_moe.experts.{}.w2",
        "gguf": "ffn_down_exps",
        "consolidated": "feed_forward.experts.{}.w2",
    },
}
_LAYER_PREFIX = {"hf": "model.layers.{}.", "gguf": "blk.{}.", "consolidated": "layers.{}."}
_PEFT_PREFIX = "base_model.model."

Index = tuple[int, ...]


@runtime_checkable
class DecoderShape(Protocol):
    """The sizes that fix every parameter's shape; our decoder config has them."""

    @property
    def num_layers(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def tied_head(self) -> bool: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def ffn(self) -> Any:
        """Has kind and width; experts also num_experts and num_groups."""
        ...


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a foreign file and the place of its content in our tree.

    Attributes:
        path: our parameter's path.
        foreign_name: the tensor's name in the file.
        index: where in our array it goes: () for embedding, final norm and head, (layer,), or
            (layer, group, expert of the group).
        transpose: the file holds `[out, in]` where we hold `[in, out]`.
        permute_heads: number of heads whose rows the file keeps in interleaved rotary order,
            None where the file has our own (rotate-half) order.
        shape: the tensor's shape in the file.
        num_groups: of the experts that the tensor stacks on its first axis, or None.
    """

    path: str
    foreign_name: str
    index: Index
    transpose: bool
    permute_heads: int | None
    shape: tuple[int, ...]
    num_groups: int | None = None


def projection_sizes(shape: DecoderShape) -> dict[str, tuple[int, int]]:
    """Return (in, out) of the seven projections of a layer."""
    query, key = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
    width, hidden = shape.width, shape.ffn.width
    return {
        "q_proj": (width, query),
        "k_proj": (width, key),
        "v_proj": (width, key),
        "o_proj": (query, width),
        "gate_proj": (width, hidden),
        "up_proj": (width, hidden),
        "down_proj": (hidden, width),
    }


def projection_path(projection: str) -> str:
    """Return the tree path of a projection, `layers/attention/q_proj` for `q_proj`."""
    room = "attention" if projection in ATTENTION_PROJECTIONS else "mlp"
    return f"layers/{room}/{projection}"


def entries(
    shape: DecoderShape,
    format: str,
    *,
    target_modules: Sequence[str] = PROJECTIONS,
    rank: int | None = None,
) -> list[Entry]:
    """List every tensor that a file of this format must hold for this decoder.

    Args:
        shape: the decoder's sizes.
        format: one of `FORMATS`.
        target_modules: for "peft" only: which projections carry an adapter.
        rank: for "peft" only, and needed there: the adapter's rank.

    Raises:
        ValueError: an unknown format or module, a missing rank, or a format that cannot hold
            this decoder (consolidated files have no q/k/v bias).
    """
    if format not in FORMATS:
        raise ValueError(f"unknown weight format {format!r}; expected one of {', '.join(FORMATS)}")
    if format == "peft":
        return _adapter_entries(shape, target_modules, rank)
    if format == "consolidated" and shape.qkv_bias:
        raise ValueError("consolidated files cannot hold q/k/v biases; use the format hf or gguf")
    if shape.qkv_bias and shape.ffn.kind == "moe":
        raise ValueError("no format here holds both experts and q/k/v biases")
    outer = {
        "embed/embedding": (shape.vocab_size, shape.width),
        "final_norm/scale": (shape.width,),
        "head/kernel": (shape.vocab_size, shape.width),
    }
    table = [
        Entry(path, _OUTER_NAMES[path][format], (), path == "head/kernel", None, size)
        for path, size in outer.items()
        if path != "head/kernel" or not shape.tied_head
    ]
    for layer in range(shape.num_layers):
        table += _layer_entries(shape, format, layer)
    return table


def _layer_entries(shape: DecoderShape, format: str, layer: int) -> list[Entry]:
    prefix = _LAYER_PREFIX[format].format(layer)
    # llama.cpp runs biased (qwen2) models with rotate-half rotary: their rows stay as they are.
    is_interleaved = format == "consolidated" or (format == "gguf" and not shape.qkv_bias)
    heads = {"q_proj": shape.num_heads, "k_proj": shape.num_kv_heads} if is_interleaved else {}
    has_experts = shape.ffn.kind == "moe"
    table = []
    for norm in ("attention_norm", "mlp_norm"):
        name = f"{prefix}{_LAYER_NAMES[norm][format]}.weight"
        table.append(Entry(f"layers/{norm}/scale", name, (layer,), False, None, (shape.width,)))
    for projection, (size_in, size_out) in projection_sizes(shape).items():
        path = projection_path(projection)
        if has_experts and projection in MLP_PROJECTIONS:
            table += _expert_entries(shape, format, layer, projection, (size_out, size_in))
            continue
        name = prefix + _LAYER_NAMES[projection][format]
        permute = heads.get(projection)
        table.append(
            Entry(f"{path}/kernel", f"{name}.weight", (layer,), True, permute, (size_out, size_in))
        )
        if shape.qkv_bias and projection in ("q_proj", "k_proj", "v_proj"):
            table.append(
                Entry(f"{path}/bias", f"{name}.bias", (layer,), False, permute, (size_out,))
            )
    if has_experts:
        name = f"{prefix}{_ROUTER_NAMES[format]}.weight"
        size = (shape.ffn.num_experts, shape.width)
        table.append(Entry("layers/mlp/router/kernel", name, (layer,), True, None, size))
    return table


def _expert_entries(
    shape: DecoderShape, format: str, layer: int, projection: str, size: tuple[int, int]
) -> list[Entry]:
    """List one projection of a layer's experts; `size` is [out, in]."""
    path = f"{projection_path(projection)}/kernel"
    name = f"{_LAYER_PREFIX[format].format(layer)}{_EXPERT_NAMES[projection][format]}.weight"
    groups, experts = shape.ffn.num_groups, shape.ffn.num_experts
    if format == "gguf":
        return [Entry(path, name, (layer,), True, None, (experts, *size), num_groups=groups)]
    return [
        Entry(
            path, name.format(expert), (layer, *divmod(expert, experts // groups)), True, None, size
        )
        for expert in range(experts)
    ]


def _adapter_entries(
    shape: DecoderShape, target_modules: Sequence[str], rank: int | None
) -> list[Entry]:
    if shape.ffn.kind == "moe" and set(target_modules) & set(MLP_PROJECTIONS):
        raise ValueError(
            "adapters on a mixture's experts are not written yet; target_modules may be "
            f"{', '.join(ATTENTION_PROJECTIONS)}"
        )
    unknown = [module for module in target_modules if module not in PROJECTIONS]
    if unknown or not target_modules:
        raise ValueError(
            f"target_modules {list(target_modules)}: expected one or more of "
            f"{', '.join(PROJECTIONS)}"
        )
    if rank is None or rank < 1:
        raise ValueError(f"the format peft needs the adapter's rank >= 1, got {rank}")
    sizes = projection_sizes(shape)
    table = []
    for layer in range(shape.num_layers):
        for module in (name for name in PROJECTIONS if name in target_modules):
            size_in, size_out = sizes[module]
            name = f"{_PEFT_PREFIX}{_LAYER_PREFIX['hf'].format(layer)}{_LAYER_NAMES[module]['hf']}"
            path = projection_path(module)
            for ours, theirs, size in (
                ("lora_a", "lora_A", (rank, size_in)),
                ("lora_b", "lora_B", (size_out, rank)),
            ):
                table.append(
                    Entry(f"{path}/{ours}", f"{name}.{theirs}.weight", (layer,), True, None, size)
                )
    return table


def to_foreign(array: np.ndarray, entry: Entry) -> np.ndarray:
    """Bring one of our arrays (its slice at `entry.index`) into the file's layout."""
    if entry.num_groups is not None:
        array = array.reshape(-1, *array.shape[2:])
    array = array.swapaxes(-1, -2) if entry.transpose else array
    if entry.permute_heads is None:
        return array
    halves = (entry.permute_heads, 2, array.shape[0] // entry.permute_heads // 2)
    return array.reshape(*halves, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def from_foreign(array: np.ndarray, entry: Entry) -> np.ndarray:
    """Bring a file's tensor into our layout (the slice at `entry.index`); inverts `to_foreign`."""
    if entry.permute_heads is not None:
        pairs = (entry.permute_heads, array.shape[0] // entry.permute_heads // 2, 2)
        array = array.reshape(*pairs, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    array = array.swapaxes(-1, -2) if entry.transpose else array
    if entry.num_groups is not None:
        array = array.reshape(entry.num_groups, -1, *array.shape[1:])
    return array
