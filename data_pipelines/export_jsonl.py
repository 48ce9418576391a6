"""Prepared documents as JSONL for people: train_dataset.jsonl, val_dataset.jsonl, manifest.json.

The split is that of the prepared folder, document by document, so that both show the same thing:
the inputs are read once more, and each document goes where its record went. Lines are in the
shapes that `prepare` reads (text, messages, prompt and completion, prefix, suffix and middle).
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines import gather
from data_pipelines import jsonl
from data_pipelines import pdf
from data_pipelines import readers
from data_pipelines import records
from data_pipelines import shards
from data_pipelines import sources
from data_pipelines import tokenize_documents
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from mistral_jax import storage

FILES = {"train": "train_dataset.jsonl", "eval": "val_dataset.jsonl"}
MANIFEST = "manifest.json"


class InputsChanged(ValueError):
    """The inputs are not those that the folder was prepared from."""


def write_jsonl(
    given: str | Path | Sequence[str | Path], prepared: Path, output: Path
) -> dict[str, Any]:
    """Write the documents of a prepared folder, and return the manifest of what was written.

    Args:
        given: the inputs that were prepared.
        prepared: the prepared folder.
        output: the folder to write.

    Raises:
        InputsChanged: a document that was prepared is not in the inputs any more.
    """
    manifest = sources.read_manifest(prepared)
    fates = _fates(prepared)
    counts = dict.fromkeys(FILES, 0)
    output.mkdir(parents=True, exist_ok=True)
    limits = Limits(**manifest["settings"]["limits"])
    with contextlib.ExitStack() as opened:
        root, files = opened.enter_context(gather.gathered(given, exclude=(prepared, output)))
        pdf_reader = opened.enter_context(pdf.PdfReader(limits))
        written = {
            split: opened.enter_context((output / name).open("w", encoding="utf-8"))
            for split, name in FILES.items()
        }
        for file in files:
            name = readers.name_of(file, root)
            for item in readers.read_file(file, name, limits, pdf_reader):
                # A name that comes twice (an archive may hold one so) goes in the order of reading.
                left = None if isinstance(item, Reject) else fates.get(item.id)
                if not left or isinstance(item, Reject):
                    continue
                split = left.pop(0)
                row = row_of(tokenize_documents.cleaned(item))
                written[split].write(json.dumps(row, ensure_ascii=False) + "\n")
                counts[split] += 1
    missing = [document for document, left in fates.items() if left]
    if missing:
        raise InputsChanged(
            f"{prepared}: {len(missing)} of its documents are not in the inputs any more "
            f"({missing[0]} is one); prepare them again"
        )
    return _write_manifest(output, manifest, counts)


def row_of(document: Document) -> dict[str, Any]:
    """Return the row that `prepare` reads as this document."""
    return _shape_of(document) | ({"document": document.made_from} if document.made_from else {})


def _shape_of(document: Document) -> dict[str, Any]:
    if isinstance(document, jsonl.Infill):
        return {
            "prefix": document.prompt, "suffix": document.suffix, "middle": document.completion,
        }  # fmt: skip
    match document.kind:
        case "text":
            return {"text": document.text}
        case "chat":
            tools = document.tools if isinstance(document, jsonl.ToolChat) else ()
            return {"messages": list(document.messages), **({"tools": tools} if tools else {})}
        case _:
            return {"prompt": document.prompt, "completion": document.completion}


def _fates(prepared: Path) -> dict[str, list[str]]:
    """Return the split of each document that was kept, by its id."""
    fates: dict[str, list[str]] = {}
    for split in shards.SPLITS:
        source = sources.ArrayRecordSource(prepared, split)
        for start in range(0, len(source), shards.READ_RECORDS):
            rows = range(start, min(start + shards.READ_RECORDS, len(source)))
            for record in source.read_records(rows):
                fates.setdefault(records.decode_record(record).document, []).append(split)
    return fates


def _write_manifest(
    output: Path, prepared: dict[str, Any], counts: dict[str, int]
) -> dict[str, Any]:
    manifest = {
        "name": prepared["name"],
        "split_rule": "a document is held out by the hash of its content",
        "eval_fraction": prepared["settings"]["eval_fraction"],
        "counts": prepared["counts"],
        "rejects": prepared["rejects"]["by_kind"],
        "prepared_fingerprint": prepared["fingerprint"],
        "files": {
            name: {"documents": counts[split], "sha256": storage.digest(output / name)}
            for split, name in FILES.items()
        },
    }
    shards.write_json(output / MANIFEST, manifest)
    return manifest
