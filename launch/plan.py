"""resolve(run, target) -> Plan: how a run sits on a machine, before anything starts.

Fills mesh, micro batch x accumulation, kernels and remat; predicts bytes, time and cost. It
decides nothing that changes the numbers: the science stays the config's. On a TPU times come from
predict.py; elsewhere they rest on the target's assumed utilization and are uncalibrated.
"""

import dataclasses
import math
from typing import Any
from typing import Literal

from launch import arithmetic
from launch import calibration
from launch import longest
from launch import memory as memory_lib
from launch import passes
from launch import predict
from launch import shapes
from launch.passes import MemoryPlan
from launch.passes import PlanError
from launch.passes import Remat
from launch.target import Target
from mistral_jax.config import expert_shards
from mistral_jax.config.base import Node
from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.run import RunConfig

# A row is split over a context axis only into pieces that fill a pass.
MIN_CONTEXT_TOKENS = 4096
SPLASH_MULTIPLE = 128
BFLOAT16_TILE_ROWS = 16
UNMEASURED_MEMORY = "Memory predicted, not measured on a GPU yet."
EXPERTS = {"cpu": "blocks", "gpu": "grouped", "tpu": "ragged"}


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
    included; `mfu` counts the model's own FLOPs alone, causal pairs only. `longest_in_memory` is
    the longest row that the device has room for, one row a pass, and `longest_sequence` the longest
    that the model has positions for as well.
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
    mlp_chunk_tokens: int | None = None
    offload: Literal["none", "optimizer"] = "none"
    context_form: Literal["all_gather", "ring"] = "all_gather"
    longest_sequence: int | None = None
    longest_in_memory: int | None = None
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
    price_usd_per_hour: float | None = None
    max_steps: int | None
    tokens: int | None
    train_hours: float | None
    cost_usd: float | None
    notes: tuple[str, ...] = ()

    @property
    def is_recomputed(self) -> bool:
        """Whether the backward pass runs each layer again."""
        return self.remat in arithmetic.RECOMPUTING

    def with_steps(self, num_steps: int) -> "Plan":
        """Return the plan of a run whose data has settled its length."""
        batch_tokens = self.global_batch_sequences * self.sequence_length
        length = _length(num_steps, self.seconds_per_step, batch_tokens, self.price_usd_per_hour)
        return self.model_copy(update=length)


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
    attention, notes = _choose_attention(run, target, decoder)
    case, chosen = _choose_passes(run, target, decoder, attention)
    mesh, rows, experts, transport = case.mesh, case.rows, case.experts, case.transport
    data_parallel = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    length = run.data.sequence_length
    flops = arithmetic.flops_per_token(
        decoder, run.adapter, length, chosen.remat, experts or "", frozen=run.precision.frozen
    )
    peak = target.chip_flops_per_s(run.precision.compute) * target.num_chips
    batch_tokens = run.data.global_batch_sequences * length
    seconds, price = chosen.seconds, target.price_usd_per_hour
    parameters = arithmetic.parameter_count(decoder)
    adapters = arithmetic.adapter_count(decoder, run.adapter)
    mark, reasons, roofline = "uncalibrated", [], None
    if chosen.time is not None:
        work = passes.workload(case, chosen.micro, chosen.remat)
        mark, reasons = calibration.judge(work, target)
        roofline = predict.roofline(work, target)
    state = memory_lib.optimizer_bytes(decoder, run.adapter, run.optimizer, mesh)
    held = state / (chosen.memory.trained_parameters / 4)
    in_memory = longest.longest_row(case)
    if target.platform == "gpu":
        reasons = [*reasons, UNMEASURED_MEMORY]
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
        mlp_chunk_tokens=passes.mlp_chunk_tokens(target, mesh, decoder, chosen.remat, length),
        offload=target.offload,
        context_form=target.context_form,
        longest_sequence=None if in_memory is None else min(in_memory, decoder.max_positions),
        longest_in_memory=in_memory,
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
        price_usd_per_hour=price,
        **_length(run.optimizer.max_steps, seconds, batch_tokens, price),
        notes=tuple(notes + reasons),
    )


def _length(
    steps: int | None, seconds: float, batch_tokens: int, price: float | None
) -> dict[str, Any]:
    """Return what follows from the number of steps; nothing is known where the data decides it."""
    if steps is None:
        return dict.fromkeys(("max_steps", "tokens", "train_hours", "cost_usd"))
    hours = seconds * steps / 3600
    return {
        "max_steps": steps,
        "tokens": batch_tokens * steps,
        "train_hours": hours,
        "cost_usd": None if price is None else hours * price,
    }


def _choose_passes(
    run: RunConfig, target: Target, decoder: DecoderConfig, attention: str
) -> tuple[passes.Case, passes.Choice]:
    """Return how the step is cut on the mesh of whole tiles, or else on the first that fits."""

    def cut(mesh: dict[str, int]) -> tuple[passes.Case, passes.Choice]:
        data_parallel = mesh["data"] * mesh["fsdp"] * mesh["expert"]
        rows = _rows_per_device(run, target, data_parallel, mesh)
        _check_lengths(run, decoder, mesh)
        experts, transport = _choose_experts(target, decoder, mesh)
        case = passes.Case(run, target, decoder, mesh, rows, attention, experts, transport)
        return case, passes.choose(case)

    *coarser, leanest = _meshes(target, decoder, choose_mesh(run, target, decoder))
    for mesh in coarser:
        try:
            return cut(mesh)
        except passes.MemoryTooSmall:
            pass  # parts of tiles, then: a slower step beats none
    return cut(leanest)


def _meshes(target: Target, decoder: DecoderConfig, finest: dict[str, int]) -> list[dict[str, int]]:
    """Return the mesh of whole tiles, then each finer one whose devices hold less.

    Devices are moved from `fsdp` to `data` until parts are whole tiles of bfloat16, the format in
    which experts' gradients are scattered: 16 rows on a TPU. Less makes an all-reduce of the
    scatter (seen in the compiled module: 806 GiB a step at 671B).
    """
    total = finest["fsdp"]
    if target.platform != "tpu" or target.mesh.data != 1 or target.mesh.fsdp != -1:
        return [finest]
    meshes = [
        finest | {"fsdp": size, "data": total // size}
        for size in range(1, total + 1)
        if total % size == 0
    ]
    whole = [mesh for mesh in meshes if _has_whole_tiles(decoder, mesh)]
    chosen = [whole[-1] if whole else finest]
    for mesh in meshes[meshes.index(chosen[0]) + 1 :]:
        # What too fine a mesh does not divide would lie whole on every device.
        held, least = (arithmetic.shard_bytes(decoder, m, 1) for m in (mesh, chosen[-1]))
        if held < least:
            chosen.append(mesh)
    return chosen


def _has_whole_tiles(decoder: DecoderConfig, mesh: dict[str, int]) -> bool:
    """Tell whether devices split the width, and the experts' hidden rows, into whole tiles."""
    rows = mesh["fsdp"] * mesh["context"] * BFLOAT16_TILE_ROWS
    hidden = decoder.ffn.width if decoder.ffn.kind == "moe" else 0
    return decoder.width % rows == 0 and hidden % (rows * mesh["tensor"]) == 0


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
