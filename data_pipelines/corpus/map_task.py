"""The stage `map`: the files of a task, or a stretch of a generator's rows, to a part.

Rows go through the processors of their kind, exact duplicates inside the task fall out, and every
`gate.batch_rows` of them are judged together; what passes is written, with what the document
generators make of it. No more than a batch is held in memory.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines import difficulty
from data_pipelines import processors
from data_pipelines import synthesis
from data_pipelines import verify
from data_pipelines.corpus import bad_rows
from data_pipelines.corpus import encode_task
from data_pipelines.corpus import job as jobs
from data_pipelines.corpus import parts
from data_pipelines.corpus import reading
from data_pipelines.corpus import row as rows
from data_pipelines.corpus import state
from data_pipelines.corpus.job import Job
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Reject
from data_pipelines.near_duplicates import runs
from data_pipelines.quality import gate
from data_pipelines.synthesis import writers
from mistral_jax import protocols
from mistral_jax.config.corpus import CorpusConfig
from mistral_jax.config.generators import DocumentQuestions
from mistral_jax.config.generators import Generator
from mistral_jax.config.generators import ModelWriter

DUPLICATE = "duplicate"
# Checkpoints that write, by their `weights`: who calls `build` in this process puts them here.
models: dict[str, protocols.Generator] = {}


class Pipeline:
    """What every task of a job needs, made once in a process."""

    def __init__(self, job: Job):
        config = job.config
        resources = job.resources
        self.process = {
            kind: processors.build(getattr(config.processors, kind), resources=resources)
            for kind in rows.KINDS
        }
        self.texts: dict[str, str] = {}  # of the documents that rows of this batch were made from
        self.verifier = verify.Verifier(config.verify, documents=self.texts.get)
        name = config.tokenizer
        self.tokenizer = None if name is None else encode_task.tokenizer_of(name)
        self.tasks: dict[int, synthesis.TaskGenerator] = {}
        self.by_document: dict[int, synthesis.DocumentGenerator] = {}
        for maker, each in enumerate(config.generators, start=len(config.sources)):
            writer = writers.build(each.writer or config.writer, model=_model_of(each, config))
            made: Any = synthesis.build(each, seed=config.seed, writer=writer, media=job.media)
            by_kind: dict[int, Any] = (
                self.by_document if isinstance(each, DocumentQuestions) else self.tasks
            )
            by_kind[maker] = made


def _model_of(generator: Generator, config: CorpusConfig) -> protocols.Generator | None:
    writer = generator.writer or config.writer
    return models[writer.weights] if isinstance(writer, ModelWriter) else None


@functools.lru_cache(maxsize=1)
def _pipeline(job: Job) -> Pipeline:
    return Pipeline(job)


def run(folder: Path, number: int) -> dict[str, Any]:
    """Do one task; return its counts and the digest of its part."""
    job = jobs.load(folder)
    task = job.tasks[number]
    maker = task["maker"]
    pipeline = _pipeline(job)
    with _Task(job, number, pipeline) as mapped:
        if "files" in task:
            items = reading.read_rows(job, maker, task["files"])
        else:
            items = pipeline.tasks[maker].rows(task["start"], task["stop"])
        mapped.take(maker, items)
        return mapped.finish()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A row on its way into a batch: what it says by digest, and the row it was made of."""

    row: Row
    digests: parts.Digests
    parent: int


class _Task:
    """One task while it runs."""

    def __init__(self, job: Job, number: int, pipeline: Pipeline):
        self._job, self._number, self._pipeline = job, number, pipeline
        self._folder = job.part("map", number)
        self._part = parts.PartWriter(self._folder, len(difficulty.NAMES))
        near = job.config.near_duplicates
        self._run = None if near is None else runs.RunWriter(runs.Run(job.runs, number), near)
        self._seen: set[bytes] = set()
        self._num_batches = 0
        self._read: dict[int, bad_rows.RowCount] = {}
        self._num_documents = self._num_pdfs = 0  # without what was made of them
        self._made: dict[int, list[_Candidate]] = {maker: [] for maker in pipeline.by_document}

    def take(self, maker: int, items: Iterator[Row | Reject]) -> None:
        """Put what a source or a generator yields through to the part."""
        batch: list[_Candidate] = []
        for item in items:
            self._take_one(maker, item, parts.NO_PARENT, batch)
            if len(batch) >= self._job.config.gate.batch_rows:
                self._judge(maker, batch)
                batch = []
        self._judge(maker, batch)
        self._judge_made()

    def __enter__(self) -> "_Task":
        return self

    def __exit__(self, *_: object) -> None:
        """Close what an error may have left open."""
        self._part.leave()
        if self._run is not None:
            self._run.leave()
        self._pipeline.texts.clear()

    def finish(self) -> dict[str, Any]:
        """Finish the part; return its counts and its digest."""
        self._part.close()
        if self._run is not None:
            self._run.close()
        names = [maker.name for maker in self._job.makers]
        files = self._job.tasks[self._number].get("files", ())
        return {
            "rows": self._part.num_rows,
            "documents": self._num_documents,
            "bytes": sum(file["size_bytes"] for file in files),
            "pdfs": self._num_pdfs,
            "read": {names[maker]: count.to_json() for maker, count in self._read.items()},
            "rejected": {
                names[maker]: dict(sorted(kinds.items()))
                for maker, kinds in self._part.rejected.items()
            },
            "sha256": state.folder_digest(self._folder),
        }

    def _take_one(
        self, maker: int, item: Row | Reject, parent: int, batch: list[_Candidate]
    ) -> None:
        self._read.setdefault(maker, bad_rows.RowCount()).add(item)
        made = item if isinstance(item, Reject) else self._pipeline.process[item.kind](item)
        if isinstance(made, Reject):
            self._part.reject(made, maker)
            return
        digest = parts.content_digest(made)
        if digest in self._seen:
            reason = "says the same as an earlier row of its task"
            self._part.reject(Reject(made.id, DUPLICATE, reason), maker)
            return
        self._seen.add(digest)
        assert isinstance(item, Row), "it was processed"
        digests = parts.Digests(digest, parts.content_digest(item))
        batch.append(_Candidate(made, digests, parent))

    def _judge(self, maker: int, batch: list[_Candidate]) -> None:
        """Verify a batch's rows, put it through the gate, and write what passes."""
        if not batch:
            return
        verdicts = self._pipeline.verifier.verify([each.row for each in batch])
        scores = gate.judge([each.row for each in batch], self._job.config.gate, verdicts)
        self._part.batch(
            {
                "source": self._job.makers[maker].name,
                "task": self._number,
                "batch": self._num_batches,
                "rows": len(batch),
                **scores.to_json(),
            }
        )
        self._num_batches += 1
        if scores.failed:
            self._part.set_aside([each.row for each in batch], ", ".join(scores.failed), maker)
            return
        good = []
        for each, verdict in zip(batch, verdicts, strict=True):
            if verdict is not None and verdict.value < 1 and verdict.detail["verdict"] == "failed":
                reason = str(verdict.detail.get("reason"))
                self._part.reject(Reject(each.row.id, "not_verified", reason), maker)
            else:
                good.append(each)
        self._write(maker, good)

    def _write(self, maker: int, batch: list[_Candidate]) -> None:
        tokenizer = self._pipeline.tokenizer
        if self._run is not None:
            self._run.add([each.row.text for each in batch])
        for each in batch:
            index = self._part.num_rows
            numbers = difficulty.features(each.row, tokenizer=tokenizer)
            self._part.add(each.row, each.digests, numbers, maker=maker, parent=each.parent)
            self._num_pdfs += bool(each.row.document.pages)
            if each.parent == parts.NO_PARENT:
                self._num_documents += 1
                self._ask_about(each.row, index)

    def _ask_about(self, row: Row, index: int) -> None:
        """Let the document generators make rows of one that was written."""
        for maker, generator in self._pipeline.by_document.items():
            for item in generator.rows(row):
                self._take_one(maker, item, index, self._made[maker])
                self._pipeline.texts[row.id] = row.text
        if any(len(made) >= self._job.config.gate.batch_rows for made in self._made.values()):
            self._judge_made()

    def _judge_made(self) -> None:
        """Judge what was made of documents; after that their texts are not needed."""
        for maker, made in self._made.items():
            self._judge(maker, made)
            self._made[maker] = []
        self._pipeline.texts.clear()
