"""Raw documents to a prepared folder: read, clean, drop duplicates, tokenize, hold out, shard.

map_tasks.py reads the files into parts, task by task; assemble.py makes the splits of them, and
manifest.json, written last, says that the folder is complete. A killed run goes on after its last
whole task and ends with the same bytes; the same call again finds the folder and does nothing.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines import assemble
from data_pipelines import clean
from data_pipelines import gather
from data_pipelines import map_tasks
from data_pipelines import readers
from data_pipelines import records
from data_pipelines import shards
from data_pipelines import sources
from data_pipelines.documents import Limits
from data_pipelines.documents import shown_name
from mistral_jax import storage
from mistral_jax.tokenizers import Tokenizer

LOCK = ".prepare.lock"
MAX_EXAMPLES = "max_examples_per_document"
TASK_BYTES = 32 << 20
SPACE_FACTOR = 4  # parts and shards together, with text about fourfold compressed in archives
SPACE_BASE_BYTES = 64 << 20


class InUse(ValueError):
    """Another process prepares the same folder at this moment."""

    exit_code = 3  # refused by a gate; see cli.py


@dataclass(frozen=True, slots=True)
class Prepared:
    """A complete prepared folder.

    Attributes:
        folder: where it is.
        manifest: what manifest.json holds.
        is_reused: nothing had to be done.
        resumed_tasks: tasks that an earlier, stopped run had done already.
    """

    folder: Path
    manifest: dict[str, Any]
    is_reused: bool
    resumed_tasks: int = 0


def prepare(
    path: str | Path | Sequence[str | Path],
    output_folder: str | Path,
    *,
    tokenizer: Tokenizer,
    name: str | None = None,
    eval_fraction: float = 0.05,
    max_documents: int | None = None,
    max_examples_per_document: int | None = None,
    limits: Limits | None = None,
    task_bytes: int = TASK_BYTES,
    exclude: Collection[Path] = (),
    on_progress: Callable[[str], None] | None = None,
) -> Prepared:
    """Prepare a file, an archive or a folder of documents, or go on where an earlier call stopped.

    Args:
        path: PDF, Markdown, text, source code, HTML, JSONL; alone, in folders, in zip or tar;
            here, or in s3:// or gs://; or several of these.
        output_folder: gets the result; empty, new, or of an earlier call.
        tokenizer: the model's own.
        name: what the source is called; the input's name by default.
        eval_fraction: share of documents to hold out, 0 <= eval_fraction < 1.
        max_documents: stop after so many different documents.
        max_examples_per_document: keep the first so many rows of JSONL that name the same
            document, in the order of the files; rows that name none are all kept.
        limits: what an input may cost.
        task_bytes: input bytes per task; how often a killed run has to start over.
        exclude: folders inside the input to leave out; the output is left out in any case.
        on_progress: told a line of text now and then.

    Raises:
        readers.NoDocuments: nothing usable; lists what was seen. Nothing is left behind.
        storage.DiskSpaceError: too little space, said before anything is written.
        InUse: another process writes the same folder.
        ValueError: no such input, a folder with other things in it, or a fraction out of range.
    """
    if not 0 <= eval_fraction < 1:
        raise ValueError(
            f"eval_fraction: expected a share of the documents, 0 <= eval_fraction < 1, got "
            f"{eval_fraction}; 0.05 holds one in twenty out"
        )
    if max_examples_per_document is not None and max_examples_per_document < 1:
        raise ValueError(
            f"max_examples_per_document: expected 1 row or more, got {max_examples_per_document}; "
            "leave it out to keep all"
        )
    folder = Path(output_folder)
    with gather.gathered(path, exclude=(folder, *exclude)) as (root, files):
        settings = {
            "name": name or shown_name(gather.name_of(path, root)),
            "eval_fraction": eval_fraction,
            "max_documents": max_documents,
            **_cap(max_examples_per_document),
            "limits": asdict(limits or Limits()),
            **_settings_of(tokenizer),
            "versions": {
                "manifest": sources.MANIFEST_VERSION,
                "record": records.FORMAT_VERSION,
                "clean": clean.CLEAN_VERSION,
            },
        }
        told = on_progress or (lambda line: None)
        shown = gather.shown(path)  # where an input lies is not always what the user has named

        def say(line: str) -> None:
            told(line.replace(str(root), shown))

        return _prepare(root, files, folder, tokenizer, settings, task_bytes=task_bytes, say=say)


def _prepare(
    root: Path,
    files: list[Path],
    folder: Path,
    tokenizer: Tokenizer,
    settings: dict[str, Any],
    *,
    task_bytes: int,
    say: Callable[[str], None],
) -> Prepared:
    _check_folder(folder)
    input_bytes = sum(readers.file_size_bytes(file) or 0 for file in files)
    limits = Limits(**settings["limits"])
    inputs = [_input_entry(file, root) for file in files]
    fingerprint = _digest(json.dumps({"settings": settings, "inputs": inputs}, sort_keys=True))
    finished = _finished(folder, fingerprint)
    if finished is not None:
        _remove_work(folder)
        say(f"{folder}: reused, nothing has changed since it was prepared")
        return Prepared(folder, finished, is_reused=True)
    needed = SPACE_BASE_BYTES + SPACE_FACTOR * input_bytes
    storage.require_space(folder, needed, what=f"preparing {root}")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            stage = map_tasks.MapStage(
                root,
                folder,
                tokenizer,
                limits,
                settings["max_documents"],
                settings.get(MAX_EXAMPLES),
                say,
            )
            parts, resumed = stage.run(files, inputs, fingerprint, task_bytes)
            staging = stage.work / "splits"
            manifest = assemble.assemble(
                parts,
                staging,
                root=root,
                settings=settings,
                num_files=len(files),
                fingerprint=fingerprint,
            )
            assemble.publish(staging, folder, manifest)
            shutil.rmtree(stage.work)
            return Prepared(folder, manifest, is_reused=False, resumed_tasks=resumed)
    except readers.NoDocuments:
        _leave_nothing(folder, is_new=is_new)
        raise
    except OSError as error:
        storage.raise_if_disk_full(error, folder)
        raise


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder for the prepared data, found a file")
    if not folder.exists() or not any(folder.iterdir()):
        return
    known = (sources.MANIFEST, map_tasks.STATE, LOCK)
    if not any((folder / name).exists() for name in known):
        raise ValueError(
            f"{folder}: expected an empty folder or one that was prepared before, found other "
            "files; choose another output folder"
        )


def _finished(folder: Path, fingerprint: str) -> dict | None:
    """Return the manifest if the folder holds the finished result of the same job, undamaged."""
    manifest = sources.read_json(folder / sources.MANIFEST)
    if manifest.get("fingerprint") != fingerprint:
        return None
    try:
        for split in shards.SPLITS:
            sources.ArrayRecordSource(folder, split).verify()
    except sources.DamagedShard:
        return None
    return manifest


def _remove_work(folder: Path) -> None:
    """Remove the parts that a run left which was killed between its manifest and its clearing."""
    if not (folder / map_tasks.WORK).exists():
        return
    with contextlib.suppress(InUse), locked(folder):
        shutil.rmtree(folder / map_tasks.WORK)


def _leave_nothing(folder: Path, *, is_new: bool) -> None:
    """Remove what a run without any document has written; an older result stays."""
    shutil.rmtree(folder / map_tasks.WORK, ignore_errors=True)
    (folder / map_tasks.STATE).unlink(missing_ok=True)
    if is_new:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder as the one process that writes to it.

    Raises:
        InUse: another process holds it.
    """
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(
                f"{folder}: another process prepares this folder now; wait for it or choose "
                "another folder"
            ) from None
        yield


def _input_entry(file: Path, root: Path) -> dict[str, Any]:
    size_bytes = readers.file_size_bytes(file)
    try:
        sha256 = None if size_bytes is None else storage.digest(file)
    except PermissionError:  # the reader lists it as unreadable
        sha256 = None
    return {"file": readers.name_of(file, root), "size_bytes": size_bytes or 0, "sha256": sha256}


def _cap(max_examples: int | None) -> dict[str, int]:
    """Return the cap as a setting; without one, folders from before there was one still count."""
    return {} if max_examples is None else {MAX_EXAMPLES: max_examples}


def _settings_of(tokenizer: Tokenizer) -> dict[str, Any]:
    template = tokenizer.chat_template
    return {
        "tokenizer": {
            "name": tokenizer.name,
            "digest": tokenizer.digest,
            "vocab_size": tokenizer.vocab_size,
            "add_bos": tokenizer.add_bos,
        },
        "chat_template": None if template is None else _digest(template),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
