"""The `compile` verb: a run's real training step, compiled for a machine that is not here.

Plan, definition, optimizer, state and step are those of job.py, on abstract devices; no parameter
is drawn and no data is opened. The report holds the compiler's bytes and what its module moves;
FLOPs are counted in closed form. Nothing here says how fast the step runs: the rooflines are
lower bounds, and times at a share of the peak are assumptions.
"""

import dataclasses
import importlib.metadata
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from launch import arithmetic
from launch import plan as plan_lib
from launch import target as target_lib
from mistral_jax import artifact
from mistral_jax import job
from mistral_jax import sharding
from mistral_jax.config import run as run_config
from mistral_jax.config.base import Node
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import expert_parallel
from mistral_jax.train import compile as compile_lib
from mistral_jax.train import hlo_traffic
from mistral_jax.train import optimizers
from mistral_jax.train import step as step_lib

GIB = 1 << 30
ASSUMED_UTILIZATIONS = (0.3, 0.4, 0.5)
NUM_LARGEST = 10
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


class DoesNotFit(ValueError):
    """The compiled step needs more than a device has."""

    exit_code = 1


class MemoryBytes(Node):
    """Bytes on one device, from the compiler; arguments by part, from the shapes."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    total: int
    available: int
    parameters: int
    frozen_parameters: int
    optimizer_state: int
    batch: int
    predicted_total: int


class CollectiveSum(Node):
    """All collectives of one kind over the same mesh axes, for one device and step."""

    kind: str
    axes: tuple[str, ...]
    group: int
    count: int
    buffer_bytes: int
    sent_bytes: int


class LargestCollective(Node):
    """One collective instruction, by what it sends in a step."""

    kind: str
    axes: tuple[str, ...]
    count: int
    sent_bytes: int
    source: str


class Roofline(Node):
    """Seconds that a step needs at least, each part alone at its full rate; None: unknown rate.

    `compute_s` is the mathematics; `executed_s` has what remat computes again.
    """

    compute_s: float
    executed_s: float
    hbm_s: float
    ici_s: float | None


class Assumed(Node):
    """Times of a step at an assumed share of the peak."""

    utilization: float
    seconds_per_step: float
    tokens_per_s: float
    days_per_trillion_tokens: float
    usd_per_trillion_tokens: float | None


class CompileReport(Node):
    """What one compile of a run for a target gave."""

    run: str
    target: str
    accelerator_type: str
    platform: str
    topology: tuple[int, ...]
    num_devices: int
    mesh: dict[str, int]
    optimizer: str
    attention: str
    experts: str | None
    remat: str
    sequence_length: int
    global_batch_sequences: int
    micro_batch_sequences: int
    accumulation: int
    parameters: int
    active_parameters: int
    trainable_parameters: int
    versions: dict[str, str]
    memory: MemoryBytes
    num_equations: int
    trace_s: float
    compile_s: float
    model_flops: float
    executed_flops: float
    hbm_bytes: int
    collectives: tuple[CollectiveSum, ...]
    largest: tuple[LargestCollective, ...]
    unknown_loops: tuple[str, ...]
    roofline: Roofline
    assumed: tuple[Assumed, ...]
    predicted_seconds_per_step: float
    calibration: str

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.global_batch_sequences * self.sequence_length


def compile_run(
    run: run_config.RunConfig,
    target: target_lib.Target,
    *,
    say: Callable[[str], None] = print,
    keep_text: Callable[[str], Any] | None = None,
) -> CompileReport:
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
    mesh = sharding.make_mesh(plan.mesh, _devices(target, topology))
    runtime = _runtime(run, plan)
    definition = definition_lib.define(decoder, adapter=run.adapter, runtime=runtime)
    state = artifact.abstract_state(definition, run, mesh)
    is_float32 = run.precision.frozen == "float32"
    frozen_dtype = np.dtype("float32") if is_float32 else jax.numpy.bfloat16.dtype
    frozen = compile_lib.abstract_frozen(definition, mesh, frozen_dtype)
    rows = plan.micro_batch_sequences * plan.data_parallel
    batch = compile_lib.abstract_batch(plan.accumulation, rows, plan.sequence_length, mesh)
    step = step_lib.make_train_step(
        definition,
        run.stage,
        optimizers.make_optimizer(run.optimizer),
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
        compiled = compile_lib.compile_step(step, state, frozen, batch, mesh)
    except compile_lib.CompilerRefused as error:
        raise DoesNotFit(_refusal(run, plan, target, parts, error)) from error
    if keep_text is not None:
        keep_text(compiled.text)
    return _report(run, plan, target, definition, compiled, parts)


def _runtime(run: run_config.RunConfig, plan: plan_lib.Plan) -> decoder_lib.Runtime:
    runtime = job._runtime(run, plan)
    if plan.experts is None:
        return runtime
    placement = expert_parallel.Placement(
        plan.experts, plan.experts_transport or "padded", run.stage.experts.buffer_factor
    )
    return dataclasses.replace(runtime, experts=placement)


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


def _report(
    run: run_config.RunConfig,
    plan: plan_lib.Plan,
    target: target_lib.Target,
    definition: definition_lib.Definition,
    compiled: compile_lib.Compiled,
    parts: dict[str, int],
) -> CompileReport:
    memory, traffic = compiled.memory, compiled.traffic
    tokens = plan.global_batch_sequences * plan.sequence_length
    model_flops = plan.model_flops_per_token * tokens
    executed = plan.hardware_flops_per_token * tokens
    decoder, runtime = definition.config, definition.runtime
    return CompileReport(
        run=run.name,
        target=target.name,
        accelerator_type=target.accelerator_type,
        platform=target.platform,
        topology=target.topology,
        num_devices=plan.num_devices,
        mesh=plan.mesh,
        optimizer=run.optimizer.kind,
        attention=runtime.attention,
        experts=_experts_text(definition),
        remat=plan.remat,
        sequence_length=plan.sequence_length,
        global_batch_sequences=plan.global_batch_sequences,
        micro_batch_sequences=plan.micro_batch_sequences,
        accumulation=plan.accumulation,
        parameters=definition.num_parameters(),
        active_parameters=arithmetic.active_parameter_count(decoder),
        trainable_parameters=definition.num_parameters(definition.trainable_paths()),
        versions=_versions(target.platform),
        memory=MemoryBytes(
            arguments=memory.arguments,
            outputs=memory.outputs,
            aliased=memory.aliased,
            temporaries=memory.temporaries,
            code=memory.code,
            total=memory.total,
            available=target.chip_memory_bytes,
            predicted_total=plan.memory.total,
            **parts,
        ),
        num_equations=compiled.num_equations,
        trace_s=compiled.trace_s,
        compile_s=compiled.compile_s,
        model_flops=model_flops,
        executed_flops=executed,
        hbm_bytes=traffic.hbm_bytes,
        collectives=_sums(traffic.collectives),
        largest=_largest(traffic.collectives),
        unknown_loops=traffic.unknown_loops,
        roofline=_roofline(plan, target, traffic, model_flops, executed),
        assumed=tuple(_assumed(plan, target, share, model_flops) for share in ASSUMED_UTILIZATIONS),
        predicted_seconds_per_step=plan.seconds_per_step,
        calibration=plan.calibration,
    )


def _experts_text(definition: definition_lib.Definition) -> str | None:
    if definition.config.ffn.kind != "moe":
        return None
    placement = definition.runtime.experts
    return f"{placement.implementation}, {placement.transport}"


def _versions(platform: str) -> dict[str, str]:
    names = ["jax", "jaxlib"] + (["libtpu"] if platform == "tpu" else [])
    return {name: importlib.metadata.version(name) for name in names}


def _sums(collectives: tuple[hlo_traffic.Collective, ...]) -> tuple[CollectiveSum, ...]:
    """Return the collectives added up by kind and axes, what sends most first."""
    groups: dict[tuple, list[hlo_traffic.Collective]] = {}
    for each in collectives:
        groups.setdefault((each.kind, each.axes, each.group), []).append(each)
    sums = [
        CollectiveSum(
            kind=kind,
            axes=axes,
            group=group,
            count=sum(each.times for each in members),
            buffer_bytes=sum(each.times * each.buffer_bytes for each in members),
            sent_bytes=round(sum(each.times * each.sent_bytes for each in members)),
        )
        for (kind, axes, group), members in groups.items()
    ]
    return tuple(sorted(sums, key=lambda each: -each.sent_bytes))


def _largest(collectives: tuple[hlo_traffic.Collective, ...]) -> tuple[LargestCollective, ...]:
    """Return what sends most, by place in the program."""
    places: dict[tuple, list[hlo_traffic.Collective]] = {}
    for each in collectives:
        places.setdefault((each.kind, each.axes, each.source), []).append(each)
    found = [
        LargestCollective(
            kind=kind,
            axes=axes,
            count=sum(each.times for each in members),
            sent_bytes=round(sum(each.times * each.sent_bytes for each in members)),
            source=source,
        )
        for (kind, axes, source), members in places.items()
    ]
    return tuple(sorted(found, key=lambda each: -each.sent_bytes)[:NUM_LARGEST])


def _roofline(
    plan: plan_lib.Plan,
    target: target_lib.Target,
    traffic: hlo_traffic.Traffic,
    model_flops: float,
    executed: float,
) -> Roofline:
    return Roofline(
        compute_s=model_flops / plan.peak_flops_per_s,
        executed_s=executed / plan.peak_flops_per_s,
        hbm_s=traffic.hbm_bytes / (target.hbm_gb_per_s * 1e9),
        ici_s=_ici_seconds(target, traffic),
    )


def _ici_seconds(target: target_lib.Target, traffic: hlo_traffic.Traffic) -> float | None:
    """Return the seconds of all sends, nothing hidden behind compute, every link of a chip busy."""
    if target.ici_gb_per_s is None:
        return None
    links = 2 * len(target.topology)
    sent = sum(each.times * each.sent_bytes for each in traffic.collectives)
    return sent / (links * target.ici_gb_per_s * 1e9)


def _assumed(
    plan: plan_lib.Plan, target: target_lib.Target, share: float, model_flops: float
) -> Assumed:
    seconds = model_flops / (plan.peak_flops_per_s * share)
    tokens_per_s = plan.global_batch_sequences * plan.sequence_length / seconds
    days = 1e12 / tokens_per_s / 86400
    price = target.price_usd_per_hour
    return Assumed(
        utilization=share,
        seconds_per_step=seconds,
        tokens_per_s=tokens_per_s,
        days_per_trillion_tokens=days,
        usd_per_trillion_tokens=None if price is None else days * 24 * price,
    )


def check_fit(report: CompileReport) -> None:
    """Check that the compiled step fits into a device.

    Raises:
        DoesNotFit: it does not; the message names the largest part and what to change.
    """
    memory = report.memory
    if memory.total > memory.available:
        parts = {
            "temporaries": memory.temporaries,
            "parameters": memory.parameters,
            "optimizer state": memory.optimizer_state,
            "frozen parameters": memory.frozen_parameters,
            "batch": memory.batch,
        }
        raise DoesNotFit(
            f"{report.run} needs {memory.total / GIB:.2f} GiB on each device of {report.target}, "
            f"which has {memory.available / GIB:.2f} GiB; {_advice(parts, report.remat)}"
        )


def _refusal(
    run: run_config.RunConfig,
    plan: plan_lib.Plan,
    target: target_lib.Target,
    parts: dict[str, int],
    error: compile_lib.CompilerRefused,
) -> str:
    arguments = sum(parts.values())
    temporaries = error.wanted_bytes
    named = {name.replace("_", " "): size for name, size in parts.items()}
    if temporaries is not None:
        named["temporaries"] = temporaries
    shown = "an unknown amount" if temporaries is None else f"{temporaries / GIB:.2f} GiB"
    return (
        f"{run.name} does not fit on {target.name}: its state and batch take "
        f"{arguments / GIB:.2f} GiB of the {target.chip_memory_bytes / GIB:.2f} GiB of a device, "
        f"and the step needs {shown} more; {_advice(named, plan.remat)} (compiler: {error})"
    )


def _advice(parts: dict[str, int], remat: str) -> str:
    largest = max(parts, key=lambda name: parts[name])
    if largest == "temporaries":
        change = "lower the target's micro_batch_sequences or data.sequence_length"
        change += "" if remat == "full" else ", or set the target's remat to full"
    elif largest == "optimizer state":
        change = "take an optimizer with smaller state, or more devices"
    else:
        change = "split the parameters over more devices (the mesh's fsdp, expert or tensor axis)"
    return f"the largest part is {largest}, {parts[largest] / GIB:.2f} GiB: {change}"
