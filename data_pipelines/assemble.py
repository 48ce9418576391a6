"""The last stage of `prepare`: parts to splits, rejects and manifest; made aside, then published.

A document's fate follows from the digests of all parts alone.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipelines import readers
from data_pipelines import records
from data_pipelines import shards
from data_pipelines import sources
from data_pipelines.documents import Reject
from mistral_jax import storage

REJECTS = "rejects.jsonl"
REJECTS_SHOWN = 100
REASONS = {
    shards.DUPLICATE: "says the same as an earlier document",
    shards.OVER_EXAMPLES: "max_examples_per_document rows before it are of the same document",
}


def assemble(
    parts: list[shards.Part],
    staging: Path,
    *,
    root: Path,
    settings: dict[str, Any],
    num_files: int,
    fingerprint: str,
) -> dict[str, Any]:
    """Write splits and list of rejects into a new folder, and return the manifest.

    Raises:
        readers.NoDocuments: nothing is left to keep; lists what was seen.
    """
    max_examples = settings.get("max_examples_per_document")
    choice = shards.choose_splits(
        shards.marks_of(parts, max_examples),
        settings["eval_fraction"],
        settings["max_documents"],
        max_examples,
    )
    if staging.exists():
        shutil.rmtree(staging)
    by_kind: Counter[str] = Counter()
    shown: list[Reject] = []
    writers = {split: shards.SplitWriter(staging / split) for split in shards.SPLITS}
    with (staging / REJECTS).open("w", encoding="utf-8") as listed:
        for reject in _sort_out(parts, choice, writers):
            by_kind[reject.kind] += 1
            shown += [reject][: REJECTS_SHOWN - len(shown)]
            listed.write(shards.reject_line(reject))
    splits = {split: writer.close() for split, writer in writers.items()}
    num_kept = sum(entry["documents"] for entry in splits.values())
    if not num_kept:
        raise readers.no_documents(root, by_kind, shown)
    return {
        "version": sources.MANIFEST_VERSION,
        "name": settings["name"],
        "fingerprint": fingerprint,
        "tokenizer": settings["tokenizer"],
        "token_bytes": records.token_bytes_for(settings["tokenizer"]["vocab_size"]),
        "settings": settings,
        "counts": {
            "files": num_files,
            "documents_read": len(choice.split),
            "duplicates": choice.num_duplicates,
            "over_max_documents": choice.num_over_limit,
            "kept": num_kept,
            "rejected": sum(by_kind.values()) - choice.num_duplicates,
        },
        "rejects": {
            "file": REJECTS,
            "by_kind": dict(sorted(by_kind.items())),
            "first": [asdict(reject) for reject in shown],
        },
        "splits": splits,
    }


def _sort_out(
    parts: list[shards.Part],
    choice: shards.Choice,
    writers: dict[str, shards.SplitWriter],
) -> Iterator[Reject]:
    """Write every kept document to its split; yield the rejects, duplicates among them."""
    fates = iter(choice.split)
    for part in parts:
        yield from part.rejects()
        for record, fate in zip(part.records(), fates):
            if fate in REASONS:
                document = records.decode_record(record).document
                yield Reject(document, fate, REASONS[fate])
            elif fate is not None:
                writers[fate].add(record)


def publish(staging: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Put the new files in the place of any old ones; without a manifest nothing counts."""
    (folder / sources.MANIFEST).unlink(missing_ok=True)
    for split in shards.SPLITS:
        target = folder / split
        if target.exists():
            shutil.rmtree(target)
        (staging / split).rename(target)
    (staging / REJECTS).replace(folder / REJECTS)
    storage.sync_folder(folder)
    shards.write_json(folder / sources.MANIFEST, manifest)
