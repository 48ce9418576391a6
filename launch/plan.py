"""resolve(run, target) -> Plan: how a run sits on a machine, before anything starts.

Fills mesh, micro batch x accumulation, kernels and remat; predicts bytes, time and cost. It
decides nothing that changes the numbers: the science stays the config's. On a TPU times come from
predict.py; elsewhere they rest on the target's assumed utilization and are uncalibrated.
"""

import dataclasses
import math
from typing import Literal

from launch import arithmetic
from launch import calibration
from launch import memory as memory_lib
from launch import predict
from launch import shapes
from launch.target import GIB
from launch.target import Target
from mistral_jax.config import expert_shards
from mistral_jax.config.base import Node
from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.run import RunConfig

# The rest: runtime, fragments, the system.
MEMORY_SHARE = {"cpu": 0.7, "gpu": 0.92, "tpu": 0.9}
RUNTIME_BYTES = {"cpu": 700 << 20, "gpu": 800 << 20, "tpu": 300 << 20}
# One pass this long fills the matmul units; more rows in a pass only cost memory. On a TPU slice
# longer passes gather the weights less often, and the predicted time decides.
FULL_PASS_TOKENS = {"cpu": 512, "gpu": 4096, "tpu": 32768}
# A row is split over a context axis only into pieces that fill a pass.
MIN_CONTEXT_TOKENS = 4096
NEARLY_FASTEST = 1.05
REMAT_ORDER = ("none", "dots", "full")
FORMAT_BYTES = {"bfloat16": 2, "float32": 4}
SPLASH_MULTIPLE = 128
EXPERTS = {"cpu": "blocks", "gpu": "grouped", "tpu": "ragged"}

Remat = Literal["none", "dots", "full"]


class PlanError(ValueError):
    """The run does not fit the target; the message names the number and the remedy."""


class MemoryTooSmall(PlanError):
    """The run's numbers are in order, but a device cannot hold it."""

    exit_code = 3  # refused by a gate; see cli.py


class MemoryPlan(Node):
    """Predicted bytes on one device at the peak of a step; the terms are memory.DeviceBytes'."""

    frozen_parameters: int
    trained_parameters: int
    optimizer_state: int
    batch: int
    gradients: int
    activations: int
    layer_work: int
    dispatch: int
    gathered_weights: int
    loss_chunk: int
    runtime: int
    total: int
    available: int


class TimePlan(Node):
    """Predicted seconds of a step by what takes them; the terms are predict.StepTime's."""

    matmul: float
    experts: float
    attention: float
    pointwise: float
    row_moves: float
    optimizer: float
    weights: float
    exchange: float
    exposed: float


class Plan(Node):
    """How one run sits on one target. Frozen; the prediction part is marked by `calibration`.

    `assumed_utilization` is the share of the peak that the predicted time means, recomputation
    included; `mfu` counts the model's own FLOPs alone, causal pairs only.
    """

    run: str
    science_hash: str
    target: str
    platform: str
    accelerator_type: str
    num_devices: int
    num_hosts: int
    mesh: dict[str, int]
    data_parallel: int
    global_batch_sequences: int
    micro_batch_sequences: int
    accumulation: int
    sequence_length: int
    attention: str
    experts: str | None
    experts_transport: Literal["padded", "ragged"] | None
    remat: Remat
    parameters: int
    active_parameters: int
    trainable_parameters: int
    parameters_by_part: dict[str, int]
    optimizer: str
    optimizer_bytes_per_parameter: float
    memory: MemoryPlan
    model_flops_per_token: float
    hardware_flops_per_token: float
    assumed_utilization: float
    mfu: float
    peak_flops_per_s: float
    calibration: Literal["calibrated", "extrapolated", "uncalibrated"] = "uncalibrated"
    time: TimePlan | None = None
    roofline: dict[str, float] | None = None
    seconds_per_step: float
    tokens_per_s: float
    days_per_trillion_tokens: float
    max_steps: int
    tokens: int
    train_hours: float
    cost_usd: float | None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Choice:
    """One way to cut a step into passes."""

    micro: int
    remat: Remat
    memory: MemoryPlan
    seconds: float
    time: predict.StepTime | None


@dataclasses.dataclass(frozen=True)
class _Case:
    """What is settled before passes are chosen."""

    run: RunConfig
    target: Target
    decoder: DecoderConfig
    mesh: dict[str, int]
    rows: int
    attention: str
    experts: str | None
    transport: Literal["padded", "ragged"] | None


def resolve(run: RunConfig, target: Target, *, decoder: DecoderConfig | None = None) -> Plan:
    """Return how the run sits on the target.

    Args:
        run: the experiment; it is not changed.
        target: the machine, from launch.target.load_target.
        decoder: the model's shape where it is known; otherwise config or weights are asked.

    Raises:
        PlanError: batch or experts do not divide, a length is beyond the model, or memory is too
            small.
    """
    decoder = decoder or shapes.decoder_of_run(run)
    mesh = choose_mesh(run, target, decoder)
    data_parallel = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    rows = _rows_per_device(run, target, data_parallel, mesh)
    _check_lengths(run, decoder, mesh)
    attention, notes = _choose_attention(run, target, decoder)
    experts, transport = _choose_experts(target, decoder, mesh)
    case = _Case(run, target, decoder, mesh, rows, attention, experts, transport)
    chosen = _choose_passes(case)
    length = run.data.sequence_length
    flops = arithmetic.flops_per_token(decoder, run.adapter, length, chosen.remat, experts or "")
    peak = target.chip_flops_per_s(run.precision.compute) * target.num_chips
    batch_tokens = run.data.global_batch_sequences * length
    seconds, steps = chosen.seconds, run.optimizer.max_steps
    hours = seconds * steps / 3600
    price = target.price_usd_per_hour
    parameters = arithmetic.parameter_count(decoder)
    adapters = arithmetic.adapter_count(decoder, run.adapter)
    mark, reasons, roofline = "uncalibrated", [], None
    if chosen.time is not None:
        work = _workload(case, chosen.micro, chosen.remat)
        mark, reasons = calibration.judge(work, target)
        roofline = predict.roofline(work, target)
    held = chosen.memory.optimizer_state / (chosen.memory.trained_parameters / 4)
    return Plan(
        run=run.name,
        science_hash=run.science_hash(),
        target=target.name,
        platform=target.platform,
        accelerator_type=target.accelerator_type,
        num_devices=target.num_chips,
        num_hosts=target.num_hosts,
        mesh=mesh,
        data_parallel=data_parallel,
        global_batch_sequences=run.data.global_batch_sequences,
        micro_batch_sequences=chosen.micro,
        accumulation=rows // chosen.micro,
        sequence_length=length,
        attention=attention,
        experts=experts,
        experts_transport=transport,
        remat=chosen.remat,
        parameters=parameters,
        active_parameters=arithmetic.active_parameter_count(decoder),
        trainable_parameters=adapters or parameters,
        parameters_by_part=arithmetic.parameters_by_part(decoder),
        optimizer=run.optimizer.kind,
        optimizer_bytes_per_parameter=round(held, 3),
        memory=chosen.memory,
        model_flops_per_token=flops.model,
        hardware_flops_per_token=flops.hardware,
        assumed_utilization=predict.mfu(batch_tokens * flops.hardware, seconds, peak),
        mfu=predict.mfu(batch_tokens * flops.model, seconds, peak),
        peak_flops_per_s=peak,
        calibration=mark,
        time=None if chosen.time is None else TimePlan(**dataclasses.asdict(chosen.time)),
        roofline=roofline,
        seconds_per_step=seconds,
        tokens_per_s=batch_tokens / seconds,
        days_per_trillion_tokens=1e12 * seconds / batch_tokens / 86400,
        max_steps=steps,
        tokens=batch_tokens * steps,
        train_hours=hours,
        cost_usd=None if price is None else hours * price,
        notes=tuple(notes + reasons),
    )


def choose_mesh(run: RunConfig, target: Target, decoder: DecoderConfig) -> dict[str, int]:
    """Return the sizes of the mesh axes for this run.

    `expert: auto` takes the most devices that whole groups divide over: a token then travels to
    the groups it chose and no further. `context: auto` splits rows only where there are fewer of
    them than devices.

    Raises:
        PlanError: the experts do not divide over the expert axis.
        ValueError: the sizes do not multiply to the devices.
    """
    intent, chips = target.mesh, target.num_chips
    moe = decoder.ffn if decoder.ffn.kind == "moe" else None
    fixed = math.prod(
        size for size in (intent.data, intent.fsdp, intent.tensor) if size != -1
    )  # fmt: skip
    free = max(1, chips // fixed)
    expert = intent.expert
    if moe is None:
        expert = 1
    elif expert == "auto":
        splits = moe.num_groups if moe.num_groups > 1 else moe.num_experts
        expert = math.gcd(splits, free)
    context = intent.context
    if context == "auto":
        context = _context_size(run, free)
    intent = intent.model_copy(update={"expert": expert, "context": context})
    mesh = intent.sizes(chips)
    if moe is not None:
        try:
            expert_shards.of_ffn(moe, mesh["expert"])
        except ValueError as error:
            raise PlanError(f"{run.name} on {target.name}: {error}") from error
    return mesh


def _context_size(run: RunConfig, num_devices: int) -> int:
    """Return over how many devices a row has to be split so that each device has tokens."""
    rows, length = run.data.global_batch_sequences, run.data.sequence_length
    context = num_devices // math.gcd(rows, num_devices)
    is_long_enough = length % context == 0 and length // context >= MIN_CONTEXT_TOKENS
    return context if is_long_enough else 1


def _choose_experts(
    target: Target, decoder: DecoderConfig, mesh: dict[str, int]
) -> tuple[str | None, Literal["padded", "ragged"] | None]:
    """Return how a mixture's experts run, and how rows travel to them; None for a dense model."""
    if decoder.ffn.kind != "moe":
        return None, None
    if mesh["expert"] == 1:
        return EXPERTS[target.platform], None
    return EXPERTS[target.platform], "ragged" if target.platform == "tpu" else "padded"


def _rows_per_device(
    run: RunConfig, target: Target, data_parallel: int, mesh: dict[str, int]
) -> int:
    batch = run.data.global_batch_sequences
    if batch % data_parallel:
        axes = " x ".join(f"{axis} {mesh[axis]}" for axis in ("data", "fsdp", "expert"))
        raise PlanError(
            f"data.global_batch_sequences is {batch}, but {target.name} splits the batch over "
            f"{data_parallel} devices ({axes}); make it a multiple of {data_parallel}, or choose "
            f"a smaller target or another mesh"
        )
    return batch // data_parallel


def _check_lengths(run: RunConfig, decoder: DecoderConfig, mesh: dict[str, int]) -> None:
    length = run.data.sequence_length
    if length > decoder.max_positions:
        raise PlanError(
            f"data.sequence_length is {length}, but the model has {decoder.max_positions} "
            f"positions; set it to {decoder.max_positions} or less"
        )
    if length % mesh["context"]:
        raise PlanError(
            f"data.sequence_length is {length}, which the mesh's context axis of "
            f"{mesh['context']} does not divide; make it a multiple"
        )


def _choose_attention(
    run: RunConfig, target: Target, decoder: DecoderConfig
) -> tuple[str, list[str]]:
    """Return the implementation, and a sentence where the platform's own does not apply."""
    length, head_width = run.data.sequence_length, decoder.head_width
    is_float32 = run.precision.compute == "float32"
    is_latent = decoder.attention.kind == "latent"
    # Latent heads are narrower or wider than a lane row; the kernel fills them up.
    is_odd = length % SPLASH_MULTIPLE or (head_width % SPLASH_MULTIPLE and not is_latent)
    misfits = {
        "cudnn": (
            "cuDNN has no float32 kernel"
            if is_float32
            else "cuDNN wants keys and values of one width"
            if decoder.head_width != decoder.value_width
            else None
        ),
        "splash": (
            f"splash needs row length and head width in multiples of {SPLASH_MULTIPLE}, "
            f"got {length} and {head_width}"
            if is_odd
            else None
        ),
    }
    if target.attention != "auto":
        if misfit := misfits.get(target.attention):
            raise PlanError(f"target attention {target.attention}: {misfit}; set it to auto")
        return target.attention, []
    best = {"cpu": "banded", "gpu": "cudnn", "tpu": "splash"}[target.platform]
    if misfit := misfits.get(best):
        return "banded", [f"attention is banded, slower than {best}: {misfit}"]
    return best, []


def _choose_passes(case: _Case) -> _Choice:
    """Return rows per pass, remat, bytes and seconds.

    On a TPU the leanest of the nearly fastest that fit, by the predictor; elsewhere the least
    remat whose pass fills the device.
    """
    run, target, rows = case.run, case.target, case.rows
    local = run.data.sequence_length // case.mesh["context"]
    fill_rows = max(1, FULL_PASS_TOKENS[target.platform] // local)
    remats = REMAT_ORDER if target.remat == "auto" else (target.remat,)
    wanted = target.micro_batch_sequences
    if wanted != "auto" and rows % wanted:
        raise PlanError(
            f"target micro_batch_sequences is {wanted}, which does not divide the {rows} rows "
            "of one device; choose a divisor or auto"
        )
    sizes = [size for size in range(rows, 0, -1) if rows % size == 0 and size <= fill_rows]
    if wanted != "auto":
        sizes = [wanted]
    tried = [(size, remat, _memory(case, size, remat)) for remat in remats for size in sizes]
    fitting = [choice for choice in tried if choice[2].total <= choice[2].available]
    if not fitting:
        smallest = min((memory for *_, memory in tried), key=lambda memory: memory.total)
        raise MemoryTooSmall(_too_large(run, target, smallest))
    timed = [_timed(case, *choice) for choice in fitting]
    fastest = min(choice.seconds for choice in timed)
    if timed[0].time is not None:
        # A little time is not worth a device filled to the brim; a dense pass as long as published
        # runs' is, and a mixture's rows would take too much.
        good = [choice for choice in timed if choice.seconds <= NEARLY_FASTEST * fastest]
        if case.experts is None:
            shortest = -(-calibration.PUBLISHED_PASS_TOKENS // local)
            good = [choice for choice in good if choice.micro >= shortest] or good
        return min(good, key=lambda choice: choice.memory.total)
    # Less remat only where its pass is at least half as long: short passes starve the matmuls.
    longest = max(choice.micro for choice in timed)
    return next(choice for choice in timed if 2 * choice.micro >= longest)


def _timed(case: _Case, micro: int, remat: Remat, memory: MemoryPlan) -> _Choice:
    run, target = case.run, case.target
    is_known = (
        target.platform == "tpu"
        and target.ici_gb_per_s is not None
        and predict.generation(target.accelerator_type) is not None
        and run.precision.compute == "bfloat16"
    )
    if is_known:
        time = predict.step_time(_workload(case, micro, remat), target)
        return _Choice(micro, remat, memory, time.total, time)
    length = run.data.sequence_length
    flops = arithmetic.flops_per_token(
        case.decoder, run.adapter, length, remat, case.experts or ""
    )  # fmt: skip
    peak = target.chip_flops_per_s(run.precision.compute) * target.num_chips
    tokens = run.data.global_batch_sequences * length
    seconds = _seconds_per_step(
        tokens * flops.hardware / (peak * target.assumed_utilization),
        memory.frozen_parameters + memory.trained_parameters,
        case.rows // micro,
        target.hbm_gb_per_s * 1e9,
        is_recomputed=remat == "full",
    )
    return _Choice(micro, remat, memory, seconds, None)


def _workload(case: _Case, micro: int, remat: Remat) -> predict.Workload:
    run, decoder, mesh = case.run, case.decoder, case.mesh
    trained = sum(
        tensor.local_size(mesh) for tensor in memory_lib.trained_tensors(decoder, run.adapter)
    )
    state = memory_lib.optimizer_bytes(decoder, run.adapter, run.optimizer, mesh)
    return predict.Workload(
        decoder=decoder,
        adapter=run.adapter,
        mesh=mesh,
        num_tokens=run.data.sequence_length,
        micro_batch=micro,
        passes=case.rows // micro,
        recomputed=predict.recomputed_names(decoder, run.adapter, remat),
        # Parameters and state are read and written, gradients read.
        state_bytes=2 * (4 * trained + state) + 4 * trained,
        # Ragged rows travel alone; padded buffers travel whole.
        buffer_factor=run.stage.experts.buffer_factor if case.transport == "padded" else 1.0,
    )


def _memory(case: _Case, micro: int, remat: Remat) -> MemoryPlan:
    run, target = case.run, case.target
    layout = memory_lib.Layout(
        mesh=case.mesh,
        num_tokens=run.data.sequence_length,
        micro_batch=micro,
        accumulation=case.rows // micro,
        attention=case.attention,
        remat=remat,
        compute_bytes=FORMAT_BYTES[run.precision.compute],
        frozen_bytes=_frozen_bytes(run),
        experts=case.experts or "",
        transport=case.transport or "padded",
        buffer_factor=run.stage.experts.buffer_factor,
    )
    held = memory_lib.device_bytes(case.decoder, run.adapter, run.optimizer, layout)
    runtime = RUNTIME_BYTES[target.platform]
    return MemoryPlan(
        **dataclasses.asdict(held),
        runtime=runtime,
        total=held.total + runtime,
        available=int(target.chip_memory_bytes * MEMORY_SHARE[target.platform]),
    )


def _frozen_bytes(run: RunConfig) -> int:
    """Return the bytes of one frozen parameter as it is held."""
    if run.precision.frozen != "checkpoint":
        return FORMAT_BYTES[run.precision.frozen]
    uri = run.model.weights or ""
    # Block-quantised files are held in the compute format.
    is_quantised = uri.startswith(shapes.PACKAGE_PREFIX) or uri.endswith(".gguf")
    try:
        weights = shapes.open_headers(uri) if uri else None
    except ValueError:
        weights = None
    if weights is None:  # not given yet, or not here; published checkpoints are bfloat16
        return FORMAT_BYTES[run.precision.compute if is_quantised else "bfloat16"]
    if weights.kind == "gguf":
        return FORMAT_BYTES[run.precision.compute]
    largest = max(weights.names(), key=lambda name: math.prod(weights.shape(name)))
    return FORMAT_BYTES.get(weights.dtype_name(largest), FORMAT_BYTES["bfloat16"])


def _too_large(run: RunConfig, target: Target, memory: MemoryPlan) -> str:
    parts = memory.model_dump(exclude={"total", "available", "runtime"})
    largest = sorted(parts, key=lambda part: parts[part], reverse=True)[:2]
    shown = " and ".join(
        f"{part.replace('_', ' ')} {parts[part] / GIB:.1f} GiB" for part in largest
    )
    fixed = sum(parts[p] for p in ("trained_parameters", "optimizer_state", "gradients"))
    if run.adapter.kind == "none" and fixed > memory.available / 2:
        remedy = "choose a target with more memory or more devices"
        if target.num_chips < 64:
            remedy = "train an adapter (adapter.kind=lora), or choose a target with more memory"
        elif run.optimizer.kind == "adamw":
            remedy += ", or a leaner optimizer state (optimizer.moments=bfloat16)"
    elif largest[0] == "dispatch":
        remedy = (
            "lower stage.experts.buffer_factor or data.sequence_length, or choose a larger slice"
        )
    elif largest[0] == "gathered_weights":
        remedy = "give the mesh a larger expert or tensor axis (--target ... mesh.expert=N)"
    elif parts["activations"] + parts["layer_work"] > memory.total / 3:
        remedy = "lower data.sequence_length, or choose a target with more memory"
    else:
        remedy = "choose a target with more memory or more devices"
    return (
        f"{run.name} needs {memory.total / GIB:.1f} GiB on each device of {target.name}, which "
        f"has {memory.available / GIB:.1f} GiB for it ({shown}), even with the smallest pass and "
        f"the most remat that the target allows; {remedy}"
    )


def _seconds_per_step(
    compute_s: float, weight_bytes: int, passes: int, bytes_per_s: float, *, is_recomputed: bool
) -> float:
    """Return the larger of compute time and the time to read the weights in every pass."""
    reads = 3 if is_recomputed else 2
    return max(compute_s, passes * reads * weight_bytes / bytes_per_s)
