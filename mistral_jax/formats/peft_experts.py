"""Adapters of stacked experts as PEFT writes them, read as one pair for each expert.

Where a model has a layer's experts in two stacked parameters, gate_up_proj and down_proj, PEFT
(0.18 and later, `target_parameters`) has a pair for each: A is [experts * R, in], expert after
expert; B is [out, R * experts], rank after rank. Gate and up then share A, unless the pair was made
of two: its rank is twice as high, and its B has a block for each.
"""

from collections.abc import Iterable

import numpy as np

from mistral_jax.formats import names
from mistral_jax.formats.fields import Fields
from mistral_jax.formats.safetensors_file import SafetensorsReader

MODULES_OF = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def targets(fields: Fields) -> tuple[str, ...]:
    """Return the projections, by our names, that adapter_config.json has as stacked parameters."""
    value = fields.get("target_parameters") or []
    known = [name.rpartition(".")[2] for name in value] if isinstance(value, list) else [""]
    if not set(known) <= set(MODULES_OF):
        raise fields.error("target_parameters", value, "a list out of gate_up_proj, down_proj")
    return tuple(ours for name, modules in MODULES_OF.items() if name in known for ours in modules)


class StackedExperts:
    """The pairs of single experts inside the stacked tensors of a file.

    Attributes:
        sources: the stacked tensors' names, once `find` has been called.
    """

    def __init__(self, reader: SafetensorsReader, fields: Fields, stacked: tuple[str, ...]) -> None:
        self._reader, self._fields, self._modules = reader, fields, stacked
        self._place_of: dict[str, tuple[str, str, str, int, int]] = {}
        self.sources: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._place_of

    def find(self, table: Iterable[names.Entry], shape: names.DecoderShape, rank: int) -> None:
        """Look up which entries of an adapter's table lie in a stacked tensor.

        Raises:
            ValueError: a stacked tensor has a rank that is not the adapter's, nor two of them.
        """
        if not self._modules:
            return
        both = len(self._modules) == len(names.MLP_PROJECTIONS)
        group_size = shape.ffn.num_experts // shape.ffn.num_groups
        for entry in table:
            module = entry.path.split("/")[-2]
            if len(entry.index) != 3 or module not in self._modules:
                continue
            leaf = ".".join(entry.foreign_name.rsplit(".", 2)[1:])
            prefix = entry.foreign_name.split(".layers.")[0]
            layer = entry.foreign_name.split(".layers.")[1].split(".")[0]
            # Of two parameters of one module, PEFT wraps gate_up_proj first.
            inner = "base_layer." if both and module != "down_proj" else ""
            name = f"{prefix}.layers.{layer}.mlp.experts.{inner}{leaf}"
            expert = entry.index[1] * group_size + entry.index[2]
            self._place_of[entry.foreign_name] = (
                name, module, leaf, expert, shape.ffn.num_experts
            )  # fmt: skip
            self.sources.add(name)
            self._check_rank(name, module, leaf, shape.ffn.num_experts, rank)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a single expert's tensor."""
        return self.part(name).shape

    def part(self, name: str) -> np.ndarray:
        """Return a single expert's tensor, B with what is missing to the adapter's own scale."""
        source, module, leaf, expert, num_experts = self._place_of[name]
        array = self._reader.tensor(source)
        rank = self._fields.count("r")
        if leaf.startswith("lora_A"):
            own = array.reshape(num_experts, -1, array.shape[1])[expert]  # [R or 2 R, in]
            if module != "down_proj" and own.shape[0] == 2 * rank:
                own = own[:rank] if module == "gate_proj" else own[rank:]
            return own
        own = array.reshape(array.shape[0], -1, num_experts)[:, :, expert]  # [out, R or 2 R]
        stacked_rank = own.shape[1]
        if module != "down_proj":
            half = own.shape[0] // 2
            own = own[:half] if module == "gate_proj" else own[half:]
            if stacked_rank == 2 * rank:
                own = self._block(source, own, module, rank)
        return np.asarray(own, np.float32) * np.float32(self._scale_ratio(module, stacked_rank))

    def _block(self, source: str, own: np.ndarray, module: str, rank: int) -> np.ndarray:
        """Return a projection's block of a B that two pairs were put into."""
        first, second = own[:, :rank], own[:, rank:]
        block, rest = (first, second) if module == "gate_proj" else (second, first)
        if np.any(rest):
            raise ValueError(
                f"{self._reader.path}: tensor {source!r} has rank {2 * rank} where the adapter has "
                f"{rank}, and is not made of two pairs of that rank; train it with one rank"
            )
        return block

    def _check_rank(self, name: str, module: str, leaf: str, num_experts: int, rank: int) -> None:
        axis = 0 if leaf.startswith("lora_A") else 1
        found, rest = divmod(self._reader.shape(name)[axis], num_experts)
        allowed = (rank,) if module == "down_proj" else (rank, 2 * rank)
        if rest or found not in allowed:
            raise ValueError(
                f"{self._reader.path}: tensor {name!r} of shape {self._reader.shape(name)} has "
                f"rank {found} for each of {num_experts} experts, expected "
                f"{' or '.join(map(str, allowed))}; the adapter belongs to another model, or has "
                "several ranks"
            )

    def _scale_ratio(self, module: str, rank: int) -> float:
        """Return a stacked pair's own scale over the adapter's; patterns may change its alpha."""
        fields = self._fields
        alpha = own = fields.number("lora_alpha")
        wanted = "down_proj" if module == "down_proj" else "gate_up_proj"
        for pattern, value in (fields.get("alpha_pattern") or {}).items():
            if pattern.endswith(wanted):
                own = float(value)
        power = 0.5 if fields.flag("use_rslora", False) else 1.0
        return (own / rank**power) / (alpha / fields.count("r") ** power)
