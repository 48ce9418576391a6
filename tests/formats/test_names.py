"""Name tables: complete, invertible, and the rotary permutation against its definition."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from mistral_jax.config.model import DecoderConfig
from mistral_jax.formats import names


def decoder(**changes: object) -> DecoderConfig:
    fields: dict = {
        "num_layers": 2,
        "width": 12,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_width": 6,
        "vocab_size": 10,
        "ffn": {"kind": "dense", "width": 16},
        "rope": {"kind": "default", "theta": 1e4},
        "max_positions": 32,
    }
    return DecoderConfig.model_validate(fields | changes)


def entry(permute_heads: int | None = None, transpose: bool = True) -> names.Entry:
    return names.Entry("p", "f", (0,), transpose, permute_heads, ())


@settings(max_examples=60, deadline=None)
@given(
    heads=strategies.integers(1, 4),
    half=strategies.integers(1, 4),
    width=strategies.integers(1, 5),
    permute=strategies.booleans(),
    transpose=strategies.booleans(),
    seed=strategies.integers(0, 1000),
)
def test_to_and_from_foreign_are_exact_inverses(
    heads: int, half: int, width: int, permute: bool, transpose: bool, seed: int
) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**16, (width, heads * 2 * half), np.uint16)
    ours = bits.view(ml_dtypes.bfloat16)
    if not transpose:
        ours = ours.T
    place = entry(heads if permute else None, transpose)
    foreign = names.to_foreign(ours, place)
    assert names.from_foreign(foreign, place).tobytes() == ours.tobytes()
    again = names.to_foreign(names.from_foreign(foreign, place), place)
    assert again.tobytes() == foreign.tobytes()


def test_permutation_interleaves_the_halves_of_each_head() -> None:
    rows = np.arange(12).reshape(1, 12)  # two heads of six rows: halves 0-2 and 3-5, 6-8 and 9-11
    foreign = names.to_foreign(rows, entry(permute_heads=2))
    assert foreign[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_interleaved_rows_give_the_same_attention_scores() -> None:
    """Rotating halves with our rows equals rotating pairs with the permuted rows."""
    generator = np.random.default_rng(0)
    heads, head_width, width, position = 2, 8, 5, 7
    kernel = generator.normal(size=(width, heads * head_width))
    x = generator.normal(size=(width,))
    angles = position * 10000.0 ** (-np.arange(0, head_width, 2) / head_width)
    cos, sin = np.cos(angles), np.sin(angles)

    halves = (x @ kernel).reshape(heads, 2, head_width // 2)
    first = halves[:, 0] * cos - halves[:, 1] * sin
    second = halves[:, 1] * cos + halves[:, 0] * sin
    by_halves = np.stack([first, second], axis=1)  # [H, 2, Q/2]

    foreign = names.to_foreign(kernel, entry(permute_heads=heads))
    pairs = (foreign @ x).reshape(heads, head_width // 2, 2)
    by_pairs = np.stack(
        [pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 1] * cos + pairs[..., 0] * sin], -1
    )
    np.testing.assert_allclose(by_pairs.swapaxes(1, 2), by_halves, atol=1e-12)


@pytest.mark.parametrize("format", ["hf", "gguf", "consolidated"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_has_one_place(format: str, tied: bool) -> None:
    table = names.entries(decoder(tied_head=tied), format)
    assert len(table) == 3 - tied + 2 * 9
    assert len({item.foreign_name for item in table}) == len(table)
    assert len({(item.path, item.index) for item in table}) == len(table)
    assert ("head/kernel" in {item.path for item in table}) != tied


def test_shapes_and_permutations_of_a_llama_gguf() -> None:
    table = {item.foreign_name: item for item in names.entries(decoder(), "gguf")}
    assert table["blk.1.attn_q.weight"] == names.Entry(
        "layers/attention/q_proj/kernel", "blk.1.attn_q.weight", (1,), True, 4, (24, 12)
    )
    assert table["blk.0.attn_k.weight"].permute_heads == 2
    assert table["blk.0.attn_v.weight"].permute_heads is None
    assert table["blk.0.attn_output.weight"].shape == (12, 24)
    assert table["token_embd.weight"].transpose is False
    assert table["output.weight"].transpose is True


def test_biased_models_keep_their_rows_in_gguf() -> None:
    table = names.entries(decoder(qkv_bias=True), "gguf")
    assert all(item.permute_heads is None for item in table)
    biases = {item.foreign_name: item.shape for item in table if item.path.endswith("/bias")}
    assert biases["blk.0.attn_q.bias"] == (24,)
    assert len(biases) == 6


def test_adapter_names_are_those_of_peft() -> None:
    table = names.entries(decoder(), "peft", target_modules=["down_proj", "q_proj"], rank=3)
    assert [dataclasses.astuple(item)[:2] for item in table[:2]] == [
        (
            "layers/attention/q_proj/lora_a",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        ),
        (
            "layers/attention/q_proj/lora_b",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
        ),
    ]
    assert [item.shape for item in table[:4]] == [(3, 12), (24, 3), (3, 16), (12, 3)]


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("onnx", {}, "onnx"),
        ("peft", {"rank": None}, "rank"),
        ("peft", {"rank": 2, "target_modules": ["wq"]}, "wq"),
        ("peft", {"rank": 2, "target_modules": []}, "target_modules"),
    ],
)
def test_impossible_tables_are_refused(format: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        names.entries(decoder(), format, **options)


def test_consolidated_files_cannot_hold_biases() -> None:
    with pytest.raises(ValueError, match="bias"):
        names.entries(decoder(qkv_bias=True), "consolidated")
