"""How a step is cut into passes: rows at a time, remat, and what each way costs in bytes and time.

On a TPU slice the predictor judges; elsewhere the least remat whose pass fills the device.
"""

import dataclasses
import functools
import math
import sys
from typing import Literal

from launch import arithmetic
from launch import calibration
from launch import memory as memory_lib
from launch import predict
from launch import shapes
from launch.target import GIB
from launch.target import Target
from mistral_jax.config.base import Node
from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.run import RunConfig

# The rest: runtime, fragments, the system.
MEMORY_SHARE = {"cpu": 0.7, "gpu": 0.92, "tpu": 0.9}
# Of that, what a plan fills where more remat avoids more: no run on a GPU has measured its bytes.
UNMEASURED_SHARE = {"cpu": 1.0, "gpu": 0.55, "tpu": 1.0}
RUNTIME_BYTES = {"cpu": 700 << 20, "gpu": 800 << 20, "tpu": 300 << 20}
# One pass this long fills the matmul units; more rows in a pass only cost memory. On a TPU slice
# longer passes gather the weights less often, and the predicted time decides.
FULL_PASS_TOKENS = {"cpu": 512, "gpu": 4096, "tpu": 32768}
NEARLY_FASTEST = 1.05
Remat = Literal["none", "dots", "full", "offload"]
REMAT_ORDER: tuple[Remat, ...] = ("none", "dots", "full")
# Of the host's memory for what waits there; the rest is the process, the data and the system.
HOST_SHARE = 0.5
# One direction of PCIe 4.0 with 8 lanes, which an A10G's host has at least; not hidden by work.
HOST_BYTES_PER_S = 12e9
FORMAT_BYTES = {"bfloat16": 2, "float32": 4}


class PlanError(ValueError):
    """The run does not fit the target; the message names the number and the remedy."""


class MemoryTooSmall(PlanError):
    """The run's numbers are in order, but a device cannot hold it."""

    exit_code = 3  # refused by a gate; see cli.py


class MemoryPlan(Node):
    """Predicted bytes on one device at the peak of a step; the terms are memory.DeviceBytes'.

    `on_host` waits in the host's memory, for one device, and is in no sum.
    """

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
    on_host: int = 0
    host_available: int = 0

    @property
    def fits(self) -> bool:
        """Whether device and host have room."""
        return self.total <= self.available and self.on_host <= self.host_available


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to cut a step into passes."""

    micro: int
    remat: Remat
    memory: MemoryPlan
    seconds: float
    time: predict.StepTime | None


@dataclasses.dataclass(frozen=True)
class Case:
    """What is settled before passes are chosen."""

    run: RunConfig
    target: Target
    decoder: DecoderConfig
    mesh: dict[str, int]
    rows: int
    attention: str
    experts: str | None
    transport: Literal["padded", "ragged"] | None

    @functools.cached_property
    def frozen_bytes(self) -> int:
        """Bytes of one frozen parameter as it is held; reads the headers of the weights once."""
        return _frozen_bytes(self.run)


def choose(case: Case) -> Choice:
    """Return rows per pass, remat, bytes and seconds.

    On a TPU the leanest of the nearly fastest that fit, by the predictor; elsewhere the least
    remat whose pass fills the device. A GPU that has no room otherwise hands layers' inputs to its
    host.
    """
    run, target, rows = case.run, case.target, case.rows
    local = run.data.sequence_length // case.mesh["context"]
    fill_rows = max(1, FULL_PASS_TOKENS[target.platform] // local)
    wanted = target.micro_batch_sequences
    if wanted != "auto" and rows % wanted:
        raise PlanError(
            f"target micro_batch_sequences is {wanted}, which does not divide the {rows} rows "
            "of one device; choose a divisor or auto"
        )
    sizes = [size for size in range(rows, 0, -1) if rows % size == 0 and size <= fill_rows]
    if wanted != "auto":
        sizes = [wanted]
    tried: list[tuple[int, Remat, MemoryPlan]] = [
        (size, remat, step_memory(case, size, remat))
        for remat in remats_of(target)
        for size in sizes
    ]
    fitting = [choice for choice in tried if choice[2].fits]
    if not fitting:
        smallest = min((memory for *_, memory in tried), key=lambda memory: memory.total)
        raise MemoryTooSmall(_too_large(run, target, smallest))
    fitting = [choice for choice in fitting if choice[1] != "offload"] or fitting
    share = UNMEASURED_SHARE[target.platform]
    roomy = [each for each in fitting if each[2].total <= share * each[2].available]
    fitting = roomy or fitting
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


def remats_of(target: Target) -> tuple[Remat, ...]:
    """Return what a plan may choose of, the fastest first."""
    if target.remat != "auto":
        return (target.remat,)
    return (*REMAT_ORDER, "offload") if target.platform == "gpu" else REMAT_ORDER


def mlp_chunk_tokens(
    target: Target, mesh: dict[str, int], decoder: DecoderConfig, remat: str, length: int
) -> int | None:
    """Return how much of a row goes through a dense feed-forward at a time; None is all of it."""
    chunk = memory_lib.MLP_CHUNK_TOKENS
    is_long = length > chunk and length % chunk == 0
    is_apt = target.platform == "gpu" and mesh["context"] == 1 and decoder.ffn.kind == "dense"
    return chunk if is_long and is_apt and remat in arithmetic.RECOMPUTING else None


def _timed(case: Case, micro: int, remat: Remat, memory: MemoryPlan) -> Choice:
    run, target = case.run, case.target
    is_known = (
        target.platform == "tpu"
        and target.ici_gb_per_s is not None
        and predict.generation(target.accelerator_type) is not None
        and run.precision.compute == "bfloat16"
    )
    if is_known:
        time = predict.step_time(workload(case, micro, remat), target)
        return Choice(micro, remat, memory, time.total, time)
    length = run.data.sequence_length
    flops = arithmetic.flops_per_token(
        case.decoder, run.adapter, length, remat, case.experts or "",
        frozen=run.precision.frozen,
    )  # fmt: skip
    peak = target.chip_flops_per_s(run.precision.compute) * target.num_chips
    tokens = run.data.global_batch_sequences * length
    seconds = _seconds_per_step(
        tokens * flops.hardware / (peak * target.assumed_utilization),
        memory.frozen_parameters + memory.trained_parameters,
        case.rows // micro,
        target.hbm_gb_per_s * 1e9,
        is_recomputed=remat in arithmetic.RECOMPUTING,
    )
    if memory.on_host:
        # The state travels once, layers' inputs in each pass; there and back.
        state = memory_lib.optimizer_bytes(case.decoder, run.adapter, run.optimizer, case.mesh)
        state = state if target.offload == "optimizer" else 0
        moved = state + case.rows // micro * (memory.on_host - state)
        seconds += 2 * moved / HOST_BYTES_PER_S
    return Choice(micro, remat, memory, seconds, None)


def workload(case: Case, micro: int, remat: Remat) -> predict.Workload:
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
        recomputed=predict.recomputed_names(
            decoder,
            run.adapter,
            remat,
            are_experts_rerun=arithmetic.are_experts_rerun(
                run.precision.frozen, case.experts or ""
            ),
        ),
        # Parameters and state are read and written, gradients read.
        state_bytes=2 * (4 * trained + state) + 4 * trained,
        # Ragged rows travel alone; padded buffers travel whole.
        buffer_factor=run.stage.experts.buffer_factor if case.transport == "padded" else 1.0,
    )


def step_memory(
    case: Case, micro: int, remat: Remat, *, num_tokens: int | None = None
) -> MemoryPlan:
    """Return the bytes of a step of `micro` rows a pass; of rows of another length, where given."""
    run, target = case.run, case.target
    length = num_tokens or run.data.sequence_length
    layout = memory_lib.Layout(
        mesh=case.mesh,
        num_tokens=length,
        micro_batch=micro,
        accumulation=case.rows // micro,
        attention=case.attention,
        remat=remat,
        compute_bytes=FORMAT_BYTES[run.precision.compute],
        frozen_bytes=case.frozen_bytes,
        frozen=run.precision.frozen,
        experts=case.experts or "",
        transport=case.transport or "padded",
        mlp_chunk_tokens=mlp_chunk_tokens(target, case.mesh, case.decoder, remat, length),
        offload=target.offload,
        buffer_factor=run.stage.experts.buffer_factor,
    )
    held = memory_lib.device_bytes(case.decoder, run.adapter, run.optimizer, layout)
    runtime = RUNTIME_BYTES[target.platform]
    return MemoryPlan(
        **dataclasses.asdict(held),
        runtime=runtime,
        total=held.total + runtime,
        available=int(target.chip_memory_bytes * MEMORY_SHARE[target.platform]),
        on_host=memory_lib.host_bytes(case.decoder, run.adapter, run.optimizer, layout),
        host_available=_host_available(target),
    )


def _host_available(target: Target) -> int:
    """Return the host's memory for what one device keeps there; unlimited where it is unknown."""
    if target.host_memory_gib is None:
        return sys.maxsize
    return int(target.host_memory_gib * GIB * HOST_SHARE / target.chips_per_host)


def _frozen_bytes(run: RunConfig) -> int:
    """Return the bytes of one frozen parameter as it is held; quantised ones are not counted so."""
    if run.precision.frozen in FORMAT_BYTES:
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
    parts = memory.model_dump(
        exclude={"total", "available", "runtime", "on_host", "host_available"}
    )
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
