"""Our side of the comparisons: load, logits, gradients, batches; and how a peer is called.

A peer is a script of scripts/, run by the interpreter that MISTRAL_JAX_PEERS_PYTHON names; it
gets one JSON file and leaves numbers in files.
"""

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.config import stage as stage_config
from mistral_jax.formats import names
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import weights
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib
from mistral_jax.train.stages import lm

PYTHON_VARIABLE = "MISTRAL_JAX_PEERS_PYTHON"
SCRIPTS = Path(__file__).parent / "scripts"
MESH = sharding.single_device_mesh


def run_peer(script: str, job: dict[str, Any], folder: Path, *, timeout_s: float = 1200) -> None:
    """Run one peer script to its end; its last output is in the failure."""
    python = os.environ.get(PYTHON_VARIABLE)
    if not python:
        pytest.fail(
            f"{PYTHON_VARIABLE} is not set: run these tests with ./run peers, or point it to the "
            "Python that has torch, transformers, peft and xllamacpp",
            pytrace=False,
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(script).stem}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Spinning threads are several times slower where other work shares the cores.
    quiet["OMP_WAIT_POLICY"] = "PASSIVE"
    done = subprocess.run(
        [python, SCRIPTS / script, path],
        env={**os.environ, **quiet, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        tail = (done.stdout + done.stderr).decode("utf-8", errors="replace")[-3000:]
        pytest.fail(f"{script} ended with {done.returncode}:\n{tail}", pytrace=False)


def load(path: Path) -> tuple[definition_lib.Definition, definition_lib.Params]:
    """Return a checkpoint in float32."""
    definition = definition_lib.define(weights.read_config(path))
    return definition, weights.load_params(definition, path, MESH())


def hidden(
    definition: definition_lib.Definition, params: definition_lib.Params, tokens: np.ndarray
) -> np.ndarray:
    """Return final hidden states, normed."""
    return _hidden_and_logits(definition, params, tokens)[0]


def logits(
    definition: definition_lib.Definition, params: definition_lib.Params, tokens: np.ndarray
) -> np.ndarray:
    """Return logits [B, T, V] of rows that are one document each."""
    return _hidden_and_logits(definition, params, tokens)[1]


def packed_logits(
    definition: definition_lib.Definition, params: definition_lib.Params, tokens: np.ndarray
) -> np.ndarray:
    """Return logits [B, T, V] of the same rows, computed as documents packed into one row."""
    rows, length = tokens.shape
    segment_ids = np.repeat(np.arange(1, rows + 1, dtype=np.int32), length)[None]
    packed = tokens.reshape(1, -1)
    found = _hidden_and_logits(definition, params, packed, segment_ids=segment_ids, length=length)
    return found[1].reshape(rows, length, -1)


def _hidden_and_logits(
    definition: definition_lib.Definition,
    params: definition_lib.Params,
    tokens: np.ndarray,
    *,
    segment_ids: np.ndarray | None = None,
    length: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    counted = np.arange(tokens.shape[1], dtype=np.int32) % (length or tokens.shape[1])
    positions = jnp.broadcast_to(jnp.asarray(counted), tokens.shape)
    segments = None if segment_ids is None else jnp.asarray(segment_ids)

    def run(params: definition_lib.Params) -> tuple[jax.Array, jax.Array]:
        model = definition.bind(params)
        found, *_ = model.hidden(jnp.asarray(tokens, jnp.int32), positions, segments)
        return found, model.logits(found)

    found, scores = jax.jit(run)(params)
    return np.asarray(found), np.asarray(scores)


def layer_differences(
    definition: definition_lib.Definition,
    params: definition_lib.Params,
    tokens: np.ndarray,
    theirs: dict[str, np.ndarray],
) -> str:
    """Say after which layer the hidden states part, for a failure's message.

    Ours are taken from decoders cut off after each layer; both are compared behind the final norm.
    """
    config = definition.config
    scale = np.asarray(params["final_norm/scale"])
    lines = []
    for depth in range(1, config.num_layers + 1):
        cut, kept = _first_layers(config, params, depth)
        expected = theirs[f"hidden/{depth}"]
        if depth < config.num_layers:  # transformers norms the last one only
            mean_square = np.mean(np.square(expected), axis=-1, keepdims=True)
            expected = expected / np.sqrt(mean_square + config.norm_epsilon) * scale
        apart = np.abs(hidden(cut, kept, tokens) - expected)
        where = np.unravel_index(np.argmax(apart), apart.shape)
        place = ", ".join(str(int(index)) for index in where)
        lines.append(f"after layer {depth}: {apart.max():.2e} at [{place}]")
    return "; ".join(lines)


def _first_layers(
    config: model_config.DecoderConfig, params: definition_lib.Params, depth: int
) -> tuple[definition_lib.Definition, definition_lib.Params]:
    """Return the decoder cut off after some layers."""
    num_dense, changes = config.num_dense_layers, {"num_layers": depth}
    outer = {path: value for path, value in params.items() if "layers/" not in path}
    dense = {path: v for path, v in params.items() if path.startswith("dense_layers/")}
    rest = {path: value for path, value in params.items() if path.startswith("layers/")}
    if depth <= num_dense:
        changes["ffn"] = model_config.DenseFfn(width=config.ffn.dense_width)
        kept = {path.removeprefix("dense_"): value[:depth] for path, value in dense.items()}
    else:
        kept = dense | {path: value[: depth - num_dense] for path, value in rest.items()}
    return definition_lib.define(config.model_copy(update=changes)), outer | kept


def batch_arrays(batch: dict[str, np.ndarray]) -> lm.BatchArrays:
    """Return a peer's batch as one micro batch of our step: [1, B, T]."""
    tokens = batch["tokens"]
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    arrays = batch | {"positions": positions, "segment_ids": np.ones_like(tokens)}
    return {name: jnp.asarray(array)[None] for name, array in arrays.items()}


def loss_gradients(
    definition: definition_lib.Definition, params: definition_lib.Params, batch: lm.BatchArrays
) -> tuple[float, definition_lib.Params]:
    """Return the mean loss of a batch and its gradients by path."""

    def mean_loss(params: definition_lib.Params) -> jax.Array:
        total, _ = lm.loss_sum(
            definition.bind(params),
            {name: array[0] for name, array in batch.items()},
            stage_config.LmStage(),
            is_head_trained=True,
            dropout_key=None,
        )
        return total / jnp.sum(batch["loss_weights"])

    loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(params)
    return float(loss), gradients


def train(
    definition: definition_lib.Definition,
    params: definition_lib.Params,
    batches: list[lm.BatchArrays],
    config: optimizer_config.AdamW,
) -> tuple[list[dict[str, float]], definition_lib.Params]:
    """Run the product's step over batches; return each step's metrics and the trained part."""
    optimizer = optimizers.make_optimizer(config)
    mesh, paths = MESH(), definition.trainable_paths()
    shardings = definition.shardings(mesh)
    # Copies: the step donates its state.
    trained = {path: jnp.array(params[path], copy=True) for path in paths}
    frozen = {path: value for path, value in params.items() if path not in trained}
    state = state_lib.create(trained, optimizer, 0, mesh, {p: shardings[p] for p in paths})
    # The router's bias moves by counts and not by AdamW: no peer here does that.
    stage = stage_config.LmStage(experts=stage_config.ExpertTraining(bias_rate=0.0))
    step = step_lib.make_train_step(definition, stage, optimizer, optimizers.learning_rate(config))
    seen = []
    with jax.set_mesh(mesh):
        for batch in batches:
            state, metrics = step(state, frozen, batch)
            seen.append({name: float(value) for name, value in metrics.items()})
    return seen, state.params


def torch_settings(config: optimizer_config.AdamW) -> dict[str, Any]:
    """Return the optimizer for torch; the schedule is written out anew, as its page defines it."""
    rates = []
    for step in range(config.max_steps):
        if step < config.warmup_steps:
            rates.append(config.learning_rate * (step + 1) / config.warmup_steps)
            continue
        progress = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)
        final = config.schedule.final_fraction if config.schedule.kind == "cosine" else 1.0
        wave = 0.5 * (1 + math.cos(math.pi * progress))
        rates.append(config.learning_rate * (final + (1 - final) * wave))
    return {
        "rates": rates,
        "betas": [config.beta1, config.beta2],
        "epsilon": config.epsilon,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
    }


def peer_version(package: str) -> str:
    """Return the version of a package of the peers' environment."""
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    done = subprocess.run(
        [os.environ[PYTHON_VARIABLE], "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def from_hugging_face(
    arrays: dict[str, np.ndarray],
    prefix: str,
    config: model_config.DecoderConfig,
    *,
    is_interleaved: bool = True,
) -> dict[str, np.ndarray]:
    """Return arrays that carry Hugging Face's parameter names, stacked as our parameters are.

    `is_interleaved` is rope_interleave of their config.
    """
    stacked: dict[str, dict[names.Index, np.ndarray]] = {}
    for entry in names.entries(config, "hf", is_interleaved=is_interleaved):
        value = names.from_foreign(arrays[f"{prefix}{entry.foreign_name}"], entry)
        stacked.setdefault(entry.path, {})[entry.index] = value
    found = {}
    for path, parts in stacked.items():
        counts = [max(axis) + 1 for axis in zip(*parts, strict=True)]
        flat = np.stack([parts[index] for index in sorted(parts)])
        found[path] = flat.reshape(*counts, *flat.shape[1:])
    return found


def assert_close(
    ours: dict[str, Any], theirs: dict[str, np.ndarray], tolerance: float, what: str
) -> float:
    """Compare trees by path and list every parameter that is off.

    Small arrays have to agree to a thousandth of their largest entry as well, down to 1e-6.
    Return the largest difference.
    """
    assert set(ours) == set(theirs)
    apart = {path: float(np.abs(np.asarray(ours[path]) - theirs[path]).max()) for path in theirs}
    limits = {
        path: min(tolerance, max(1e-6, 1e-3 * float(np.abs(value).max())))
        for path, value in theirs.items()
    }
    wrong = {path: value for path, value in apart.items() if not value <= limits[path]}
    assert not wrong, f"{what} differ by more than {tolerance}: {wrong}"
    return max(apart.values())
