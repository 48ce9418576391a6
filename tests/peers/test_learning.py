"""Whole trainings: our loss follows torch's and PEFT's at every step.

Both sides start from the same files and see the same batches; what they share is no code.
"""

import argparse
import inspect
import json
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mistral_jax import export
from mistral_jax import rng
from mistral_jax import tokenizers
from mistral_jax.config import load
from mistral_jax.config import model as model_config
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from tests.peers import ours

WITHIN = 1e-3  # asked for: 5e-3; measured: 9e-7 from torch, 1.5e-5 from PEFT
# At the config's own rate of 2e-3 training is chaotic: two runs of ours whose starts differ by 1e-7
# are 4 per cent apart after 100 steps. At this rate they stay within 1e-6, and so rounding cannot
# hide or feign a difference.
GENTLE = (
    "optimizer.learning_rate=5e-4",
    "optimizer.warmup_steps=40",
    "data.sequence_length=128",
    "data.global_batch_sequences=4",
)
TINY_CONFIG = Path(__file__).parents[2] / "configs" / "tiny" / "dense.yaml"
SOURCES = (argparse, inspect, json, textwrap)


def documents() -> str:
    """Return real text that every Python brings: sources of its standard library."""
    return "\n".join(inspect.getsource(module) for module in SOURCES)


def cut_batches(
    ids: list[int], *, steps: int, rows: int, length: int, seed: int
) -> dict[str, np.ndarray]:
    """Return [steps, B, T] batches of pieces of a text; some targets carry no weight."""
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, len(ids) - length - 1, (steps, rows))
    pieces = np.asarray(ids, np.int32)[starts[..., None] + np.arange(length + 1)]
    weights = generator.random((steps, rows, length)) < 0.9
    return {
        "tokens": pieces[..., :-1],
        "targets": pieces[..., 1:],
        "loss_weights": weights.astype(np.float32),
    }


def steps_of(batches: dict[str, np.ndarray]) -> list:
    """Return the batches as our step takes them."""
    return [
        ours.batch_arrays({name: array[index] for name, array in batches.items()})
        for index in range(len(batches["tokens"]))
    ]


def compare_curves(seen: list[dict[str, float]], theirs: np.ndarray, *, fall: float) -> None:
    """Compare losses at every step, and see that something was learnt."""
    found = np.array([metrics["loss"] for metrics in seen])
    assert len(found) == len(theirs)
    apart = np.abs(found - theirs) / theirs
    print(f"largest difference {apart.max():.2e} at step {apart.argmax()}; "
          f"loss {theirs[:5].mean():.3f} to {theirs[-5:].mean():.3f}")  # fmt: skip
    assert theirs[-5:].mean() < theirs[:5].mean() - fall
    assert apart.max() <= WITHIN, (
        f"step {apart.argmax()}: ours {found[apart.argmax()]:.5f}, theirs "
        f"{theirs[apart.argmax()]:.5f}"
    )


def test_pretraining_the_tiny_decoder_follows_torch_for_200_steps(tmp_path: Path) -> None:
    run = load.load_run(TINY_CONFIG, GENTLE)
    assert isinstance(run.model, model_config.DecoderConfig)
    assert run.optimizer.max_steps == 200
    definition = definition_lib.define(run.model)
    params = definition_lib.initialise(definition, rng.seed_key(run.seed), ours.MESH())
    arrays = {path: np.asarray(value) for path, value in params.items()}
    export.write_model(
        readers.TreeReader(arrays, run.model),
        tmp_path / "start",
        format="hf",
        dtype="float32",
        tokenizer=None,
        name="tiny",
    )
    batches = cut_batches(
        tokenizers.load_tokenizer("bytes").encode(documents()),
        steps=200,
        rows=run.data.global_batch_sequences,
        length=run.data.sequence_length,
        seed=run.seed,
    )
    np.savez(tmp_path / "batches.npz", **batches)
    job = {
        "folder": str(tmp_path / "start"),
        "batches": str(tmp_path / "batches.npz"),
        "optimizer": ours.torch_settings(run.optimizer),
        "out": str(tmp_path / "losses.npy"),
    }
    ours.run_peer("train.py", job, tmp_path)
    seen, _ = ours.train(definition, params, steps_of(batches), run.optimizer)
    compare_curves(seen, np.load(tmp_path / "losses.npy"), fall=1.5)


def test_lora_on_smollm2_follows_peft_for_50_steps(
    smollm2: tuple[definition_lib.Definition, definition_lib.Params, tokenizers.Tokenizer],
    smollm2_file: Path,
    tmp_path: Path,
) -> None:
    base, params, tokenizer = smollm2
    adapter = model_config.LoraAdapter(rank=16, alpha=32)
    definition = definition_lib.define(base.config, adapter=adapter)
    paths = definition.trainable_paths()
    adapters = definition_lib.initialise(definition, rng.seed_key(0), ours.MESH(), paths)
    export.write_adapter(adapters, base.config, adapter, tmp_path / "start", base_model="smollm2")
    config = optimizer_config.AdamW(learning_rate=5e-4, warmup_steps=5, max_steps=50)
    batches = cut_batches(tokenizer.encode(documents()), steps=50, rows=1, length=128, seed=0)
    np.savez(tmp_path / "batches.npz", **batches)
    job = {
        "folder": str(smollm2_file.parent),
        "gguf_file": smollm2_file.name,
        "adapter": str(tmp_path / "start"),
        "batches": str(tmp_path / "batches.npz"),
        "optimizer": ours.torch_settings(config),
        "out": str(tmp_path / "losses.npy"),
    }
    ours.run_peer("train.py", job, tmp_path)
    everything = params | {path: jnp.asarray(value) for path, value in adapters.items()}
    seen, _ = ours.train(definition, everything, steps_of(batches), config)
    compare_curves(seen, np.load(tmp_path / "losses.npy"), fall=0.2)
