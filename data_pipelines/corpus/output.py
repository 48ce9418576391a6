"""The folder that a corpus goes to: may it, is it there already, and the change from old to new."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from data_pipelines import prepare
from data_pipelines import shards
from data_pipelines import sources
from data_pipelines.corpus import fates
from data_pipelines.corpus import job as jobs
from data_pipelines.corpus import publish
from data_pipelines.corpus import row as rows
from data_pipelines.corpus import state as states
from data_pipelines.corpus import summary
from data_pipelines.near_duplicates import assignments
from mistral_jax import storage

PUBLISHED = (*rows.EXPERTS, *publish.FILES)  # and the manifest, and the assignments of the split


class OtherCorpus(ValueError):
    """The output holds something that this corpus must not take the place of."""

    exit_code = 3


def check_manifest(found: dict[str, Any], name: str, where: str) -> None:
    """Check that a manifest is that of an earlier corpus of the same name.

    Raises:
        OtherCorpus: it is not, and what is there would be lost.
    """
    if found.get("kind") != summary.KIND or found.get("name") != name:
        is_corpus = found.get("kind") == summary.KIND
        what = f"the corpus {found.get('name')!r}" if is_corpus else "other data"
        raise OtherCorpus(
            f"{where}: expected the corpus {name!r} or nothing, its {sources.MANIFEST} is of "
            f"{what}; choose another output"
        )


def check_folder(folder: Path, name: str) -> None:
    """Check that a corpus may be written into a folder.

    Raises:
        OtherCorpus: it holds another corpus, or other data with a manifest.
        ValueError: it is no folder, or holds other files.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder for the corpus, found a file")
    if above := next((each for each in folder.parents if each.is_file()), None):
        raise ValueError(
            f"{folder}: expected a folder for the corpus, {above} is a file; choose another output"
        )
    if not folder.exists() or not any(folder.iterdir()):
        return
    if found := sources.read_json(folder / sources.MANIFEST):
        check_manifest(found, name, str(folder))
    elif not any((folder / each).exists() for each in (states.STATE, prepare.LOCK)):
        raise ValueError(
            f"{folder}: expected an empty folder or a corpus that was prepared before, found "
            "other files; choose another output"
        )


def is_ours(name: str) -> bool:
    """Return whether a path inside an output is one that corpora write; others stay."""
    first = name.partition("/")[0]
    return first in (*PUBLISHED, sources.MANIFEST) or first.startswith(assignments.STEM)


def clear(folder: Path) -> None:
    """Remove the work of a run that was killed between its manifest and its clearing."""
    if (folder / jobs.WORK).is_dir():
        with contextlib.suppress(prepare.InUse, PermissionError), prepare.locked(folder):
            shutil.rmtree(folder / jobs.WORK, ignore_errors=True)


def finished(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the manifest if the folder holds the whole result of the same job, undamaged."""
    manifest = sources.read_json(folder / sources.MANIFEST)
    if manifest.get("fingerprint") != fingerprint:
        return None
    for path, digest in summary.digests(folder, manifest):
        if not path.is_file() or storage.digest(path) != digest:
            return None
    return manifest


def put_in_place(staging: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Put the new files in the place of any old ones; without a manifest nothing counts."""
    (folder / sources.MANIFEST).unlink(missing_ok=True)
    for name in PUBLISHED:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in sorted(staging.iterdir()):
        path.rename(folder / path.name)
    fates.remove_old(folder)
    storage.sync_folder(folder)
    shards.write_json(folder / sources.MANIFEST, manifest)
