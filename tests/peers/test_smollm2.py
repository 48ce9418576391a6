"""A real pretrained model from its GGUF file: tensors, logits, top tokens, ids."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from mistral_jax import export
from mistral_jax import tokenizers
from mistral_jax.formats import gguf_file
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from tests.peers import ours

Smollm2 = tuple[definition_lib.Definition, definition_lib.Params, tokenizers.Tokenizer]
TEXT = (
    "The capital of France is Paris. In 1889 the Eiffel Tower was opened to the public, and for "
    "forty-one years no building in the world was taller than it."
)


def test_dequantised_tensors_are_those_of_the_gguf_package(
    smollm2_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "digests.json"
    ours.run_peer("dequantize.py", {"path": str(smollm2_file), "out": str(out)}, tmp_path)
    theirs = json.loads(out.read_text(encoding="utf-8"))
    file = gguf_file.GgufFile(smollm2_file)
    assert set(file.names()) == set(theirs)
    assert {"Q4_1", "F32"} <= {kind for kind, _, _ in theirs.values()}
    for name, (kind, shape, digest) in theirs.items():
        values = np.ascontiguousarray(file.tensor(name), np.float32)
        assert (file.info(name).block.name, list(values.shape)) == (kind, shape), name
        assert hashlib.sha256(values.tobytes()).hexdigest() == digest, name


@pytest.fixture(scope="module")
def logits(
    smollm2: Smollm2, smollm2_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ours, transformers' of the same GGUF file, and transformers' of our export."""
    definition, params, tokenizer = smollm2
    root = tmp_path_factory.mktemp("smollm2")
    tokens = np.array([tokenizer.encode(TEXT)], np.int32)
    np.save(root / "tokens.npy", tokens)
    arrays = {path: np.asarray(value) for path, value in params.items()}
    export.write_model(
        readers.TreeReader(arrays, definition.config),
        root / "hf",
        format="hf",
        dtype="float32",
        tokenizer=tokenizer,
        name="smollm2",
    )
    shared = {"tokens": str(root / "tokens.npy")}
    items = [
        shared
        | {
            "folder": str(smollm2_file.parent),
            "gguf_file": smollm2_file.name,
            "out": str(root / "gguf.npy"),
        },
        shared | {"folder": str(root / "hf"), "out": str(root / "hf.npy")},
    ]
    ours.run_peer("run_logits.py", {"items": items}, root)
    (root / "hf" / "model.safetensors").unlink()  # half a gigabyte
    theirs = np.load(root / "gguf.npy"), np.load(root / "hf.npy")
    return ours.logits(definition, params, tokens), *theirs


def test_logits_are_those_of_transformers_on_the_same_file(
    logits: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    found, theirs, _ = logits
    # 30 layers, logits up to 30: float32 rounding alone is 1e-5 of the largest.
    apart = np.abs(found - theirs).max()
    assert apart <= 2e-5 * np.abs(theirs).max(), f"{apart:.2e} of {np.abs(theirs).max():.1f}"


def test_our_export_gives_transformers_the_logits_of_the_original(
    logits: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    _, from_gguf, from_export = logits
    assert float(np.abs(from_gguf - from_export).max()) <= 1e-6
