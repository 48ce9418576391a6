"""Files of a bucket into the local cache: in pieces, at once, each whole file checked.

What was fetched before an interruption is not fetched again: a file's pieces that have arrived are
written down beside it. A file gets its name when its digest is right (the one of the folder's own
list, see upload.py, else what the store tells), so a file with a name is a file that was checked.
"""

import hashlib
import itertools
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

from mistral_jax import storage
from mistral_jax.storage import base
from mistral_jax.storage import cache
from mistral_jax.storage import digests
from mistral_jax.storage import local
from mistral_jax.storage import upload
from mistral_jax.storage.base import FileFacts
from mistral_jax.storage.base import Storage

PIECE_BYTES = 16 << 20
NUM_THREADS = 8
MAX_TRIES, FIRST_WAIT_S = 5, 0.2
PARTS = ".parts"
MAX_NAME_BYTES = 255
OPEN_FILES = 128


class StagingError(ValueError):
    """A file that did not arrive as the store says it is."""


class Prefix:
    """The files under a prefix of a bucket.

    Attributes:
        uri: the prefix.
        names: its files, relative to it.
    """

    def __init__(self, uri: str, *, is_deep: bool = False, only: str | None = None) -> None:
        """List the files, those of deeper folders too if `is_deep`, or look for one alone.

        Raises:
            StorageError: nothing is there, an upload to it has not ended, or a name in it cannot
                be that of a local file.
        """
        self.uri = uri.rstrip("/")
        self._kind = storage.storage_for(uri)
        if only is None:
            found = self._kind.list_files(self.uri)
            below = [name.removeprefix(f"{self.uri}/") for name in found]
        else:
            below = [n for n in (only, upload.LIST_NAME) if storage.exists(f"{self.uri}/{n}")]
        self.names = [name for name in below if is_deep or "/" not in name]
        self._is_whole = only is None
        if not below:
            raise storage.StorageError(f"{uri}: there are no files under this prefix")
        for name in self.names:
            _check_name(name, self.uri)
        self._sha256 = self._listed_digests()
        self._facts: dict[str, FileFacts] = {}

    def _listed_digests(self) -> Mapping[str, str]:
        if upload.LIST_NAME not in self.names:
            return {}
        where = f"{self.uri}/{upload.LIST_NAME}"
        listed = upload.read_list(where)
        if not listed.is_complete:
            raise storage.StorageError(
                f"{self.uri}: the upload to it was interrupted, it is incomplete; run again what "
                "uploads it (an export, prepare), which then sends what is missing"
            )
        missing = sorted(set(listed.sha256) - set(self.names)) if self._is_whole else ()
        if missing:
            raise storage.StorageError(f"{where} tells of {missing[0]!r}, which is not there")
        return listed.sha256

    def facts(self, name: str) -> FileFacts:
        """Return size, version and digest of a file."""
        if name not in self._facts:
            found = self._kind.facts(f"{self.uri}/{name}")
            if found is None:
                raise storage.StorageError(f"{self.uri}/{name}: no such file")
            sha256 = self._sha256.get(name)
            digest = f"sha256:{sha256}" if sha256 else found.digest
            self._facts[name] = FileFacts(found.size_bytes, found.version, digest)
        return self._facts[name]

    def read(self, name: str, start: int, size: int) -> bytes:
        """Return a part of a file, tried again where the network fails."""
        return _read(self._kind, f"{self.uri}/{name}", self.facts(name), start, size)

    def read_all(self, name: str) -> bytes:
        """Return a small file whole."""
        return self.read(name, 0, self.facts(name).size_bytes)

    @property
    def content(self) -> list[str]:
        """The names that belong to it: those of its list, or all but hidden ones."""
        if upload.LIST_NAME in self.names:
            return sorted(self._sha256)
        return [name for name in self.names if not any(p.startswith(".") for p in name.split("/"))]

    def identity(self, names: list[str]) -> str:
        """Return what changes when one of the files does."""
        facts = [(name, self.facts(name)) for name in sorted(names)]
        return json.dumps([(name, fact.size_bytes, fact.version) for name, fact in facts])

    def stage(self, names: list[str]) -> Path:
        """Return a local folder with these files, fetched where they are not there yet.

        Raises:
            StagingError: a file's content is not what its digest says.
            StorageUnreachable: the store does not answer; what has arrived is kept.
        """
        _run([lambda n=name: self.facts(n) for name in names if name not in self._facts])
        total = sum(self.facts(name).size_bytes for name in names)
        return cache.entry(
            uri=self.uri,
            identity=self.identity(names),
            need_bytes=total,
            fill=lambda folder: self._fetch(names, folder, total),
        )

    def _fetch(self, names: list[str], folder: Path, total: int) -> None:
        start = time.monotonic()
        print(f"fetching {self.uri}: {len(names)} files, {_mib(total)}", file=sys.stderr)
        (folder / PARTS).mkdir(exist_ok=True)
        wanted = [name for name in names if not (folder / name).is_file()]
        files = [(f"{self.uri}/{name}", name, self.facts(name)) for name in wanted]
        fetched = sum(
            _fetch_some(files[first : first + OPEN_FILES], folder, is_listed=False)
            for first in range(0, len(files), OPEN_FILES)
        )
        (folder / PARTS).rmdir()
        local.sync_folder(folder)
        seconds = time.monotonic() - start
        print(f"fetched {_mib(fetched)} in {seconds:.1f} s to {folder}", file=sys.stderr)


def fetch(files: Mapping[str, tuple[str, FileFacts]], folder: Path) -> int:
    """Fetch objects into a folder, past the cache; return the bytes that came.

    A file that is there under its name was checked, and is not fetched again. An ETag that a
    listing tells is an MD5 in most cases: where it is not the content's, the store is asked about
    the object itself.

    Args:
        files: by name below the folder: URI, and what a listing told of it.
        folder: made where it is not there; nobody else writes to it.

    Raises:
        StorageError: an object has changed since it was listed, or is gone.
        StagingError: a file's content is not what its digest says.
        StorageUnreachable: the store does not answer; what has arrived is kept.
    """
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    wanted = [
        (uri, name, facts) for name, (uri, facts) in files.items() if not (folder / name).is_file()
    ]
    fetched = sum(
        _fetch_some(wanted[first : first + OPEN_FILES], folder, is_listed=True)
        for first in range(0, len(wanted), OPEN_FILES)
    )
    shutil.rmtree(folder / PARTS)
    return fetched


def _fetch_some(
    wanted: Sequence[tuple[str, str, FileFacts]], folder: Path, *, is_listed: bool
) -> int:
    """Fetch files, all of them open at once; return the bytes that came."""
    files = [_PartialFile(uri, folder, name, facts) for uri, name, facts in wanted]
    kinds = {uri: storage.storage_for(uri) for uri, _, _ in wanted}
    jobs = [(file, piece) for file in files for piece in file.missing()]
    try:
        _run([lambda f=file, p=piece: f.fetch(kinds[f.uri], p) for file, piece in jobs])
        _run([lambda f=file: f.finish(kinds[f.uri] if is_listed else None) for file in files])
    finally:
        for file in files:
            file.close()
    return sum(piece.size for _, piece in jobs)


class _Piece:
    """Number, place and size of a piece of a file."""

    def __init__(self, number: int, size_bytes: int) -> None:
        self.number = number
        self.start = number * PIECE_BYTES
        self.size = min(PIECE_BYTES, size_bytes - self.start)


class _PartialFile:
    """A file on its way: its bytes so far, and a list of the pieces that are among them."""

    def __init__(self, uri: str, folder: Path, name: str, facts: FileFacts) -> None:
        self.uri, self.target, self.facts = uri, folder / name, facts
        self.target.parent.mkdir(parents=True, exist_ok=True)
        parts = folder / PARTS
        # Another version of the file starts anew.
        text = f"{name} {facts.version} {facts.size_bytes}"
        mark = hashlib.sha256(text.encode()).hexdigest()[:12]
        self._part = parts / f"{self.target.name[:80]}.{mark}.part"
        self._list = parts / f"{self.target.name[:80]}.{mark}.pieces"
        self._lock = threading.Lock()
        self._handle = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self._handle, facts.size_bytes)

    def missing(self) -> list[_Piece]:
        """Return the pieces that have not arrived."""
        count = -(-self.facts.size_bytes // PIECE_BYTES)
        text = self._list.read_text(encoding="utf-8") if self._list.is_file() else ""
        # A line without its end was being written when the process died.
        lines = text.split("\n")[:-1]
        have = {int(line) for line in lines if line.isdigit()}
        return [_Piece(n, self.facts.size_bytes) for n in range(count) if n not in have]

    def fetch(self, kind: Storage, piece: _Piece) -> None:
        """Fetch one piece and write down that it is here."""
        raw = _read(kind, self.uri, self.facts, piece.start, piece.size)
        try:
            written = 0
            while written < len(raw):
                chunk = memoryview(raw)[written:]
                written += os.pwrite(self._handle, chunk, piece.start + written)
            with self._lock, self._list.open("a", encoding="utf-8") as file:
                file.write(f"{piece.number}\n")
        except OSError as error:
            storage.raise_if_disk_full(error, self._part)
            raise

    def finish(self, asked: Storage | None) -> None:
        """Check the whole file, and give it its name.

        Args:
            asked: the store, where the facts come from a listing and it may know better.
        """
        os.fsync(self._handle)
        complaint = digests.check_digest(self._part, self.facts.digest)
        if asked is not None and (complaint is not None or not self.facts.digest):
            found = asked.facts(self.uri)
            if found is None or found.version != self.facts.version:
                raise base.changed(self.uri)
            complaint = digests.check_digest(self._part, found.digest)
        if complaint is not None:
            self._part.unlink()
            self._list.unlink(missing_ok=True)
            raise StagingError(
                f"{self.uri}: {complaint}; what arrived was thrown away: run the same command "
                "again, and if it stays so, upload the file again"
            )
        os.replace(self._part, self.target)
        self._list.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._handle)


def _check_name(name: str, uri: str) -> None:
    parts = name.split("/")
    is_bad = "\0" in name or any(part in ("", ".", "..", PARTS, cache.DONE) for part in parts)
    if is_bad or len(os.fsencode(max(parts, key=len))) > MAX_NAME_BYTES:
        raise storage.StorageError(
            f"{uri}: holds an object named {name[:200]!r}, which cannot be a file here; rename it "
            "or move it away"
        )


def _read(kind: Storage, uri: str, facts: FileFacts, start: int, size: int) -> bytes:
    for attempt in itertools.count(1):
        try:
            raw = kind.read_range(uri, start, size, facts.version)
            if len(raw) == size:
                return raw
            raise storage.StorageUnreachable(
                f"{uri}: expected {size} bytes at {start}, {len(raw)} came; run the same command "
                "again, it goes on where it was"
            )
        except storage.StorageUnreachable:
            if attempt == MAX_TRIES:
                raise
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
    raise AssertionError("not reached")


def _run(jobs: Sequence[Callable[[], object]]) -> None:
    """Run jobs on a few threads; the first error ends the others before they start."""
    pool = futures.ThreadPoolExecutor(NUM_THREADS)
    try:
        for done in futures.as_completed([pool.submit(job) for job in jobs]):
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
