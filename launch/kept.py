"""What one layer keeps of the forward pass for the backward pass, for each token, in closed form.

Derived from the arrays that jax's scan over the layers hands from one to the other, under each
remat choice; how many bytes a whole step holds is memory.py's.
"""

from launch import arithmetic
from launch import stored
from launch import tensors as tensors_lib
from launch.layout import Layout
from mistral_jax.config.model import Adapter
from mistral_jax.config.model import DecoderConfig

FLOAT32_BYTES = 4
BANDED_MIN_BLOCK = 64  # mistral_jax/nn/kernels/banded.py
BANDED_MAX_BLOCKS = 32
SCORE_IMPLEMENTATIONS = ("reference", "banded")  # these hold scores for the backward pass


def layer_bytes(decoder: DecoderConfig, adapter: Adapter, layout: Layout) -> float:
    """Return bytes that one layer keeps for each token, without a mixture's rows."""
    remat, each, width = layout.remat, layout.compute_bytes, decoder.width
    if remat == "dots" and layout.frozen in stored.QUANTISED:
        # The products of codes are inside a backward pass of their own, where no policy sees them.
        kept = width * each
    else:
        kept = layer_numbers(decoder, remat, layout.mesh["tensor"]) * each
    if remat == "none":
        # Each of two norms: its input and the product in float32, its output; where its scale
        # trains, the normed input too. `layer_numbers` has five widths for them.
        wide = 2 if adapter.kind != "none" else 3
        kept += width * (2 * (wide * FLOAT32_BYTES + each) - 5 * each)
        # A SwiGLU keeps six arrays (gate, silu and two factors of its slope, up, their product),
        # of which `layer_numbers` has four.
        kept += 2 * _hidden_width(decoder, remat) / layout.mesh["tensor"] * each
        kept += score_bytes(decoder, layout)
    return kept + adapter_bytes(decoder, adapter, layout)


def adapter_bytes(
    decoder: DecoderConfig, adapter: Adapter, layout: Layout, *, is_working: bool = False
) -> float:
    """Return bytes that a layer's adapters keep for each token; those of routed experts, none.

    Args:
        decoder, adapter: the shapes.
        layout: its remat decides, and its bytes of a number.
        is_working: of the layer that runs, which keeps for itself what no remat would.
    """
    remat = "none" if is_working else layout.remat
    if adapter.kind == "none" or remat in arithmetic.RECOMPUTING:
        return 0.0
    narrow = inputs = outputs = 0.0
    for tensor in tensors_lib.tensors(decoder, adapter):
        if tensor.copies > 1 or not tensor.path.endswith(("/lora_a", "/lora_b")):
            continue
        numbers_each = tensor.gathered_size(layout.mesh) / decoder.num_layers
        if tensor.path.endswith("/lora_a"):
            inputs += numbers_each / adapter.rank
            narrow += adapter.rank * tensor.shape[0] / decoder.num_layers
        else:
            outputs += numbers_each / adapter.rank
    kept = layout.compute_bytes * narrow
    if adapter.dropout > 0:
        kept += inputs  # the mask, a byte each
    if remat == "dots":
        kept += layout.compute_bytes * outputs
    elif adapter.kind == "dora":  # the base's output and the adapter's, both times a ratio
        kept += 2 * FLOAT32_BYTES * outputs
    return kept


def cast_kernel_bytes(decoder: DecoderConfig, layout: Layout, *, is_adapted: bool) -> int:
    """Return bytes of all layers' kernels in the compute dtype, which no remat at all keeps."""
    held = layout.frozen_bytes if is_adapted else FLOAT32_BYTES
    is_quantised = is_adapted and layout.frozen in stored.QUANTISED
    if layout.remat != "none" or layout.compute_bytes == held or is_quantised:
        return 0
    return layout.compute_bytes * sum(
        tensor.local_size(layout.mesh)
        for tensor in tensors_lib.tensors(decoder)
        if tensor.is_stacked and tensor.is_matmul
    )


def layer_numbers(decoder: DecoderConfig, remat: str, tensor: int) -> float:
    """Return numbers that one layer keeps for the backward pass for each token.

    Scores aside, and without what a mixture's chosen experts work with.
    """
    heads, width = decoder.num_heads, decoder.width
    query = heads * decoder.head_width / tensor
    value = heads * decoder.value_width / tensor
    latent = decoder.attention
    if latent.kind == "latent":
        narrow = (latent.query_rank or 0) + latent.latent_rank + latent.rotary_width
        wide = heads * (latent.content_width + latent.value_width) / tensor
        inputs = query + 2 * narrow + wide
        # Keys with the shared rotary part beside each head's own, the output.
        pointwise = query + value
    else:
        inputs = query + 2 * decoder.num_kv_heads * decoder.head_width / tensor
        pointwise = 2 * query + decoder.num_kv_heads * decoder.head_width / tensor
    hidden = _hidden_width(decoder, remat)
    matmul_outputs = inputs + 2 * hidden / tensor + 2 * width
    pointwise += 2 * width + 2 * hidden / tensor
    return {
        "full": width,
        "offload": width,
        "dots": width + matmul_outputs,
        "none": width + matmul_outputs + pointwise,
    }[remat]


def _hidden_width(decoder: DecoderConfig, remat: str) -> int:
    """Return the width of a dense feed-forward, or of a mixture's shared experts together."""
    if decoder.ffn.kind != "moe":
        return decoder.ffn.width
    moe = decoder.ffn
    shared = moe.num_shared_experts * moe.width
    return max(shared, (moe.dense_width or 0) if remat == "none" else 0)


def hidden_numbers(decoder: DecoderConfig, layout: Layout) -> float:
    """Return how many of a layer's numbers for each token are hidden states of a dense model."""
    is_dense = decoder.ffn.kind != "moe"
    return 4 * decoder.ffn.width / layout.mesh["tensor"] if is_dense else 0.0


def score_bytes(decoder: DecoderConfig, layout: Layout) -> float:
    """Return bytes of attention scores that one layer keeps for each token of a row."""
    heads = decoder.num_heads / layout.mesh["tensor"]
    if layout.attention not in SCORE_IMPLEMENTATIONS:
        return FLOAT32_BYTES * heads  # the logsumexp alone
    keys: float = layout.num_tokens
    if layout.attention == "banded":
        block = max(BANDED_MIN_BLOCK, -(-layout.num_tokens // BANDED_MAX_BLOCKS))
        keys = min(keys, arithmetic.mean_keys(decoder, layout.num_tokens) + block / 2)
    return heads * keys * (FLOAT32_BYTES + layout.compute_bytes)
