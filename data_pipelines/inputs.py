"""The sources of a run: prepared folders are opened, raw documents are prepared first.

One call between the config's `data` and the batches; `train` makes it with the run's data folder.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines import prepare
from data_pipelines import sources
from mistral_jax.config.data import DataConfig
from mistral_jax.config.data import Source
from mistral_jax.storage import objects
from mistral_jax.tokenizers import Tokenizer

CHANGED = ".changed"  # a name that no source has


@dataclass(frozen=True, slots=True)
class RunSources:
    """What a run reads.

    Attributes:
        train: in the order of the config; their weights are `weights`.
        held_out: what the held-out loss is measured on: the documents held out of each train
            source, then the sources of `data.eval`.
        weights: one per train source.
    """

    train: list[sources.ArrayRecordSource]
    held_out: list[sources.ArrayRecordSource]
    weights: list[float]


def open_sources(
    config: DataConfig,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    is_begun: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> RunSources:
    """Open, and where needed prepare, everything that `data.train` and `data.eval` name.

    Args:
        config: the run's `data`.
        tokenizer: the model's; prepared folders must be of the same one.
        folder: the run's folder of data: raw documents are prepared into it, a folder for each
            source. The run's directory around it is never read as documents.
        is_begun: a checkpoint depends on what was prepared before. Documents that have changed
            are prepared beside it, so that the caller can refuse them and nothing is lost.
        on_progress: told a line of text now and then.

    Raises:
        ValueError: another tokenizer, a source without documents, a bad name or path.
    """
    train, held_out, weights = [], [], []
    listed = _listed(config.train, "data.train")
    further = [] if config.eval is None else _listed(config.eval, "data.eval")
    for name in {source.name for source in listed} & {source.name for source in further}:
        raise ValueError(f"data.eval: the name {name!r} is one of data.train's; choose another")
    for source in listed:
        fraction = config.eval_fraction
        into = Path(folder) / "train"
        cap = config.max_examples_per_document
        place = _place(
            source, tokenizer, into, config, fraction, on_progress, cap=cap, keeps_old=is_begun
        )
        opened = sources.ArrayRecordSource(place, "train", name=source.name)
        if not len(opened):
            raise ValueError(f"data.train: source {source.name!r} ({place}) has no documents")
        train.append(opened)
        weights.append(source.weight)
        held_out.append(sources.ArrayRecordSource(place, "eval", name=source.name))
    for source in further:
        place = _place(source, tokenizer, Path(folder) / "eval", config, 0.0, on_progress)
        eval_split = sources.ArrayRecordSource(place, "eval", name=source.name)
        whole = sources.ArrayRecordSource(place, "train", name=source.name)
        held_out.append(eval_split if len(eval_split) else whole)
    return RunSources(train, [each for each in held_out if len(each)], weights)


def _listed(given: str | tuple[Source, ...], key: str) -> list[Source]:
    if isinstance(given, str):
        corpus = _experts_of(objects.local_path(given))
        if corpus:
            return corpus
        return [Source(name=Path(given).expanduser().resolve().name or "data", path=given)]
    names = [source.name for source in given]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{key}: expected different names of sources, got {name!r} twice")
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            raise ValueError(f"{key}: a source's name becomes a folder's name, got {name!r}")
    if not names:
        raise ValueError(f"{key}: expected one source at least, got none")
    return list(given)


def _experts_of(folder: Path) -> list[Source]:
    """Return the experts of a corpus (`prepare CONFIG`), weighted by their tokens; [] of others."""
    manifest = sources.read_json(folder / sources.MANIFEST) if folder.is_dir() else {}
    if manifest.get("kind") != "corpus":
        return []
    return [
        Source(name=name, path=str(folder / entry["folder"]), weight=entry["train"]["tokens"])
        for name, entry in manifest["experts"].items()
        if entry["train"]["tokens"]
    ]


def _place(
    source: Source,
    tokenizer: Tokenizer,
    folder: Path,
    config: DataConfig,
    eval_fraction: float,
    on_progress: Callable[[str], None] | None,
    *,
    cap: int | None = None,
    keeps_old: bool = False,
) -> Path:
    """Return the source's prepared folder, after preparing it if the path is raw."""
    path = objects.local_path(source.path)
    if sources.is_prepared(path):
        manifest = sources.read_manifest(path)
        _check_cap(source, manifest, cap)
        made_by = manifest["tokenizer"]
        if made_by["digest"] != tokenizer.digest:
            raise ValueError(
                f"{source.path}: prepared by the tokenizer {made_by['name']!r}, but the model's is "
                f"{tokenizer.name!r}; prepare the raw documents with the model's tokenizer"
            )
        return path
    old = into = folder / source.name
    if keeps_old and sources.is_prepared(old):
        into = folder / CHANGED / source.name
        shutil.rmtree(into, ignore_errors=True)
        shutil.copytree(old, into, copy_function=_link_or_copy)
    say = on_progress or (lambda line: None)
    made = prepare.prepare(
        path,
        into,
        tokenizer=tokenizer,
        name=source.name,
        eval_fraction=eval_fraction,
        max_documents=config.max_documents,
        max_examples_per_document=cap,
        exclude=(folder.parent.parent,),  # the run's own directory
        on_progress=lambda line: say(line.replace(str(into), str(old))),
    )
    if into == old:
        return old
    began, now = _digests(sources.read_manifest(old)), _digests(made.manifest)
    if began == now and not made.is_reused:
        shutil.rmtree(old)  # damaged, or of an older layout; the new one holds the same tokens
        into.rename(old)
        return old
    if began | {"eval": None} != now | {"eval": None}:
        return into
    if began != now:
        say(f"{old}: held-out documents have changed; the run keeps those that it began with")
    shutil.rmtree(into)
    return old


def _check_cap(source: Source, manifest: dict[str, Any], cap: int | None) -> None:
    kept = manifest["settings"].get(prepare.MAX_EXAMPLES)
    if cap is not None and kept != cap:
        was = "without a cap" if kept is None else f"with {kept}"
        raise ValueError(
            f"{source.path}: data.max_examples_per_document is {cap}, but this folder was prepared "
            f"{was}; prepare it with --max-examples-per-document {cap}, or set "
            f"data.max_examples_per_document={kept or 'null'}"
        )


def _digests(manifest: dict[str, Any]) -> dict[str, str | None]:
    digests = {split: entry["digest"] for split, entry in manifest["splits"].items()}
    return {"tokenizer": manifest["tokenizer"]["digest"], **digests}


def _link_or_copy(source: str, target: str) -> None:
    """Link a file, whose bytes prepare never changes in place; copy where links are not known."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
