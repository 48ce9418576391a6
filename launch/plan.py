"""resolve(run, target) -> Plan: how a run sits on a machine, before anything starts.

Fills mesh, micro batch x accumulation, attention kernel and remat; predicts bytes, time and cost.
It decides nothing that changes the numbers: the science stays the config's. Times rest on the
target's assumed utilization and are marked uncalibrated.
"""

import math
from typing import Literal

from launch import arithmetic
from launch import shapes
from launch.target import GIB
from launch.target import Target
from mistral_jax.config.base import Node
from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.run import RunConfig

MEMORY_SHARE = {"cpu": 0.7, "gpu": 0.92, "tpu": 0.92}  # the rest: runtime, fragments, the system
RUNTIME_BYTES = {"cpu": 700 << 20, "gpu": 800 << 20, "tpu": 300 << 20}
# One pass this long fills the matmul units; more rows in a pass only cost memory.
FULL_PASS_TOKENS = {"cpu": 512, "gpu": 4096, "tpu": 4096}
REMAT_ORDER = ("none", "dots", "full")
FORMAT_BYTES = {"bfloat16": 2, "float32": 4}
SPLASH_MULTIPLE = 128


class PlanError(ValueError):
    """The run does not fit the target; the message names the number and the remedy."""


class MemoryTooSmall(PlanError):
    """The run's numbers are in order, but a device cannot hold it."""

    exit_code = 3  # refused by a gate; see cli.py


class MemoryPlan(Node):
    """Predicted bytes on one device at the peak of a step."""

    frozen_parameters: int
    trained_parameters: int
    optimizer_state: int
    gradients: int
    activations: int
    layer_work: int
    loss_chunk: int
    runtime: int
    total: int
    available: int


class Plan(Node):
    """How one run sits on one target. Frozen; the prediction part is marked by `calibration`."""

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
    remat: Literal["none", "dots", "full"]
    parameters: int
    trainable_parameters: int
    memory: MemoryPlan
    model_flops_per_token: float
    hardware_flops_per_token: float
    assumed_utilization: float
    peak_flops_per_s: float
    calibration: Literal["uncalibrated"] = "uncalibrated"
    seconds_per_step: float
    tokens_per_s: float
    max_steps: int
    tokens: int
    train_hours: float
    cost_usd: float | None
    notes: tuple[str, ...] = ()


def resolve(run: RunConfig, target: Target, *, decoder: DecoderConfig | None = None) -> Plan:
    """Return how the run sits on the target.

    Args:
        run: the experiment; it is not changed.
        target: the machine, from launch.target.load_target.
        decoder: the model's shape where it is known; otherwise config or weights are asked.

    Raises:
        PlanError: the batch does not divide, a length is beyond the model, or memory is too small.
    """
    decoder = decoder or shapes.decoder_of_run(run)
    mesh = target.mesh.sizes(target.num_chips)
    data_parallel = mesh["data"] * mesh["fsdp"]
    rows = _rows_per_device(run, target, data_parallel, mesh)
    _check_lengths(run, decoder, mesh)
    attention, notes = _choose_attention(run, target, decoder)
    micro, remat, memory = _choose_passes(run, target, decoder, mesh, rows, attention)
    flops = arithmetic.flops_per_token(decoder, run.adapter, run.data.sequence_length, remat)
    peak = target.chip_flops_per_s(run.precision.compute) * target.num_chips
    batch_tokens = run.data.global_batch_sequences * run.data.sequence_length
    seconds = _seconds_per_step(
        batch_tokens * flops.hardware / (peak * target.assumed_utilization),
        memory.frozen_parameters + memory.trained_parameters,
        rows // micro,
        target.hbm_gb_per_s * 1e9,
        is_recomputed=remat == "full",
    )
    steps = run.optimizer.max_steps
    hours = seconds * steps / 3600
    price = target.price_usd_per_hour
    parameters = arithmetic.parameter_count(decoder)
    adapters = arithmetic.adapter_count(decoder, run.adapter)
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
        micro_batch_sequences=micro,
        accumulation=rows // micro,
        sequence_length=run.data.sequence_length,
        attention=attention,
        remat=remat,
        parameters=parameters,
        trainable_parameters=adapters or parameters,
        memory=memory,
        model_flops_per_token=flops.model,
        hardware_flops_per_token=flops.hardware,
        assumed_utilization=target.assumed_utilization,
        peak_flops_per_s=peak,
        seconds_per_step=seconds,
        tokens_per_s=batch_tokens / seconds,
        max_steps=steps,
        tokens=batch_tokens * steps,
        train_hours=hours,
        cost_usd=None if price is None else hours * price,
        notes=tuple(notes),
    )


def _rows_per_device(
    run: RunConfig, target: Target, data_parallel: int, mesh: dict[str, int]
) -> int:
    batch = run.data.global_batch_sequences
    if batch % data_parallel:
        raise PlanError(
            f"data.global_batch_sequences is {batch}, but {target.name} splits the batch over "
            f"{data_parallel} devices (data {mesh['data']} x fsdp {mesh['fsdp']}); make it a "
            f"multiple of {data_parallel}, or choose a smaller target or another mesh"
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
    misfits = {
        "cudnn": "cuDNN has no float32 kernel" if is_float32 else None,
        "splash": (
            f"splash needs row length and head width in multiples of {SPLASH_MULTIPLE}, "
            f"got {length} and {head_width}"
            if length % SPLASH_MULTIPLE or head_width % SPLASH_MULTIPLE
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


def _choose_passes(
    run: RunConfig,
    target: Target,
    decoder: DecoderConfig,
    mesh: dict[str, int],
    rows: int,
    attention: str,
) -> tuple[int, Literal["none", "dots", "full"], MemoryPlan]:
    """Return rows per pass, remat and bytes: the least remat whose pass fills the device."""
    fill_rows = max(1, FULL_PASS_TOKENS[target.platform] // run.data.sequence_length)
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
    fitting = []
    smallest: MemoryPlan | None = None
    for remat in remats:
        for size in sizes:
            memory = _memory(
                run, target, decoder, mesh, micro=size, rows=rows, attention=attention, remat=remat
            )
            if smallest is None or memory.total < smallest.total:
                smallest = memory
            if memory.total <= memory.available:
                fitting.append((size, remat, memory))
                break
    if not fitting:
        assert smallest is not None
        raise MemoryTooSmall(_too_large(run, target, smallest))
    # Less remat only where its pass is at least half as long: short passes starve the matmuls.
    longest = max(size for size, _, _ in fitting)
    return next(choice for choice in fitting if 2 * choice[0] >= longest)


def _memory(
    run: RunConfig, target: Target, decoder: DecoderConfig, mesh: dict[str, int],
    *, micro: int, rows: int, attention: str, remat: str,
) -> MemoryPlan:  # fmt: skip
    held = arithmetic.device_bytes(
        decoder,
        run.adapter,
        mesh=mesh,
        num_tokens=run.data.sequence_length,
        micro_batch=micro,
        accumulation=rows // micro,
        attention=attention,
        remat=remat,
        compute_bytes=FORMAT_BYTES[run.precision.compute],
        frozen_bytes=_frozen_bytes(run),
    )
    runtime = RUNTIME_BYTES[target.platform]
    return MemoryPlan(
        frozen_parameters=held.frozen_parameters,
        trained_parameters=held.trained_parameters,
        optimizer_state=held.optimizer_state,
        gradients=held.gradients,
        activations=held.activations,
        layer_work=held.layer_work,
        loss_chunk=held.loss_chunk,
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
        remedy = "train an adapter (adapter.kind=lora), or choose a target with more memory"
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
