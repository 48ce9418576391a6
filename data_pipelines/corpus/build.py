"""The verb `prepare CONFIG`: from sources and generators to prepared folders, one for each expert.

Stages: map (parts), join (fates), encode (records), publish (levels, shards, manifests). What is
done is in pipeline_state.json; a killed run goes on there and ends with the same bytes.
manifest.json, written last, says that the corpus is whole.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import Protocol

from data_pipelines import catalog
from data_pipelines import clean
from data_pipelines import prepare
from data_pipelines import processors
from data_pipelines import records
from data_pipelines import sources
from data_pipelines.corpus import bad_rows
from data_pipelines.corpus import encode_task
from data_pipelines.corpus import executors
from data_pipelines.corpus import fates
from data_pipelines.corpus import inventory
from data_pipelines.corpus import job as jobs
from data_pipelines.corpus import needed
from data_pipelines.corpus import output
from data_pipelines.corpus import publish
from data_pipelines.corpus import state as states
from data_pipelines.corpus import summary
from data_pipelines.corpus import table
from data_pipelines.corpus.job import Job
from data_pipelines.corpus.progress import Progress
from data_pipelines.processors.resources import Resources
from mistral_jax import storage
from mistral_jax.config.corpus import CorpusConfig
from mistral_jax.tokenizers import Tokenizer

VERSION = 2
# By name: a process imports what its stage needs, and no more.
MODULES = {
    "map": "data_pipelines.corpus.map_task",
    "encode": "data_pipelines.corpus.encode_task",
}
SPACE_FACTOR = 4
SPACE_BASE_BYTES = 64 << 20


class NothingKept(ValueError):
    """No row of any source or generator was kept."""


class Keeper(Protocol):
    """Keeps a corpus in the making beyond this machine; see remote.py."""

    def bring(self, fingerprint: str) -> dict[str, Any] | None:
        """Bring what is kept of a job to its folder; return the manifest of one that is whole."""
        ...

    def keep(self, job: Job, stage: str, number: int, entry: dict[str, Any]) -> None:
        """Take what a task has left, which may be there already."""
        ...


def build(
    config: CorpusConfig,
    folder: Path,
    *,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> prepare.Prepared:
    """Make a corpus, or go on where an earlier call stopped.

    Args:
        config: what to make; its `output` is not looked at.
        folder: gets the corpus; empty, new, or of an earlier call.
        progress: told of every task; silent by default.
        keeper: keeps state and parts elsewhere too; nobody by default.

    Raises:
        ValueError: a source that is not there, a folder with other things in it.
        OtherCorpus: the folder holds another corpus, or other prepared data.
        bad_rows.TooManyBadRows: a source is not what it should be.
        prepare.InUse: another process writes the same folder.
        NothingKept: no row is left.
        storage.DiskSpaceError: too little space, said before anything is written.
    """
    progress = progress or Progress.silent()
    tokenizer = None
    if config.tokenizer is not None:
        tokenizer = encode_task.tokenizer_of(config.tokenizer)
    makers = inventory.makers(config)
    progress.stage("inventory", 1)
    tasks = inventory.tasks(config, exclude=(folder,))
    if not tasks:
        raise NothingKept(
            f"{config.name}: expected files to read or rows to make, found neither: of optional "
            "sources nothing is there, and document_questions needs documents; correct a path"
        )
    output.check_folder(folder, config.name)
    with tempfile.TemporaryDirectory() as made:
        resources = processors.make_resources(config.processors, Path(made))
        fingerprint = _fingerprint(config, tasks, tokenizer, resources)
        kept = None if keeper is None else keeper.bring(fingerprint)
        finished = kept or output.finished(folder, fingerprint)
        if finished is not None:
            output.clear(folder)
            return prepare.Prepared(folder, finished, is_reused=True)
        job = Job(folder / jobs.WORK, config, makers, tuple(tasks), resources)
        return _build(job, folder, fingerprint, tokenizer, progress, keeper)


def _build(
    job: Job,
    folder: Path,
    fingerprint: str,
    tokenizer: Tokenizer | None,
    progress: Progress,
    keeper: Keeper | None,
) -> prepare.Prepared:
    """Do what is not done of a job."""
    config = job.config
    inventory.check_means(config)
    input_bytes = sum(file["size_bytes"] for task in job.tasks for file in task.get("files", ()))
    needed = SPACE_BASE_BYTES + SPACE_FACTOR * input_bytes
    storage.require_space(folder, needed, what=f"preparing {config.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / prepare.LOCK).touch()
    except PermissionError as error:
        raise ValueError(
            f"{folder}: cannot be written ({error.strerror}); choose another output"
        ) from None
    with prepare.locked(folder):
        try:
            for name in (states.STATE, sources.MANIFEST):
                storage.remove_unfinished(folder / name)
            run = _Run(folder, job, fingerprint, tokenizer, progress, keeper)
            return prepare.Prepared(folder, run.whole(), is_reused=False, resumed_tasks=run.resumed)
        except OSError as error:
            storage.raise_if_disk_full(error, folder)
            raise
        finally:
            progress.close()


class _Run:
    """One job on its way through the stages."""

    def __init__(
        self,
        folder: Path,
        job: Job,
        fingerprint: str,
        tokenizer: Tokenizer | None,
        progress: Progress,
        keeper: Keeper | None,
    ):
        self.folder, self.job, self.fingerprint = folder, job, fingerprint
        self.tokenizer, self.progress, self.keeper = tokenizer, progress, keeper
        self.state = states.State(folder, fingerprint)
        self.resumed = 0
        is_new = not self.state.is_resumed or not (job.folder / fates.EARLIER_DONE).exists()
        if is_new:
            shutil.rmtree(job.folder, ignore_errors=True)
            self.state.stages.clear()
            job.folder.mkdir(parents=True)
        # A job that goes on may do so on another machine, where inputs lie elsewhere.
        if job.resources.folder is not None:
            resources = job.folder / jobs.RESOURCES
            shutil.copytree(job.resources.folder, resources, dirs_exist_ok=True)
        job.write()
        if is_new:
            fates.keep_earlier(job, folder)
            self.state.write()

    def whole(self) -> dict[str, Any]:
        """Do all that is not done, and return the manifest."""
        mapped = self._map()
        self.progress.stage("join", 1)
        joined = fates.decide(self.job, list(mapped))
        encoded = self._tasks("encode", list(mapped))
        self.progress.stage("publish", 1)
        manifest = self._publish(mapped, joined, encoded)
        shutil.rmtree(self.job.folder)
        return manifest

    def _map(self) -> dict[int, Any]:
        """Do the tasks of the stage `map`; return what each said that counts."""
        limit = needed.NeededTasks(self.job)
        bad = bad_rows.BadRows(self.job.config.max_bad_fraction, self.job.config.min_rows_for_stop)

        def seen(number: int, entry: dict[str, Any]) -> None:
            for counting in limit.add(number, entry):
                for source, count in counting["read"].items():
                    bad.merge(source, bad_rows.RowCount.from_json(count))

        done = self._tasks("map", range(len(self.job.tasks)), wanted=limit.is_wanted, seen=seen)
        return {number: entry for number, entry in done.items() if limit.is_wanted(number)}

    def _tasks(
        self,
        stage: str,
        numbers: Sequence[int],
        *,
        wanted: Callable[[int], bool] = lambda number: True,
        seen: Callable[[int, dict[str, Any]], None] = lambda number, entry: None,
    ) -> dict[int, Any]:
        """Do the tasks of a stage that are not done and wanted; return what all of them said."""
        done = self.state.done(stage)
        for number, entry in list(done.items()):
            if states.folder_digest(self.job.part(stage, number)) != entry["sha256"]:
                self.state.forget(stage, number)
                del done[number]
            else:
                self._keep(stage, number, entry)
                seen(number, entry)
        self.resumed += len(done)
        total_bytes = sum(
            file["size_bytes"]
            for number in numbers
            if number not in done
            for file in self.job.tasks[number].get("files", ())
        )
        self.progress.stage(
            stage, len(numbers), done=len(done), total_bytes=total_bytes if stage == "map" else 0
        )
        left = (number for number in numbers if number not in done and wanted(number))
        executor = self.job.config.executor
        for number, entry in executors.run_tasks(executor, self.job.folder, MODULES[stage], left):
            self.state.mark(stage, number, entry)
            self._keep(stage, number, entry)
            done[number] = entry
            self.progress.task_done(entry)
            seen(number, entry)
        self.state.write()
        return dict(sorted(done.items()))

    def _keep(self, stage: str, number: int, entry: dict[str, Any]) -> None:
        if self.keeper is not None:
            self.keeper.keep(self.job, stage, number, entry)

    def _publish(
        self, mapped: dict[int, Any], joined: fates.Joined, encoded: dict[int, Any]
    ) -> dict[str, Any]:
        staging = self.job.folder / "out"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        made = table.build(self.job, list(mapped))
        if not len(made.part):
            raise NothingKept(
                f"{self.job.config.name}: nothing is left of "
                f"{summary.read_rows(mapped)} rows; see {self.job.folder} for the rejects"
            )
        experts = {}
        for expert in sorted(set(made.expert.tolist())):
            name = publish.name_of(expert)
            experts[name] = publish.write_expert(
                self.job, made, expert, staging / name, self.tokenizer, self.fingerprint
            )
        manifest = summary.manifest(
            self.job,
            staging,
            mapped=mapped,
            joined=joined,
            encoded=encoded,
            made=made,
            experts=experts,
            fingerprint=self.fingerprint,
            tokenizer=self.tokenizer,
        )
        fates.write_assignments(joined, staging)
        output.put_in_place(staging, self.folder, manifest)
        return manifest


def _fingerprint(
    config: CorpusConfig,
    tasks: list[dict[str, Any]],
    tokenizer: Tokenizer | None,
    resources: Resources,
) -> str:
    content = {
        "config": config.facts(),
        "tasks": [_without_place(task) for task in tasks],
        "tokenizer": None if tokenizer is None else tokenizer.digest,
        "resources": resources.digests,
        "generators": inventory.made_by(config),
        "versions": {
            "corpus": VERSION,
            "catalog": catalog.VERSION,
            "processors": processors.VERSION,
            "manifest": sources.MANIFEST_VERSION,
            "record": records.FORMAT_VERSION,
            "clean": clean.CLEAN_VERSION,
        },
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_place(task: dict[str, Any]) -> dict[str, Any]:
    """Return a task without where its files lie on this machine."""
    if "files" not in task:
        return task
    return {**task, "files": [_without_uri(file) for file in task["files"]]}


def _without_uri(file: dict[str, Any]) -> dict[str, Any]:
    beside = [_without_uri(each) for each in file.get("beside", ())]
    return {**{k: v for k, v in file.items() if k != "uri"}, "beside": beside}
