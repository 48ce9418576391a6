"""A prepared corpus's manifest.json and batches.jsonl in, one report.html out.

The sections are made in corpus_sections.py, the pictures in corpus_pictures.py; a section whose
part of the manifest is missing is left out.
"""

import json
import os
from pathlib import Path

from mistral_jax.report import corpus_batches
from mistral_jax.report import corpus_sections
from mistral_jax.report import page
from mistral_jax.report.files import Row

MANIFEST_FILE = "manifest.json"
KIND = "corpus"


def write(folder: str | os.PathLike, *, place: str | None = None) -> Path:
    """Write report.html from what a corpus folder holds, and return its path.

    Args:
        folder: the corpus.
        place: how the report's commands name it, where that is not the folder: a URI.

    Raises:
        ValueError: the folder is not a prepared corpus, or its files are damaged; the message
            names the file.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    named = manifest.get("batches", {}).get("file", corpus_batches.BATCHES_FILE)
    gate = manifest.get("settings", {}).get("gate") or {}
    batches = corpus_batches.read(folder / Path(named).name, gate)
    try:
        values = corpus_sections.build(manifest, batches, place or str(folder))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{folder / MANIFEST_FILE}: field missing or of the wrong type ({error!r}); prepare "
            "the corpus again"
        ) from None
    return page.render("corpus.html", folder / page.REPORT_FILE, values)


def read_manifest(folder: Path) -> Row:
    """Return the manifest of a prepared corpus.

    Raises:
        ValueError: there is none, or it is of something else.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder}: expected a prepared corpus with {MANIFEST_FILE}, found none; run `prepare`"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); prepare the corpus again") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ValueError(
            f'{path}: expected a manifest of kind "{KIND}"; give the folder that `prepare` wrote '
            "from a corpus config"
        )
    return manifest
