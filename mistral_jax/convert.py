"""Checkpoints converted whole: import into our layout, export with a reload, compare two.

A checkpoint that is only converted streams from file to file; nothing is put on a device but for
the parity number.
"""

import dataclasses
from pathlib import Path

import numpy as np

from mistral_jax import artifact
from mistral_jax import export
from mistral_jax import storage
from mistral_jax import tokenizers
from mistral_jax.formats import hub
from mistral_jax.formats import locate
from mistral_jax.formats import safetensors_file
from mistral_jax.models import readers
from mistral_jax.models import weights


def export_model(source: str, destination: str, *, format: str, dtype: str) -> export.Exported:
    """Write a checkpoint or a run's model in another format, and measure the reload.

    Args:
        source: a run directory, or weights wherever formats/locate.py finds them.
        destination: a folder, for gguf also a file; on this machine, in s3:// or gs://.
        format: hf, consolidated, gguf or peft.
        dtype: of the weights; see export.write_model.

    Raises:
        ValueError: bad source, or a format that cannot hold the model.
    """
    path = locate.local_path(source)
    if artifact.is_run(path):
        loaded = artifact.load_run(path, compute="float32")
        return export_artifact(loaded, destination, format=format, dtype=dtype)
    if format == "peft":
        raise ValueError(f"{source}: a checkpoint has no adapter; peft exports a run directory")
    reader = weights.open_reader(path)
    tokenizer = tokenizer_of(path, reader)
    name = locate.short_name(source)
    return write_and_check(reader, destination, format, dtype, tokenizer, name)


def export_artifact(
    model: artifact.Artifact,
    destination: str | Path,
    *,
    format: str,
    dtype: str,
    expected: np.ndarray | None = None,
) -> export.Exported:
    """Write a model that is loaded; `peft` writes its adapter alone, with its base's digest.

    Args:
        model: what to write.
        destination: folder, or a .gguf file; on this machine, in s3:// or gs://.
        format: hf, consolidated, gguf or peft.
        dtype: of the weights; see export.write_model.
        expected: the model's reference logits, where the caller has them already.

    Raises:
        ValueError: peft is asked of a model without adapters, or the format cannot hold it.
    """
    name = model.run.name if model.run is not None else "model"
    if format != "peft":
        return write_and_check(
            model.reader(), destination, format, dtype, model.tokenizer, name, expected
        )
    adapter = model.definition.adapter
    if adapter.kind == "none":
        raise ValueError("this model has no adapter; export it as hf, consolidated or gguf")
    config = model.definition.config
    trained = {path: model.params[path] for path in model.definition.trainable_paths()}
    base = (
        readers.TreeReader(model.params, config)
        if model.weights_path is None
        else weights.open_reader(model.weights_path)
    )
    with locate.writable_path(destination) as path:
        exported = export.write_adapter(
            trained,
            config,
            adapter,
            path,
            base_model=_base_name(model),
            base_digest=model.base_digest(),
            is_interleaved=export.has_interleaved_rows(base),
        )
        if expected is None:
            expected = export.reference_logits(model.reader(), config)
        found = export.reload_logits(exported, base)
    return _named(export.with_parity(exported, expected, found), path, destination)


def import_checkpoint(source: str, destination: str, *, dtype: str) -> export.Exported:
    """Write a checkpoint in the layout that loads fastest here: Hugging Face safetensors.

    Args:
        source: any supported format, wherever formats/locate.py finds it.
        destination: a folder, on this machine, in s3:// or gs://.
        dtype: a number format, or "checkpoint" for the source's own (quantised: bfloat16).
    """
    path = locate.local_path(source)
    reader = weights.open_reader(path)
    if dtype == "checkpoint":
        found = reader.dtype("embed/embedding")
        dtype = str(found) if weights.detect.open_weights(path).kind != "gguf" else "bfloat16"
    tokenizer = tokenizer_of(path, reader)
    name = locate.short_name(source)
    return write_and_check(reader, destination, "hf", dtype, tokenizer, name)


def compare(first: str, second: str) -> float:
    """Return the largest logit difference of two models on a fixed row of tokens.

    Raises:
        ValueError: their shapes differ.
    """
    logits = []
    for uri in (first, second):
        path = locate.local_path(uri)
        reader = (
            artifact.load_run(path, compute="float32").reader()
            if artifact.is_run(path)
            else weights.open_reader(path)
        )
        logits.append(export.reference_logits(reader, reader.config))
    if logits[0].shape != logits[1].shape:
        raise ValueError(
            f"{first} gives logits of shape {logits[0].shape}, {second} {logits[1].shape}: "
            "not the same model"
        )
    return float(np.max(np.abs(logits[0] - logits[1])))


def write_and_check(
    reader: readers.ParamReader,
    destination: str | Path,
    format: str,
    dtype: str,
    tokenizer: tokenizers.Tokenizer,
    name: str,
    expected: np.ndarray | None = None,
) -> export.Exported:
    """Write a model whole, read it back, and measure against `expected` or the reader's logits.

    Raises:
        ValueError: the destination holds weights, or the format cannot hold the model.
    """
    with locate.writable_path(destination) as path:
        if (path / safetensors_file.INDEX_NAME).exists() or (
            path.is_dir() and any(path.glob("*.safetensors"))
        ):
            raise ValueError(f"{path}: holds weights already; choose another folder")
        exported = export.write_model(
            reader, path, format=format, dtype=dtype, tokenizer=tokenizer, name=name
        )
        if expected is None:
            expected = export.reference_logits(reader, reader.config)
        # A bucket gets only what has been read back.
        found = export.reload_logits(exported)
        if format == "gguf" and dtype != "float32":
            exported = export.with_perplexity(exported, reader, tokenizer)
    return _named(export.with_parity(exported, expected, found), path, destination)


def tokenizer_of(path: Path, reader: readers.FileReader) -> tokenizers.Tokenizer:
    """Load the tokenizer of a checkpoint, and check that the model has a row for every token.

    Raises:
        ValueError: there is none, or it has more tokens than the embedding has rows.
    """
    tokenizer = tokenizers.load_tokenizer(path)
    if tokenizer.vocab_size > (rows := reader.config.vocab_size):
        raise ValueError(
            f"{path}: the tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, but tensor "
            f"{reader.foreign_name('embed/embedding')!r} only {rows} rows; put the model's own "
            "tokenizer files there"
        )
    return tokenizer


def _named(exported: export.Exported, path: Path, destination: str | Path) -> export.Exported:
    """Return the export under the name that was asked for, where it went to a bucket."""
    if not locate.is_remote(destination):
        return exported
    below = Path(exported.path).relative_to(path).as_posix()
    uri = str(destination).rstrip("/")
    return dataclasses.replace(exported, path=uri if below == "." else f"{uri}/{below}")


def _base_name(model: artifact.Artifact) -> str:
    """Return what an adapter calls its base: the Hub's name, or where it lies here."""
    if model.weights_path is None:  # drawn, or trained whole: what the run began from is not it
        return ""
    uri = model.run.model.weights if model.run is not None else None
    if uri is not None and uri.startswith("hf://"):
        return hub.parse(uri).name
    if uri is not None and storage.is_remote(uri):
        return uri
    return str(model.weights_path)
