"""Plain files: written to a temporary name beside the target, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mistral_jax.storage import base


class LocalStorage:
    """Plain files."""

    def open_read(self, uri: str) -> BinaryIO:
        """Open a local file for reading."""
        return Path(_local(uri)).open("rb")

    def read_range(self, uri: str, start: int, size: int, version: str) -> bytes:
        """Return a part of a file that is still of this version."""
        with Path(_local(uri)).open("rb") as file:
            if _version(os.fstat(file.fileno())) != version:
                raise base.changed(uri)
            file.seek(start)
            return file.read(size)

    def write(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Write to a temporary file beside the target, fsync, then rename or link."""
        path = Path(_local(uri))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~umask())
            if only_if_absent:
                os.link(temporary, path)
            else:
                os.replace(temporary, path)
        except FileExistsError:
            raise base.AlreadyExists(f"{path}: exists already; nothing was written") from None
        finally:
            Path(temporary).unlink(missing_ok=True)
        sync_folder(path.parent)

    def upload(self, path: Path, uri: str, sha256: str) -> None:
        """Copy a file; a file system keeps no digest beside it."""
        target = Path(_local(uri))
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file, path.open("rb") as source:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~umask())
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
        sync_folder(target.parent)

    def size_bytes(self, uri: str) -> int | None:
        """Return the size of a local file; None when there is no such file."""
        path = Path(_local(uri))
        return path.stat().st_size if path.is_file() else None

    def facts(self, uri: str) -> base.FileFacts | None:
        """Return size and time of change."""
        path = Path(_local(uri))
        if not path.is_file():
            return None
        stat = path.stat()
        return base.FileFacts(stat.st_size, _version(stat), modified_s=stat.st_mtime)

    def list_files(self, uri: str) -> Iterator[str]:
        """Yield all files under a folder, sorted by path."""
        root = Path(_local(uri))
        yield from sorted(str(path) for path in root.rglob("*") if path.is_file())

    def list_facts(self, uri: str) -> Iterator[tuple[str, base.FileFacts]]:
        """Yield all files under a folder with size and time of change."""
        for path in self.list_files(uri):
            found = self.facts(path)
            if found is not None:
                yield path, found

    def delete(self, uri: str) -> None:
        """Remove a file; one that is not there is no error."""
        Path(_local(uri)).unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove what a process left beside a file that was killed while it wrote it.

    The caller sees to it that nobody else writes the file now.
    """
    for left in path.parent.glob(f".{path.name}.????????"):  # as tempfile.mkstemp names them
        left.unlink()


def sync_folder(folder: str | Path) -> None:
    """Make the names in a folder durable, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """Return the process's mask of file permissions."""
    current = os.umask(0)
    os.umask(current)
    return current


def _local(uri: str) -> str:
    return uri.removeprefix("file://")


def _version(stat: os.stat_result) -> str:
    return f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"
