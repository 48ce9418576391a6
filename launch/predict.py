"""Seconds of a training step on a TPU slice, from shapes: compute, memory and wires.

A sum of physical terms. Three of its constants were fitted to four published runs, once, and are
frozen (MATMUL_EFFICIENCY of two generations, ROW_MOVE_SHARE); the others were set beforehand from
hardware facts. published.py holds those runs, and the held-out ones that judge the fit; the form of
the model, if no constant, was chosen with them in sight. What it does not know: several slices,
stragglers, input, checkpoints.
"""

import dataclasses
import math

from launch import arithmetic
from launch import tensors as tensors_lib
from launch.target import Target
from mistral_jax.config import expert_shards
from mistral_jax.config.model import Adapter
from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.model import MoeFfn

# Fitted, by least squares of the logarithms over the four `fit` runs of published.py (errors -4.3
# to +3.4 %): the share of its peak that a generation's large matmuls reach, what they leave idle in
# a layer included. v5e has no published run here; it is taken as v5p.
MATMUL_EFFICIENCY = {"v5p": 0.84, "v6e": 0.69, "v5litepod": 0.84}
# Fitted with them, and moved by Mixtral 8x7B on v5p alone: gathering and scattering rows by index
# reaches this share of HBM.
ROW_MOVE_SHARE = 0.06
# Side of the matrix unit: a narrower contraction leaves the rest of it idle.
MATRIX_UNIT = {"v5p": 128, "v6e": 256, "v5litepod": 128}
# Flash attention on the filled part of the matrix unit; 45-60 % is usual, forward and backward.
ATTENTION_EFFICIENCY = 0.5
# The backward kernel has five matmuls where the forward has two.
ATTENTION_BACKWARD = 2.5
# What streaming reaches of the memory's, and a ring of the wires' specified bandwidth.
HBM_SHARE = 0.8
ICI_SHARE = 0.7
# The part of a collective that no compute hides, where there is enough compute to hide it.
ICI_EXPOSED = 0.2
# Rows of a tile of the grouped matmul: an expert's rows are padded to whole tiles.
GROUP_TILE_ROWS = 512
# An index move reads and writes a row. Forward: to the experts and back; backward the same again.
ROW_MOVES_FORWARD, ROW_MOVES_BACKWARD = 2, 2
LINKS_PER_AXIS = 2


@dataclasses.dataclass(frozen=True)
class Workload:
    """What one device does in a step.

    Attributes:
        decoder: the shape.
        adapter: which parameters train.
        mesh: sizes of the mesh axes.
        num_tokens: the row's length.
        micro_batch: rows in one pass of one device, or of the devices that share a row.
        passes: micro batches in a step.
        recomputed: "part/module" of the matmuls whose forward pass runs again; `attention/kernel`
            is the attention itself, `experts/moves` the way of the rows.
        capacity_factor: of experts behind a one-hot dispatch of fixed capacity, which others use;
            None for ours, dropless by sorting.
        state_bytes: of parameters, optimizer state and gradients for the update, on one device.
        buffer_factor: of the exchange between experts on several devices.
    """

    decoder: DecoderConfig
    mesh: dict[str, int]
    num_tokens: int
    micro_batch: int
    passes: int
    recomputed: frozenset[str]
    adapter: Adapter = tensors_lib.NO_ADAPTER
    capacity_factor: float | None = None
    state_bytes: int = 0
    buffer_factor: float = 1.0

    @property
    def pass_tokens(self) -> float:
        """Tokens of one device in one pass."""
        return self.micro_batch * self.num_tokens / self.mesh["context"]

    @property
    def moe(self) -> MoeFfn | None:
        """The mixture, where the model is one."""
        return self.decoder.ffn if self.decoder.ffn.kind == "moe" else None


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what takes them; `total` is less than the sum where wires overlap.

    Attributes:
        matmul: dense projections and the head.
        experts: the grouped matmuls, tile padding included.
        attention: the attention kernel.
        pointwise: norms, activations and residuals through HBM.
        row_moves: rows gathered to the experts and back.
        optimizer: the update, through HBM.
        weights: parameters gathered and gradients scattered over the wires.
        exchange: rows that travel between experts' devices, and keys of a context axis.
        exposed: what of the two is not hidden by compute.
    """

    matmul: float
    experts: float
    attention: float
    pointwise: float
    row_moves: float
    optimizer: float
    weights: float
    exchange: float
    exposed: float

    @property
    def compute(self) -> float:
        """Seconds of the device itself."""
        return (
            self.matmul + self.experts + self.attention
            + self.pointwise + self.row_moves + self.optimizer
        )  # fmt: skip

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.exposed


def generation(accelerator_type: str) -> str | None:
    """Return the TPU generation that the constants know, or None."""
    name = accelerator_type.partition("-")[0]
    return name if name in MATMUL_EFFICIENCY else None


def recomputed_names(
    decoder: DecoderConfig, adapter: Adapter, remat: str, *, are_experts_rerun: bool = False
) -> frozenset[str]:
    """Return what our own remat, or experts in codes, run again; see Workload.recomputed."""
    names = {
        _name(tensor)
        for tensor in tensors_lib.tensors(decoder, adapter)
        if tensor.is_matmul
        and arithmetic.is_recomputed(tensor, remat, are_experts_rerun=are_experts_rerun)
    }
    if remat != "none":
        names |= {"attention/kernel", "experts/moves"}
    if are_experts_rerun and decoder.ffn.kind == "moe":
        names.add("experts/moves")
    return frozenset(names)


def step_time(work: Workload, target: Target) -> StepTime:
    """Return the predicted seconds of a step on a TPU slice.

    Raises:
        ValueError: the target is not of a generation that the constants know.
    """
    known = generation(target.accelerator_type)
    if known is None or target.ici_gb_per_s is None:
        raise ValueError(f"no time constants for {target.accelerator_type}")
    matmul_rate = target.peak_tflops.bfloat16 * 1e12 * MATMUL_EFFICIENCY[known]
    stream_rate = target.hbm_gb_per_s * 1e9 * HBM_SHARE
    tokens = work.pass_tokens * work.passes
    attention_rate = target.peak_tflops.bfloat16 * 1e12 * ATTENTION_EFFICIENCY
    attention = tokens * _attention_flops(work, MATRIX_UNIT[known]) / attention_rate
    row_rate = target.hbm_gb_per_s * 1e9 * ROW_MOVE_SHARE
    parts = {
        "matmul": tokens * _matmul_flops(work) / matmul_rate,
        "experts": work.passes * _expert_seconds(work, matmul_rate, stream_rate),
        "attention": attention,
        "pointwise": tokens * _pointwise_bytes(work) / stream_rate,
        "row_moves": tokens * _row_move_bytes(work) / row_rate,
        "optimizer": work.state_bytes / stream_rate,
    }
    wires = _wires(target) * target.ici_gb_per_s * 1e9 * ICI_SHARE
    weights = work.passes * weight_wire_bytes(work) / wires
    exchange = work.passes * exchange_wire_bytes(work) / wires
    hidden = sum(parts.values())
    exposed = max(weights + exchange - hidden, ICI_EXPOSED * (weights + exchange))
    return StepTime(**parts, weights=weights, exchange=exchange, exposed=exposed)


def roofline(work: Workload, target: Target) -> dict[str, float]:
    """Return the seconds that compute, HBM and wires take at their specified peaks, unhidden.

    Compute counts the model's own FLOPs; HBM the streamed activations, the rows moved, the weights
    of every matmul and the update; ICI what `step_time` counts. No efficiency factor is in them.
    """
    decoder = work.decoder
    tokens = work.pass_tokens * work.passes
    flops = arithmetic.flops_per_token(decoder, work.adapter, work.num_tokens, "none").model
    weights = sum(
        2 * tensor.gathered_size(work.mesh) * _runs(work, _name(tensor), tensor.part)
        for tensor in tensors_lib.tensors(decoder, work.adapter)
        if tensor.is_matmul
    )
    moved = tokens * (_pointwise_bytes(work) + _row_move_bytes(work))
    moved += work.passes * weights + work.state_bytes
    sent = work.passes * (weight_wire_bytes(work) + exchange_wire_bytes(work))
    wires = _wires(target) * (target.ici_gb_per_s or math.inf) * 1e9
    return {
        "compute": tokens * flops / work.mesh["tensor"] / (target.peak_tflops.bfloat16 * 1e12),
        "hbm": moved / (target.hbm_gb_per_s * 1e9),
        "ici": sent / wires,
    }


def _name(tensor: tensors_lib.Tensor) -> str:
    return f"{tensor.part}/{tensor.module}"


def _runs(work: Workload, name: str, part: str) -> int:
    """Return how often a weight meets each token: forward, dX, dW, and once more if recomputed."""
    is_frozen = work.adapter.kind != "none" and part != "adapter"
    return (2 if is_frozen else 3) + (1 if name in work.recomputed else 0)


def _matmul_flops(work: Workload) -> float:
    """Return FLOPs of a token on one device in everything but experts and attention scores."""
    flops = 0.0
    for tensor in tensors_lib.tensors(work.decoder, work.adapter):
        if tensor.is_matmul and tensor.part != "experts":
            local = tensor.gathered_size(work.mesh)
            flops += 2 * local * _runs(work, _name(tensor), tensor.part)
    if work.decoder.tied_head:
        head = tensors_lib.head_size(work.decoder) / work.mesh["tensor"]
        flops += 2 * head * _runs(work, "head/head", "head")
    return flops


def _expert_seconds(work: Workload, matmul_rate: float, stream_rate: float) -> float:
    """Return the seconds of a pass in the experts' matmuls: compute, or reading their weights."""
    moe = work.moe
    if moe is None:
        return 0.0
    tokens, shards = work.pass_tokens, work.mesh["expert"]
    if work.capacity_factor is None:
        # Rows of one expert come from all devices of the expert axis.
        rows = tokens * shards * moe.top_k / moe.num_experts
        padding = (rows + GROUP_TILE_ROWS / 2) / rows
        dispatch = 0.0
    else:
        padding = work.capacity_factor
        # One-hot matmuls to the experts and back, over the row's whole length.
        dispatch = 4 * work.num_tokens * moe.top_k * padding * work.decoder.width
    seconds = 0.0
    for tensor in tensors_lib.tensors(work.decoder, work.adapter):
        if tensor.part != "experts":
            continue
        runs = _runs(work, _name(tensor), tensor.part)
        active = tensor.active_size / work.mesh["tensor"]
        flops = 2 * active * padding * tokens * runs
        read = 2 * tensor.gathered_size(work.mesh) * runs
        seconds += max(flops / matmul_rate, read / stream_rate)
    layers = work.decoder.num_layers - work.decoder.num_dense_layers
    runs = _runs(work, "experts/moves", "experts")
    return seconds + layers * dispatch * tokens * runs / matmul_rate


def _attention_flops(work: Workload, unit: int) -> float:
    """Return FLOPs of a token in attention, widths filled up to the matrix unit's."""
    decoder = work.decoder
    filled = sum(-(-width // unit) * unit for width in (decoder.head_width, decoder.value_width))
    forward = arithmetic.attention_flops(decoder, work.num_tokens) / work.mesh["tensor"]
    forward *= filled / (decoder.head_width + decoder.value_width)
    again = 1 if "attention/kernel" in work.recomputed else 0
    return forward * (1 + ATTENTION_BACKWARD + again)


def _pointwise_bytes(work: Workload) -> float:
    """Return HBM bytes of a token in norms, rotations, activations and residuals, bfloat16.

    Forward, for each layer: two norms and two residual sums read and write the width, rotations
    the heads, silu(gate) * up three feed-forward widths. The backward pass moves twice that.
    """
    decoder, tensor = work.decoder, work.mesh["tensor"]
    heads = (decoder.num_heads + decoder.num_kv_heads) * decoder.head_width / tensor
    moe = work.moe
    dense = decoder.num_dense_layers
    layers = decoder.num_layers
    if moe is None:
        hidden = layers * decoder.ffn.width
    else:
        hidden = (layers - dense) * (moe.top_k + moe.num_shared_experts) * moe.width
        hidden += dense * (moe.dense_width or 0)
    numbers = layers * (10 * decoder.width + 2 * heads) + 3 * hidden / tensor
    runs = 3 + (1 if "attention/kernel" in work.recomputed else 0)
    return 2 * numbers * runs


def _row_move_bytes(work: Workload) -> float:
    """Return HBM bytes of a token whose rows are moved by index to its experts and back."""
    moe = work.moe
    if moe is None or work.capacity_factor is not None:
        return 0.0
    layers = work.decoder.num_layers - work.decoder.num_dense_layers
    moves = ROW_MOVES_FORWARD + ROW_MOVES_BACKWARD
    moves += ROW_MOVES_FORWARD if "experts/moves" in work.recomputed else 0
    read_and_written = 2 * 2 * work.decoder.width
    return layers * moe.top_k * moves * read_and_written


def weight_wire_bytes(work: Workload) -> float:
    """Return bytes that one device receives or sends in a pass for split parameters.

    Gathered in bfloat16 for the forward and for the backward pass, gradients scattered once.
    """
    total = 0.0
    for tensor in tensors_lib.tensors(work.decoder, work.adapter):
        is_frozen = work.adapter.kind != "none" and tensor.part != "adapter"
        whole, own = tensor.gathered_size(work.mesh), tensor.local_size(work.mesh)
        total += 2 * (whole - own) * (2 if is_frozen else 3)
    return total


def exchange_wire_bytes(work: Workload) -> float:
    """Return bytes that one device sends in a pass between experts, and along a context axis.

    Rows travel to their experts and back, forward and backward, once for each device that a token
    needs; a recomputed pass sends them again. Keys and values, or latents, are gathered.
    """
    decoder, moe, mesh = work.decoder, work.moe, work.mesh
    tokens, row = work.pass_tokens, 2 * decoder.width
    total = 0.0
    if moe is not None and mesh["expert"] > 1:
        shards = expert_shards.of_ffn(moe, mesh["expert"])
        copies = shards.reach * (shards.count - 1)
        trips = 4 + (2 if "experts/moves" in work.recomputed else 0)
        layers = decoder.num_layers - decoder.num_dense_layers
        total += layers * trips * copies * tokens * row * work.buffer_factor
    if mesh["context"] > 1:
        latent = decoder.attention
        if latent.kind == "latent":
            width = latent.latent_rank + latent.rotary_width
        else:
            width = 2 * decoder.num_kv_heads * decoder.head_width / mesh["tensor"]
        # Forward, recomputed, and gradients back.
        total += decoder.num_layers * 3 * 2 * width * tokens * (mesh["context"] - 1)
    return total


def _wires(target: Target) -> int:
    """Return over how many links a chip's collectives run: both directions of each axis."""
    links = sum(0 if size == 1 else 1 if size == 2 else LINKS_PER_AXIS for size in target.topology)
    return max(1, links)


def mfu(model_flops: float, seconds: float, peak_flops_per_s: float) -> float:
    """Return the share of the peak that the model's own FLOPs are: causal pairs, no recompute."""
    return model_flops / (seconds * peak_flops_per_s) if seconds else math.nan
