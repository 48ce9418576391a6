"""Where each of our decoder's parameters lives in other people's files, and in which layout.

Ours: kernels `[in, out]`, all layers stacked on a leading axis (experts on two more: group, expert
of the group), rotary embedding in the rotate-half order of Hugging Face. Theirs: one `[out, in]`
tensor per layer and expert, but GGUF stacks a layer's experts; GGUF (llama) and Mistral's
consolidated files order the rows of q and k for interleaved rotary pairs, as all files of latent
attention do with the rows that rotate. A mixture's dense first layers are a stack of their own.
The functions here move one tensor's array and never copy more than numpy must.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any
from typing import Protocol
from typing import runtime_checkable

import numpy as np

from mistral_jax.formats import spellings

FORMATS = ("hf", "gguf", "consolidated", "peft")
ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
PROJECTIONS = ATTENTION_PROJECTIONS + MLP_PROJECTIONS
LATENT_PROJECTIONS = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj", "kv_b_proj", "o_proj")

# Stays float32 whatever the weights are: it moves by steps that bfloat16 would round away.
FLOAT32_PATHS = ("layers/mlp/router/bias",)
_PEFT_PREFIX = "base_model.model."

Index = tuple[int, ...]


@runtime_checkable
class DecoderShape(Protocol):
    """The sizes that fix every parameter's shape; our decoder config has them."""

    @property
    def num_layers(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def tied_head(self) -> bool: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def ffn(self) -> Any:
        """Has kind and width; a mixture all that the config's MoeFfn has."""
        ...

    @property
    def attention(self) -> Any:
        """Has kind; of latent attention also its ranks and widths."""
        ...


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a foreign file and the place of its content in our tree.

    Attributes:
        path: our parameter's path.
        foreign_name: the tensor's name in the file.
        index: where in our array it goes: () for embedding, final norm and head, (layer,), or
            (layer, group, expert of the group).
        transpose: the file holds `[out, in]` where we hold `[in, out]`.
        permute_heads: number of heads whose rows the file keeps in interleaved rotary order,
            None where the file has our own (rotate-half) order.
        shape: the tensor's shape in the file.
        num_groups: of the experts that the tensor stacks on its first axis, or None.
        rotary_rows: how many last rows of a head rotate; None is all.
        part: which of how many equal parts of the tensor's rows; None is the whole.
    """

    path: str
    foreign_name: str
    index: Index
    transpose: bool
    permute_heads: int | None
    shape: tuple[int, ...]
    num_groups: int | None = None
    rotary_rows: int | None = None
    part: tuple[int, int] | None = None


def projection_sizes(shape: DecoderShape) -> dict[str, tuple[int, int]]:
    """Return (in, out) of the projections of a layer, a mixture's being those of one expert."""
    hidden = shape.ffn.width
    return attention_sizes(shape) | {
        "gate_proj": (shape.width, hidden),
        "up_proj": (shape.width, hidden),
        "down_proj": (hidden, shape.width),
    }


def attention_sizes(shape: DecoderShape) -> dict[str, tuple[int, int]]:
    """Return (in, out) of the projections of a layer's attention."""
    query, width, latent = shape.num_heads * shape.head_width, shape.width, shape.attention
    if latent.kind != "latent":
        key = shape.num_kv_heads * shape.head_width
        return {
            "q_proj": (width, query),
            "k_proj": (width, key),
            "v_proj": (width, key),
            "o_proj": (query, width),
        }
    rank, values = latent.query_rank, shape.num_heads * latent.value_width
    queries = (
        {"q_proj": (width, query)}
        if rank is None
        else {"q_a_proj": (width, rank), "q_b_proj": (rank, query)}
    )
    wide = shape.num_heads * latent.content_width + values
    return queries | {
        "kv_a_proj": (width, latent.latent_rank + latent.rotary_width),
        "kv_b_proj": (latent.latent_rank, wide),
        "o_proj": (values, width),
    }


def projection_path(projection: str, stack: str = "layers") -> str:
    """Return the tree path of a projection, `layers/attention/q_proj` for `q_proj`."""
    room = "mlp" if projection in MLP_PROJECTIONS else "attention"
    return f"{stack}/{room}/{projection}"


def mixture_spelling(shape: DecoderShape, format: str) -> spellings.Mixture | None:
    """Return how a format spells this decoder's experts, or None for a dense one.

    Raises:
        ValueError: the format cannot hold this decoder; the message says which can.
    """
    ffn, is_latent = shape.ffn, shape.attention.kind == "latent"
    if is_latent and format == "gguf":
        raise ValueError("no GGUF of latent attention is read or written here; use the format hf")
    if ffn.kind != "moe":
        return None
    is_mixtrals = not (ffn.num_shared_experts or ffn.num_dense_layers)
    is_mixtrals &= ffn.router.kind == "softmax" and ffn.is_normalised and ffn.weights_scale == 1
    if is_latent:
        family = "mistral4" if ffn.router.kind == "softmax" else "deepseek_v3"
    elif is_mixtrals:
        family = "mixtral"
    else:
        raise ValueError(
            "no format here holds shared experts, dense first layers, sigmoid scores or scaled "
            "weights without latent attention; keep this model as a run"
        )
    if (family, format) not in spellings.MIXTURES:
        raise ValueError(
            f"the format {format} cannot hold a router with sigmoid scores; use the format hf"
        )
    return spellings.MIXTURES[family, format]


def stack_of(shape: DecoderShape, layer: int) -> tuple[str, int]:
    """Return the stack that holds a layer, and its place there."""
    num_dense = shape.ffn.num_dense_layers if shape.ffn.kind == "moe" else 0
    return ("dense_layers", layer) if layer < num_dense else ("layers", layer - num_dense)


def entries(
    shape: DecoderShape,
    format: str,
    *,
    target_modules: Sequence[str] = PROJECTIONS,
    rank: int | None = None,
    has_magnitudes: bool = False,
    is_interleaved: bool = True,
) -> list[Entry]:
    """List every tensor that a file of this format must hold for this decoder.

    Args:
        shape: the decoder's sizes.
        format: one of `FORMATS`.
        target_modules: for "peft" only: which projections carry an adapter.
        rank: for "peft" only, and needed there: the adapter's rank.
        has_magnitudes: for "peft" only: whether the adapter is DoRA's.
        is_interleaved: for latent attention: the rows that rotate are in pairs, as in everything
            published; config.json's rope_interleave (for "peft": of the base model).

    Raises:
        ValueError: an unknown format or module, a missing rank, or a format that cannot hold
            this decoder (consolidated files have no q/k/v bias).
    """
    if format not in FORMATS:
        raise ValueError(f"unknown weight format {format!r}; expected one of {', '.join(FORMATS)}")
    if format == "peft":
        return _adapter_entries(
            shape,
            target_modules,
            rank,
            has_magnitudes=has_magnitudes,
            is_interleaved=is_interleaved,
        )
    if format == "consolidated" and shape.qkv_bias:
        raise ValueError("consolidated files cannot hold q/k/v biases; use the format hf or gguf")
    if shape.qkv_bias and shape.ffn.kind == "moe":
        raise ValueError("no format here holds both experts and q/k/v biases")
    mixture = mixture_spelling(shape, format)
    outer = {
        "embed/embedding": (shape.vocab_size, shape.width),
        "final_norm/scale": (shape.width,),
        "head/kernel": (shape.vocab_size, shape.width),
    }
    table = [
        Entry(path, spellings.OUTER[path][format], (), path == "head/kernel", None, size)
        for path, size in outer.items()
        if path != "head/kernel" or not shape.tied_head
    ]
    for layer in range(shape.num_layers):
        table += _attention_entries(shape, format, layer, is_interleaved=is_interleaved)
        stack, _ = stack_of(shape, layer)
        if mixture is None or stack == "dense_layers":
            table += _dense_entries(shape, format, layer)
        else:
            table += _mixture_entries(shape, mixture, format, layer)
    return table


def empty_tensors(shape: DecoderShape, format: str) -> dict[str, tuple[int, int]]:
    """Return the tensors without a number that a file has to have, and their shapes.

    Where there are no shared experts, transformers builds some of width 0 all the same.
    """
    mixture = mixture_spelling(shape, format)
    if mixture is None or mixture.shared is None or shape.ffn.num_shared_experts or format != "hf":
        return {}
    return {
        spellings.LAYER_PREFIX[format].format(layer) + name: (
            (shape.width, 0) if projection == "down_proj" else (0, shape.width)
        )
        for layer in range(shape.num_layers)
        if stack_of(shape, layer)[0] == "layers"
        for projection, name in mixture.shared.items()
    }


def _attention_entries(
    shape: DecoderShape, format: str, layer: int, *, is_interleaved: bool
) -> list[Entry]:
    """List a layer's two norms and its attention."""
    stack, index = stack_of(shape, layer)
    prefix = spellings.LAYER_PREFIX[format].format(layer)
    is_latent = shape.attention.kind == "latent"

    def norm(path: str, size: int) -> Entry:
        name = f"{prefix}{spellings.LAYER[path.rpartition('/')[2]][format]}.weight"
        return Entry(f"{stack}/{path}/scale", name, (index,), False, None, (size,))

    table = [norm("attention_norm", shape.width), norm("mlp_norm", shape.width)]
    if is_latent:
        if shape.attention.query_rank is not None:
            table.append(norm("attention/q_a_norm", shape.attention.query_rank))
        table.append(norm("attention/kv_a_norm", shape.attention.latent_rank))
    heads = rotary_heads(shape)
    if not is_latent:
        # llama.cpp runs biased (qwen2) models with rotate-half rotary: their rows stay as they are.
        is_interleaved = format == "consolidated" or (format == "gguf" and not shape.qkv_bias)
    for projection, (size_in, size_out) in attention_sizes(shape).items():
        path = projection_path(projection, stack)
        name = prefix + spellings.LAYER[projection][format]
        permute, rows = heads.get(projection, (None, None)) if is_interleaved else (None, None)
        size = (size_out, size_in)
        table.append(
            Entry(f"{path}/kernel", f"{name}.weight", (index,), True, permute, size, None, rows)
        )
        if shape.qkv_bias and projection in ("q_proj", "k_proj", "v_proj"):
            table.append(
                Entry(f"{path}/bias", f"{name}.bias", (index,), False, permute, (size_out,))
            )
    return table


def rotary_heads(shape: DecoderShape) -> dict[str, tuple[int, int | None]]:
    """Return the projections with rows that rotate: how many heads, which last rows of each."""
    if shape.attention.kind != "latent":
        return {"q_proj": (shape.num_heads, None), "k_proj": (shape.num_kv_heads, None)}
    rows = shape.attention.rotary_width
    query = "q_proj" if shape.attention.query_rank is None else "q_b_proj"
    return {query: (shape.num_heads, rows), "kv_a_proj": (1, rows)}


def _dense_entries(shape: DecoderShape, format: str, layer: int) -> list[Entry]:
    stack, index = stack_of(shape, layer)
    prefix = spellings.LAYER_PREFIX[format].format(layer)
    hidden = shape.ffn.dense_width if stack == "dense_layers" else shape.ffn.width
    table = []
    for projection in MLP_PROJECTIONS:
        size = (shape.width, hidden) if projection == "down_proj" else (hidden, shape.width)
        name = f"{prefix}{spellings.LAYER[projection][format]}.weight"
        path = f"{projection_path(projection, stack)}/kernel"
        table.append(Entry(path, name, (index,), True, None, size))
    return table


def _mixture_entries(
    shape: DecoderShape, mixture: spellings.Mixture, format: str, layer: int
) -> list[Entry]:
    stack, index = stack_of(shape, layer)
    prefix = spellings.LAYER_PREFIX[format].format(layer)
    ffn, width = shape.ffn, shape.width
    table = [
        Entry(f"{stack}/mlp/router/kernel", prefix + mixture.router, (index,), True, None,
              (ffn.num_experts, width))
    ]  # fmt: skip
    if ffn.router.kind == "sigmoid" and mixture.bias is not None:
        name = prefix + mixture.bias
        path, size = f"{stack}/mlp/router/bias", (ffn.num_experts,)
        table.append(Entry(path, name, (index,), False, None, size))
    for projection in MLP_PROJECTIONS:
        size = (width, ffn.width) if projection == "down_proj" else (ffn.width, width)
        table += _expert_entries(shape, mixture, prefix, layer, projection, size)
        if ffn.num_shared_experts and mixture.shared is not None:
            hidden = ffn.width * ffn.num_shared_experts
            size = (width, hidden) if projection == "down_proj" else (hidden, width)
            path = f"{stack}/mlp/shared/{projection}/kernel"
            name = prefix + mixture.shared[projection]
            table.append(Entry(path, name, (index,), True, None, size))
    return table


def _expert_entries(
    shape: DecoderShape,
    mixture: spellings.Mixture,
    prefix: str,
    layer: int,
    projection: str,
    size: tuple[int, int],
) -> list[Entry]:
    """List one projection of a layer's experts; `size` is [out, in] of one."""
    stack, index = stack_of(shape, layer)
    path = f"{projection_path(projection, stack)}/kernel"
    name = prefix + mixture.experts[projection]
    groups, experts = shape.ffn.num_groups, shape.ffn.num_experts
    if "{}" in mixture.experts[projection]:
        return [
            Entry(path, name.format(expert), (index, *divmod(expert, experts // groups)), True,
                  None, size)
            for expert in range(experts)
        ]  # fmt: skip
    part = mixture.parts.get(projection)
    rows = size[0] if part is None else size[0] * part[1]
    return [Entry(path, name, (index,), True, None, (experts, rows, size[1]), groups, None, part)]


def _adapter_entries(
    shape: DecoderShape,
    target_modules: Sequence[str],
    rank: int | None,
    *,
    has_magnitudes: bool,
    is_interleaved: bool,
) -> list[Entry]:
    sizes = projection_sizes(shape)
    unknown = [module for module in target_modules if module not in sizes]
    if unknown or not target_modules:
        raise ValueError(
            f"target_modules {list(target_modules)}: expected one or more of {', '.join(sizes)}"
        )
    if rank is None or rank < 1:
        raise ValueError(f"the format peft needs the adapter's rank >= 1, got {rank}")
    # The rows of B are the kernel's: those that rotate are in the order of the base's file.
    is_latent = shape.attention.kind == "latent"
    heads = rotary_heads(shape) if is_latent and is_interleaved else {}
    table = []
    for layer in range(shape.num_layers):
        prefix = _PEFT_PREFIX + spellings.LAYER_PREFIX["hf"].format(layer)
        for module in (name for name in sizes if name in target_modules):
            for place in _adapter_places(shape, layer, module):
                pair = _adapter_pair(place, prefix, rank, heads.get(module, (None, None)))
                table += pair if has_magnitudes else pair[:2]
    return table


@dataclasses.dataclass(frozen=True)
class _AdapterPlace:
    """A projection of one layer, or of one expert, that has an adapter: path, index, sizes, name.

    Attributes:
        path: in our tree, without the leaf.
        name: in Hugging Face's, below the layer.
    """

    path: str
    index: Index
    size_in: int
    size_out: int
    name: str


def _adapter_places(shape: DecoderShape, layer: int, module: str) -> list[_AdapterPlace]:
    stack, index = stack_of(shape, layer)
    ffn, path = shape.ffn, projection_path(module, stack)
    size_in, size_out = projection_sizes(shape)[module]
    name = spellings.LAYER[module]["hf"]
    if module not in MLP_PROJECTIONS or ffn.kind != "moe":
        return [_AdapterPlace(path, (index,), size_in, size_out, name)]

    def sized(hidden: int) -> tuple[int, int]:
        return (hidden, shape.width) if module == "down_proj" else (shape.width, hidden)

    if stack == "dense_layers":
        return [_AdapterPlace(path, (index,), *sized(ffn.dense_width), name)]
    experts = expert_module_names(shape)
    group_size = ffn.num_experts // ffn.num_groups
    places = [
        _AdapterPlace(
            path,
            (index, *divmod(expert, group_size)),
            size_in,
            size_out,
            experts[module].format(expert),
        )
        for expert in range(ffn.num_experts)
    ]
    if ffn.num_shared_experts:
        path = f"{stack}/mlp/shared/{module}"
        name = f"mlp.shared_experts.{module}"
        places.append(
            _AdapterPlace(path, (index,), *sized(ffn.width * ffn.num_shared_experts), name)
        )
    return places


def expert_module_names(shape: DecoderShape) -> dict[str, str]:
    """Return Hugging Face's name of each projection of an expert, {} for the expert's number.

    As modules of their own, which transformers 4 had and PEFT's files keep. A family whose files
    have always stacked their experts (Mistral 4) gets the names of DeepSeek's.

    Raises:
        ValueError: no format holds this mixture.
    """
    mixture = mixture_spelling(shape, "hf")
    if mixture is None or "{}" not in mixture.experts["gate_proj"]:
        mixture = spellings.MIXTURES["deepseek_v3", "hf"]
    return {name: theirs.removesuffix(".weight") for name, theirs in mixture.experts.items()}


def _adapter_pair(
    place: _AdapterPlace, prefix: str, rank: int, rotary: tuple[int | None, int | None]
) -> list[Entry]:
    """Return the entries of a projection's A, B and magnitude."""
    name, (permute, rows) = prefix + place.name, rotary
    own = functools.partial(Entry, index=place.index, num_groups=None)
    size_out = place.size_out
    return [
        own(f"{place.path}/lora_a", f"{name}.lora_A.weight", transpose=True, permute_heads=None,
            shape=(rank, place.size_in)),
        own(f"{place.path}/lora_b", f"{name}.lora_B.weight", transpose=True, permute_heads=permute,
            shape=(size_out, rank), rotary_rows=rows),
        own(f"{place.path}/lora_magnitude", f"{name}.lora_magnitude_vector", transpose=False,
            permute_heads=permute, shape=(size_out,), rotary_rows=rows),
    ]  # fmt: skip


def to_foreign(array: np.ndarray, entry: Entry) -> np.ndarray:
    """Bring one of our arrays (its slice at `entry.index`) into the file's layout.

    Of a tensor in parts this is the entry's own part; `joined` puts them together.
    """
    if entry.num_groups is not None:
        array = array.reshape(-1, *array.shape[2:])
    array = array.swapaxes(-1, -2) if entry.transpose else array
    return array if entry.permute_heads is None else _reordered(array, entry, to_pairs=True)


def from_foreign(array: np.ndarray, entry: Entry) -> np.ndarray:
    """Bring a file's tensor into our layout (the slice at `entry.index`); inverts `to_foreign`."""
    if entry.part is not None:
        which, count = entry.part
        size = array.shape[-2] // count
        array = array[..., which * size : (which + 1) * size, :]
    if entry.permute_heads is not None:
        array = _reordered(array, entry, to_pairs=False)
    array = array.swapaxes(-1, -2) if entry.transpose else array
    if entry.num_groups is not None:
        array = array.reshape(entry.num_groups, -1, *array.shape[1:])
    return array


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return a tensor of a file from its parts, in their order."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2)


def _reordered(array: np.ndarray, entry: Entry, *, to_pairs: bool) -> np.ndarray:
    """Return the rows with each head's rotary ones as pairs, or as halves."""
    heads = array.reshape(entry.permute_heads or 1, -1, *array.shape[1:])
    rows = heads.shape[1] if entry.rotary_rows is None else entry.rotary_rows
    still, rotary = heads[:, : heads.shape[1] - rows], heads[:, heads.shape[1] - rows :]
    grid = (2, rows // 2) if to_pairs else (rows // 2, 2)
    rotary = rotary.reshape(heads.shape[0], *grid, *array.shape[1:]).swapaxes(1, 2)
    rotary = rotary.reshape(heads.shape[0], rows, *array.shape[1:])
    if still.shape[1]:
        rotary = np.concatenate([still, rotary], axis=1)
    return rotary.reshape(array.shape)
