"""Peer of the GPU rows limits, attention, cross_entropy, mixture: the same operators in torch."""

import gpu_peer
import torch
from gpu_peer import DEVICE
from gpu_peer import DTYPE
from gpu_peer import hashed
from gpu_peer import sample
from torch.nn import functional


def matmul(prepared, size):
    """Prepare one square matmul."""
    left, right = hashed("left", (size, size)), hashed("right", (size, size), scale=size**-0.5)
    prepared["forward"] = lambda: left @ right
    return {"sample": sample(left @ right)}


def copy(prepared, shape):
    """Prepare a pass over a large array."""
    source = torch.ones(shape, dtype=DTYPE, device=DEVICE)
    prepared["forward"] = lambda: torch.neg(source)
    return {}


def attention(prepared, q, k, mask, window, documents):
    """Prepare attention: SDPA where a row is causal, else flex_attention (SDPA on a CPU)."""
    tensors = [hashed(name, shape) for name, shape in (("q", q), ("k", k), ("v", k), ("g", q))]
    tensors = [tensor.transpose(1, 2).contiguous() for tensor in tensors]
    *inputs, gradient = tensors
    num_tokens = q[1]

    def visible(batch, head, query, key):
        seen = query >= key
        if mask == "window":
            seen = seen & (query - key < window)
        if mask == "packed":
            length = num_tokens // documents
            seen = seen & (query // length == key // length)
        return seen

    if mask == "causal":
        name = "torch SDPA"

        def run(q, k, v):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    elif DEVICE.type == "cuda":
        from torch.nn.attention import flex_attention

        name = "torch flex_attention"
        blocks = flex_attention.create_block_mask(
            visible, None, None, num_tokens, num_tokens, device=DEVICE
        )
        compiled = torch.compile(flex_attention.flex_attention)

        def run(q, k, v):
            return compiled(q, k, v, block_mask=blocks, enable_gqa=True)

    else:
        name = "torch SDPA with a mask"
        index = torch.arange(num_tokens, device=DEVICE)
        dense = visible(None, None, index[:, None], index[None])

        def run(q, k, v):
            return functional.scaled_dot_product_attention(
                q, k, v, attn_mask=dense, enable_gqa=True
            )

    def forward():
        with torch.no_grad():
            return run(*inputs)

    trained = [tensor.clone().requires_grad_() for tensor in inputs]
    prepared["forward"] = forward
    prepared["forward+backward"] = lambda: torch.autograd.grad(run(*trained), trained, gradient)
    return {"name": name, "sample": sample(forward().transpose(1, 2))}


def loss(prepared, num_tokens, width, vocabulary):
    """Prepare linear + cross-entropy: Liger's where it is installed, else whole logits."""
    hidden = hashed("hidden", (num_tokens, width)).requires_grad_()
    kernel = hashed("head", (width, vocabulary), scale=width**-0.5).t().contiguous()
    kernel.requires_grad_()
    targets = torch.arange(num_tokens, device=DEVICE) * 7919 % vocabulary
    if gpu_peer.is_installed("liger_kernel") and DEVICE.type == "cuda":
        from liger_kernel import transformers as liger

        name, fused = "Liger fused linear cross-entropy", liger.LigerFusedLinearCrossEntropyLoss()

        def run():
            return fused(kernel, hidden, targets)

    else:
        name = "torch, whole logits (Liger is not installed)"

        def run():
            return functional.cross_entropy((hidden @ kernel.t()).float(), targets)

    def both():
        value = run()
        return value, *torch.autograd.grad(value, (hidden, kernel))

    value, hidden_gradient, _ = both()
    prepared["forward+backward"] = both
    return {"name": name, "loss": value.item(), "sample": sample(hidden_gradient)}


def mixture(prepared, num_tokens, width, hidden, num_experts, top_k):
    """Prepare a mixture layer on torch's grouped matmul."""
    grouped = getattr(functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if grouped is None:
        raise RuntimeError(f"torch {torch.__version__} has no grouped matmul")
    chosen, experts = hashed("router", (num_tokens, num_experts), dtype=torch.float32).topk(top_k)

    def kernel(name, shape):
        # Stored [E, out, in], as torch's models do.
        values = hashed(name, shape, scale=shape[1] ** -0.5).transpose(1, 2).contiguous()
        return values.requires_grad_()

    x = hashed("x", (num_tokens, width)).requires_grad_()
    weights = chosen.softmax(-1).requires_grad_()
    gate = kernel("gate", (num_experts, width, hidden))
    up = kernel("up", (num_experts, width, hidden))
    down = kernel("down", (num_experts, hidden, width))
    gradient = hashed("g", (num_tokens, width))
    inputs = (x, weights, gate, up, down)

    def run():
        flat = experts.reshape(-1)
        order = torch.argsort(flat, stable=True)
        ends = torch.bincount(flat, minlength=num_experts).cumsum(0).to(torch.int32)
        rows = x[order // top_k]
        inner = functional.silu(grouped(rows, gate.transpose(1, 2), offs=ends))
        inner = inner * grouped(rows, up.transpose(1, 2), offs=ends)
        out = grouped(inner, down.transpose(1, 2), offs=ends)
        out = out.float() * weights.reshape(-1)[order][:, None]
        zeros = torch.zeros(num_tokens, width, dtype=torch.float32, device=DEVICE)
        return zeros.index_add(0, order // top_k, out).to(DTYPE)

    prepared["forward+backward"] = lambda: torch.autograd.grad(run(), inputs, gradient)
    with torch.no_grad():
        found = sample(run())
    return {"name": "torch grouped matmul", "sample": found}


if __name__ == "__main__":
    gpu_peer.serve(
        {
            "matmul": matmul,
            "copy": copy,
            "attention": attention,
            "loss": loss,
            "mixture": mixture,
        }
    )
