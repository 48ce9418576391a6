"""PEFT adapters: written, read back, and refused where they are of another kind."""

import functools
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mistral_jax.formats import detect
from mistral_jax.formats import names
from mistral_jax.formats import peft
from mistral_jax.formats.safetensors_file import SafetensorsReader
from mistral_jax.formats.tensor_source import TensorSource

SHAPE = detect.decoder_shape(
    {
        "num_layers": 2,
        "width": 8,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_width": 4,
        "vocab_size": 10,
        "ffn": {"kind": "dense", "width": 12},
        "tied_head": True,
        "qkv_bias": False,
    }
)
SETTINGS = peft.AdapterSettings(
    rank=3, alpha=6.0, dropout=0.1, target_modules=("q_proj", "down_proj"), base_model="base"
)


def arrays() -> dict[str, np.ndarray]:
    numbers, sizes = np.random.default_rng(0), names.projection_sizes(SHAPE)
    made = {}
    for module in SETTINGS.target_modules:
        path, (size_in, size_out) = names.projection_path(module), sizes[module]
        for leaf, size in (("lora_a", (2, size_in, 3)), ("lora_b", (2, 3, size_out))):
            made[f"{path}/{leaf}"] = numbers.normal(size=size).astype(ml_dtypes.bfloat16)
    return made


def write(folder: Path) -> dict[str, np.ndarray]:
    ours = arrays()
    table = names.entries(SHAPE, "peft", target_modules=SETTINGS.target_modules, rank=3)
    sources = peft.adapter_sources(table, ours, np.dtype(ml_dtypes.bfloat16))
    peft.write_adapter(folder, SETTINGS, sources)
    return ours


def test_an_adapter_reads_back_byte_for_byte(tmp_path: Path) -> None:
    ours = write(tmp_path)
    adapter = peft.AdapterFile(tmp_path)
    assert adapter.settings == SETTINGS
    for entry in adapter.entries(SHAPE):
        found = names.from_foreign(adapter.tensor(entry.foreign_name), entry)
        assert found.tobytes() == ours[entry.path][entry.index].tobytes()


def test_the_config_says_what_peft_asks_for(tmp_path: Path) -> None:
    write(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 3,
        "lora_alpha": 6,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "down_proj"],
        "bias": "none",
        "use_rslora": False,
        "base_model_name_or_path": "base",
    }
    assert expected.items() <= config.items()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"use_dora": True}, "lora_magnitude_vector.*missing"),
        ({"target_parameters": ["mlp.gate"]}, "target_parameters"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"target_modules": ["c_attn"]}, "c_attn"),
        ({"target_modules": "q_.*"}, "target_modules"),
        ({"r": 0}, "r is 0"),
        ({"lora_dropout": 1.5}, "lora_dropout"),
        ({"r": 4}, r"lora_A.*expected shape \(4, 8\), found \(3, 8\)"),
        ({"target_modules": ["q_proj"]}, "no place"),
        ({"target_modules": ["q_proj", "up_proj", "down_proj"]}, "up_proj.*missing"),
    ],
)
def test_other_kinds_of_adapters_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        peft.AdapterFile(tmp_path).entries(SHAPE)


MIXTRAL = detect.decoder_shape(
    {
        "num_layers": 2, "width": 8, "num_heads": 2, "num_kv_heads": 1, "head_width": 4,
        "vocab_size": 10, "tied_head": True, "qkv_bias": False,
        "ffn": {"kind": "moe", "width": 12, "num_experts": 4, "num_groups": 2, "top_k": 2},
    }
)  # fmt: skip
EXPERT_MODULES = ("q_proj", "gate_proj", "up_proj", "down_proj")


def test_experts_have_the_names_of_modules_of_their_own() -> None:
    table = names.entries(MIXTRAL, "peft", target_modules=EXPERT_MODULES, rank=3)
    found = {entry.foreign_name: (entry.path, entry.index, entry.shape) for entry in table}
    assert len(found) == len(table) == 2 * 2 * (1 + 3 * 4)
    prefix = "base_model.model.model.layers.1.block_sparse_moe.experts.2"
    assert found[f"{prefix}.w1.lora_A.weight"] == (
        "layers/mlp/gate_proj/lora_a", (1, 1, 0), (3, 8),
    )  # fmt: skip
    assert found[f"{prefix}.w2.lora_B.weight"] == (
        "layers/mlp/down_proj/lora_b", (1, 1, 0), (8, 3),
    )  # fmt: skip
    assert peft.module_names(MIXTRAL)["up_proj"] == "w3"


def mixture(**changes: Any) -> names.DecoderShape:
    """Return DeepSeek's kind of decoder; sigmoid scores make it V3, softmax Mistral 4."""
    ffn = {"kind": "moe", "width": 12, "num_experts": 4, "top_k": 2, "router": {"kind": "sigmoid"}}
    attention = {
        "kind": "latent", "query_rank": 6, "latent_rank": 5, "content_width": 3,
        "rotary_width": 4, "value_width": 3,
    }  # fmt: skip
    return detect.decoder_shape(
        {
            "num_layers": 2, "width": 8, "num_heads": 2, "num_kv_heads": 2, "head_width": 7,
            "vocab_size": 10, "tied_head": True, "qkv_bias": False, "attention": attention,
            "ffn": ffn | changes,
        }
    )  # fmt: skip


# As PEFT 0.21 does, see tests/peers/test_adapters.py.
@pytest.mark.parametrize(
    ("shape", "modules", "reason"),
    [
        (SHAPE, ("q_proj", "up_proj"), None),
        (MIXTRAL, ("q_proj", "down_proj"), None),
        (MIXTRAL, ("gate_proj", "up_proj"), None),
        (MIXTRAL, ("gate_proj", "down_proj"), "only together"),
        (mixture(), ("gate_proj", "up_proj"), None),
        (mixture(num_shared_experts=1), ("o_proj",), None),
        (mixture(num_shared_experts=1), ("down_proj",), "beside shared ones"),
        (mixture(num_dense_layers=1, dense_width=16), ("down_proj",), "or dense layers"),
        (mixture(router={"kind": "softmax"}), ("down_proj",), "single experts of this family"),
    ],
)  # fmt: skip
def test_a_file_that_peft_does_not_read_says_so(
    tmp_path: Path, shape: names.DecoderShape, modules: tuple[str, ...], reason: str | None
) -> None:
    table = names.entries(shape, "peft", target_modules=modules, rank=2)
    sources = [
        TensorSource(
            entry.foreign_name, entry.shape, np.dtype(np.float32),
            functools.partial(np.zeros, entry.shape, np.float32),
        )
        for entry in table
    ]  # fmt: skip
    settings = peft.AdapterSettings(2, 4.0, 0.0, modules, "base")
    found = peft.reason_not_for_peft(shape, modules)
    peft.write_adapter(
        tmp_path, settings, sources, module_names=peft.module_names(shape), not_for_peft=found
    )
    metadata = SafetensorsReader(tmp_path / peft.WEIGHTS_NAME).metadata
    assert metadata == {"format": "pt"} | ({} if found is None else {"not_for_peft": found})
    assert (found is None) == (reason is None)
    assert reason is None or (found is not None and reason in found)


def write_stacked(folder: Path, *, rank: int, gate_up_rank: int, both: bool = False) -> dict:
    """Write what PEFT does for stacked experts; return each expert's update by hand."""
    numbers, experts, width, hidden = np.random.default_rng(0), 4, 8, 12
    tensors, updates = {}, {}
    for layer in range(2):
        prefix = f"base_model.model.model.layers.{layer}.mlp.experts."
        pairs = {
            "gate_up": ("base_layer.", width, 2 * hidden, gate_up_rank, 8.0 / 4),
            "down": ("", hidden, width, rank, 2.0),
        }
        for name, (inner, size_in, size_out, own_rank, scale) in pairs.items():
            a = numbers.normal(size=(experts, own_rank, size_in)).astype(np.float32)
            b = numbers.normal(size=(experts, size_out, own_rank)).astype(np.float32)
            if both and name == "gate_up":
                b[:, :hidden, rank:] = 0
                b[:, hidden:, :rank] = 0
            tensors[f"{prefix}{inner}lora_A.weight"] = a.reshape(-1, size_in)
            flat = b.transpose(1, 2, 0).reshape(size_out, -1)
            tensors[f"{prefix}{inner}lora_B.weight"] = flat
            updates[layer, name] = scale * np.einsum("eor,eri->eoi", b, a)
    sources = [
        TensorSource(name, array.shape, array.dtype, functools.partial(np.copy, array))
        for name, array in tensors.items()
    ]
    settings = peft.AdapterSettings(rank, 2.0 * rank, 0.0, ("q_proj",), "base")
    peft.write_adapter(folder, settings, sources)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {
        "target_modules": [],
        "target_parameters": ["mlp.experts.gate_up_proj", "down_proj"],
        "rank_pattern": {r".*\.gate_up_proj": gate_up_rank} if both else {},
        "alpha_pattern": {r".*\.gate_up_proj": 4.0 * rank} if both else {},
    }
    path.write_text(json.dumps(config))
    return updates


@pytest.mark.parametrize("both", [False, True], ids=["shared A", "made of two"])
def test_stacked_experts_are_read_as_one_pair_each(tmp_path: Path, *, both: bool) -> None:
    rank = 2
    updates = write_stacked(tmp_path, rank=rank, gate_up_rank=4 if both else 2, both=both)
    adapter = peft.AdapterFile(tmp_path)
    assert set(adapter.settings.target_modules) == set(names.MLP_PROJECTIONS)
    found = {
        (entry.path, entry.index): names.from_foreign(adapter.tensor(entry.foreign_name), entry)
        for entry in adapter.entries(MIXTRAL)
    }
    assert len(found) == 2 * 3 * 4 * 2
    for layer, group, member in np.ndindex(2, 2, 2):
        rows = {"gate_proj": slice(0, 12), "up_proj": slice(12, 24), "down_proj": slice(None)}
        for module, own in rows.items():
            a, b = (
                found[f"layers/mlp/{module}/{leaf}", (layer, group, member)]
                for leaf in ("lora_a", "lora_b")
            )
            name = "down" if module == "down_proj" else "gate_up"
            expected = updates[layer, name][2 * group + member][own]
            np.testing.assert_allclose(2.0 * (a @ b).T, expected, atol=1e-5)


def test_stacked_experts_of_two_ranks_that_are_not_two_pairs_are_refused(tmp_path: Path) -> None:
    write_stacked(tmp_path, rank=2, gate_up_rank=4)
    adapter = peft.AdapterFile(tmp_path)
    with pytest.raises(ValueError, match="not made of two pairs"):
        for entry in adapter.entries(MIXTRAL):
            adapter.tensor(entry.foreign_name)
    write_stacked(tmp_path, rank=2, gate_up_rank=3)
    with pytest.raises(ValueError, match="has rank 3 for each of 4 experts, expected 2 or 4"):
        peft.AdapterFile(tmp_path).entries(MIXTRAL)
