"""Counts, FLOPs and bytes of a training step in closed form, from shapes alone.

Attention counts the pairs that causality and the window leave; a frozen weight costs 4 FLOPs a
token (forward and dX), a trained one 6. Activation bytes are an estimate of what the backward
pass keeps under each remat choice, not a compiler's answer.
"""

import dataclasses
import functools

from mistral_jax.config.model import Adapter
from mistral_jax.config.model import DecoderConfig

FLOAT32_BYTES = 4
ADAM_BYTES = 8  # two float32 moments
LOSS_CHUNK_TOKENS = 1024  # mistral_jax/nn/loss.py, DEFAULT_CHUNK_TOKENS
BANDED_MIN_BLOCK = 64  # mistral_jax/nn/kernels/banded.py
BANDED_MAX_BLOCKS = 32
SCORE_IMPLEMENTATIONS = ("reference", "banded")  # these hold scores for the backward pass


@dataclasses.dataclass(frozen=True)
class Projection:
    """One matmul of a layer, [in, out], or one of each of its experts.

    Attributes:
        in_axis, out_axis: the mesh axis that splits this side, or None.
        copies: how many the layer has: its experts, or 1.
        active: how many of them one token uses.
    """

    name: str
    in_width: int
    out_width: int
    in_axis: str | None
    out_axis: str | None
    copies: int = 1
    active: int = 1

    @property
    def size(self) -> int:
        """How many weights one copy has."""
        return self.in_width * self.out_width


def projections(decoder: DecoderConfig) -> list[Projection]:
    """Return a layer's matmuls: four of attention, three of the feed-forward, the router."""
    width, ffn = decoder.width, decoder.ffn
    heads = decoder.num_heads * decoder.head_width
    kv_heads = decoder.num_kv_heads * decoder.head_width
    table = [
        Projection("q_proj", width, heads, "fsdp", "tensor"),
        Projection("k_proj", width, kv_heads, "fsdp", "tensor"),
        Projection("v_proj", width, kv_heads, "fsdp", "tensor"),
        Projection("o_proj", heads, width, "tensor", "fsdp"),
    ]
    copies, active = (ffn.num_experts, ffn.top_k) if ffn.kind == "moe" else (1, 1)
    table += [
        Projection("gate_proj", width, ffn.width, "fsdp", "tensor", copies, active),
        Projection("up_proj", width, ffn.width, "fsdp", "tensor", copies, active),
        Projection("down_proj", ffn.width, width, "tensor", "fsdp", copies, active),
    ]
    if ffn.kind == "moe":
        table.append(Projection("router", width, ffn.num_experts, "fsdp", None))
    return table


def layer_matmul_parameters(decoder: DecoderConfig) -> int:
    """Return the weights of one layer's matmuls, all experts."""
    return sum(projection.size * projection.copies for projection in projections(decoder))


def parameter_count(decoder: DecoderConfig) -> int:
    """Return the exact number of parameters of the base model."""
    biases = (decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_width
    layer = layer_matmul_parameters(decoder) + 2 * decoder.width
    layer += biases if decoder.qkv_bias else 0
    table = decoder.vocab_size * decoder.width
    return decoder.num_layers * layer + table * (1 if decoder.tied_head else 2) + decoder.width


def active_parameter_count(decoder: DecoderConfig) -> int:
    """Return how many parameters one token uses, the embedding table counted whole."""
    idle = sum(p.size * (p.copies - p.active) for p in projections(decoder))
    return parameter_count(decoder) - decoder.num_layers * idle


def adapter_count(decoder: DecoderConfig, adapter: Adapter) -> int:
    """Return the exact number of adapter parameters: rank (in + out) for each adapted matmul."""
    if adapter.kind != "lora":
        return 0
    widths = sum(
        projection.copies * (projection.in_width + projection.out_width)
        for projection in projections(decoder)
        if projection.name in adapter.target_modules
    )
    return decoder.num_layers * adapter.rank * widths


def mean_visible_keys(num_tokens: int, reach: int | None) -> float:
    """Return how many keys a query sees on average in a row of one document."""
    reach = min(reach or num_tokens, num_tokens)
    pairs = reach * (reach + 1) // 2 + (num_tokens - reach) * reach
    return pairs / num_tokens


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs for one token of a training step.

    Attributes:
        model: what the mathematics needs; MFU counts these.
        recompute: what remat adds, and experts that run without having been chosen.
    """

    model: float
    recompute: float

    @property
    def hardware(self) -> float:
        """What the device executes."""
        return self.model + self.recompute


def flops_per_token(
    decoder: DecoderConfig, adapter: Adapter, num_tokens: int, remat: str
) -> StepFlops:
    """Return FLOPs per token of a row of `num_tokens`, forward and backward."""
    layers = decoder.num_layers * sum(p.size * p.active for p in projections(decoder))
    head = decoder.vocab_size * decoder.width
    low_rank = adapter_count(decoder, adapter)
    per_weight = 4 if low_rank else 6
    reaches = decoder.attention.reaches
    visible = sum(mean_visible_keys(num_tokens, reach) for reach in reaches) / len(reaches)
    # QK^T and PV: 2 FLOPs each per pair and channel; the backward pass is twice the forward.
    attention = 4 * decoder.num_layers * decoder.num_heads * decoder.head_width * visible
    model = per_weight * (layers + head) + 6 * low_rank + 3 * attention
    # nn/moe.py runs every expert on every token.
    idle = decoder.num_layers * sum(p.size * (p.copies - p.active) for p in projections(decoder))
    recompute = {
        "none": 0.0,
        "dots": attention,
        "full": 2 * (layers + idle + low_rank) + attention,
    }[remat]
    return StepFlops(model, recompute + per_weight * idle)


@dataclasses.dataclass(frozen=True)
class DeviceBytes:
    """What one device holds at the peak of a step, in bytes."""

    frozen_parameters: int
    trained_parameters: int
    optimizer_state: int
    gradients: int
    activations: int
    layer_work: int
    loss_chunk: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(dataclasses.asdict(self).values())


def _split(mesh: dict[str, int], size: int, axis: str | None) -> int:
    """Return a dimension's part on one device; what the axis does not divide is whole."""
    parts = mesh[axis] if axis else 1
    return size // parts if size % parts == 0 else size


def shard_bytes(decoder: DecoderConfig, mesh: dict[str, int], bytes_each: int) -> int:
    """Return the base parameters' bytes on one device; what an axis does not divide is whole."""
    split = functools.partial(_split, mesh)

    def experts(p: Projection) -> int:
        groups = decoder.ffn.num_groups if decoder.ffn.kind == "moe" and p.copies > 1 else 1
        return groups * split(p.copies // groups, "expert")

    layer = 2 * decoder.width + sum(
        experts(p) * split(p.in_width, p.in_axis) * split(p.out_width, p.out_axis)
        for p in projections(decoder)
    )
    table = split(decoder.vocab_size, "tensor") * split(decoder.width, "fsdp")
    tables = table * (1 if decoder.tied_head else 2)
    return bytes_each * (decoder.num_layers * layer + tables + decoder.width)


def adapter_shard_count(decoder: DecoderConfig, adapter: Adapter, mesh: dict[str, int]) -> int:
    """Return the adapter parameters on one device; A is split like the input, B like the output."""
    if adapter.kind != "lora":
        return 0
    split = functools.partial(_split, mesh)
    count = sum(
        split(p.in_width, p.in_axis) + split(p.out_width, p.out_axis)
        for p in projections(decoder)
        if p.name in adapter.target_modules
    )
    return decoder.num_layers * adapter.rank * count


def _kept_per_token(decoder: DecoderConfig, remat: str, tensor: int, compute_bytes: int) -> float:
    """Return bytes that one layer keeps for the backward pass for each token, scores aside."""
    heads = decoder.num_heads * decoder.head_width / tensor
    kv_heads = decoder.num_kv_heads * decoder.head_width / tensor
    # All experts run on every token, but the scan over them keeps their hidden states.
    copies = decoder.ffn.num_experts if decoder.ffn.kind == "moe" else 1
    ffn = copies * decoder.ffn.width / tensor
    boundary = decoder.width
    matmul_outputs = heads + 2 * kv_heads + 2 * ffn + 2 * decoder.width
    # Two norms' outputs, rotated q and k, the attention output, silu(gate) and the product.
    pointwise = 2 * decoder.width + 2 * heads + kv_heads + 2 * ffn
    kept = {
        "full": boundary,
        "dots": boundary + matmul_outputs,
        "none": boundary + matmul_outputs + pointwise,
    }[remat]
    return kept * compute_bytes


def _score_bytes(
    decoder: DecoderConfig, attention: str, num_tokens: int, tensor: int, compute_bytes: int
) -> float:
    """Return bytes of attention scores that one layer keeps for each token of a row."""
    if attention not in SCORE_IMPLEMENTATIONS:
        return FLOAT32_BYTES * decoder.num_heads / tensor  # the logsumexp alone
    keys: float = num_tokens
    if attention == "banded":
        block = max(BANDED_MIN_BLOCK, -(-num_tokens // BANDED_MAX_BLOCKS))
        visible = [mean_visible_keys(num_tokens, reach) for reach in decoder.attention.reaches]
        keys = min(num_tokens, sum(visible) / len(visible) + block / 2)
    return decoder.num_heads / tensor * keys * (FLOAT32_BYTES + compute_bytes)


def device_bytes(
    decoder: DecoderConfig,
    adapter: Adapter,
    *,
    mesh: dict[str, int],
    num_tokens: int,
    micro_batch: int,
    accumulation: int,
    attention: str,
    remat: str,
    compute_bytes: int,
    frozen_bytes: int,
) -> DeviceBytes:
    """Return what one device holds at the peak of a step.

    Args:
        decoder: the shape.
        adapter: which parameters train.
        mesh: sizes of the mesh axes.
        num_tokens: the row's length T.
        micro_batch: rows in one forward and backward pass on one device.
        accumulation: passes per step; above 1 a second set of gradients lives.
        attention: implementation name.
        remat: none, dots or full.
        compute_bytes: 2 for bfloat16, 4 for float32.
        frozen_bytes: of one frozen parameter as it is held.
    """
    tensor, is_adapted = mesh["tensor"], adapter.kind == "lora"
    base = shard_bytes(decoder, mesh, 1)
    trained = adapter_shard_count(decoder, adapter, mesh) if is_adapted else base
    tokens = micro_batch * num_tokens / mesh["context"]
    scores = _score_bytes(decoder, attention, num_tokens, tensor, compute_bytes)
    per_layer = _kept_per_token(decoder, remat, tensor, compute_bytes)
    per_layer += scores if remat == "none" else 0
    one_layer = _kept_per_token(decoder, "none", tensor, compute_bytes) + scores
    # While a layer runs: its own activations and their gradients, and its weights gathered or cast.
    is_copied = mesh["fsdp"] > 1 or compute_bytes != (frozen_bytes if is_adapted else FLOAT32_BYTES)
    weights = layer_matmul_parameters(decoder) // tensor * compute_bytes if is_copied else 0
    chunk = min(LOSS_CHUNK_TOKENS, tokens)
    vocab = decoder.vocab_size / tensor
    # Scores, their exponentials and their gradient; the head in the compute format.
    loss = chunk * vocab * (2 * FLOAT32_BYTES + compute_bytes)
    loss += vocab * decoder.width * (compute_bytes if is_copied else 0)
    loss += 0 if is_adapted else vocab * decoder.width * FLOAT32_BYTES
    return DeviceBytes(
        frozen_parameters=base * frozen_bytes if is_adapted else 0,
        trained_parameters=trained * FLOAT32_BYTES,
        optimizer_state=trained * ADAM_BYTES,
        gradients=trained * FLOAT32_BYTES * (2 if accumulation > 1 else 1),
        activations=int(decoder.num_layers * tokens * per_layer),
        layer_work=int(tokens * one_layer * (1 if remat == "none" else 2) + 2 * weights),
        loss_chunk=int(loss),
    )
