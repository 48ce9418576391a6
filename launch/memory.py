"""Bytes on one device at the peak of a step, in closed form.

What enters the step (parameters, optimizer state, batch) is counted array by array and exact. What
lives during it is an estimate, in named terms, of what the backward pass keeps under each remat
choice (kept.py) and of what one layer works with; a compiler may do better or worse.
"""

import dataclasses
import math

from launch import arithmetic
from launch import kept
from launch import stored
from launch import tensors as tensors_lib
from launch.layout import Layout
from mistral_jax.config import expert_shards
from mistral_jax.config.model import Adapter
from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.optimizer import Optimizer

FLOAT32_BYTES = 4
BATCH_ARRAYS = 5  # tokens, targets, loss weights, positions, segments: 4 bytes a token each
SCALAR_BYTES = 64  # step, key, the optimizer's counters
LOSS_CHUNK_TOKENS = 1024  # mistral_jax/nn/loss.py, DEFAULT_CHUNK_TOKENS
# On a GPU a dense feed-forward takes this much of a longer row at a time, where layers run again.
MLP_CHUNK_TOKENS = 4096
# Layers' inputs on their way to and from the host: the one in use and the next.
OFFLOAD_BUFFERS = 2
BLOCK_ROWS = 256  # an expert's run of rows is padded to whole blocks


@dataclasses.dataclass(frozen=True)
class DeviceBytes:
    """What one device holds at the peak of a step, in bytes.

    Attributes:
        frozen_parameters, trained_parameters, optimizer_state, batch: the step's arguments, exact.
            An optimizer state that waits on the host counts as far as it needs more room, while
            the update runs, than the activations leave.
        gradients: of every trained parameter, float32.
        activations: what all layers keep for the backward pass.
        layer_work: activations of the layer that runs, and their gradients; attention's mask.
        dispatch: rows on their way to and through a mixture's experts, likewise.
        gathered_weights: one layer's whole weights, the next one's, and their gradients.
        loss_chunk: logits of a chunk, and the head.
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

    @property
    def arguments(self) -> int:
        """What enters the step."""
        return self.frozen_parameters + self.trained_parameters + self.optimizer_state + self.batch

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(dataclasses.asdict(self).values())


def trained_tensors(decoder: DecoderConfig, adapter: Adapter) -> list[tensors_lib.Tensor]:
    """Return the tensors that train: the adapter's where there is one, else all."""
    table = tensors_lib.tensors(decoder, adapter)
    is_adapted = adapter.kind != "none"
    return [tensor for tensor in table if not is_adapted or tensor.part == "adapter"]


def optimizer_bytes(
    decoder: DecoderConfig, adapter: Adapter, optimizer: Optimizer, mesh: dict[str, int]
) -> int:
    """Return the bytes of optimizer state on one device, its scalars included.

    Moments lie as their parameters do, rows and columns of a factored one as what is left.
    """
    return SCALAR_BYTES + sum(
        optimizer.array_state_bytes(tensor.path, tensor.shape, tensor.local_shape(mesh))
        for tensor in trained_tensors(decoder, adapter)
    )


def device_bytes(
    decoder: DecoderConfig, adapter: Adapter, optimizer: Optimizer, layout: Layout
) -> DeviceBytes:
    """Return what one device holds at the peak of a step."""
    mesh, is_adapted = layout.mesh, adapter.kind != "none"
    trained = sum(t.local_size(mesh) for t in trained_tensors(decoder, adapter))
    tokens = layout.pass_tokens
    row_bytes = kept.layer_bytes(decoder, adapter, layout)
    moe = decoder.ffn.kind == "moe"
    dispatch = _dispatch_bytes(decoder, layout) if moe else 0.0
    num_mixtures = decoder.num_layers - decoder.num_dense_layers
    are_rows_kept = not layout.is_recomputed and not layout.are_experts_rerun
    num_kept = OFFLOAD_BUFFERS if layout.remat == "offload" else decoder.num_layers
    activations = int(num_kept * tokens * row_bytes + num_mixtures * are_rows_kept * dispatch)
    activations += kept.cast_kernel_bytes(decoder, layout, is_adapted=is_adapted)
    work = _work_bytes(decoder, adapter, layout)
    loss = _loss_bytes(decoder, layout, is_adapted=is_adapted)
    state = optimizer_bytes(decoder, adapter, optimizer, mesh)
    if layout.offload == "optimizer":
        state = max(0, state - activations - work - int(dispatch) - loss)
    return DeviceBytes(
        frozen_parameters=_frozen_bytes(decoder, layout) if is_adapted else 0,
        trained_parameters=trained * FLOAT32_BYTES,
        optimizer_state=state,
        batch=int(BATCH_ARRAYS * 4 * tokens * layout.accumulation),
        gradients=trained * FLOAT32_BYTES * (2 if layout.accumulation > 1 else 1),
        activations=activations,
        layer_work=work,
        dispatch=int(dispatch),
        gathered_weights=_gathered_bytes(decoder, layout, is_adapted=is_adapted),
        loss_chunk=loss,
    )


def host_bytes(
    decoder: DecoderConfig, adapter: Adapter, optimizer: Optimizer, layout: Layout
) -> int:
    """Return what waits in the host's memory for one device."""
    held = 0
    if layout.remat == "offload":
        row_bytes = kept.layer_bytes(decoder, adapter, layout)
        held += int(decoder.num_layers * layout.pass_tokens * row_bytes)
    if layout.offload == "optimizer":
        held += optimizer_bytes(decoder, adapter, optimizer, layout.mesh)
    return held


def _work_bytes(decoder: DecoderConfig, adapter: Adapter, layout: Layout) -> int:
    """Return bytes of the running layer's activations; where it runs again, of their gradients."""
    tokens, each = layout.pass_tokens, layout.compute_bytes
    numbers = kept.layer_numbers(decoder, "none", layout.mesh["tensor"])
    hidden = kept.hidden_numbers(decoder, layout)
    scores = kept.score_bytes(decoder, layout)
    chunk = min(tokens, layout.micro_batch * (layout.mlp_chunk_tokens or layout.num_tokens))
    # In one piece the hidden states live with the rest, in chunks without all but one.
    held = tokens * ((numbers - hidden) * each + scores) + chunk * hidden * each
    others = tokens * kept.adapter_bytes(decoder, adapter, layout, is_working=True)
    if layout.attention == "cudnn":
        # Packed documents: which pairs see each other, as a boolean and as a bias.
        others += tokens * layout.num_tokens * (1 + each)
    return int(held * (1 if layout.remat == "none" else 2) + others)


def _frozen_bytes(decoder: DecoderConfig, layout: Layout) -> int:
    return stored.device_bytes(decoder, layout.mesh, layout.frozen, layout.frozen_bytes)


def _dispatch_bytes(decoder: DecoderConfig, layout: Layout) -> float:
    """Return bytes of one mixture layer's rows: sent, received, in and out of the experts."""
    moe, mesh, width = decoder.ffn, layout.mesh, decoder.width
    assert moe.kind == "moe"
    tokens = layout.pass_tokens
    if layout.is_recomputed and math.prod(mesh.values()) > 1:
        tokens = expert_shards.chunk_of(int(tokens), expert_shards.CHUNK_TOKENS)
    hidden = moe.width / mesh["tensor"]
    if layout.experts == arithmetic.ALL_EXPERTS:  # a scan over experts keeps their hidden states
        return tokens * moe.num_experts / mesh["expert"] * 3 * hidden * layout.compute_bytes
    pairs, rows = tokens * moe.top_k, 0.0
    num_local = moe.num_experts
    if mesh["expert"] > 1:
        shards = expert_shards.of_ffn(moe, mesh["expert"])
        num_local = shards.experts_per_shard
        room = shards.rows_of_all(int(tokens), layout.buffer_factor)
        sent = room if layout.transport == "padded" else int(tokens) * shards.max_copies
        # A send and a receive buffer, and the way back.
        rows = 2 * (sent + room) * width
        pairs *= layout.buffer_factor
    pairs += min(pairs, num_local * BLOCK_ROWS / 2)
    # At the peak of the backward pass: a row into the experts and its output's gradient, gate, up,
    # their product and two of their gradients. Rows of later use are made again or freed. Under
    # full remat also the rows' mask, and two of the hidden arrays in float32 (seen in modules).
    mask, wide = (0.5, 4) if layout.is_recomputed else (0, 0)
    return layout.compute_bytes * (rows + pairs * ((2 + mask) * width + (5 + wide) * hidden))


def _gathered_bytes(decoder: DecoderConfig, layout: Layout, *, is_adapted: bool) -> int:
    """Return bytes of the largest layer's weights, gathered or cast: this layer's and the next's.

    Where they train, their gradients before these are scattered.
    """
    held = layout.frozen_bytes if is_adapted else FLOAT32_BYTES
    is_quantised = is_adapted and layout.frozen in stored.QUANTISED
    if layout.mesh["fsdp"] == 1 and layout.compute_bytes == held and not is_quantised:
        return 0
    stacks: dict[str, int] = {}
    for tensor in tensors_lib.tensors(decoder):
        if tensor.is_stacked and tensor.is_matmul:
            name = tensor.path.partition("/")[0]
            layer = tensor.gathered_size(layout.mesh) // tensor.shape[0]
            stacks[name] = stacks.get(name, 0) + layer
    copies = 2 if is_adapted else 3
    return copies * max(stacks.values()) * layout.compute_bytes


def _loss_bytes(decoder: DecoderConfig, layout: Layout, *, is_adapted: bool) -> int:
    """Return bytes of a chunk's scores, their exponentials and gradient, and of the head."""
    chunk = min(LOSS_CHUNK_TOKENS, layout.pass_tokens)
    vocab = decoder.vocab_size / layout.mesh["tensor"]
    held = layout.frozen_bytes if is_adapted else FLOAT32_BYTES
    is_copied = layout.mesh["fsdp"] > 1 or layout.compute_bytes != held
    head = (layout.compute_bytes if is_copied else 0) + (0 if is_adapted else FLOAT32_BYTES)
    return int(vocab * (chunk * (2 * FLOAT32_BYTES + layout.compute_bytes) + decoder.width * head))
