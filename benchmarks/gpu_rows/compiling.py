"""Compile time of the 7B LoRA step: cold, and again in a new process with the persistent cache.

Nothing is allocated: the step is lowered on shapes. The second process must add nothing to the
cache, else it did not use it. No peer: a torch.compile of the same step takes longer than this row.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from benchmarks import train_rows
from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import lora
from benchmarks.gpu_rows import training
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.config import stage as stage_config
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib

ONCE = "--once"
PEER = "none: torch.compile cold was not run"
METRIC = "compile of the 7B LoRA step"


def compile_seconds(machine: device.Machine) -> dict[str, float]:
    """Return the seconds to trace and lower, and to compile."""
    job = lora.job(machine)
    definition = training.define(machine, job)
    trained = set(definition.trainable_paths())
    config = optimizer_config.AdamW(
        learning_rate=train_rows.LEARNING_RATE,
        max_steps=1000,
        schedule=optimizer_config.ConstantSchedule(),
    )
    optimizer = optimizers.make_optimizer(config)
    step = step_lib.make_train_step(
        definition, stage_config.LmStage(), optimizer, optimizers.learning_rate(config)
    )
    params = {path: definition.shapes[path] for path in trained}
    frozen = {
        path: jax.ShapeDtypeStruct(shape.shape, machine.dtype)
        for path, shape in definition.shapes.items()
        if path not in trained
    }
    key_data = jax.eval_shape(lambda: jax.random.key_data(rng.seed_key(0)))
    state = jax.eval_shape(
        lambda params, key: state_lib.TrainState(np.int32(0), params, optimizer.init(params), key),
        params, key_data,
    )  # fmt: skip
    shape = (1, job.num_rows, job.length)
    batch = train_rows.random_batch(1, 1, job.config.vocab_size)
    batch = {name: jax.ShapeDtypeStruct(shape, array.dtype) for name, array in batch.items()}
    with jax.set_mesh(sharding.single_device_mesh()):
        started = time.perf_counter()
        lowered = step.lower(state, frozen, batch)
        between = time.perf_counter()
        lowered.compile()
    return {"lower": between - started, "compile": time.perf_counter() - between}


def in_new_process(machine: device.Machine, cache: Path) -> dict[str, float]:
    """Return the seconds of a fresh process.

    Raises:
        OSError: it failed; its last line is in the message.
    """
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "benchmarks.gpu_rows.compiling", ONCE]
    command += ["--tiny"] if machine.is_tiny else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines() or ["no message"]
        raise OSError(f"the compiling process ended with code {done.returncode}: {last[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(machine: device.Machine) -> Iterator[device.Line]:
    """Yield the cold and the cached time."""
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        cold = in_new_process(machine, cache)
        entries = _entries(cache)
        yield _line(f"{METRIC}, cold", cold, goal=60)
        if not entries:
            raise device.CheckError("the cold compile left nothing in the persistent cache")
        warm = in_new_process(machine, cache)
        if added := _entries(cache) - entries:
            raise device.CheckError(f"the second process compiled anew: {sorted(added)[0]}")
        yield _line(f"{METRIC}, persistent cache", warm, goal=10)


def _entries(cache: Path) -> set[str]:
    """Return the cached programs; files that note when each was used are none."""
    return {path.name for path in cache.rglob("*-cache") if path.is_file()}


def _line(metric: str, seconds: dict[str, float], *, goal: int) -> device.Line:
    return {
        "metric": metric,
        "value": round(sum(seconds.values()), 2),
        "unit": "seconds",
        "peer": PEER,
        "peer_value": None,
        "ratio": None,
        "limit": None,
        "goal": goal,
        "n": 1,
        "spread": None,
        "error": None,
        **{f"{name}_s": round(value, 2) for name, value in seconds.items()},
    }


def main() -> None:
    """Compile once, or drive the two processes; those start JAX, this one must not hold the GPU."""
    if ONCE in sys.argv:
        machine = device.this_machine(is_tiny="--tiny" in sys.argv, gemm_tflops=None, copy=None)
        print(json.dumps(compile_seconds(machine)))
        return
    # Neither platform nor memory matter here: the processes look for themselves.
    machine = device.Machine("--tiny" in sys.argv, "", "", 0.0)
    try:
        for found in measured(machine):
            print(json.dumps(found), flush=True)
    except device.FAILURES as error:
        print(json.dumps({"metric": METRIC, "value": None, "error": device.one_line(error)}))


if __name__ == "__main__":
    sys.exit(main())
