"""The `compile` verb: a run's real training step, compiled for a machine that is not here.

Plan, definition, optimizer, state and step are those of job.py, on abstract devices; no parameter
is drawn and no data is opened. compile_report.py says what the report holds.
"""

import importlib.metadata
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from launch import plan as plan_lib
from launch import target as target_lib
from mistral_jax import artifact
from mistral_jax import compile_report
from mistral_jax import job
from mistral_jax import sharding
from mistral_jax.config import expert_shards
from mistral_jax.config import model as model_config
from mistral_jax.config import run as run_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn.kernels import experts_order
from mistral_jax.train import compile as compile_lib
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib

# Accelerator types begin so; the slices that Google Cloud offers, chips along each torus axis.
# cloud.google.com/tpu/docs/{v5e,v5p,v6e}, read 2026-11.
FLAT_SLICES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
GENERATIONS = {"v5litepod": "v5e", "v5e": "v5e", "v6e": "v6e", "v5p": "v5p"}
TOPOLOGIES = {
    "v5e": FLAT_SLICES,
    "v6e": FLAT_SLICES,
    "v5p": (
        "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x12", "8x8x16",
        "8x16x16", "16x16x16", "16x16x24",
    ),
}  # fmt: skip


def compile_run(
    run: run_config.RunConfig,
    target: target_lib.Target,
    *,
    say: Callable[[str], None] = print,
    keep_text: Callable[[str], Any] | None = None,
) -> compile_report.CompileReport:
    """Compile a run's training step for a target and report what came of it.

    Args:
        run: the experiment.
        target: the machine.
        say: gets a line before the long part.
        keep_text: gets the compiled module's text.

    Raises:
        ValueError: bad input, see the message; nothing was compiled.
        DoesNotFit: the compiler found no room; the message names the largest part.
    """
    topology = check_target(target)
    decoder = artifact.resolve_decoder(run.model)
    plan = plan_lib.resolve(run, target, decoder=decoder)
    if run.optimizer.max_steps is None:
        run = run.with_steps(1)  # a constant of the schedule; the step is the same program
    mesh = sharding.make_mesh(plan.mesh, _devices(target, topology))
    runtime = job.runtime_of(run, plan)
    definition = definition_lib.define(
        decoder, adapter=run.adapter, runtime=runtime, frozen=run.precision.frozen
    )
    state = artifact.abstract_state(definition, run, mesh)
    optimizer = optimizers.make_optimizer(run.optimizer)
    if plan.offload == "optimizer":
        optimizer, state = optimizers.with_state_on_host(optimizer), state_lib.on_host(state)
    is_float32 = run.precision.frozen == "float32"
    frozen_dtype = np.dtype("float32") if is_float32 else jax.numpy.bfloat16.dtype
    frozen = compile_lib.abstract_frozen(definition, mesh, frozen_dtype)
    rows = plan.micro_batch_sequences * plan.data_parallel
    batch = compile_lib.abstract_batch(plan.accumulation, rows, plan.sequence_length, mesh)
    step = step_lib.make_train_step(
        definition,
        run.stage,
        optimizer,
        optimizers.learning_rate(run.optimizer),
        state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    )
    say(
        f"compiling the step of {run.name} ({plan.parameters:,} parameters) for "
        f"{plan.num_devices:,} x {plan.accelerator_type}; a large model takes minutes"
    )
    parts = {
        "parameters": compile_lib.device_bytes(state.params),
        "optimizer_state": compile_lib.device_bytes(state.opt_state),
        "frozen_parameters": compile_lib.device_bytes(frozen),
        "batch": compile_lib.device_bytes(batch),
    }
    try:
        compiled = compile_lib.compile_step(
            step, state, frozen, batch, mesh, expected_trips=_expected_trips(run, plan, decoder)
        )
    except compile_lib.CompilerRefused as error:
        raise compile_report.DoesNotFit(
            compile_report.refusal(run, plan, target, parts, error)
        ) from error
    if keep_text is not None:
        keep_text(compiled.text)
    return compile_report.make_report(run, plan, target, definition, compiled, parts)


def _expected_trips(
    run: run_config.RunConfig, plan: plan_lib.Plan, decoder: model_config.DecoderConfig
) -> dict[str, float]:
    """Return how often loops turn whose count is in the routing, at even load."""
    if decoder.ffn.kind != "moe":
        return {}
    shards = expert_shards.of_ffn(decoder.ffn, plan.mesh["expert"])
    turns = shards.mean_most_local(experts_order.COLLECTED_TOKENS, step=experts_order.SLOTS_OF_TURN)
    # The buffers' slack holds no rows, and blocks without rows do not turn.
    return {experts_order.ROWS_LOOP: turns / run.stage.experts.buffer_factor}


def check_target(target: target_lib.Target) -> str:
    """Return the target's topology as libtpu spells it (`v5p:8x8x16`); on a CPU, "".

    Raises:
        ValueError: another platform, no such topology, or no compiler for it here.
    """
    if target.platform == "cpu":
        return ""
    if target.platform != "tpu":
        raise ValueError(
            f"target {target.name} is a {target.platform}; compile works for TPU slices and CPUs, "
            "whose compilers need no device"
        )
    generation = GENERATIONS.get(target.accelerator_type.partition("-")[0])
    if generation is None:
        raise ValueError(
            f"target {target.name}: unknown TPU {target.accelerator_type!r}; accelerator_type must "
            f"begin with one of {', '.join(GENERATIONS)}"
        )
    shape = "x".join(map(str, target.topology))
    if shape not in TOPOLOGIES[generation]:
        raise ValueError(
            f"target {target.name}: {generation} has no topology {shape}; "
            f"known: {', '.join(TOPOLOGIES[generation])}"
        )
    if not compile_lib.has_libtpu():
        raise ValueError(
            "compile for a TPU needs libtpu, which is not installed; install it with "
            f"`{sys.executable} -m pip install 'libtpu{_libtpu_version()}'`"
        )
    return f"{generation}:{shape}"


def _libtpu_version() -> str:
    """Return the version that this jax asks for."""
    for line in importlib.metadata.requires("jax") or ():
        name, _, marker = line.partition(";")
        if name.startswith("libtpu") and "extra" in marker:
            return name.removeprefix("libtpu").strip()
    return ""


def _devices(target: target_lib.Target, topology: str) -> list[Any]:
    # The step's constants are made on the CPU; a TPU, if there is one, is not touched.
    jax.config.update("jax_platforms", "cpu")
    if target.platform == "cpu":
        found = jax.devices("cpu")
        if len(found) < target.num_chips:
            raise ValueError(
                f"target {target.name} wants {target.num_chips} CPU devices, jax has {len(found)}; "
                f"set XLA_FLAGS=--xla_force_host_platform_device_count={target.num_chips}"
            )
        return found[: target.num_chips]
    # libtpu asks the cloud's metadata server who it is, and waits; one process may hold it.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", target.accelerator_type),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(name, value)
    return compile_lib.tpu_devices(topology)
