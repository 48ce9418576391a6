"""The map stage of `prepare`: each task reads a few input files into a part, and is then marked.

pipeline_state.json names the tasks that are done, with the digests of their parts; a killed run
goes on after the last one whose files are still those.
"""

import itertools
import shutil
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
WORK = "work"
TASK_FILES = 512


@dataclass(frozen=True, slots=True)
class MapStage:
    """Everything that decides what the parts of one input hold.

    Attributes:
        root: the input.
        folder: gets pipeline_state.json, and the parts in its work folder.
        tokenizer, limits, max_documents, max_examples, say: as in `prepare`.
    """

    root: Path
    folder: Path
    tokenizer: Tokenizer
    limits: Limits
    max_documents: int | None
    max_examples: int | None
    say: Callable[[str], None]

    @property
    def work(self) -> Path:
        """Where the parts are."""
        return self.folder / WORK

    def run(
        self, files: list[Path], inputs: list[dict], fingerprint: str, task_bytes: int
    ) -> tuple[list[shards.Part], int]:
        """Do the tasks that are not done; return all parts, and how many were there already."""
        tasks = list(_group(files, task_bytes))
        state = self._open_state(fingerprint, inputs, tasks)
        resumed = len(state["done"])
        if resumed:
            self.say(f"{self.folder}: going on after task {resumed} of {len(tasks)}")
        kept = shards.Kept(self.max_examples)
        parts: list[shards.Part] = []
        with pdf.PdfReader(self.limits) as pdf_reader:
            for number, task in enumerate(tasks):
                part = shards.Part(self.work, number)
                if number >= resumed:
                    state["done"].append(self._map(part, task, pdf_reader))
                    shards.write_json(self.folder / STATE, state)
                    self.say(f"{self.root}: task {number + 1} of {len(tasks)} done")
                parts.append(part)
                if self.max_documents is not None and kept.add_part(part) >= self.max_documents:
                    break
        return parts, resumed

    def _open_state(self, fingerprint: str, inputs: list[dict], tasks: list[list[Path]]) -> dict:
        """Return the state of an earlier run of the same job, or that of a new one."""
        plan = [[readers.name_of(file, self.root) for file in task] for task in tasks]
        path = self.folder / STATE
        state = sources.read_json(path)
        if state.get("fingerprint") == fingerprint and state.get("tasks") == plan:
            done = state["done"]
            whole = itertools.takewhile(
                lambda numbered: self._is_whole(shards.Part(self.work, numbered[0]), numbered[1]),
                enumerate(done),
            )
            return {**state, "done": [entry for _, entry in whole]}
        if self.work.exists():
            shutil.rmtree(self.work)
        state = {"fingerprint": fingerprint, "inputs": inputs, "tasks": plan, "done": []}
        shards.write_json(path, state)
        return state

    def _map(self, part: shards.Part, task: list[Path], pdf_reader: pdf.PdfReader) -> dict:
        """Do one task: its files' documents, tokenized, into a part."""
        writer = shards.PartWriter(part, has_origins=self.max_examples is not None)
        token_bytes = records.token_bytes_for(self.tokenizer.vocab_size)
        # How many stay of documents' examples depends on the tasks before this one.
        cap = self.max_documents if self.max_examples is None else None
        different: set[bytes] = set()
        for item in self._items(task, pdf_reader):
            made = item
            if not isinstance(item, Reject):
                made = tokenize_documents.tokenize_document(item, self.tokenizer)
            if isinstance(made, Reject):
                writer.reject(made)
                continue
            record = records.encode_record(made.tokens, made.mask, item.id, token_bytes=token_bytes)
            writer.add(record, made.digest, made.origin)
            different.add(made.digest)
            if cap is not None and len(different) >= cap:
                break
        writer.close()
        return {
            "documents": writer.num_documents,
            "rejects": writer.num_rejects,
            "sha256": [storage.digest(path) for path in self._part_files(part)],
        }

    def _part_files(self, part: shards.Part) -> list[Path]:
        counted = [] if self.max_examples is None else [part.origins_path]
        return [part.records_path, part.digests_path, part.rejects_path, *counted]

    def _is_whole(self, part: shards.Part, entry: dict) -> bool:
        paths = self._part_files(part)
        return all(path.is_file() for path in paths) and entry["sha256"] == [
            storage.digest(path) for path in paths
        ]

    def _items(self, task: list[Path], pdf_reader: pdf.PdfReader) -> Iterator:
        for file in task:
            name = readers.name_of(file, self.root)
            yield from readers.read_file(file, name, self.limits, pdf_reader)


def _group(files: list[Path], task_bytes: int) -> Iterator[list[Path]]:
    """Yield runs of files of about `task_bytes` together; a large file is a task of its own."""
    task: list[Path] = []
    size = 0
    for file in files:
        file_bytes = readers.file_size_bytes(file) or 0
        if task and (size + file_bytes > task_bytes or len(task) >= TASK_FILES):
            yield task
            task, size = [], 0
        task.append(file)
        size += file_bytes
    if task:
        yield task
