"""What one compile of a training step gave, as a frozen tree that goes to JSON, and its judgement.

Bytes are the compiler's; FLOPs are counted in closed form. Nothing here says how fast the step
runs: the rooflines are lower bounds, and times at a share of the peak are assumptions.
"""

import importlib.metadata

from launch import arithmetic
from launch import plan as plan_lib
from launch import target as target_lib
from mistral_jax.config import run as run_config
from mistral_jax.config.base import Node
from mistral_jax.models import definition as definition_lib
from mistral_jax.train import compile as compile_lib
from mistral_jax.train import hlo_traffic

GIB = 1 << 30
ASSUMED_UTILIZATIONS = (0.3, 0.4, 0.5)
NUM_LARGEST = 10


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
    predicted_arguments: int
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


def make_report(
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
        attention=(
            f"blocks of shared rows ({runtime.context})"
            if plan.mesh["context"] > 1
            else runtime.attention
        ),
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
            predicted_arguments=sum(
                getattr(plan.memory, part)
                for part in ("frozen_parameters", "trained_parameters", "optimizer_state", "batch")
            ),
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


def refusal(
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
