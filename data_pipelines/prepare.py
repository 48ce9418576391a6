"""Raw documents to a prepared folder: read, clean, drop duplicates, tokenize, hold out, shard.

Map stage: each task reads a few input files into a part, and is marked in pipeline_state.json when
its part is whole. Then the parts become the splits, and manifest.json, written last, says that the
folder is complete. A killed run goes on after its last marked task and ends with the same bytes.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines import clean
from data_pipelines import pdf
from data_pipelines import readers
from data_pipelines import records
from data_pipelines import shards
from data_pipelines import sources
from data_pipelines import tokenize_documents
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from mistral_jax import storage
from mistral_jax.tokenizers import Tokenizer

STATE = "pipeline_state.json"
REJECTS = "rejects.jsonl"
WORK = "work"
LOCK = ".prepare.lock"
TASK_BYTES = 32 << 20
TASK_FILES = 512
REJECTS_SHOWN = 100
SPACE_FACTOR = 4  # parts and shards together, with text about fourfold compressed in archives
SPACE_BASE_BYTES = 64 << 20


class InUse(ValueError):
    """Another process prepares the same folder at this moment."""


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
    path: str | Path,
    output_folder: str | Path,
    *,
    tokenizer: Tokenizer,
    name: str | None = None,
    eval_fraction: float = 0.05,
    max_documents: int | None = None,
    limits: Limits | None = None,
    task_bytes: int = TASK_BYTES,
    on_progress: Callable[[str], None] | None = None,
) -> Prepared:
    """Prepare a file, an archive or a folder of documents, or go on where an earlier call stopped.

    Args:
        path: PDF, Markdown, text, source code, HTML, JSONL; alone, in folders, in zip or tar.
        output_folder: gets the result; empty, new, or of an earlier call.
        tokenizer: with `encode`, `add_bos`, `vocab_size`, `name`, `digest`.
        name: what the source is called; the input's name by default.
        eval_fraction: share of documents to hold out, 0 <= eval_fraction < 1.
        max_documents: stop after so many different documents.
        limits: what an input may cost.
        task_bytes: input bytes per task; how often a killed run has to start over.
        on_progress: told a line of text now and then.

    Raises:
        readers.NoDocuments: nothing usable; lists what was seen. Nothing is left behind.
        storage.DiskSpaceError: too little space, said before anything is written.
        InUse: another process writes the same folder.
        ValueError: no such input, or a folder with other things in it.
    """
    root = Path(path)
    folder = Path(output_folder)
    say = on_progress or (lambda line: None)
    if storage.is_remote(path):
        raise ValueError(f"{path}: expected a local path; copy the objects to a folder first")
    files = readers.list_inputs(root, exclude=folder)
    _check_folder(folder)
    input_bytes = sum(file.stat().st_size for file in files if file.is_file())
    job = _Job(
        root=root,
        folder=folder,
        tokenizer=tokenizer,
        settings={
            "name": name or root.resolve().name,
            "eval_fraction": eval_fraction,
            "max_documents": max_documents,
            "limits": asdict(limits or Limits()),
            "tokenizer": {
                "name": tokenizer.name,
                "digest": tokenizer.digest,
                "vocab_size": tokenizer.vocab_size,
                "add_bos": tokenizer.add_bos,
            },
            "chat_template": _text_digest(getattr(tokenizer, "chat_template", None)),
            "versions": {
                "manifest": sources.MANIFEST_VERSION,
                "record": records.FORMAT_VERSION,
                "clean": clean.CLEAN_VERSION,
            },
        },
        limits=limits or Limits(),
        say=say,
    )
    inputs = [_input_entry(file, root) for file in files]
    fingerprint = _digest_json({"settings": job.settings, "inputs": inputs})
    finished = _finished(folder, fingerprint)
    if finished is not None:
        say(f"{folder}: reused, nothing has changed since it was prepared")
        return Prepared(folder, finished, is_reused=True)
    needed = SPACE_BASE_BYTES + SPACE_FACTOR * input_bytes
    storage.require_space(folder, needed, what=f"preparing {root}")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder):
            return job.run(files, inputs, fingerprint, task_bytes)
    except readers.NoDocuments:
        _leave_nothing(folder, is_new=is_new)
        raise
    except OSError as error:
        storage.raise_if_disk_full(error, folder)
        raise


def manifest_summary(folder: str | Path) -> dict[str, Any]:
    """Return what `inspect` shows of a prepared folder: counts, tokens, rejects, tokenizer."""
    manifest = sources.read_manifest(folder)
    return {
        "name": manifest["name"],
        "tokenizer": manifest["tokenizer"]["name"],
        "counts": manifest["counts"],
        "rejects_by_kind": manifest["rejects"]["by_kind"],
        "splits": {
            split: {
                "documents": entry["documents"],
                "tokens": entry["tokens"],
                "target_tokens": entry["target_tokens"],
                "shards": len(entry["shards"]),
                "size_bytes": sum(shard["size_bytes"] for shard in entry["shards"]),
            }
            for split, entry in manifest["splits"].items()
        },
    }


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of `prepare`."""

    root: Path
    folder: Path
    tokenizer: Tokenizer
    settings: dict[str, Any]
    limits: Limits
    say: Callable[[str], None]

    @property
    def work(self) -> Path:
        return self.folder / WORK

    def run(
        self, files: list[Path], inputs: list[dict], fingerprint: str, task_bytes: int
    ) -> Prepared:
        tasks = list(_group(files, task_bytes))
        state = self._open_state(fingerprint, inputs, tasks)
        resumed = len(state["done"])
        if resumed:
            self.say(f"{self.folder}: going on after task {resumed} of {len(tasks)}")
        seen: set[bytes] = set()
        parts: list[shards.Part] = []
        with pdf.PdfReader(self.limits) as pdf_reader:
            for number, task in enumerate(tasks):
                part = shards.Part(self.work, number)
                if number >= resumed:
                    state["done"].append(self._map(part, task, pdf_reader))
                    _write_json(self.folder / STATE, state)
                    self.say(f"{self.root}: task {number + 1} of {len(tasks)} done")
                parts.append(part)
                if self.settings["max_documents"] is not None:
                    seen.update(part.digests())
                    if len(seen) >= self.settings["max_documents"]:
                        break
        manifest = self._assemble(parts, len(files), fingerprint)
        shutil.rmtree(self.work)
        return Prepared(self.folder, manifest, is_reused=False, resumed_tasks=resumed)

    def _open_state(self, fingerprint: str, inputs: list[dict], tasks: list[list[Path]]) -> dict:
        """Return the state of an earlier run of the same job, or that of a new one."""
        plan = [[readers.name_of(file, self.root) for file in task] for task in tasks]
        path = self.folder / STATE
        state = _read_json(path)
        if state.get("fingerprint") == fingerprint and state.get("tasks") == plan:
            done = state["done"]
            whole = itertools.takewhile(
                lambda numbered: _is_whole(shards.Part(self.work, numbered[0]), numbered[1]),
                enumerate(done),
            )
            return {**state, "done": [entry for _, entry in whole]}
        if self.work.exists():
            shutil.rmtree(self.work)
        state = {"fingerprint": fingerprint, "inputs": inputs, "tasks": plan, "done": []}
        _write_json(path, state)
        return state

    def _map(self, part: shards.Part, task: list[Path], pdf_reader: pdf.PdfReader) -> dict:
        """Do one task: its files' documents, tokenized, into a part."""
        writer = shards.PartWriter(part)
        token_bytes = records.token_bytes_for(self.tokenizer.vocab_size)
        cap = self.settings["max_documents"]
        different: set[bytes] = set()
        for item in self._items(task, pdf_reader):
            if isinstance(item, Reject):
                writer.reject(item)
                continue
            document = clean.clean_document(item)
            made = tokenize_documents.tokenize_document(document, self.tokenizer)
            if isinstance(made, Reject):
                writer.reject(made)
                continue
            tokens, mask = made
            digest = tokenize_documents.content_digest(document)
            writer.add(
                records.encode_record(tokens, mask, document.id, token_bytes=token_bytes), digest
            )
            different.add(digest)
            if cap is not None and len(different) >= cap:
                break
        writer.close()
        return {
            "documents": writer.num_documents,
            "rejects": writer.num_rejects,
            "sha256": [storage.digest(path) for path in _part_files(part)],
        }

    def _items(self, task: list[Path], pdf_reader: pdf.PdfReader) -> Iterator:
        for file in task:
            name = readers.name_of(file, self.root)
            yield from readers.read_file(file, name, self.limits, pdf_reader)

    def _assemble(self, parts: list[shards.Part], num_files: int, fingerprint: str) -> dict:
        """Make splits, list of rejects and manifest out of the parts; the manifest comes last."""
        choice = shards.choose_splits(
            itertools.chain.from_iterable(part.digests() for part in parts),
            self.settings["eval_fraction"],
            self.settings["max_documents"],
        )
        staging = self.work / "splits"
        if staging.exists():
            shutil.rmtree(staging)
        by_kind: Counter[str] = Counter()
        shown: list[Reject] = []
        writers = {split: shards.SplitWriter(staging / split) for split in shards.SPLITS}
        with (staging / REJECTS).open("w", encoding="utf-8") as listed:
            for reject in self._sort_out(parts, choice, writers):
                by_kind[reject.kind] += 1
                shown += [reject][: REJECTS_SHOWN - len(shown)]
                listed.write(shards.reject_line(reject))
        splits = {split: writer.close() for split, writer in writers.items()}
        num_kept = sum(entry["documents"] for entry in splits.values())
        if not num_kept:
            raise readers.no_documents(self.root, by_kind, shown)
        manifest = {
            "version": sources.MANIFEST_VERSION,
            "name": self.settings["name"],
            "fingerprint": fingerprint,
            "tokenizer": self.settings["tokenizer"],
            "token_bytes": records.token_bytes_for(self.tokenizer.vocab_size),
            "settings": self.settings,
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
        self._publish(staging, manifest)
        return manifest

    def _sort_out(
        self,
        parts: list[shards.Part],
        choice: shards.Choice,
        writers: dict[str, shards.SplitWriter],
    ) -> Iterator[Reject]:
        """Write every kept document to its split; yield the rejects, duplicates among them."""
        fates = iter(choice.split)
        for part in parts:
            yield from part.rejects()
            for record, fate in zip(part.records(), fates):
                if fate == "duplicate":
                    document = records.decode_record(record).document
                    yield Reject(document, "duplicate", "says the same as an earlier document")
                elif fate is not None:
                    writers[fate].add(record)

    def _publish(self, staging: Path, manifest: dict) -> None:
        """Put the new files in the place of any old ones; without a manifest nothing counts."""
        (self.folder / sources.MANIFEST).unlink(missing_ok=True)
        for split in shards.SPLITS:
            target = self.folder / split
            if target.exists():
                shutil.rmtree(target)
            (staging / split).rename(target)
        (staging / REJECTS).replace(self.folder / REJECTS)
        storage.sync_folder(self.folder)
        _write_json(self.folder / sources.MANIFEST, manifest)


def _group(files: list[Path], task_bytes: int) -> Iterator[list[Path]]:
    """Yield runs of files of about `task_bytes` together; a large file is a task of its own."""
    task: list[Path] = []
    size = 0
    for file in files:
        file_bytes = file.stat().st_size if file.is_file() else 0
        if task and (size + file_bytes > task_bytes or len(task) >= TASK_FILES):
            yield task
            task, size = [], 0
        task.append(file)
        size += file_bytes
    if task:
        yield task


def _part_files(part: shards.Part) -> list[Path]:
    return [part.records_path, part.digests_path, part.rejects_path]


def _is_whole(part: shards.Part, entry: dict) -> bool:
    paths = _part_files(part)
    return all(path.is_file() for path in paths) and entry["sha256"] == [
        storage.digest(path) for path in paths
    ]


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder for the prepared data, found a file")
    if not folder.exists() or not any(folder.iterdir()):
        return
    known = (sources.MANIFEST, STATE, LOCK)
    if not any((folder / name).exists() for name in known):
        raise ValueError(
            f"{folder}: expected an empty folder or one that was prepared before, found other "
            "files; choose another output folder"
        )


def _finished(folder: Path, fingerprint: str) -> dict | None:
    """Return the manifest if the folder holds the finished result of the same job, undamaged."""
    manifest = _read_json(folder / sources.MANIFEST)
    if manifest.get("fingerprint") != fingerprint:
        return None
    try:
        for split in shards.SPLITS:
            sources.ArrayRecordSource(folder, split)
    except sources.DamagedShard:
        return None
    return manifest


def _leave_nothing(folder: Path, *, is_new: bool) -> None:
    """Remove what a run without any document has written; an older result stays."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    (folder / STATE).unlink(missing_ok=True)
    if is_new:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
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
    is_file = file.is_file()
    return {
        "file": readers.name_of(file, root),
        "size_bytes": file.stat().st_size if is_file else 0,
        "sha256": storage.digest(file) if is_file else None,
    }


def _text_digest(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> dict:
    """Return a JSON file's object; {} if there is none, or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True)
    storage.write_bytes(path, text.encode() + b"\n")
