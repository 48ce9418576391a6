"""Counts and FLOPs of a training step in closed form, from shapes alone.

Attention counts the pairs that causality and the window leave; a frozen weight costs 4 FLOPs a
token (forward and dX), a trained one 6. Of a mixture a token pays for the experts it uses. Bytes
are in memory.py, times in predict.py.
"""

import dataclasses

from launch import stored
from launch import tensors as tensors_lib
from mistral_jax.config.model import Adapter
from mistral_jax.config.model import DecoderConfig

ALL_EXPERTS = "all"  # nn/experts.py: the oracle, which runs every expert on every token
# jax.checkpoint recomputes what the backward pass reads: not the output of a dense down_proj.
RECOMPUTING = ("full", "offload")
NOT_RECOMPUTED = ("dense_ffn/down_proj", "shared/down_proj")


def parameter_count(decoder: DecoderConfig) -> int:
    """Return the exact number of parameters of the base model."""
    return sum(tensor.size for tensor in tensors_lib.tensors(decoder))


def active_parameter_count(decoder: DecoderConfig) -> int:
    """Return how many parameters one token uses, the embedding table counted whole."""
    return sum(tensor.active_size for tensor in tensors_lib.tensors(decoder))


def parameters_by_part(decoder: DecoderConfig) -> dict[str, int]:
    """Return the parameters of attention, experts, embed and so on; they sum to the total."""
    parts: dict[str, int] = {}
    for tensor in tensors_lib.tensors(decoder):
        parts[tensor.part] = parts.get(tensor.part, 0) + tensor.size
    return parts


def adapter_count(decoder: DecoderConfig, adapter: Adapter) -> int:
    """Return the exact number of adapter parameters: rank (in + out) for each adapted matmul."""
    table = tensors_lib.tensors(decoder, adapter)
    return sum(tensor.size for tensor in table if tensor.part == "adapter")


def shard_bytes(decoder: DecoderConfig, mesh: dict[str, int], bytes_each: int) -> int:
    """Return the base parameters' bytes on one device; what no axis divides is whole."""
    return bytes_each * sum(t.local_size(mesh) for t in tensors_lib.tensors(decoder))


def mean_visible_keys(num_tokens: int, reach: int | None) -> float:
    """Return how many keys a query sees on average in a row of one document."""
    reach = min(reach or num_tokens, num_tokens)
    pairs = reach * (reach + 1) // 2 + (num_tokens - reach) * reach
    return pairs / num_tokens


def mean_keys(decoder: DecoderConfig, num_tokens: int) -> float:
    """Return `mean_visible_keys` averaged over the layers."""
    reaches = decoder.attention.reaches
    return sum(mean_visible_keys(num_tokens, reach) for reach in reaches) / len(reaches)


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs for one token of a training step.

    Attributes:
        model: what the mathematics needs; MFU counts these.
        recompute: what remat adds, quantised experts that run again for the backward pass, and
            experts that run without having been chosen.
    """

    model: float
    recompute: float

    @property
    def hardware(self) -> float:
        """What the device executes."""
        return self.model + self.recompute


def attention_flops(decoder: DecoderConfig, num_tokens: int) -> float:
    """Return the forward FLOPs of scores and values for one token, all layers.

    2 FLOPs for each visible pair and channel: the scores run over the query's channels, the sum
    over the value's, which latent attention has fewer of.
    """
    channels = decoder.num_heads * (decoder.head_width + decoder.value_width)
    return 2 * decoder.num_layers * channels * mean_keys(decoder, num_tokens)


def are_experts_rerun(frozen: str, experts: str) -> bool:
    """Tell whether a mixture's experts run again for the backward pass under every remat.

    They do where their kernels are stored as codes (nn/moe.py), save for the oracle's products.
    """
    return frozen in stored.QUANTISED and experts != ALL_EXPERTS


def is_recomputed(tensor: tensors_lib.Tensor, remat: str, *, are_experts_rerun: bool) -> bool:
    """Tell whether the backward pass runs this matmul's forward pass again."""
    name = f"{tensor.part}/{tensor.module}"
    is_of_layer = remat in RECOMPUTING and tensor.is_stacked and name not in NOT_RECOMPUTED
    return is_of_layer or (are_experts_rerun and tensor.copies > 1)


def flops_per_token(
    decoder: DecoderConfig,
    adapter: Adapter,
    num_tokens: int,
    remat: str,
    experts: str = "ragged",
    *,
    frozen: str = "checkpoint",
) -> StepFlops:
    """Return FLOPs per token of a row of `num_tokens`, forward and backward.

    Args:
        decoder: the shape.
        adapter: which parameters train.
        num_tokens: the row's length.
        remat: none, dots, full or offload.
        experts: the implementation of a mixture's experts; `all` runs the idle ones too.
        frozen: a run's `precision.frozen`; experts in nf4 or int8 run again.
    """
    per_weight = 4 if adapter.kind != "none" else 6
    is_rerun = are_experts_rerun(frozen, experts)
    model = recompute = 0.0
    for tensor in tensors_lib.tensors(decoder, adapter):
        if not tensor.is_matmul:
            continue
        each = 6 if tensor.part == "adapter" else per_weight
        idle = tensor.size - tensor.active_size if experts == ALL_EXPERTS else 0
        model += each * tensor.active_size
        recompute += each * idle
        if is_recomputed(tensor, remat, are_experts_rerun=is_rerun):
            recompute += 2 * (tensor.active_size + idle)
    if decoder.tied_head:
        model += per_weight * tensors_lib.head_size(decoder)
    # The backward pass is twice the forward.
    attention = attention_flops(decoder, num_tokens)
    recompute += 0.0 if remat == "none" else attention
    return StepFlops(model + 3 * attention, recompute)
