"""Every parameter of a decoder as data: path, shape, logical axes, and its part on one device.

The same list as models/definition.py builds with jax, written down without it; a test holds the
two equal, and AXES equal to the table of mistral_jax/sharding.py.
"""

import dataclasses
import functools
import itertools
import math

from mistral_jax.config.model import Adapter
from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.model import DenseFfn
from mistral_jax.config.model import Ffn
from mistral_jax.config.model import LatentAttention
from mistral_jax.config.model import NoAdapter

# Logical axes of parameters to mesh axes: sharding.RULES, without jax; and its tiles.
TILED = ("embed", "expert_embed", "expert_hidden")
TILE_ROWS = 8
WIDE = 1024
AXES: dict[str, tuple[str, ...]] = {
    "layer": (),
    "embed": ("fsdp", "expert", "context"),
    "mlp": ("tensor",),
    "group": ("expert",),
    "expert": ("expert",),
    "expert_embed": ("fsdp", "context"),
    "expert_hidden": ("tensor", "fsdp", "context"),
    "latent": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "vocab": ("tensor",),
    "rank": (),
    "norm": (),
}
NO_ADAPTER = NoAdapter()
# Of which a projection can have an adapter.
ADAPTED_PARTS = ("attention", "dense_ffn", "experts", "shared")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One array of parameters, layers stacked.

    Attributes:
        path: as in a checkpoint, "layers/attention/q_proj/kernel".
        shape: the whole array's.
        axes: a logical axis for each dimension, or None.
        part: attention, dense_ffn, experts, shared, router, norm, embed, head or adapter.
        copies, active: of a mixture's experts, how many there are and how many a token uses.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    part: str
    copies: int = 1
    active: int = 1

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def active_size(self) -> int:
        """How many of them one token uses."""
        return self.size // self.copies * self.active

    @property
    def is_matmul(self) -> bool:
        """Whether a token is multiplied by it; an embedding is looked up."""
        return self.path.endswith(("/kernel", "/lora_a", "/lora_b"))

    @property
    def module(self) -> str:
        """The projection's name, such as q_proj."""
        return self.path.split("/")[-2]

    @property
    def is_stacked(self) -> bool:
        """Whether the first dimension counts layers."""
        return self.axes[0] == "layer"

    def local_shape(self, mesh: dict[str, int]) -> tuple[int, ...]:
        """Return one device's part; what no run of mesh axes divides is whole."""
        used: set[str] = set()
        shape = []
        for axis, size in zip(self.axes, self.shape, strict=True):
            taken = _dividing(mesh, axis, size) if axis else ()
            if axis == "expert" and used & set(taken):  # the groups are split already
                taken = ()
            used |= set(taken)
            shape.append(size // math.prod(mesh[name] for name in taken))
        return tuple(shape)

    def local_size(self, mesh: dict[str, int]) -> int:
        """Return how many numbers one device holds."""
        return math.prod(self.local_shape(mesh))

    def gathered_size(self, mesh: dict[str, int]) -> int:
        """Return how many numbers a device computes with: whole but for `tensor` and `expert`."""
        split = dict.fromkeys(mesh, 1) | {"tensor": mesh["tensor"]}
        if self.copies > 1:
            split["expert"] = mesh["expert"]
        return self.local_size(split)


def _dividing(mesh: dict[str, int], axis: str, size: int) -> tuple[str, ...]:
    """Return the mesh axes, over most devices, that divide a parameter's dimension."""
    axes = AXES[axis]
    tile = TILE_ROWS if axis in TILED and size >= WIDE else 1
    best, best_parts = (), 1
    counts = range(1, len(axes) + 1)
    for run in (run for count in counts for run in itertools.combinations(axes, count)):
        parts = math.prod(mesh[name] for name in run)
        if size % (parts * tile) == 0 and parts > best_parts:
            best, best_parts = run, parts
    return best


def tensors(decoder: DecoderConfig, adapter: Adapter = NO_ADAPTER) -> tuple[Tensor, ...]:
    """Return every parameter of the base model and of its adapter."""
    # Frozen nodes hash, which a type checker does not see. A plan asks some hundred times.
    return _tensors(decoder, adapter)  # pyright: ignore[reportArgumentType]


@functools.lru_cache(maxsize=64)
def _tensors(decoder: DecoderConfig, adapter: Adapter) -> tuple[Tensor, ...]:
    width, vocab, num_dense = decoder.width, decoder.vocab_size, decoder.num_dense_layers
    table = [Tensor("embed/embedding", (vocab, width), ("vocab", "embed"), "embed")]
    if num_dense and decoder.ffn.kind == "moe" and decoder.ffn.dense_width is not None:
        dense = DenseFfn(width=decoder.ffn.dense_width)
        table += _stack("dense_layers", decoder, num_dense, dense)
    table += _stack("layers", decoder, decoder.num_layers - num_dense, decoder.ffn)
    table.append(Tensor("final_norm/scale", (width,), ("norm",), "norm"))
    if not decoder.tied_head:
        table.append(Tensor("head/kernel", (width, vocab), ("embed", "vocab"), "head"))
    return tuple(table + _adapters(table, adapter))


def head_size(decoder: DecoderConfig) -> int:
    """Return the weights that make logits of a hidden state, tied or not."""
    return decoder.vocab_size * decoder.width


def _stack(name: str, decoder: DecoderConfig, num_layers: int, ffn: Ffn) -> list[Tensor]:
    width = decoder.width
    stacked = functools.partial(_stacked, name, num_layers)
    table = [
        stacked("attention_norm/scale", (width,), ("norm",), "norm"),
        stacked("mlp_norm/scale", (width,), ("norm",), "norm"),
    ]
    latent = decoder.attention
    if latent.kind == "latent":
        table += _latent_attention(stacked, decoder, latent)
    else:
        table += _grouped_attention(stacked, decoder)
    if ffn.kind == "dense":
        return table + _swiglu(stacked, "mlp", width, ffn.width, "dense_ffn")
    experts = ffn.num_experts
    stack = (ffn.num_groups, ffn.group_size)
    table.append(stacked("mlp/router/kernel", (width, experts), ("embed", None), "router"))
    if ffn.router.kind == "sigmoid":
        table.append(stacked("mlp/router/bias", (experts,), (None,), "router"))
    for module, shape, axes in (
        ("gate_proj", (width, ffn.width), ("expert_embed", "mlp")),
        ("up_proj", (width, ffn.width), ("expert_embed", "mlp")),
        ("down_proj", (ffn.width, width), ("expert_hidden", None)),
    ):
        tensor = stacked(
            f"mlp/{module}/kernel", (*stack, *shape), ("group", "expert", *axes), "experts"
        )
        table.append(dataclasses.replace(tensor, copies=experts, active=ffn.top_k))
    if ffn.num_shared_experts:
        shared = ffn.width * ffn.num_shared_experts
        table += _swiglu(stacked, "mlp/shared", width, shared, "shared")
    return table


def _stacked(name: str, num_layers: int, path: str, shape: tuple, axes: tuple, part: str) -> Tensor:
    return Tensor(f"{name}/{path}", (num_layers, *shape), ("layer", *axes), part)


def _swiglu(
    stacked: functools.partial, path: str, width: int, hidden: int, part: str
) -> list[Tensor]:
    return [
        stacked(f"{path}/gate_proj/kernel", (width, hidden), ("embed", "mlp"), part),
        stacked(f"{path}/up_proj/kernel", (width, hidden), ("embed", "mlp"), part),
        stacked(f"{path}/down_proj/kernel", (hidden, width), ("mlp", "embed"), part),
    ]


def _grouped_attention(stacked: functools.partial, decoder: DecoderConfig) -> list[Tensor]:
    width = decoder.width
    heads = decoder.num_heads * decoder.head_width
    kv_heads = decoder.num_kv_heads * decoder.head_width
    table = []
    for module, out_width, axis in (
        ("q_proj", heads, "heads"),
        ("k_proj", kv_heads, "kv_heads"),
        ("v_proj", kv_heads, "kv_heads"),
    ):
        path = f"attention/{module}"
        table.append(stacked(f"{path}/kernel", (width, out_width), ("embed", axis), "attention"))
        if decoder.qkv_bias:
            table.append(stacked(f"{path}/bias", (out_width,), (axis,), "attention"))
    out = stacked("attention/o_proj/kernel", (heads, width), ("heads", "embed"), "attention")
    return [*table, out]


def _latent_attention(
    stacked: functools.partial, decoder: DecoderConfig, latent: LatentAttention
) -> list[Tensor]:
    width, heads = decoder.width, decoder.num_heads
    query, rank = heads * decoder.head_width, latent.latent_rank
    wide = heads * (latent.content_width + latent.value_width)
    if latent.query_rank is None:
        rows = [("q_proj/kernel", (width, query), ("embed", "heads"))]
    else:
        rows = [
            ("q_a_proj/kernel", (width, latent.query_rank), ("embed", "latent")),
            ("q_a_norm/scale", (latent.query_rank,), ("norm",)),
            ("q_b_proj/kernel", (latent.query_rank, query), ("embed", "heads")),
        ]
    rows += [
        ("kv_a_proj/kernel", (width, rank + latent.rotary_width), ("embed", "latent")),
        ("kv_a_norm/scale", (rank,), ("norm",)),
        ("kv_b_proj/kernel", (rank, wide), ("embed", "heads")),
        ("o_proj/kernel", (heads * latent.value_width, width), ("heads", "embed")),
    ]
    return [stacked(f"attention/{path}", shape, axes, "attention") for path, shape, axes in rows]


def _adapters(table: list[Tensor], adapter: Adapter) -> list[Tensor]:
    """Return the low-rank pairs, and magnitudes, beside the adapted projections."""
    if adapter.kind == "none":
        return []
    found = []
    for tensor in table:
        *_, module, leaf = ("", *tensor.path.split("/"))
        if leaf != "kernel" or tensor.part not in ADAPTED_PARTS:
            continue
        if module not in adapter.target_modules:
            continue
        *stack, in_width, out_width = tensor.shape
        *names, in_axis, out_axis = tensor.axes
        rows = [
            ("lora_a", (*stack, in_width, adapter.rank), (*names, in_axis, "rank")),
            ("lora_b", (*stack, adapter.rank, out_width), (*names, "rank", out_axis)),
        ]
        if adapter.kind == "dora":
            rows.append(("lora_magnitude", (*stack, out_width), (*names, out_axis)))
        base = tensor.path.removesuffix("kernel")
        found += [
            Tensor(base + name, shape, axes, "adapter", tensor.copies, tensor.active)
            for name, shape, axes in rows
        ]
    return found
