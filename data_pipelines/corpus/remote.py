"""A corpus whose output is a bucket: made in a folder of this machine, kept there part by part.

    URI/.owner/                who writes (storage/owner.py)
    URI/pipeline_state.json    the tasks whose parts have arrived
    URI/work/...               those parts, and what the job began with; removed at the end
    URI/...                    the corpus; manifest.json and then its list of files come last

Another machine that is given the same config fetches state and parts and goes on from there.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines import prepare
from data_pipelines import sources
from data_pipelines.corpus import build
from data_pipelines.corpus import fates
from data_pipelines.corpus import fetching
from data_pipelines.corpus import job as jobs
from data_pipelines.corpus import outgoing
from data_pipelines.corpus import output
from data_pipelines.corpus import state as states
from data_pipelines.corpus.progress import Progress
from data_pipelines.near_duplicates import assignments
from mistral_jax import storage
from mistral_jax.config.corpus import CorpusConfig
from mistral_jax.storage import cache
from mistral_jax.storage import mirror
from mistral_jax.storage import owner
from mistral_jax.storage import upload
from mistral_jax.storage.base import FileFacts

CORPORA = "corpora"
FETCHING = "fetching"
BEGUN = f"{jobs.WORK}/{fates.EARLIER}/"


def make(
    config: CorpusConfig,
    *,
    progress: Progress,
    say: Callable[[str], None],
    finish: Callable[[Path], object],
) -> prepare.Prepared:
    """Make a corpus in a bucket, or go on where any machine stopped.

    Args:
        config: what to make; its output is an s3:// or gs:// URI.
        progress: told of every task.
        say: told a line of text now and then.
        finish: writes into the folder of a corpus that is whole, before it is sent.

    Raises:
        owner.InUse: another process writes to the same output.
        upload.UploadError: something that is no corpus is there.
        mirror.Outage: the store failed for too long; what was made is in the local folder.
        ValueError: see build.build.
    """
    uri = config.output.rstrip("/")
    folder = local_folder(uri)
    place, wait_s = owner.place_of(folder), owner.wait_s()
    mirror.outage_s()
    refusal = f"{uri}: another process of this machine prepares this corpus now; wait for it"
    with owner.held(folder, refusal), owner.Owner(uri, place, wait_s=wait_s) as owned:
        _check_prefix(uri, config.name)
        with outgoing.Outgoing(folder, uri, check=owned.check, say=say) as parts:
            kept = _Kept(folder, uri, parts, say)
            made = build.build(config, folder, progress=progress, keeper=kept)
            if kept.is_whole:
                parts.clear()  # the machine that made it may have been killed just before that
                return made
            parts.finish()
        finish(folder)
        say(f"sending the corpus to {uri}")
        _send(folder, uri, owned, say)
        parts.clear()
        return dataclasses.replace(made, is_reused=False)


def local_folder(uri: str) -> Path:
    """Return the folder of this machine in which a corpus of a bucket is made."""
    return cache.root() / CORPORA / cache.run_folder(uri).name


def _check_prefix(uri: str, corpus: str) -> None:
    """Refuse a prefix that holds other things than a corpus.

    Raises:
        UploadError: it does.
        output.OtherCorpus: it holds another corpus, or other data with a manifest.
    """
    names = [name.removeprefix(f"{uri}/") for name in storage.list_files(uri)]
    others = [name for name in names if not name.startswith(".")]
    if sources.MANIFEST in others and (found := _manifest(f"{uri}/{sources.MANIFEST}")):
        output.check_manifest(found, corpus, uri)
    elif others and not any(name == states.STATE or name.startswith(BEGUN) for name in others):
        raise upload.UploadError(
            f"{uri}: expected an empty prefix or a corpus that was prepared before, found "
            f"{others[0]}; choose another output"
        )


class _Kept:
    """What a bucket holds of a corpus: the keeper that build.build asks."""

    def __init__(
        self, folder: Path, uri: str, parts: outgoing.Outgoing, say: Callable[[str], None]
    ):
        self._folder, self._uri, self._parts, self._say = folder, uri, parts, say
        self.is_whole = False

    def bring(self, fingerprint: str) -> dict[str, Any] | None:
        """Bring the local folder to what the bucket holds; return the manifest of a whole one."""
        there = dict(storage.list_facts(self._uri))
        names = {name.removeprefix(f"{self._uri}/"): facts for name, facts in there.items()}
        whole = self._whole(fingerprint, names)
        if whole is not None:
            self.is_whole = True
            return whole
        found = _json(f"{self._uri}/{states.STATE}") if states.STATE in names else {}
        began = f"{jobs.WORK}/{fates.EARLIER_DONE}" in names
        is_same = found.get("fingerprint") == fingerprint
        if is_same and self._is_here(fingerprint, found["job"]):
            self._parts.begin_with(fingerprint, found["job"], found["stages"] if began else {})
            if began:
                self._fetch_parts(names, fingerprint, found["stages"])
        elif is_same and began:
            self._empty()
            self._fetch_earlier(names, fingerprint, found["job"])
            self._parts.begin_with(fingerprint, found["job"], found["stages"])
            self._fetch_parts(names, fingerprint, found["stages"])
        else:
            if began:
                self._say(f"{self._uri} holds parts of another config or release: begun anew")
            self._empty()
            self._fetch_assignments(names)
            self._parts.begin_with(fingerprint, "", {})
        return None

    def keep(self, job: build.Job, stage: str, number: int, entry: dict[str, Any]) -> None:
        """Take what a task has left."""
        self._parts.keep(job, stage, number, entry)

    def _whole(self, fingerprint: str, names: dict[str, FileFacts]) -> dict[str, Any] | None:
        """Return the manifest of the corpus in the bucket if it is this one, and all is there."""
        if upload.LIST_NAME not in names or sources.MANIFEST not in names:
            return None
        listed = upload.read_list(f"{self._uri}/{upload.LIST_NAME}")
        raw = storage.read_bytes(f"{self._uri}/{sources.MANIFEST}")
        is_ours = listed.sha256.get(sources.MANIFEST) == hashlib.sha256(raw).hexdigest()
        if not listed.is_complete or not is_ours or not names.keys() >= listed.sha256.keys():
            return None
        manifest = json.loads(raw)
        return manifest if manifest["fingerprint"] == fingerprint else None

    def _is_here(self, fingerprint: str, job_name: str) -> bool:
        """Return whether the local folder is that of the job whose state the bucket holds."""
        if not outgoing.is_of(self._folder, job_name):
            return False
        manifest = sources.read_json(self._folder / sources.MANIFEST)
        state = sources.read_json(self._folder / states.STATE)
        began = (self._folder / jobs.WORK / fates.EARLIER_DONE).exists()
        is_going_on = began and state.get("fingerprint") == fingerprint
        return is_going_on or manifest.get("fingerprint") == fingerprint

    def _empty(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        (self._folder / prepare.LOCK).touch()  # so that build knows it as a corpus's

    def _fetch_assignments(self, names: dict[str, FileFacts]) -> None:
        """Fetch what an earlier corpus recorded about its documents."""
        wanted = [name for name in names if name.startswith(assignments.STEM)]
        self._fetch({name: names[name] for name in wanted}, self._folder)

    def _fetch_earlier(self, names: dict[str, FileFacts], fingerprint: str, job: str) -> None:
        """Fetch what the job began with, and begin it here."""
        wanted = {name: facts for name, facts in names.items() if name.startswith(BEGUN)}
        self._fetch(wanted, self._folder)
        (self._folder / jobs.WORK / fates.EARLIER).mkdir(parents=True, exist_ok=True)
        storage.write_bytes(self._folder / states.STATE, states.content(fingerprint, {}))
        storage.write_bytes(self._folder / jobs.WORK / fates.EARLIER_DONE, b"")
        outgoing.set_job(self._folder, job)

    def _fetch_parts(
        self, names: dict[str, FileFacts], fingerprint: str, stages: dict[str, Any]
    ) -> None:
        """Fetch the parts that are not here, and name them in the state here."""
        if not (self._folder / jobs.WORK).is_dir():
            return  # it is whole here, and only to be sent
        state = states.State(self._folder, fingerprint)
        missing = [
            (stage, number)
            for stage, entries in stages.items()
            for number, entry in entries.items()
            if state.stages.get(stage, {}).get(number) != entry
        ]
        if not missing:
            return
        self._say(f"fetching {len(missing)} parts that {self._uri} holds")
        objects = {outgoing.object_of(*part): part for part in missing}
        making = self._folder / jobs.WORK / FETCHING
        self._fetch({name: names[name] for name in objects if name in names}, making)
        for name, (stage, number) in objects.items():
            if name in names:  # without it, the task is done again
                outgoing.unpack(making / name, self._folder / jobs.WORK)
                state.stages.setdefault(stage, {})[number] = stages[stage][number]
        state.write()
        shutil.rmtree(making, ignore_errors=True)

    def _fetch(self, wanted: dict[str, FileFacts], folder: Path) -> None:
        if wanted:
            fetching.fetch({n: (f"{self._uri}/{n}", f) for n, f in wanted.items()}, folder)


def _send(folder: Path, uri: str, owned: owner.Owner, say: Callable[[str], None]) -> None:
    """Send a whole corpus in the place of what is there."""

    def send() -> None:
        upload.replace(
            folder, uri, check=owned.check, is_part=output.is_ours, last=sources.MANIFEST
        )

    mirror.until_it_answers(
        send,
        say=say,
        begins="the corpus is whole, but cannot be sent now",
        ends="it has been sent",
        failed=f"{uri}: nothing could be sent",
        advice=f"the corpus is in {folder}: run the same command here to send it",
    )


def _manifest(uri: str) -> dict[str, Any]:
    try:
        found = json.loads(storage.read_bytes(uri))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _json(uri: str) -> dict[str, Any]:
    content = json.loads(storage.read_bytes(uri))
    return content if content.get("version") == states.VERSION else {}
