"""The parts of a corpus in the making on their way to a bucket, by threads beside the job.

A part is linked aside when its task has ended, so that it can be sent whatever becomes of the
folder. It goes as one tar file, and the bucket's state names it when that has arrived.
"""

import hashlib
import os
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

from data_pipelines.corpus import fates
from data_pipelines.corpus import job as jobs
from data_pipelines.corpus import state as states
from data_pipelines.corpus.job import Job
from data_pipelines.near_duplicates import assignments
from mistral_jax import storage
from mistral_jax.storage import mirror
from mistral_jax.storage import remote_folder
from mistral_jax.storage import upload

RUNS, MAP = "runs", "map"
NUM_THREADS = 4
MEMBER = re.compile(rf"(?:{RUNS}/|[a-z]+/\d+/)[\w-][\w.-]*")
WRITE_EVERY_S, WRITE_SHARE = 2.0, 20  # at most a 20th of the time goes into writing the state


def object_of(stage: str, number: int | str) -> str:
    """Return the name of a part's object, in the output."""
    return f"{jobs.WORK}/{stage}/{int(number):05d}.tar"


def unpack(path: Path, work: Path) -> None:
    """Put the files of a part where its task would have left them.

    Raises:
        DamagedPart: it holds other things than a part's files.
    """
    making = path.with_suffix("")
    with tarfile.open(path) as packed:
        for member in packed:
            if not member.isfile() or not MEMBER.fullmatch(member.name):
                raise DamagedPart(f"{path}: holds {member.name!r}, which is no file of a part")
            target = making / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            stream = packed.extractfile(member)
            assert stream is not None, "a plain file"
            with target.open("wb") as file:
                shutil.copyfileobj(stream, file)
    for file in making.glob(f"{RUNS}/*"):
        (work / RUNS).mkdir(exist_ok=True)
        os.replace(file, work / RUNS / file.name)
    for folder in (each for each in making.glob("*/*") if each.is_dir()):
        target = work / folder.relative_to(making)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)
    shutil.rmtree(making)


def _pack(folder: Path) -> Path:
    """Return a tar file of a folder's files, made in its place; equal files give equal bytes."""
    path = folder.with_name(f"{folder.name}.tar")
    with tarfile.open(path, "w") as packed:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            member = tarfile.TarInfo(file.relative_to(folder).as_posix())
            member.size = file.stat().st_size
            with file.open("rb") as stream:
                packed.addfile(member, stream)
    shutil.rmtree(folder)
    return path


def set_job(folder: Path, name: str) -> None:
    """Note which job a local folder belongs to."""
    storage.write_bytes(_job_path(folder), name.encode())


def is_of(folder: Path, name: str) -> bool:
    """Return whether a local folder belongs to a job."""
    path = _job_path(folder)
    return path.is_file() and path.read_text(encoding="utf-8") == name


def _job_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.job")


class DamagedPart(ValueError):
    """A part in the bucket is not what a run of ours has sent."""


class Outgoing:
    """Sends parts as they come; a context that leaves what is not sent when it ends by an error.

    Args:
        folder: the local folder of the corpus.
        uri: where it is kept.
        check: raises where the output is not ours any more.
        say: told when the store fails, and when it answers again.
    """

    def __init__(
        self,
        folder: Path,
        uri: str,
        *,
        check: Callable[[], None],
        say: Callable[[str], None],
    ):
        self._uri, self._check, self._say = uri, check, say
        self._folder = folder
        self._aside = folder.with_name(f".{folder.name}.outgoing")
        self._fingerprint = self._job_name = ""
        self._stages: dict[str, dict[str, Any]] = {}
        self._pool = futures.ThreadPoolExecutor(NUM_THREADS, "outgoing")
        self._running: list[futures.Future] = []
        self._lock = threading.Lock()
        self._has_ended = threading.Event()
        self._next_write_s = 0.0

    def __enter__(self) -> "Outgoing":
        shutil.rmtree(self._aside, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._pool.shutdown(cancel_futures=True)
        shutil.rmtree(self._aside, ignore_errors=True)

    def begin_with(
        self, fingerprint: str, job_name: str, stages: dict[str, dict[str, Any]]
    ) -> None:
        """Take up a job.

        Args:
            fingerprint: of everything that decides the result.
            job_name: as the bucket's state says; "" for a job that it does not know.
            stages: what the bucket holds of it.
        """
        self._fingerprint, self._job_name = fingerprint, job_name
        self._stages = {stage: dict(entries) for stage, entries in stages.items()}

    def keep(self, job: Job, stage: str, number: int, entry: dict[str, Any]) -> None:
        """Send what a task has left, unless it is there.

        Raises:
            mirror.Outage: the store failed for too long.
            owner.Lost: the output is not ours any more.
        """
        if not self._stages:
            self._begin(job)
        self._raise_error()
        if self._stages.get(stage, {}).get(str(number)) == entry:
            return
        part = job.part(stage, number)
        files = list(part.iterdir())
        if stage == MAP and job.runs.is_dir():
            files += job.runs.glob(f"{number:05d}.*")
        aside = self._aside / f"{stage}-{number}"
        shutil.rmtree(aside, ignore_errors=True)
        for file in files:
            linked = aside / file.relative_to(job.folder)
            linked.parent.mkdir(parents=True, exist_ok=True)
            remote_folder.link_or_copy(file, linked)
        self._running.append(self._pool.submit(self._send_part, aside, stage, number, entry))

    def finish(self) -> None:
        """Wait until all has arrived.

        Raises:
            Outage, Lost: as `keep` does.
        """
        futures.wait(self._running)
        self._raise_error()
        if self._stages:
            self._write_state()

    def clear(self) -> None:
        """Remove the parts from the bucket, what makes them count first."""
        begin = f"{self._uri}/{jobs.WORK}"
        self._patiently(lambda: storage.delete(f"{begin}/{fates.EARLIER_DONE}"))
        for name in self._patiently(lambda: storage.list_files(begin)):
            self._patiently(lambda n=name: storage.delete(n))

    def _begin(self, job: Job) -> None:
        """Put what a new job begins with in the place of what is left of another one."""
        header = job.folder / fates.EARLIER / assignments.HEADER
        named = f"{self._fingerprint} {storage.digest(header)}"
        self._job_name = hashlib.sha256(named.encode()).hexdigest()[:32]
        self._patiently(self._check)
        self.clear()
        done = job.folder / fates.EARLIER_DONE
        for file in [*sorted((job.folder / fates.EARLIER).iterdir()), done]:
            self._send_file(file, f"{jobs.WORK}/{file.relative_to(job.folder).as_posix()}")
        self._stages = {MAP: {}}
        self._write_state()
        set_job(self._folder, self._job_name)

    def _send_part(self, aside: Path, stage: str, number: int, entry: dict[str, Any]) -> None:
        packed = _pack(aside)
        self._patiently(self._check)
        self._send_file(packed, object_of(stage, number))
        packed.unlink()
        with self._lock:
            self._stages.setdefault(stage, {})[str(number)] = entry
            if time.monotonic() >= self._next_write_s:
                self._patiently(self._check)
                self._write_state()

    def _send_file(self, path: Path, name: str) -> None:
        uri = f"{self._uri}/{name}"
        self._patiently(lambda: upload.send_file(path, uri, say=lambda line: None))

    def _write_state(self) -> None:
        start_s = time.monotonic()
        raw = states.content(self._fingerprint, self._stages, job=self._job_name)
        self._patiently(lambda: storage.write_bytes(f"{self._uri}/{states.STATE}", raw))
        end_s = time.monotonic()
        self._next_write_s = end_s + max(WRITE_EVERY_S, WRITE_SHARE * (end_s - start_s))

    def _raise_error(self) -> None:
        ended = [each for each in self._running if each.done()]
        self._running = [each for each in self._running if not each.done()]
        for each in ended:
            each.result()

    def _patiently[T](self, action: Callable[[], T]) -> T:
        return mirror.until_it_answers(
            action,
            say=self._say,
            begins="the work goes on, but its parts cannot be sent now",
            ends="parts are sent again",
            failed=f"{self._uri}: nothing could be sent",
            advice=f"what was made is in {self._folder}: run the same command here to go on",
            is_stopped=self._has_ended.is_set,
        )
