"""GGUF files of ours in llama.cpp: the same likeliest tokens, the same ids of texts."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import export
from mistral_jax import rng
from mistral_jax import tokenizers
from mistral_jax.config import model as model_config
from mistral_jax.formats import gguf_file
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from tests.peers import ours

# llama.cpp rounds activations to the weights' type: halves for F16, bytes in blocks of 32 for
# Q8_0, which shifted the random model's log-probabilities by 0.07.
TOLERANCES = {"float32": 5e-3, "float16": 5e-3, "q8_0": 1e-1}
TEXTS = (
    "The capital of France is",
    "  two spaces,\ttab\nand a new line\n\n",
    "naïve Æsop 日本語 🎉 don't I'LL 12345 ... !!!",
    "no control here: </s><s>[INST] <|im_end|>",
)


def tiny(vocab_size: int, **changes: Any) -> model_config.DecoderConfig:
    """Return a decoder whose widths are whole Q8_0 blocks."""
    fields: dict[str, Any] = {
        "num_layers": 2,
        "width": 96,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_width": 32,
        "vocab_size": vocab_size,
        "ffn": {"kind": "dense", "width": 160},
        "rope": {"kind": "default", "theta": 1e6},
        "max_positions": 512,
        "init_std": 0.1,
    }
    return model_config.DecoderConfig.model_validate(fields | changes)


def drawn(config: model_config.DecoderConfig) -> tuple[definition_lib.Definition, dict]:
    """Return a model with norms and biases drawn as well."""
    definition = definition_lib.define(config)
    params = definition_lib.initialise(definition, rng.seed_key(3), ours.MESH())
    generator = np.random.default_rng(4)
    for path, value in params.items():
        if path.endswith(("scale", "bias")):
            noise = generator.normal(0, 0.3, value.shape).astype(np.float32)
            params[path] = value + noise
    return definition, params


def run_llama_cpp(path: Path, prompts: list[list[int]], folder: Path) -> dict:
    """Return llama.cpp's answers about one file."""
    out = folder / "answers.json"
    job = {"path": str(path), "context": 512, "count": 5, "prompts": prompts}
    ours.run_peer("run_llama_cpp.py", job | {"texts": TEXTS, "out": str(out)}, folder)
    return json.loads(out.read_text(encoding="utf-8"))


def log_probs_after(
    definition: definition_lib.Definition, params: definition_lib.Params, prompt: list[int]
) -> np.ndarray:
    """Return log-probabilities [V] of the token after a prompt."""
    scores = ours.logits(definition, params, np.array([prompt], np.int32))[0, -1]
    return np.asarray(jax.nn.log_softmax(scores))


def check_top(expected: np.ndarray, top: list[list], tolerance: float) -> None:
    """Compare llama.cpp's likeliest tokens with our log-probabilities."""
    assert len(top) == 5
    found = np.array([log_prob for _, log_prob in top])
    apart = np.abs(expected[[token for token, _ in top]] - found).max()
    assert apart <= tolerance, f"log-probabilities differ by {apart:.2e}"
    # Nothing likelier was left out, up to the tolerance.
    assert np.sort(expected)[-5] <= found.min() + tolerance


def prompts_of(vocab_size: int) -> list[list[int]]:
    """Return a short and a longer prompt."""
    generator = np.random.default_rng(5)
    return [generator.integers(3, vocab_size, length).tolist() for length in (7, 60)]


MIXTURE = {"kind": "moe", "width": 64, "num_experts": 5, "top_k": 2}
MINISTRAL_3 = {
    "rope": {
        "kind": "yarn", "theta": 1e4, "factor": 16.0, "original_max_positions": 16,
        "mscale": 1.0, "mscale_all_dim": 1.0,
    },
    "query_scaling": {"kind": "log", "beta": 0.1, "period": 16},
}  # fmt: skip
CASES = [
    ("mistral-common:v3", "float32", {}),
    ("mistral-common:v3", "float16", {}),
    ("mistral-common:v3", "q8_0", {}),
    ("mistral-common:v3", "float16", {"tied_head": True, "num_kv_heads": 1}),
    ("mistral-common:v3", "float32", {"ffn": MIXTURE}),
    ("mistral-common:v3", "float16", {"ffn": MIXTURE}),
    ("mistral-common:v3", "float32", MINISTRAL_3),
    # llama.cpp's qwen2 takes no other head width than width / heads.
    ("smollm2", "float16", {"qkv_bias": True, "head_width": 24}),
]


@pytest.mark.parametrize(("tokenizer_uri", "dtype", "changes"), CASES)
def test_llama_cpp_gives_our_log_probabilities(
    tokenizer_uri: str, dtype: str, changes: dict, smollm2_file: Path, tmp_path: Path
) -> None:
    uri = str(smollm2_file) if tokenizer_uri == "smollm2" else tokenizer_uri
    tokenizer = tokenizers.load_tokenizer(uri)
    definition, params = drawn(tiny(tokenizer.vocab_size, **changes))
    arrays = {path: np.asarray(value) for path, value in params.items()}
    written = export.write_model(
        readers.TreeReader(arrays, definition.config),
        tmp_path / "tiny.gguf",
        format="gguf",
        dtype=dtype,
        tokenizer=tokenizer,
        name="tiny",
    )
    prompts = prompts_of(tokenizer.vocab_size)
    answers = run_llama_cpp(Path(written.path), prompts, tmp_path)
    # The file's own numbers: rounding them is the export's choice and not under test here.
    stored, stored_params = ours.load(Path(written.path))
    for prompt, top in zip(prompts, answers["top"], strict=True):
        check_top(log_probs_after(stored, stored_params, prompt), top, TOLERANCES[dtype])
    assert answers["ids"] == [tokenizer.encode(text) for text in TEXTS]


def test_llama_cpp_ignores_a_window_in_llama_files(tmp_path: Path) -> None:
    """Up to the window nothing differs; past it llama.cpp goes on with full attention.

    The file names its window; the day that llama.cpp honours it, this test says so.
    """
    tokenizer = tokenizers.load_tokenizer("mistral-common:v3")
    window = {"kind": "window", "window": 16}
    definition, params = drawn(tiny(tokenizer.vocab_size, attention=window))
    arrays = {path: np.asarray(value) for path, value in params.items()}
    written = export.write_model(
        readers.TreeReader(arrays, definition.config),
        tmp_path / "windowed.gguf",
        format="gguf",
        dtype="float32",
        tokenizer=tokenizer,
        name="windowed",
    )
    assert gguf_file.GgufFile(written.path).metadata["llama.attention.sliding_window"] == 16
    short, long = prompts_of(tokenizer.vocab_size)
    top_short, top_long = run_llama_cpp(Path(written.path), [short, long], tmp_path)["top"]
    check_top(log_probs_after(definition, params, short), top_short, 5e-3)
    full, _ = drawn(tiny(tokenizer.vocab_size))
    check_top(log_probs_after(full, params, long), top_long, 5e-3)
    with pytest.raises(AssertionError):
        check_top(log_probs_after(definition, params, long), top_long, 5e-3)


REAL_TEXT = "The capital of France is"
# Measured: 2e-4, 4e-3 and 0.21; the rounding of activations adds up over 30 layers.
REAL_TOLERANCES = {"float32": 1e-3, "float16": 5e-3, "q8_0": 0.25}


@pytest.mark.parametrize("dtype", REAL_TOLERANCES)
def test_llama_cpp_gives_our_log_probabilities_of_smollm2(
    dtype: str,
    smollm2: tuple[definition_lib.Definition, definition_lib.Params, tokenizers.Tokenizer],
    tmp_path: Path,
) -> None:
    definition, params, tokenizer = smollm2
    arrays = {path: np.asarray(value) for path, value in params.items()}
    written = export.write_model(
        readers.TreeReader(arrays, definition.config),
        tmp_path / "smollm2.gguf",
        format="gguf",
        dtype=dtype,
        tokenizer=tokenizer,
        name="smollm2",
    )
    prompt = tokenizer.encode(REAL_TEXT)
    answers = run_llama_cpp(Path(written.path), [prompt], tmp_path)
    expected = log_probs_after(*ours.load(Path(written.path)), prompt)
    Path(written.path).unlink()  # up to half a gigabyte
    assert tokenizer.decode([int(np.argmax(expected))]) == " Paris"
    check_top(expected, answers["top"][0], REAL_TOLERANCES[dtype])
    assert answers["ids"] == [tokenizer.encode(text) for text in TEXTS]


def test_the_comparison_sees_rows_of_q_in_the_wrong_order(tmp_path: Path) -> None:
    tokenizer = tokenizers.load_tokenizer("mistral-common:v3")
    definition, params = drawn(tiny(tokenizer.vocab_size))
    arrays = {path: np.asarray(value) for path, value in params.items()}
    written = export.write_model(
        readers.TreeReader(arrays, definition.config),
        tmp_path / "tiny.gguf",
        format="gguf",
        dtype="q8_0",
        tokenizer=tokenizer,
        name="tiny",
    )
    prompt = prompts_of(tokenizer.vocab_size)[0]
    top = run_llama_cpp(Path(written.path), [prompt], tmp_path)["top"][0]
    name = "layers/attention/q_proj/kernel"
    params[name] = jnp.roll(params[name], 1, axis=-1)
    with pytest.raises(AssertionError):
        check_top(log_probs_after(definition, params, prompt), top, TOLERANCES["q8_0"])
