"""Files of a bucket into the local cache: in pieces, at once, each whole file checked.

What was fetched before an interruption is not fetched again: a file's pieces that have arrived are
written down beside it. A file gets its name when its digest is right (the one of the folder's own
list, see upload.py, else what the store tells), so a file with a name is a file that was checked.
"""

import hashlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Mapping
from concurrent import futures
from pathlib import Path

from mistral_jax import storage
from mistral_jax.storage import cache
from mistral_jax.storage import local
from mistral_jax.storage import upload
from mistral_jax.storage.base import FileFacts
from mistral_jax.storage.base import Storage

PIECE_BYTES = 16 << 20
NUM_THREADS = 8
MAX_TRIES, FIRST_WAIT_S = 5, 0.2
READ_BYTES = 1 << 20
PARTS = ".parts"


class StagingError(ValueError):
    """A file that did not arrive as the store says it is."""


class Prefix:
    """The files directly under a prefix of a bucket.

    Attributes:
        uri: the prefix.
        names: its files, without those of deeper folders.
    """

    def __init__(self, uri: str) -> None:
        """List the files.

        Raises:
            StorageError: nothing is there, or an upload to it has not ended.
        """
        self.uri = uri.rstrip("/")
        self._kind = storage.storage_for(uri)
        below = [name.removeprefix(f"{self.uri}/") for name in self._kind.list_files(self.uri)]
        self.names = [name for name in below if "/" not in name]
        if not below:
            raise storage.StorageError(f"{uri}: there are no files under this prefix")
        self._sha256 = self._listed_digests()
        self._facts: dict[str, FileFacts] = {}

    def _listed_digests(self) -> Mapping[str, str]:
        if upload.LIST_NAME not in self.names:
            return {}
        where = f"{self.uri}/{upload.LIST_NAME}"
        listed = upload.read_list(where)
        if not listed.is_complete:
            raise storage.StorageError(
                f"{self.uri}: the export to it was interrupted; run that export again"
            )
        if missing := sorted(set(listed.sha256) - set(self.names)):
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
        files = [
            _PartialFile(f"{self.uri}/{name}", folder / name, self.facts(name))
            for name in names
            if not (folder / name).is_file()
        ]
        jobs = [(file, piece) for file in files for piece in file.missing()]
        try:
            _run([lambda f=file, p=piece: f.fetch(self._kind, p) for file, piece in jobs])
            _run([file.finish for file in files])
        finally:
            for file in files:
                file.close()
        (folder / PARTS).rmdir()
        local.sync_folder(folder)
        seconds = time.monotonic() - start
        fetched = sum(piece.size for _, piece in jobs)
        print(f"fetched {_mib(fetched)} in {seconds:.1f} s to {folder}", file=sys.stderr)


class _Piece:
    """Number, place and size of a piece of a file."""

    def __init__(self, number: int, size_bytes: int) -> None:
        self.number = number
        self.start = number * PIECE_BYTES
        self.size = min(PIECE_BYTES, size_bytes - self.start)


class _PartialFile:
    """A file on its way: its bytes so far, and a list of the pieces that are among them."""

    def __init__(self, uri: str, target: Path, facts: FileFacts) -> None:
        self.uri, self.target, self.facts = uri, target, facts
        parts = target.parent / PARTS
        # Another version of the file starts anew.
        mark = hashlib.sha256(f"{facts.version} {facts.size_bytes}".encode()).hexdigest()[:12]
        self._part = parts / f"{target.name}.{mark}.part"
        self._list = parts / f"{target.name}.{mark}.pieces"
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

    def finish(self) -> None:
        """Check the whole file, and give it its name."""
        os.fsync(self._handle)
        complaint = check_digest(self._part, self.facts.digest)
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


def check_digest(path: Path, digest: str) -> str | None:
    """Return what is wrong with a file's content, or None.

    Args:
        path: a local file.
        digest: as FileFacts tells it; an empty one says nothing, so nothing is wrong.
    """
    kind, _, expected = digest.partition(":")
    if not kind:
        return None
    if kind == "etag":
        part, _, expected = expected.partition(":")
        found = _etag_of_parts(path, int(part))
        if found.partition("-")[2] != expected.partition("-")[2]:
            return None  # parts of different sizes: this digest cannot be formed again
    elif kind == "crc32c":
        found = _crc32c(path)
    else:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
    if found is None or found == expected:
        return None
    return f"the content's {kind} is {found}, but should be {expected}"


def _etag_of_parts(path: Path, part_bytes: int) -> str:
    digests = []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, max(size, 1), max(part_bytes, 1)):
            md5, left = hashlib.md5(usedforsecurity=False), min(part_bytes, size - start)
            while left and (chunk := file.read(min(READ_BYTES, left))):
                md5.update(chunk)
                left -= len(chunk)
            digests.append(md5.digest())
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def _crc32c(path: Path) -> str | None:
    try:
        import google_crc32c  # comes with gcsfs
    except ImportError:
        return None
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            checksum.update(chunk)
    return checksum.digest().hex()


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


def _run(jobs: list[Callable[[], None]]) -> None:
    """Run jobs on a few threads; the first error ends the others before they start."""
    pool = futures.ThreadPoolExecutor(NUM_THREADS)
    try:
        for done in futures.as_completed([pool.submit(job) for job in jobs]):
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
