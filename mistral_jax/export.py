"""Checkpoints out: Hugging Face, consolidated, GGUF, PEFT; each reloaded, with its parity number.

Tensors stream: one layer of one parameter is in host memory at a time. A format that cannot hold
the model refuses before anything is written.
"""

import dataclasses
import functools
import json
from pathlib import Path

import ml_dtypes
import numpy as np

from mistral_jax import export_checks
from mistral_jax import llama_quantize
from mistral_jax import modelfile
from mistral_jax import tokenizers
from mistral_jax.config import model as model_config
from mistral_jax.formats import gguf_config
from mistral_jax.formats import gguf_file
from mistral_jax.formats import hf_config
from mistral_jax.formats import names
from mistral_jax.formats import params_config
from mistral_jax.formats import peft
from mistral_jax.formats import safetensors_file
from mistral_jax.formats.tensor_source import TensorSource
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from mistral_jax.models import streamed
from mistral_jax.models import weights

FORMATS = ("hf", "consolidated", "gguf", "peft")
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
GGUF_KINDS = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "q8_0": "Q8_0",
    "q4_k_m": "Q4_K_M",  # by llama.cpp's quantiser, from a GGUF file of ours
}
PARITY_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Exported:
    """One finished export.

    Attributes:
        format: hf, consolidated, gguf or peft.
        path: folder or file.
        size_bytes: of the weights.
        largest_logit_difference: against what was exported, over `PARITY_TOKENS` tokens, by
            reloading with our own readers in float32; None where it was not asked for.
        float32_perplexity, perplexity: of `export_checks.TEXT`, by the model in float32 and by
            the reload; of narrow GGUF files only, else None.
        num_nonfinite: weights that are NaN or infinite.
    """

    format: str
    path: str
    size_bytes: int
    largest_logit_difference: float | None = None
    float32_perplexity: float | None = None
    perplexity: float | None = None
    num_nonfinite: int = 0

    @property
    def summary(self) -> str:
        """What it is and what it lost, in one line."""
        line = f"{self.path}: {self.size_bytes / 2**20:.1f} MiB"
        if self.largest_logit_difference is not None:
            line += f"; largest logit difference after reload {self.largest_logit_difference:.3g}"
        if self.perplexity is not None and self.float32_perplexity is not None:
            change = self.perplexity / self.float32_perplexity - 1
            line += (
                f"; perplexity {self.perplexity:.6g} against {self.float32_perplexity:.6g} in "
                f"float32 ({change:+.3%})"
            )
        return line


def write_model(
    reader: readers.ParamReader,
    destination: Path,
    *,
    format: str,
    dtype: str,
    tokenizer: tokenizers.Tokenizer | None,
    name: str,
) -> Exported:
    """Write a whole model.

    Args:
        reader: where the numbers come from.
        destination: a folder; for gguf also a path that ends in .gguf.
        format: hf, consolidated or gguf.
        dtype: of the weights: float32, float16, bfloat16; for gguf also q8_0, and q4_k_m where
            llama.cpp's llama-quantize is on PATH.
        tokenizer: written beside or into it; None writes none.
        name: what a GGUF file calls itself.

    Raises:
        ValueError: a format or dtype that is not one of these, or that cannot hold the model.
        OSError: llama-quantize failed.
    """
    allowed = GGUF_KINDS if format == "gguf" else DTYPES
    if format not in FORMATS[:3] or dtype not in allowed:
        raise ValueError(
            f"cannot write format {format!r} in {dtype!r}; formats: {', '.join(FORMATS)}; "
            f"number formats for it: {', '.join(allowed)}"
        )
    if format == "gguf":
        return _write_gguf(reader, destination, dtype=dtype, tokenizer=tokenizer, name=name)
    fields = reader.config.model_dump()
    table = names.entries(reader.config, format)
    target = DTYPES[dtype]
    nonfinite = export_checks.NonfiniteWeights()
    sources = [_source(reader, group, target, nonfinite) for group in _by_tensor(table)]
    for empty, shape in names.empty_tensors(reader.config, format).items():
        zeros = functools.partial(np.zeros, shape, target)
        sources.append(TensorSource(empty, shape, target, zeros))
    if format == "hf":
        config = hf_config.hf_config(fields, dtype)
        if tokenizer is not None:
            config |= _token_ids(tokenizer)
        written = safetensors_file.write_safetensors(destination, sources)
        _write_json(destination / "config.json", config)
    else:
        params = params_config.params_json(fields)
        destination.mkdir(parents=True, exist_ok=True)
        file = destination / "consolidated.safetensors"
        written = [safetensors_file.write_safetensors_file(file, sources)]
        _write_json(destination / "params.json", params)
    if tokenizer is not None:
        tokenizer.save(destination)
    size_bytes = sum(file.size_bytes for file in written)
    num_nonfinite = nonfinite.warn(destination)
    return Exported(format, str(destination), size_bytes, num_nonfinite=num_nonfinite)


def write_adapter(
    params: definition_lib.Params,
    config: model_config.DecoderConfig,
    adapter: model_config.LowRankAdapter,
    destination: Path,
    *,
    base_model: str,
    base_digest: str | None = None,
    is_interleaved: bool = True,
) -> Exported:
    """Write a PEFT adapter folder from our stacked adapter parameters, in float32.

    PEFT reads Mixtral's experts where gate_proj and up_proj both have adapters. It has no names
    for experts beside shared ones or dense layers of the same target: those files are for us, and
    their metadata says so.

    Args:
        params: the adapter's, by path.
        config: the base's shape.
        adapter: its settings.
        destination: the folder.
        base_model: what the adapter calls its base.
        base_digest: manifest.weights_digest of the base, where it is known; `merge` compares it.
        is_interleaved: the rope_interleave of the base that the adapter will be put on.
    """
    has_experts = any(len(value.shape) == 5 for value in params.values())
    if has_experts and adapter.scaling != "rank":
        # The same scale in other words: where PEFT puts gate and up into one pair of twice the
        # rank, it doubles alpha, which is right for alpha / rank alone.
        plain = {"scaling": "rank", "alpha": adapter.scale * adapter.rank}
        adapter = adapter.model_copy(update=plain)
    settings = peft.AdapterSettings(
        rank=adapter.rank,
        alpha=adapter.alpha,
        dropout=adapter.dropout,
        target_modules=tuple(adapter.target_modules),
        base_model=base_model,
        scaling=adapter.scaling,
        kind=adapter.kind,
        base_digest=base_digest,
    )
    table = names.entries(
        config,
        "peft",
        target_modules=adapter.target_modules,
        rank=adapter.rank,
        has_magnitudes=adapter.kind == "dora",
        is_interleaved=is_interleaved,
    )
    arrays = {path: np.asarray(value) for path, value in params.items()}
    sources = peft.adapter_sources(table, arrays, np.dtype(np.float32))
    written = peft.write_adapter(
        destination,
        settings,
        sources,
        module_names=peft.module_names(config),
        not_for_peft=peft.reason_not_for_peft(config, adapter.target_modules),
    )
    return Exported("peft", str(destination), written.size_bytes)


def load_adapter(
    folder: Path, config: model_config.DecoderConfig, *, is_interleaved: bool = True
) -> tuple[model_config.LowRankAdapter, dict[str, np.ndarray]]:
    """Read a PEFT adapter folder into our stacked parameters; see `write_adapter`."""
    adapter, reader = open_adapter(folder, config, is_interleaved=is_interleaved)
    return adapter, {path: reader.read(path, ()) for path in reader.paths()}


def open_adapter(
    folder: Path, config: model_config.DecoderConfig, *, is_interleaved: bool = True
) -> tuple[model_config.LowRankAdapter, readers.AdapterReader]:
    """Open a PEFT adapter folder for reading layer by layer; see `write_adapter`.

    Raises:
        ValueError: it is not an adapter of this decoder, or of a kind that ours is not.
    """
    file = peft.AdapterFile(folder)
    settings = file.settings
    kinds = {"lora": model_config.LoraAdapter, "dora": model_config.DoraAdapter}
    adapter = kinds[settings.kind].model_validate(
        {
            "rank": settings.rank,
            "alpha": float(settings.alpha),
            "scaling": settings.scaling,
            "dropout": settings.dropout,
            "target_modules": tuple(settings.target_modules),
        }
    )
    return adapter, readers.AdapterReader(file, config, is_interleaved=is_interleaved)


def reference_logits(
    source: readers.ParamReader | definition_lib.Params,
    config: model_config.DecoderConfig,
    adapter: model_config.Adapter | None = None,
) -> np.ndarray:
    """Return float32 logits over a fixed row of tokens, [T, V]; what parity is measured on."""
    reader = readers.TreeReader(source, config) if isinstance(source, dict) else source
    return streamed.logits(reader, config, parity_tokens(config), adapter)[0]


def parity_tokens(config: model_config.DecoderConfig) -> np.ndarray:
    """Return the fixed row of tokens that parity is measured on, [1, T]."""
    length = min(PARITY_TOKENS, config.max_positions)
    return np.random.default_rng(0).integers(0, config.vocab_size, (1, length), np.int32)


def reload_logits(exported: Exported, base: readers.ParamReader | None = None) -> np.ndarray:
    """Return the logits of an export, read back by our own readers; an adapter needs its base."""
    if exported.format == "peft":
        if base is None:
            raise ValueError("an adapter is checked on its base model; none was given")
        adapter, arrays = load_adapter(
            Path(exported.path), base.config, is_interleaved=has_interleaved_rows(base)
        )
        merged = readers.MergedReader(base, arrays, adapter)
        return reference_logits(merged, base.config)
    reader = weights.open_reader(Path(exported.path))
    return reference_logits(reader, reader.config)


def has_interleaved_rows(base: readers.ParamReader) -> bool:
    """Tell how the files of an adapter's base keep the rows that rotate; ours have pairs."""
    return base.is_interleaved if isinstance(base, readers.FileReader) else True


def with_parity(exported: Exported, expected: np.ndarray, found: np.ndarray) -> Exported:
    """Return the export with the largest logit difference filled in."""
    difference = export_checks.largest_difference(expected, found)
    return dataclasses.replace(exported, largest_logit_difference=difference)


def with_perplexity(
    exported: Exported, reader: readers.ParamReader, tokenizer: tokenizers.Tokenizer | None
) -> Exported:
    """Return the export with the perplexities of the model and of its reload filled in."""
    tokens = export_checks.perplexity_tokens(tokenizer, reader.config)
    return dataclasses.replace(
        exported,
        float32_perplexity=export_checks.perplexity(reader, tokens),
        perplexity=export_checks.perplexity(weights.open_reader(Path(exported.path)), tokens),
    )


def _by_tensor(table: list[names.Entry]) -> list[list[names.Entry]]:
    """Group entries that share a tensor, in the order of its parts."""
    grouped: dict[str, list[names.Entry]] = {}
    for entry in table:
        grouped.setdefault(entry.foreign_name, []).append(entry)
    return [sorted(group, key=lambda entry: entry.part or (0, 1)) for group in grouped.values()]


def _source(
    reader: readers.ParamReader,
    entries: list[names.Entry],
    dtype: np.dtype,
    nonfinite: export_checks.NonfiniteWeights,
) -> TensorSource:
    """Return a tensor of the export, of one entry or of those that share it."""
    entry = entries[0]
    dtype = np.dtype(np.float32) if entry.path in names.FLOAT32_PATHS else dtype

    def load() -> np.ndarray:
        wide = names.joined([names.to_foreign(reader.read(e.path, e.index), e) for e in entries])
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = np.asarray(wide, dtype, order="C")
        count = nonfinite.count(entry.foreign_name, narrow)
        # float16 ends at 65,504; bfloat16 reaches as far as float32.
        if count and dtype == np.float16 and count > export_checks.count_nonfinite(wide):
            raise ValueError(
                f"tensor {entry.foreign_name!r} has values beyond the range of float16; "
                "export it as bfloat16 or float32"
            )
        return narrow

    return TensorSource(entry.foreign_name, entry.shape, dtype, load)


def _write_gguf(
    reader: readers.ParamReader,
    destination: Path,
    *,
    dtype: str,
    tokenizer: tokenizers.Tokenizer | None,
    name: str,
) -> Exported:
    own_dtype = dtype
    if dtype == "q4_k_m":
        llama_quantize.program()  # refused before anything is written
        # What llama-quantize reads should have lost nothing.
        is_bfloat16 = reader.dtype("embed/embedding") == DTYPES["bfloat16"]
        own_dtype = "bfloat16" if is_bfloat16 else "float32"
    label, kind = GGUF_KINDS[dtype], GGUF_KINDS[own_dtype]
    path = destination if destination.suffix == ".gguf" else destination / f"{name}.{label}.gguf"
    table = names.entries(reader.config, "gguf")
    metadata = gguf_config.gguf_metadata(reader.config.model_dump(), name=name, file_type=kind)
    if tokenizer is not None:
        metadata |= tokenizer.gguf_metadata()
    path.parent.mkdir(parents=True, exist_ok=True)
    sources, nonfinite = [], export_checks.NonfiniteWeights()
    for entry in table:
        # llama.cpp wants norms, biases and routers in F32 whatever the weights are in.
        is_matrix = len(entry.shape) > 1 and not entry.path.endswith("router/kernel")
        own_kind = kind if is_matrix else "F32"
        dtype_in = DTYPES["bfloat16"] if own_kind == "BF16" else np.dtype(np.float32)
        if own_kind == "F16":
            dtype_in = np.dtype(np.float16)
        sources.append((_source(reader, [entry], dtype_in, nonfinite), own_kind))
    if own_dtype == dtype:
        gguf_file.write_gguf(path, metadata, sources)
    else:
        wide = path.with_name(f".{path.name}.{kind}.partial")
        try:
            gguf_file.write_gguf(wide, metadata, sources)
            llama_quantize.quantize(wide, path, label)
        finally:
            wide.unlink(missing_ok=True)
    modelfile.write(path, tokenizer)
    num_nonfinite = nonfinite.warn(path)
    return Exported("gguf", str(path), path.stat().st_size, num_nonfinite=num_nonfinite)


def _token_ids(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    return {key: value for key, value in ids.items() if value is not None}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_parity(folder: Path, exports: list[Exported]) -> None:
    """Write parity.json, which the report reads."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(exported) for exported in exports]
    (folder / "parity.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
