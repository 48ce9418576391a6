"""Exports come back as they went: every format, every dtype, merged and adapter alone.

Covers export.py and convert.py; the peers' suite has other people's readers look at the same files.
"""

import dataclasses
import functools
import json
import math
import zlib
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mistral_jax import artifact
from mistral_jax import convert
from mistral_jax import export
from mistral_jax import export_checks
from mistral_jax import sharding
from mistral_jax import tokenizers
from mistral_jax.config import model as model_config
from mistral_jax.formats import names
from mistral_jax.formats import safetensors_file
from mistral_jax.formats import tensor_source
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import streamed
from mistral_jax.models import weights
from tests import tiny

PLAIN = tiny.decoder(384, ffn=model_config.DenseFfn(width=64))
MIXTURE = model_config.MoeFfn(
    width=24, num_experts=4, top_k=2, num_shared_experts=1, num_dense_layers=1, dense_width=40
)
LATENT = PLAIN.model_copy(
    update={
        "num_kv_heads": PLAIN.num_heads,
        "head_width": 14,
        "attention": model_config.LatentAttention(
            query_rank=12, latent_rank=10, content_width=6, rotary_width=8, value_width=5
        ),
        "ffn": MIXTURE,
    }
)
CONFIGS = {
    "plain": PLAIN,
    "window": PLAIN.model_copy(update={"attention": model_config.WindowAttention(window=7)}),
    "qwen": PLAIN.model_copy(update={"tied_head": True, "qkv_bias": True}),
    "moe": PLAIN.model_copy(update={"ffn": model_config.MoeFfn(width=32, num_experts=4, top_k=2)}),
    "interleaved": PLAIN.model_copy(
        update={"attention": model_config.InterleavedAttention(window=7, period=("full", "window"))}
    ),
    "deepseek_v3": LATENT.model_copy(
        update={
            "ffn": MIXTURE.model_copy(
                update={
                    "router": model_config.SigmoidRouter(),
                    "num_groups": 2,
                    "groups_per_token": 1,
                    "group_names": ("left", "right"),
                    "num_shared_experts": 0,
                }
            )
        }
    ),
    "mistral4": LATENT.model_copy(
        update={
            "rope": model_config.YarnRope(
                theta=1e4, factor=8.0, original_max_positions=16, attention_factor=1.0
            ),
            "query_scaling": model_config.LogQueryScaling(beta=0.1, period=16),
        }
    ),
    "ministral3": PLAIN.model_copy(
        update={
            "rope": model_config.YarnRope(
                theta=1e4, factor=8.0, original_max_positions=16, mscale=1.0, mscale_all_dim=1.0
            ),
            "query_scaling": model_config.LogQueryScaling(beta=0.1, period=16),
            "tied_head": True,
        }
    ),
}
LORA = model_config.LoraAdapter(
    rank=4, alpha=8.0, dropout=0.25, target_modules=("k_proj", "up_proj")
)


def random_params(definition: definition_lib.Definition) -> definition_lib.Params:
    """Return parameters of which none is zero or one; by path, so that adapters share a base."""
    return {
        path: jnp.asarray(
            np.random.default_rng(zlib.crc32(path.encode())).normal(size=shape.shape) * 0.2
            + path.endswith("scale"),
            jnp.float32,
        )
        for path, shape in definition.shapes.items()
    }


@functools.cache
def model(name: str, *, is_adapted: bool = False) -> artifact.Artifact:
    adapter = LORA if is_adapted else None
    definition = definition_lib.define(CONFIGS[name], adapter=adapter)
    tokenizer = tokenizers.load_tokenizer("bytes")
    return artifact.Artifact(definition, random_params(definition), tokenizer, None, None)


def written(
    name: str, destination: Path, format: str, dtype: str = "float32", *, is_adapted: bool = False
) -> export.Exported:
    source = model(name, is_adapted=is_adapted)
    return convert.export_artifact(source, destination, format=format, dtype=dtype)


def loaded(path: Path | str) -> artifact.Artifact:
    return artifact.load_checkpoint(Path(path), compute="float32")


def assert_same_model(found: artifact.Artifact, expected: artifact.Artifact) -> None:
    assert found.definition.config == expected.definition.config
    assert set(found.params) == set(expected.params)
    for path, value in expected.params.items():
        np.testing.assert_array_equal(found.params[path], value, err_msg=path)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("plain", "hf"), ("plain", "consolidated"), ("plain", "gguf"),
        ("window", "hf"), ("window", "consolidated"),
        ("qwen", "hf"), ("qwen", "gguf"),
        ("moe", "hf"), ("moe", "consolidated"), ("moe", "gguf"),
        ("interleaved", "hf"), ("interleaved", "consolidated"),
        ("deepseek_v3", "hf"), ("mistral4", "hf"), ("mistral4", "consolidated"),
        ("ministral3", "hf"), ("ministral3", "consolidated"), ("ministral3", "gguf"),
    ],
)  # fmt: skip
def test_float32_comes_back_exactly(tmp_path: Path, name: str, format: str) -> None:
    exported = written(name, tmp_path / "out", format)
    assert exported.largest_logit_difference == 0.0
    assert exported.format == format
    again = loaded(exported.path)
    assert_same_model(again, model(name))
    text = "naïve text"
    assert again.tokenizer.encode(text) == model(name).tokenizer.encode(text)


def test_the_parity_number_sees_a_changed_weight(tmp_path: Path) -> None:
    exported = written("plain", tmp_path / "out", "hf")
    expected = export.reference_logits(model("plain").params, PLAIN)
    change_tensor(tmp_path / "out", "model.norm.weight", lambda array: array * 1.01)
    found = export.with_parity(exported, expected, export.reload_logits(exported))
    assert found.largest_logit_difference is not None
    assert found.largest_logit_difference > 1e-3


@pytest.mark.parametrize(
    ("format", "dtype", "most"),
    [("hf", "float16", 0.05), ("hf", "bfloat16", 0.5), ("gguf", "float16", 0.05),
     ("gguf", "bfloat16", 0.5), ("gguf", "q8_0", 0.5)],
)  # fmt: skip
def test_narrow_formats_lose_a_little(tmp_path: Path, format: str, dtype: str, most: float) -> None:
    exported = written("plain", tmp_path / "out", format, dtype)
    assert exported.largest_logit_difference is not None
    assert 0 < exported.largest_logit_difference < most
    wide = written("plain", tmp_path / "wide", format)
    assert exported.size_bytes < 0.6 * wide.size_bytes


def tensor_bytes(path: str) -> bytes:
    return next(Path(path).glob("*.safetensors")).read_bytes()


def test_bfloat16_is_byte_identical_through_every_way_round(tmp_path: Path) -> None:
    first = written("plain", tmp_path / "hf", "hf", "bfloat16")
    for format in ("hf", "consolidated", "gguf"):
        there = convert.export_model(
            first.path, str(tmp_path / f"there_{format}"), format=format, dtype="bfloat16"
        )
        assert there.largest_logit_difference == 0.0
        back = convert.export_model(
            there.path, str(tmp_path / f"back_{format}"), format="hf", dtype="bfloat16"
        )
        assert back.largest_logit_difference == 0.0
        assert tensor_bytes(back.path) == tensor_bytes(first.path), format


def test_import_keeps_the_checkpoints_own_dtype(tmp_path: Path) -> None:
    first = written("plain", tmp_path / "hf", "hf", "bfloat16")
    copy = convert.import_checkpoint(first.path, str(tmp_path / "copy"), dtype="checkpoint")
    assert tensor_bytes(copy.path) == tensor_bytes(first.path)
    quantised = written("plain", tmp_path / "gguf", "gguf", "q8_0")
    wide = convert.import_checkpoint(quantised.path, str(tmp_path / "wide"), dtype="checkpoint")
    kinds = {weights.detect.open_weights(wide.path).dtype_name("model.norm.weight")}
    assert kinds <= {"bfloat16", "BF16"}


def sources_of(folder: Path) -> list[tensor_source.TensorSource]:
    reader = safetensors_file.SafetensorsReader(folder)
    return [
        tensor_source.TensorSource(name, array.shape, array.dtype, lambda array=array: array)
        for name in reader.names()
        for array in [np.array(reader.tensor(name))]
    ]


def change_tensor(folder: Path, name: str, change) -> None:
    """Write a folder's tensors again with one of them changed; None takes it out."""
    sources = []
    for source in sources_of(folder):
        if source.name == name:
            array = change(source.load())
            if array is None:
                continue
            source = dataclasses.replace(source, shape=array.shape, load=lambda a=array: a)
        sources.append(source)
    (folder / "model.safetensors").unlink()
    safetensors_file.write_safetensors(folder, sources)


def test_sharded_files_are_read_as_one(tmp_path: Path) -> None:
    written("plain", tmp_path / "whole", "hf")
    sharded = tmp_path / "sharded"
    safetensors_file.write_safetensors(
        sharded, sources_of(tmp_path / "whole"), max_shard_bytes=20_000
    )
    assert len(list(sharded.glob("*.safetensors"))) > 3
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (sharded / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    assert_same_model(loaded(sharded), model("plain"))
    assert convert.compare(str(sharded), str(tmp_path / "whole")) == 0.0


def adapted_logits(source: artifact.Artifact) -> np.ndarray:
    """Return the logits of base and adapter run side by side."""
    return export.reference_logits(
        source.params, source.definition.config, source.definition.adapter
    )


def test_a_peft_adapter_comes_back_exactly(tmp_path: Path) -> None:
    source = model("plain", is_adapted=True)
    exported = written("plain", tmp_path / "out", "peft", is_adapted=True)
    assert exported.largest_logit_difference == 0.0
    adapter, arrays = export.load_adapter(tmp_path / "out", PLAIN)
    assert adapter == LORA
    assert set(arrays) == set(source.definition.trainable_paths())
    for path, value in arrays.items():
        np.testing.assert_array_equal(value, source.params[path])


@pytest.mark.parametrize("format", ["hf", "consolidated", "gguf"])
def test_a_merged_export_computes_what_base_and_adapter_do(tmp_path: Path, format: str) -> None:
    exported = written("plain", tmp_path / "out", format, is_adapted=True)
    assert exported.largest_logit_difference == 0.0
    again = loaded(exported.path)
    assert set(again.params) == set(model("plain").params)
    merged = export.reference_logits(again.params, PLAIN)
    expected = adapted_logits(model("plain", is_adapted=True))
    np.testing.assert_allclose(merged, expected, atol=1e-4)
    base = export.reference_logits(model("plain").params, PLAIN)
    assert np.abs(merged - base).max() > 0.1


def test_an_adapter_on_a_checkpoint_is_merged_from_the_file(tmp_path: Path) -> None:
    """As after a LoRA run: memory holds bf16 weights, the export takes the file's own."""
    base = written("plain", tmp_path / "base", "hf")
    source = model("plain", is_adapted=True)
    rounded = {
        path: value if path in source.definition.trainable_paths() else value.astype(jnp.bfloat16)
        for path, value in source.params.items()
    }
    trained = dataclasses.replace(source, params=rounded, weights_path=Path(base.path))
    exported = convert.export_artifact(trained, tmp_path / "out", format="hf", dtype="float32")
    merged = export.reference_logits(loaded(exported.path).params, PLAIN)
    np.testing.assert_allclose(merged, adapted_logits(source), atol=1e-4)
    adapter = convert.export_artifact(trained, tmp_path / "peft", format="peft", dtype="float32")
    assert adapter.largest_logit_difference == 0.0
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == base.path


def test_compare_gives_the_largest_difference_and_refuses_other_shapes(tmp_path: Path) -> None:
    first = written("plain", tmp_path / "a", "hf").path
    same = written("plain", tmp_path / "b", "gguf").path
    assert convert.compare(first, same) == 0.0
    change_tensor(tmp_path / "a", "model.norm.weight", lambda array: array * 2)
    assert convert.compare(first, same) > 1
    small = PLAIN.model_copy(update={"vocab_size": 320})
    definition = definition_lib.define(small)
    other = artifact.Artifact(
        definition, random_params(definition), model("plain").tokenizer, None, None
    )
    path = convert.export_artifact(other, tmp_path / "c", format="hf", dtype="float32").path
    with pytest.raises(ValueError, match=r"\(64, 384\), .*\(64, 320\): not the same model"):
        convert.compare(first, path)


@pytest.mark.parametrize("use", ["load", "export", "compare"])
@pytest.mark.parametrize(
    ("tensor", "change", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", lambda a: a[:-1], r"\(63, 32\)"),
        ("model.layers.0.input_layernorm.weight", lambda a: a[:1], r"\(1,\)"),
        ("model.layers.1.self_attn.k_proj.weight", lambda a: None, "missing"),
    ],
)
def test_a_tensor_that_is_missing_or_of_the_wrong_shape_is_named(
    tmp_path: Path, use: str, tensor: str, change, message: str
) -> None:
    folder = tmp_path / "bad"
    written("plain", folder, "hf")
    change_tensor(folder, tensor, change)
    with pytest.raises(ValueError, match=message) as caught:
        if use == "load":
            loaded(folder)
        elif use == "export":
            convert.export_model(str(folder), str(tmp_path / "o"), format="hf", dtype="float32")
        else:
            convert.compare(str(folder), str(folder))
    assert repr(tensor) in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="formats: hf, consolidated, gguf, peft"):
        written("plain", out, "onnx")
    with pytest.raises(ValueError, match=r"'hf' in 'q8_0'.*float32, float16, bfloat16"):
        written("plain", out, "hf", "q8_0")
    with pytest.raises(ValueError, match="consolidated files cannot hold q/k/v biases"):
        written("qwen", out, "consolidated")
    with pytest.raises(ValueError, match="this model has no adapter; export it as hf"):
        written("plain", out, "peft")
    assert not out.exists()
    written("plain", out, "hf")
    with pytest.raises(ValueError, match="holds weights already; choose another folder"):
        written("plain", out, "hf")
    with pytest.raises(ValueError, match="a checkpoint has no adapter; peft exports a run"):
        convert.export_model(str(out), str(tmp_path / "p"), format="peft", dtype="float32")


def test_weights_that_a_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = model("plain")
    params = dict(source.params)
    params["final_norm/scale"] = params["final_norm/scale"] * 1e6
    large = dataclasses.replace(source, params=params)
    with pytest.raises(ValueError, match=r"'model.norm.weight'.*float16.*bfloat16"):
        convert.export_artifact(large, tmp_path / "out", format="hf", dtype="float16")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_narrow_gguf_files_state_their_perplexity(tmp_path: Path, dtype: str) -> None:
    exported = written("plain", tmp_path / "out", "gguf", dtype)
    source = model("plain")
    tokens = export_checks.perplexity_tokens(source.tokenizer, PLAIN)
    assert bytes(tokens[1:].tolist()) == export_checks.TEXT[: len(tokens) - 1].encode()
    logits = streamed.logits(source.reader(), PLAIN, tokens[None])[0]
    assert exported.float32_perplexity == pytest.approx(slow_perplexity(logits, tokens), rel=1e-5)
    again = loaded(exported.path)
    logits = streamed.logits(again.reader(), PLAIN, tokens[None])[0]
    assert exported.perplexity == pytest.approx(slow_perplexity(logits, tokens), rel=1e-5)
    assert exported.perplexity != exported.float32_perplexity
    change = 100 * (exported.perplexity / exported.float32_perplexity - 1)
    assert f"in float32 ({change:+.3f}%)" in exported.summary
    export.write_parity(tmp_path / "export", [exported])
    row = json.loads((tmp_path / "export" / "parity.json").read_text())[0]
    assert row["perplexity"] == exported.perplexity
    assert row["float32_perplexity"] == exported.float32_perplexity


def slow_perplexity(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Return the perplexity, one token after the other."""
    total = 0.0
    for place in range(len(tokens) - 1):
        row = [float(value) for value in logits[place]]
        total += math.log(sum(math.exp(v - max(row)) for v in row)) + max(row)
        total -= row[tokens[place + 1]]
    return math.exp(total / (len(tokens) - 1))


def test_float32_files_and_other_formats_state_none(tmp_path: Path) -> None:
    for format, dtype in (("gguf", "float32"), ("hf", "bfloat16")):
        exported = written("plain", tmp_path / format, format, dtype)
        assert exported.perplexity is None
        assert "perplexity" not in exported.summary


def test_every_gguf_has_its_modelfile(tmp_path: Path) -> None:
    exported = written("plain", tmp_path / "out", "gguf", "q8_0")
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert lines[1:] == [f"FROM ./{Path(exported.path).name}", 'PARAMETER stop "<eos>"']
    written("plain", tmp_path / "hf", "hf")
    assert not (tmp_path / "hf" / "Modelfile").exists()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_numbers_that_are_none_are_counted(dtype: type) -> None:
    values = np.random.default_rng(0).normal(size=(3, 1 << 20)).astype(dtype)
    assert export_checks.count_nonfinite(values) == 0
    values[0, 5] = values[2, -1] = np.nan
    values[1, 7], values[1, 8] = np.inf, -np.inf
    assert export_checks.count_nonfinite(values) == 4
    assert export_checks.count_nonfinite(values.T) == 4
    assert export_checks.count_nonfinite(values[:0]) == 0


def test_a_difference_counts_nan_against_a_number_and_not_against_nan() -> None:
    first = np.array([[1.0, np.nan, np.inf]], np.float32)
    assert export_checks.largest_difference(first, first) == 0.0
    assert export_checks.largest_difference(first, first + np.float32(0.5)) == 0.5
    other = np.array([[1.0, 2.0, np.inf]], np.float32)
    assert np.isnan(export_checks.largest_difference(first, other))


def test_parity_is_written_for_the_report(tmp_path: Path) -> None:
    exported = written("plain", tmp_path / "out", "hf")
    export.write_parity(tmp_path / "export", [exported])
    rows = json.loads((tmp_path / "export" / "parity.json").read_text())
    assert rows == [dataclasses.asdict(exported)]


def test_loading_chooses_the_dtype_of_the_numbers(tmp_path: Path) -> None:
    path = Path(written("plain", tmp_path / "out", "hf", "bfloat16").path)
    definition, mesh = definition_lib.define(PLAIN), sharding.single_device_mesh()
    for dtype, expected in (
        ("checkpoint", jnp.bfloat16), ("float32", jnp.float32), ("bfloat16", jnp.bfloat16),
    ):  # fmt: skip
        params = weights.load_params(definition, path, mesh, dtype=dtype)
        assert {value.dtype for value in params.values()} == {jnp.dtype(expected)}


def test_an_adapter_on_latent_attention_comes_back_and_merges(tmp_path: Path) -> None:
    modules = ("q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "o_proj")
    adapter = model_config.LoraAdapter(rank=3, alpha=6.0, target_modules=modules)
    definition = definition_lib.define(CONFIGS["mistral4"], adapter=adapter)
    params = random_params(definition)
    tokenizer = tokenizers.load_tokenizer("bytes")
    source = artifact.Artifact(definition, params, tokenizer, None, None)
    exported = convert.export_artifact(source, tmp_path / "peft", format="peft", dtype="float32")
    assert exported.largest_logit_difference == 0.0
    found, arrays = export.load_adapter(tmp_path / "peft", definition.config)
    assert set(found.target_modules) == set(modules)
    assert set(arrays) == set(definition.trainable_paths())
    for path, value in arrays.items():
        np.testing.assert_array_equal(value, params[path], err_msg=path)
    merged = convert.export_artifact(source, tmp_path / "hf", format="hf", dtype="float32")
    assert merged.largest_logit_difference == 0.0
    unmerged = export.reference_logits(params, definition.config, adapter)
    np.testing.assert_allclose(export.reload_logits(merged), unmerged, atol=1e-4)


def test_a_routers_bias_stays_float32_in_a_narrow_export(tmp_path: Path) -> None:
    written("deepseek_v3", tmp_path / "out", "hf", "bfloat16")
    again = artifact.load_checkpoint(tmp_path / "out", compute="bfloat16")
    (path,) = names.FLOAT32_PATHS
    assert again.params[path].dtype == jnp.float32
    np.testing.assert_array_equal(again.params[path], model("deepseek_v3").params[path])
    assert again.params["layers/mlp/router/kernel"].dtype == jnp.bfloat16


def test_latent_attention_is_refused_as_gguf_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no GGUF of latent attention"):
        written("mistral4", tmp_path / "out", "gguf")
    assert not list(tmp_path.rglob("*.gguf"))
