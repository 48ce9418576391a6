"""LoRA adapters as the PEFT library writes them: adapter_config.json + adapter_model.safetensors.

Holds files and settings only; which array goes where is `names.entries(shape, "peft", ...)`. A
mixture's experts have a pair each, under the names that they had as modules of their own: PEFT
reads these files, also where transformers stacks the experts; what PEFT writes there is read by
peft_experts.py. Variants that our adapters do not compute (biases, saved modules) are refused.
"""

import dataclasses
import json
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mistral_jax.formats import names
from mistral_jax.formats import peft_experts
from mistral_jax.formats import pickles
from mistral_jax.formats import spellings
from mistral_jax.formats.fields import Fields
from mistral_jax.formats.fields import read_json_object
from mistral_jax.formats.names import DecoderShape
from mistral_jax.formats.names import Entry
from mistral_jax.formats.safetensors_file import SafetensorsReader
from mistral_jax.formats.safetensors_file import write_safetensors_file
from mistral_jax.formats.tensor_source import TensorSource
from mistral_jax.formats.tensor_source import WrittenFile
from mistral_jax.formats.tensor_source import write_text

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLED_NAME = "adapter_model.bin"
# Our projections, in the order in which they are listed, and Hugging Face's names for them.
PEFT_NAMES = {
    name: spellings.LAYER[name]["hf"].rpartition(".")[2]
    for name in (*names.ATTENTION_PROJECTIONS, *names.LATENT_PROJECTIONS, *names.MLP_PROJECTIONS)
}
# Mixtral's, of an expert.
EXPERT_NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
# Keys of the weights file's metadata.
BASE_DIGEST, NOT_FOR_PEFT = "base_digest", "not_for_peft"
# What PEFT starts an adapter as, where the base stays as it is.
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
# PEFT before 0.9 called the magnitude so.
_OLD_MAGNITUDE = ".weight"


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """What adapter_config.json says, in our words.

    Attributes:
        rank: R, >= 1.
        alpha: the adapter's output is scaled by alpha / rank, or as `scaling` says.
        dropout: on the adapter's input while training, in [0, 1).
        target_modules: projections with an adapter, our names.
        base_model: path or name of the base model, as the adapter records it.
        scaling: what alpha is divided by: rank, or sqrt_rank (rsLoRA).
        kind: lora, or dora, which has magnitudes.
        base_digest: of the base's weight files, where the adapter records it.
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    base_model: str
    scaling: str = "rank"
    kind: str = "lora"
    base_digest: str | None = None


def write_adapter(
    folder: Path | str,
    settings: AdapterSettings,
    sources: Iterable[TensorSource],
    *,
    module_names: Mapping[str, str] = PEFT_NAMES,
    not_for_peft: str | None = None,
) -> WrittenFile:
    """Write an adapter folder; tensors carry PEFT's names and layouts already.

    Args:
        folder: where to.
        settings: of the adapter.
        sources: its tensors.
        module_names: the last parts of the adapted modules' names, by ours.
        not_for_peft: see reason_not_for_peft; the file's metadata says it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"}
    if settings.base_digest is not None:
        metadata[BASE_DIGEST] = settings.base_digest
    if not_for_peft is not None:
        metadata[NOT_FOR_PEFT] = not_for_peft
    written = write_safetensors_file(folder / WEIGHTS_NAME, sources, metadata=metadata)
    # PEFT wants a whole alpha where it can be one.
    alpha = int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": settings.base_model,
        "r": settings.rank,
        "lora_alpha": alpha,
        "lora_dropout": settings.dropout,
        "target_modules": [module_names[n] for n in PEFT_NAMES if n in settings.target_modules],
        "bias": "none",
        "use_rslora": settings.scaling == "sqrt_rank",
        "use_dora": settings.kind == "dora",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    write_text(folder / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
    return written


class AdapterFile:
    """An adapter folder that is open for reading.

    Raises:
        ValueError: a file is missing or damaged, or the adapter is of a kind that ours is not.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        path = self.folder / CONFIG_NAME
        fields = Fields(read_json_object(path), path)
        fields.refuse_unless("peft_type", ("LORA",))
        fields.refuse_unless("bias", ("none",))
        for name in ("fan_in_fan_out", "lora_bias"):
            fields.refuse_unless(name, (False,))
        stacked = peft_experts.targets(fields)
        patterns = () if stacked else ("rank_pattern", "alpha_pattern")
        elsewhere = ("modules_to_save", "layers_to_transform", "alora_invocation_tokens")
        for name in (*elsewhere, *patterns):
            fields.refuse_unless(name, ([], {}))
        # PiSSA, OLoRA, CorDA and LoftQ stand on a base that they changed.
        fields.refuse_unless("init_lora_weights", PLAIN_STARTS)
        is_pickled = (self.folder / PICKLED_NAME).is_file()
        if is_pickled and not (self.folder / WEIGHTS_NAME).exists():
            raise ValueError(pickles.refusal(str(self.folder), PICKLED_NAME, is_transformers=False))
        self._reader = SafetensorsReader(self.folder / WEIGHTS_NAME)
        self.settings = AdapterSettings(
            rank=fields.count("r"),
            alpha=fields.number("lora_alpha"),
            dropout=_dropout(fields),
            target_modules=_target_modules(fields, stacked),
            base_model=str(fields.get("base_model_name_or_path") or ""),
            scaling="sqrt_rank" if fields.flag("use_rslora", False) else "rank",
            kind="dora" if fields.flag("use_dora", False) else "lora",
            base_digest=self._reader.metadata.get(BASE_DIGEST),
        )
        self._stacked = peft_experts.StackedExperts(self._reader, fields, stacked)

    kind = "peft"

    @property
    def not_for_peft(self) -> str | None:
        """What reason_not_for_peft gave when the file was written."""
        return self._reader.metadata.get(NOT_FOR_PEFT)

    def names(self) -> list[str]:
        return self._reader.names()

    def tensor(self, name: str) -> np.ndarray:
        return self._stacked.part(name) if name in self._stacked else self._reader.tensor(name)

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self._stacked:
            return self._stacked.shape(name)
        return self._reader.shape(name)

    def entries(self, shape: DecoderShape, *, is_interleaved: bool = True) -> list[Entry]:
        """Return the adapter's tensors, checked against this decoder.

        `is_interleaved` is the base model's rope_interleave; see `names.entries`.

        Raises:
            ValueError: a tensor is missing, unexpected or of another shape; it is named.
        """
        table = names.entries(
            shape,
            "peft",
            target_modules=self.settings.target_modules,
            rank=self.settings.rank,
            has_magnitudes=self.settings.kind == "dora",
            is_interleaved=is_interleaved,
        )
        present = set(self.names())
        table = [
            dataclasses.replace(entry, foreign_name=entry.foreign_name + _OLD_MAGNITUDE)
            if entry.foreign_name + _OLD_MAGNITUDE in present
            else entry
            for entry in table
        ]
        self._stacked.find(table, shape, self.settings.rank)
        for entry in table:
            if (found := self._shape(entry.foreign_name)) != entry.shape:
                raise ValueError(
                    f"{self.folder}: tensor {entry.foreign_name!r}: expected shape {entry.shape}, "
                    f"found {found}; the adapter belongs to another model"
                )
        extra = present - {entry.foreign_name for entry in table} - self._stacked.sources
        if extra:
            raise ValueError(
                f"{self.folder}: {len(extra)} tensors have no place in this model, such as "
                f"{min(extra)!r}"
            )
        return table


def _dropout(fields: Fields) -> float:
    value = fields.get("lora_dropout", 0.0)
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise fields.error("lora_dropout", value, "a number in [0, 1)")
    return float(value)


def _target_modules(fields: Fields, stacked: tuple[str, ...]) -> tuple[str, ...]:
    """Return the adapted projections by our names; `stacked` are those of experts in one tensor."""
    value = fields.get("target_modules")
    if value == "all-linear":
        return names.PROJECTIONS
    known = [*PEFT_NAMES.values(), *EXPERT_NAMES]
    is_list = isinstance(value, list) and (value or stacked)
    if not is_list or not set(map(str, value)) <= set(known):
        raise fields.error("target_modules", value, f"a list out of {', '.join(known)}")
    found = {EXPERT_NAMES.get(name, name) for name in value} | set(stacked)
    return tuple(ours for ours, theirs in PEFT_NAMES.items() if {ours, theirs} & found)


def module_names(shape: DecoderShape) -> dict[str, str]:
    """Return the last part of PEFT's name of each projection of a decoder, by our names."""
    if shape.ffn.kind != "moe":
        return PEFT_NAMES
    experts = names.expert_module_names(shape)
    return PEFT_NAMES | {ours: theirs.rpartition(".")[2] for ours, theirs in experts.items()}


def reason_not_for_peft(shape: DecoderShape, target_modules: Collection[str]) -> str | None:
    """Return in a sentence why PEFT (0.21) does not read an adapter's file; None where it does."""
    wanted = [name for name in names.MLP_PROJECTIONS if name in target_modules]
    mixture = names.mixture_spelling(shape, "hf")
    if mixture is None or not wanted:
        return None
    if "{}" not in mixture.experts["gate_proj"]:
        return "PEFT has no names for single experts of this family: load with mistral_jax"
    if shape.ffn.num_shared_experts or shape.ffn.num_dense_layers:
        return (
            "PEFT has no names for routed experts beside shared ones or dense layers: load with "
            "mistral_jax"
        )
    if ("gate_proj" in wanted) != ("up_proj" in wanted):
        return "PEFT reads gate_proj and up_proj of experts only together: load with mistral_jax"
    return None


def adapter_sources(
    table: Iterable[Entry], arrays: Mapping[str, np.ndarray], dtype: np.dtype
) -> list[TensorSource]:
    """Pair entries with our stacked adapter arrays (by path), ready for `write_adapter`."""

    def source(entry: Entry) -> TensorSource:
        def load() -> np.ndarray:
            return names.to_foreign(arrays[entry.path][entry.index], entry).astype(dtype)

        return TensorSource(entry.foreign_name, entry.shape, np.dtype(dtype), load)

    return [source(entry) for entry in table]
