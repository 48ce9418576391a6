"""LoRA adapters as the PEFT library writes them: adapter_config.json + adapter_model.safetensors.

Holds files and settings only; which array goes where is `names.entries(shape, "peft", ...)`.
Variants that our adapters do not compute (rsLoRA, DoRA, biases, saved modules) are refused.
"""

import dataclasses
import json
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mistral_jax.formats import names
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


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """What adapter_config.json says, in our words.

    Attributes:
        rank: R, >= 1.
        alpha: the adapter's output is scaled by alpha / rank.
        dropout: on the adapter's input while training, in [0, 1).
        target_modules: projections with an adapter, our names.
        base_model: path or name of the base model, as the adapter records it.
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    base_model: str


def write_adapter(
    folder: Path | str, settings: AdapterSettings, sources: Iterable[TensorSource]
) -> WrittenFile:
    """Write an adapter folder; tensors carry PEFT's names and layouts already."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = write_safetensors_file(folder / WEIGHTS_NAME, sources)
    # PEFT wants a whole alpha where it can be one.
    alpha = int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": settings.base_model,
        "r": settings.rank,
        "lora_alpha": alpha,
        "lora_dropout": settings.dropout,
        "target_modules": [PEFT_NAMES[n] for n in PEFT_NAMES if n in settings.target_modules],
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
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
        for name in ("use_rslora", "use_dora", "fan_in_fan_out", "lora_bias"):
            fields.refuse_unless(name, (False,))
        for name in ("modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform"):
            fields.refuse_unless(name, ([], {}))
        self.settings = AdapterSettings(
            rank=fields.count("r"),
            alpha=fields.number("lora_alpha"),
            dropout=_dropout(fields),
            target_modules=_target_modules(fields),
            base_model=str(fields.get("base_model_name_or_path") or ""),
        )
        is_pickled = (self.folder / PICKLED_NAME).is_file()
        if is_pickled and not (self.folder / WEIGHTS_NAME).exists():
            raise ValueError(pickles.refusal(str(self.folder), PICKLED_NAME, is_transformers=False))
        self._reader = SafetensorsReader(self.folder / WEIGHTS_NAME)

    def names(self) -> list[str]:
        return self._reader.names()

    def tensor(self, name: str) -> np.ndarray:
        return self._reader.tensor(name)

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
            is_interleaved=is_interleaved,
        )
        for entry in table:
            if (found := self._reader.shape(entry.foreign_name)) != entry.shape:
                raise ValueError(
                    f"{self.folder}: tensor {entry.foreign_name!r}: expected shape {entry.shape}, "
                    f"found {found}; the adapter belongs to another model"
                )
        extra = set(self.names()) - {entry.foreign_name for entry in table}
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


def _target_modules(fields: Fields) -> tuple[str, ...]:
    value = fields.get("target_modules")
    if value == "all-linear":
        return names.PROJECTIONS
    known = PEFT_NAMES.values()
    if not isinstance(value, list) or not value or not set(map(str, value)) <= set(known):
        raise fields.error("target_modules", value, f"a list out of {', '.join(known)}")
    return tuple(ours for ours, theirs in PEFT_NAMES.items() if theirs in value)


def adapter_sources(
    table: Iterable[Entry], arrays: Mapping[str, np.ndarray], dtype: np.dtype
) -> list[TensorSource]:
    """Pair entries with our stacked adapter arrays (by path), ready for `write_adapter`."""

    def source(entry: Entry) -> TensorSource:
        def load() -> np.ndarray:
            return names.to_foreign(arrays[entry.path][entry.index], entry).astype(dtype)

        return TensorSource(entry.foreign_name, entry.shape, np.dtype(dtype), load)

    return [source(entry) for entry in table]
