"""The verb `prepare CONFIG`: from sources and generators to prepared folders, one for each expert.

Stages: map (parts), join (fates), encode (records), publish (levels, shards, manifests). What is
done is in pipeline_state.json; a killed run goes on there and ends with the same bytes.
manifest.json, written last, says that the corpus is whole.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol

from data_pipelines import catalog
from data_pipelines import clean
from data_pipelines import prepare
from data_pipelines import processors
from data_pipelines import records
from data_pipelines import shards
from data_pipelines import sources
from data_pipelines.corpus import bad_rows
from data_pipelines.corpus import encode_task
from data_pipelines.corpus import executors
from data_pipelines.corpus import fates
from data_pipelines.corpus import inventory
from data_pipelines.corpus import job as jobs
from data_pipelines.corpus import publish
from data_pipelines.corpus import row as rows
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
WORK = "work"
# By name: a process imports what its stage needs, and no more.
MODULES = {
    "map": "data_pipelines.corpus.map_task",
    "encode": "data_pipelines.corpus.encode_task",
}
SPACE_FACTOR = 4
SPACE_BASE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Built:
    """A corpus that is whole.

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


class OtherCorpus(ValueError):
    """The output holds something that this corpus must not take the place of."""

    exit_code = 3


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
) -> Built:
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
    _check_folder(folder, config.name)
    with tempfile.TemporaryDirectory() as made:
        resources = processors.make_resources(config.processors, Path(made))
        fingerprint = _fingerprint(config, tasks, tokenizer, resources)
        kept = None if keeper is None else keeper.bring(fingerprint)
        finished = kept or _finished(folder, fingerprint)
        if finished is not None:
            _clear(folder)
            return Built(folder, finished, is_reused=True)
        job = Job(folder / WORK, config, makers, tuple(tasks), resources)
        return _build(job, folder, fingerprint, tokenizer, progress, keeper)


def _build(
    job: Job,
    folder: Path,
    fingerprint: str,
    tokenizer: Tokenizer | None,
    progress: Progress,
    keeper: Keeper | None,
) -> Built:
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
            return Built(folder, run.whole(), is_reused=False, resumed_tasks=run.resumed)
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
        limit = _Limits(self.job)
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
        _put_in_place(staging, self.folder, manifest)
        return manifest


class _Limits:
    """Which tasks are needed at all: none after `max_documents`, whatever the order of ends."""

    def __init__(self, job: Job):
        self._job = job
        self._said: dict[int, dict[str, Any]] = {}
        self._next = 0
        self._num_pdfs = 0
        self._num_rows = [0] * len(job.makers)
        self._last_of: dict[int, int] = {}
        self._last: int | None = None

    def add(self, number: int, entry: dict[str, Any]) -> list[dict[str, Any]]:
        """Take what a task said; return what counts from now on, in the order of the tasks."""
        self._said[number] = entry
        counting = []
        while self._next < len(self._job.tasks) and (
            self._next in self._said or not self.is_wanted(self._next)
        ):
            said = self._said.pop(self._next, None)
            if said is None or not self.is_wanted(self._next):  # a process may have been too eager
                self._next += 1
                continue
            counting.append(said)
            maker = self._job.tasks[self._next]["maker"]
            self._num_pdfs += said["pdfs"]
            self._num_rows[maker] += said["documents"]
            limit = self._limit_of(maker)
            if limit is not None and self._num_rows[maker] >= limit:
                self._last_of.setdefault(maker, self._next)
            if self._last is None and self._num_pdfs >= self._job.config.max_documents:
                self._last = self._next
            self._next += 1
        return counting

    def is_wanted(self, number: int) -> bool:
        """Return whether a task has rows that may be kept, as far as is known."""
        task = self._job.tasks[number]
        if number > self._last_of.get(task["maker"], number):
            return False
        return self._last is None or number <= self._last or "files" not in task

    def _limit_of(self, maker: int) -> int | None:
        listed = self._job.config.sources
        return listed[maker].max_documents if maker < len(listed) else None


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


def _check_folder(folder: Path, name: str) -> None:
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


def _clear(folder: Path) -> None:
    """Remove the work of a run that was killed between its manifest and its clearing."""
    if (folder / WORK).is_dir():
        with contextlib.suppress(prepare.InUse, PermissionError), prepare.locked(folder):
            shutil.rmtree(folder / WORK, ignore_errors=True)


def _finished(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the manifest if the folder holds the whole result of the same job, undamaged."""
    manifest = sources.read_json(folder / sources.MANIFEST)
    if manifest.get("fingerprint") != fingerprint:
        return None
    for path, digest in summary.digests(folder, manifest):
        if not path.is_file() or storage.digest(path) != digest:
            return None
    return manifest


def _put_in_place(staging: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Put the new files in the place of any old ones; without a manifest nothing counts."""
    (folder / sources.MANIFEST).unlink(missing_ok=True)
    for name in (*rows.EXPERTS, *publish.FILES):
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
