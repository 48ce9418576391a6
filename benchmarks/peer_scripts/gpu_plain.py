"""A Mistral in plain torch: SDPA, a static cache, optional LoRA. Names follow transformers."""

import torch
from torch import nn
from torch.nn import functional

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraLinear(nn.Module):
    """A frozen projection and its float32 adapter."""

    def __init__(self, base, rank, alpha):
        """Wrap it."""
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, dtype=torch.float32)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, dtype=torch.float32)
        self.scale = alpha / rank

    def forward(self, x):
        """Apply both."""
        return self.base_layer(x) + self.lora_B(self.lora_A(x)) * self.scale


class RmsNorm(nn.Module):
    """A root-mean-square norm."""

    def __init__(self, width, epsilon):
        """Start at 1."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x):
        """Normalise in float32."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, shape):
        """Make its projections."""
        super().__init__()
        self.head_width = shape["head_width"]
        query, key = (shape[name] * self.head_width for name in ("num_heads", "num_kv_heads"))
        self.q_proj = nn.Linear(shape["width"], query, bias=False)
        self.k_proj = nn.Linear(shape["width"], key, bias=False)
        self.v_proj = nn.Linear(shape["width"], key, bias=False)
        self.o_proj = nn.Linear(query, shape["width"], bias=False)

    def forward(self, x, cosine, sine, cache=None, start=0):
        """Attend to the row, or to a cache that it is written to at `start`."""
        batch, length, _ = x.shape

        def heads(projected):
            return projected.view(batch, length, -1, self.head_width).transpose(1, 2)

        def rotated(projected):
            first, second = projected.chunk(2, -1)
            return projected * cosine + torch.cat((-second, first), -1) * sine

        q = rotated(heads(self.q_proj(x)))
        k, v = rotated(heads(self.k_proj(x))), heads(self.v_proj(x))
        if cache is not None:
            keys, values = cache
            keys[:, :, start : start + length], values[:, :, start : start + length] = k, v
            k, v = keys[:, :, : start + length], values[:, :, : start + length]
        out = functional.scaled_dot_product_attention(
            q, k, v.to(q.dtype), is_causal=length > 1, enable_gqa=True
        )
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    """A SwiGLU."""

    def __init__(self, shape):
        """Make its projections."""
        super().__init__()
        width, hidden = shape["width"], shape["hidden"]
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        """Apply it."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, shape):
        """Make them."""
        super().__init__()
        norm = (shape["width"], shape["norm_epsilon"])
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(*norm), RmsNorm(*norm)
        self.self_attn, self.mlp = Attention(shape), Mlp(shape)

    def forward(self, x, cosine, sine, cache=None, start=0):
        """Apply the layer."""
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine, cache, start)
        return x + self.mlp(self.post_attention_layernorm(x))


class Stack(nn.Module):
    """Embedding, layers, norm."""

    def __init__(self, shape):
        """Make them."""
        super().__init__()
        self.embed_tokens = nn.Embedding(shape["vocab_size"], shape["width"])
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape["num_layers"]))
        self.norm = RmsNorm(shape["width"], shape["norm_epsilon"])


class Mistral(nn.Module):
    """The decoder with its head."""

    def __init__(self, shape, *, is_checkpointed=False):
        """Make it on the default device, in the default dtype."""
        super().__init__()
        self.shape, self.is_checkpointed = shape, is_checkpointed
        self.model = Stack(shape)
        self.lm_head = nn.Linear(shape["width"], shape["vocab_size"], bias=False)
        self.dtype = self.lm_head.weight.dtype

    def adapt(self):
        """Put adapters on every projection and freeze the rest."""
        self.requires_grad_(False)
        for layer in self.model.layers:
            for room in (layer.self_attn, layer.mlp):
                for name in PROJECTIONS:
                    if hasattr(room, name):
                        adapted = LoraLinear(
                            getattr(room, name), self.shape["rank"], self.shape["alpha"]
                        )
                        setattr(room, name, adapted)

    def angles(self, start, length):
        """Return cosines and sines of positions."""
        width, device = self.shape["head_width"], self.lm_head.weight.device
        exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
        positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
        angles = positions[:, None] * self.shape["theta"] ** -exponents
        angles = torch.cat((angles, angles), -1)
        compute = torch.get_autocast_dtype(device.type)
        dtype = compute if torch.is_autocast_enabled(device.type) else self.dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(self, tokens, *, caches=None, start=0, is_last_only=False):
        """Return logits."""
        x = self.model.embed_tokens(tokens)
        angles = self.angles(start, tokens.shape[1])
        for index, layer in enumerate(self.model.layers):
            if self.is_checkpointed and self.training:
                x = torch.utils.checkpoint.checkpoint(layer, x, *angles, use_reentrant=False)
            else:
                x = layer(x, *angles, None if caches is None else caches[index], start)
        x = self.model.norm(x[:, -1:] if is_last_only else x)
        return self.lm_head(x)

    def generate(self, tokens, num_new):
        """Decode greedily."""
        batch, length = tokens.shape
        shape = (batch, self.shape["num_kv_heads"], length + num_new, self.shape["head_width"])
        empty = {"dtype": self.dtype, "device": tokens.device}
        caches = [
            (torch.zeros(shape, **empty), torch.zeros(shape, **empty)) for _ in self.model.layers
        ]
        found, start = tokens, 0
        for _ in range(num_new):
            logits = self(tokens, caches=caches, start=start, is_last_only=True)
            start += tokens.shape[1]
            tokens = logits[:, -1:].argmax(-1)[:, -1:]
            found = torch.cat((found, tokens), 1)
        return found
