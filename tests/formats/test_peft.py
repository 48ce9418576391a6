"""PEFT adapters: written, read back, and refused where they are of another kind."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mistral_jax.formats import detect
from mistral_jax.formats import names
from mistral_jax.formats import peft

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
        ({"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
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
