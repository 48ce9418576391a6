"""GGUF metadata to our decoder's fields, and back.

Architectures llama (Llama, Mistral, Mixtral), mistral3 (Ministral 3: YaRN and log query scaling)
and qwen2. Other scaled rotary embeddings are refused by name. llama.cpp's llama graph knows no
sliding window: a window is written as metadata, so our own reader keeps it, but llama.cpp gives the
same numbers only within the window's length.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mistral_jax.formats.fields import Fields
from mistral_jax.formats.fields import tidy_float

ARCHITECTURES = ("llama", "mistral3", "qwen2")
# llama.cpp's llama_ftype: what most tensors of the file are.
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}


def decoder_from_gguf(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path | str
) -> dict:
    """Return our decoder's fields.

    Args:
        metadata: the file's metadata.
        shapes: its tensors' shapes by name, outermost axis first.
        path: named in errors.

    Raises:
        ValueError: an architecture or option that our decoder does not compute.
    """
    fields = Fields(metadata, path)
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise fields.error("general.architecture", arch, ", ".join(ARCHITECTURES))
    if "rope_freqs.weight" in shapes:
        raise fields.error("rope_freqs.weight", "present", "rotary embeddings without scaling")
    width = fields.count(f"{arch}.embedding_length")
    num_heads = fields.count(f"{arch}.attention.head_count")
    head_width = fields.count(f"{arch}.attention.key_length", width // num_heads)
    for name in ("rope.dimension_count", "attention.value_length"):
        fields.refuse_unless(f"{arch}.{name}", (head_width,))
    window = metadata.get(f"{arch}.attention.sliding_window")
    if window is not None:
        window = fields.count(f"{arch}.attention.sliding_window")
    has_bias = "blk.0.attn_q.bias" in shapes
    if has_bias != (arch == "qwen2"):
        raise ValueError(
            f"{path}: architecture {arch!r} with{'' if has_bias else 'out'} q/k/v biases; "
            f"supported: llama and mistral3 without, qwen2 with"
        )
    embedding = shapes.get("token_embd.weight", (0,))
    return {
        "kind": "decoder",
        "num_layers": fields.count(f"{arch}.block_count"),
        "width": width,
        "num_heads": num_heads,
        "num_kv_heads": fields.count(f"{arch}.attention.head_count_kv", num_heads),
        "head_width": head_width,
        "vocab_size": fields.count(f"{arch}.vocab_size", embedding[0]),
        "ffn": _ffn(fields, arch, shapes),
        "attention": {"kind": "window", "window": window} if window else {"kind": "full"},
        "rope": _rope(fields, arch),
        "query_scaling": _query_scaling(fields, arch),
        "norm_epsilon": tidy_float(fields.number(f"{arch}.attention.layer_norm_rms_epsilon")),
        "tied_head": "output.weight" not in shapes,
        "qkv_bias": has_bias,
        "max_positions": fields.count(f"{arch}.context_length"),
    }


def _rope(fields: Fields, arch: str) -> dict:
    theta = tidy_float(fields.number(f"{arch}.rope.freq_base", 10_000.0))
    kind = fields.get(f"{arch}.rope.scaling.type") or "none"
    if kind == "none":
        return {"kind": "default", "theta": theta}
    # llama.cpp gives YaRN other gains than the paper's; with the log multiplier 1 there is none.
    log_multiplier = fields.get(f"{arch}.rope.scaling.yarn_log_multiplier")
    if kind != "yarn" or log_multiplier != 1.0:
        raise fields.error(
            f"{arch}.rope.scaling.type", kind, "none, or yarn with yarn_log_multiplier 1"
        )
    scaling = f"{arch}.rope.scaling"
    return {
        "kind": "yarn",
        "theta": theta,
        "factor": tidy_float(fields.number(f"{scaling}.factor")),
        "original_max_positions": fields.count(f"{scaling}.original_context_length"),
        "beta_fast": tidy_float(fields.number(f"{scaling}.yarn_beta_fast", 32.0)),
        "beta_slow": tidy_float(fields.number(f"{scaling}.yarn_beta_slow", 1.0)),
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }


def _query_scaling(fields: Fields, arch: str) -> dict:
    name = f"{arch}.attention.temperature_scale"
    if not fields.get(name):
        return {"kind": "none"}
    period = fields.count(f"{arch}.rope.scaling.original_context_length")
    return {"kind": "log", "beta": tidy_float(fields.number(name)), "period": period}


def _ffn(fields: Fields, arch: str, shapes: Mapping[str, tuple[int, ...]]) -> dict:
    width = fields.count(f"{arch}.feed_forward_length")
    if not fields.get(f"{arch}.expert_count"):
        return {"kind": "dense", "width": width}
    if "blk.0.ffn_gate.0.weight" in shapes:
        raise ValueError(
            f"{fields.path}: an old file with one tensor for each expert; convert the checkpoint "
            "again with a llama.cpp of 2024 or later"
        )
    return {
        "kind": "moe",
        "width": width,
        "num_experts": fields.count(f"{arch}.expert_count"),
        "top_k": fields.count(f"{arch}.expert_used_count"),
    }


def gguf_metadata(
    decoder: Mapping[str, Any], *, name: str, file_type: str, languages: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the model part of a GGUF file's metadata; the tokenizer adds its own part.

    Args:
        decoder: our decoder's fields.
        name: the model's name, shown by llama.cpp.
        file_type: the type of most tensors: F32, F16, BF16 or Q8_0.
        languages: optional ISO codes.
    """
    if file_type not in FILE_TYPES:
        raise ValueError(f"file_type {file_type!r}: expected one of {', '.join(FILE_TYPES)}")
    ffn, attention = decoder["ffn"], decoder["attention"]
    rope, scaling = decoder["rope"], decoder["query_scaling"]
    is_ministral3 = rope["kind"] == "yarn" and scaling["kind"] == "log"
    problems = {
        "a rotary gain (mscale, attention_factor) or exact ramp": rope["kind"] == "yarn"
        and not (rope["mscale"] == rope["mscale_all_dim"] == 1.0 and rope["truncate"]),
        "YaRN without log query scaling, or that without YaRN": not is_ministral3
        and (rope["kind"], scaling["kind"]) != ("default", "none"),
        "log query scaling with a period of its own": is_ministral3
        and scaling["period"] != rope["original_max_positions"],
        "experts or biases with YaRN": is_ministral3
        and (ffn["kind"] != "dense" or decoder["qkv_bias"]),
        "interleaved windows": attention["kind"] == "interleaved",
        "experts in named groups": ffn.get("num_groups", 1) > 1,
    }
    cannot = [name for name, is_asked in problems.items() if is_asked]
    if cannot:
        raise ValueError(f"cannot export {' and '.join(cannot)} to GGUF; export as hf")
    query_width = decoder["num_heads"] * decoder["head_width"]
    if decoder["qkv_bias"] and query_width != decoder["width"]:
        raise ValueError(
            f"cannot export to GGUF: llama.cpp's qwen2 wants heads times head width "
            f"({query_width}) equal to the width ({decoder['width']}); export as hf"
        )
    arch = "qwen2" if decoder["qkv_bias"] else "mistral3" if is_ministral3 else "llama"
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": name,
        "general.file_type": FILE_TYPES[file_type],
        "general.quantization_version": 2,
        f"{arch}.block_count": decoder["num_layers"],
        f"{arch}.context_length": decoder["max_positions"],
        f"{arch}.embedding_length": decoder["width"],
        f"{arch}.feed_forward_length": ffn["width"],
        f"{arch}.attention.head_count": decoder["num_heads"],
        f"{arch}.attention.head_count_kv": decoder["num_kv_heads"],
        f"{arch}.attention.key_length": decoder["head_width"],
        f"{arch}.attention.value_length": decoder["head_width"],
        f"{arch}.attention.layer_norm_rms_epsilon": float(decoder["norm_epsilon"]),
        f"{arch}.rope.freq_base": float(decoder["rope"]["theta"]),
        f"{arch}.rope.dimension_count": decoder["head_width"],
        f"{arch}.vocab_size": decoder["vocab_size"],
    }
    if languages:
        metadata["general.languages"] = list(languages)
    if attention["kind"] == "window":
        metadata[f"{arch}.attention.sliding_window"] = attention["window"]
    if is_ministral3:
        metadata |= {
            f"{arch}.rope.scaling.type": "yarn",
            f"{arch}.rope.scaling.factor": float(rope["factor"]),
            f"{arch}.rope.scaling.original_context_length": rope["original_max_positions"],
            f"{arch}.rope.scaling.yarn_beta_fast": float(rope["beta_fast"]),
            f"{arch}.rope.scaling.yarn_beta_slow": float(rope["beta_slow"]),
            f"{arch}.rope.scaling.yarn_log_multiplier": 1.0,
            f"{arch}.attention.temperature_scale": float(scaling["beta"]),
        }
    if ffn["kind"] == "moe":
        metadata[f"{arch}.expert_count"] = ffn["num_experts"]
        metadata[f"{arch}.expert_used_count"] = ffn["top_k"]
    return metadata
