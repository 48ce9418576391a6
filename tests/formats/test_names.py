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


LATENT = decoder(
    num_layers=3,
    num_kv_heads=4,
    head_width=5 + 4,
    attention={
        "kind": "latent", "query_rank": 7, "latent_rank": 8, "content_width": 5, "rotary_width": 4,
        "value_width": 3,
    },
    ffn={
        "kind": "moe", "width": 6, "num_experts": 4, "num_groups": 2, "top_k": 2,
        "num_shared_experts": 2, "num_dense_layers": 1, "dense_width": 16,
    },
)  # fmt: skip


def tail(heads: int, rows: int) -> names.Entry:
    return dataclasses.replace(entry(permute_heads=heads), rotary_rows=rows)


@settings(max_examples=40, deadline=None)
@given(
    heads=strategies.integers(1, 4),
    still=strategies.integers(0, 5),
    half=strategies.integers(1, 4),
    seed=strategies.integers(0, 1000),
)
def test_only_the_last_rows_of_a_head_are_reordered_and_back_exactly(
    heads: int, still: int, half: int, seed: int
) -> None:
    rows, place = heads * (still + 2 * half), tail(heads, 2 * half)
    ours = np.random.default_rng(seed).normal(size=(3, rows))
    foreign = names.to_foreign(ours, place)
    assert names.from_foreign(foreign, place).tobytes() == ours.tobytes()
    kept = foreign.reshape(heads, -1, 3)[:, :still]
    np.testing.assert_array_equal(kept, ours.T.reshape(heads, -1, 3)[:, :still])


def test_rotary_rows_lie_in_pairs_behind_the_still_ones() -> None:
    rows = np.arange(14).reshape(1, 14)  # two heads: three still rows, then halves of two
    foreign = names.to_foreign(rows, tail(2, 4))
    assert foreign[:, 0].tolist() == [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 12, 11, 13]


def test_dense_first_layers_are_a_stack_of_their_own() -> None:
    table = {item.foreign_name: item for item in names.entries(LATENT, "hf")}
    first, second = (table[f"model.layers.{i}.self_attn.o_proj.weight"] for i in (0, 1))
    assert (first.path, first.index) == ("dense_layers/attention/o_proj/kernel", (0,))
    assert (second.path, second.index) == ("layers/attention/o_proj/kernel", (0,))
    assert table["model.layers.0.mlp.up_proj.weight"].shape == (16, 12)
    assert table["model.layers.2.mlp.shared_experts.down_proj.weight"].shape == (12, 12)
    queries = table["model.layers.1.self_attn.q_b_proj.weight"]
    assert (queries.shape, queries.permute_heads, queries.rotary_rows) == ((36, 7), 4, 4)
    narrow = table["model.layers.1.self_attn.kv_a_proj_with_mqa.weight"]
    assert (narrow.shape, narrow.permute_heads, narrow.rotary_rows) == ((12, 12), 1, 4)


def test_gate_and_up_of_all_experts_share_a_tensor_of_mistral4() -> None:
    shared = [e for e in names.entries(LATENT, "hf") if e.foreign_name.endswith("gate_up_proj")]
    assert [(e.path.split("/")[2], e.index, e.part) for e in shared] == [
        ("gate_proj", (0,), (0, 2)), ("up_proj", (0,), (1, 2)),
        ("gate_proj", (1,), (0, 2)), ("up_proj", (1,), (1, 2)),
    ]  # fmt: skip
    ours = np.random.default_rng(0).normal(size=(2, 2, 2, 12, 6))  # gate and up: [G, n, in, out]
    foreign = names.joined([names.to_foreign(o, e) for o, e in zip(ours, shared[:2], strict=True)])
    assert foreign.shape == shared[0].shape == (4, 12, 12)
    for own, place in zip(ours, shared[:2], strict=True):
        assert names.from_foreign(foreign, place).tobytes() == own.tobytes()


@pytest.mark.parametrize("is_interleaved", [True, False])
def test_adapters_of_latent_attention_have_the_rows_of_their_base(is_interleaved: bool) -> None:
    table = names.entries(
        LATENT, "peft", target_modules=["kv_a_proj"], rank=2, is_interleaved=is_interleaved
    )
    assert [(e.path, e.index) for e in table[:3]] == [
        ("dense_layers/attention/kv_a_proj/lora_a", (0,)),
        ("dense_layers/attention/kv_a_proj/lora_b", (0,)),
        ("layers/attention/kv_a_proj/lora_a", (0,)),
    ]
    assert table[0].foreign_name.endswith("self_attn.kv_a_proj_with_mqa.lora_A.weight")
    assert table[0].permute_heads is None
    assert table[1].permute_heads == (1 if is_interleaved else None)


def test_adapters_that_a_latent_layer_cannot_have_are_refused() -> None:
    with pytest.raises(ValueError, match="q_a_proj, q_b_proj, kv_a_proj, kv_b_proj, o_proj"):
        names.entries(LATENT, "peft", target_modules=["k_proj"], rank=2)
