"""Files by path or URI: read, list, write atomically, digest. Local paths, s3:// and gs://.

The only room that talks to object stores; boto3 and gcsfs are imported when a URI asks for them.
A write is seen whole or not at all: locally by a temporary file, fsync and rename, in a bucket
because an object appears when its upload is complete. Whole checkpoints: staging.py, upload.py.
"""

import errno
import hashlib
import shutil
from pathlib import Path
from typing import BinaryIO

from mistral_jax.storage.base import AlreadyExists
from mistral_jax.storage.base import FileFacts
from mistral_jax.storage.base import Storage
from mistral_jax.storage.base import StorageError
from mistral_jax.storage.base import StorageUnreachable
from mistral_jax.storage.base import split_bucket
from mistral_jax.storage.gs import GsStorage
from mistral_jax.storage.local import LocalStorage
from mistral_jax.storage.local import remove_unfinished
from mistral_jax.storage.local import sync_folder
from mistral_jax.storage.s3 import S3Storage

__all__ = (
    "AlreadyExists",
    "DiskSpaceError",
    "FileFacts",
    "GsStorage",
    "LocalStorage",
    "S3Storage",
    "Storage",
    "StorageError",
    "StorageUnreachable",
    "remove_unfinished",
    "split_bucket",
    "sync_folder",
)

READ_CHUNK_BYTES = 1 << 20


class DiskSpaceError(ValueError):
    """Too little free space for what is about to be written; the CLI exits with 3."""

    exit_code = 3  # refused by a gate; see cli.py


_SCHEMES = {"file": LocalStorage, "s3": S3Storage, "gs": GsStorage}


def storage_for(uri: str | Path) -> Storage:
    """Return the storage that a path or URI lies in.

    Raises:
        StorageError: the scheme is unknown, or its library is not installed.
    """
    scheme, found, _ = str(uri).partition("://")
    if not found:
        return LocalStorage()
    if scheme not in _SCHEMES:
        known = ", ".join(f"{each}://" for each in _SCHEMES)
        raise StorageError(f"{uri}: expected a path or one of {known}; got {scheme}://")
    return _SCHEMES[scheme]()


def is_remote(uri: str | Path) -> bool:
    """Return whether a path or URI lies in an object store."""
    scheme, found, _ = str(uri).partition("://")
    return bool(found) and scheme != "file"


def open_read(uri: str | Path) -> BinaryIO:
    """Open a file for reading bytes.

    Raises:
        StorageError: there is no such file.
    """
    kind = storage_for(uri)
    if kind.size_bytes(str(uri)) is None:
        raise StorageError(f"{uri}: no such file")
    return kind.open_read(str(uri))


def read_bytes(uri: str | Path) -> bytes:
    """Return a whole file."""
    with open_read(uri) as file:
        return file.read()


def write_bytes(uri: str | Path, data: bytes, *, only_if_absent: bool = False) -> None:
    """Write a file whole or not at all.

    Raises:
        AlreadyExists: `only_if_absent`, and the file exists.
        DiskSpaceError: the disk is full; the old file is as it was.
    """
    try:
        storage_for(uri).write(str(uri), data, only_if_absent=only_if_absent)
    except OSError as error:
        raise_if_disk_full(error, uri)
        raise


def exists(uri: str | Path) -> bool:
    """Return whether there is such a file."""
    return size_bytes(uri) is not None


def size_bytes(uri: str | Path) -> int | None:
    """Return the size of a file; None when there is no such file."""
    return storage_for(uri).size_bytes(str(uri))


def facts(uri: str | Path) -> FileFacts | None:
    """Return what a store knows of a file without reading it; None when there is no such file."""
    return storage_for(uri).facts(str(uri))


def list_files(uri: str | Path) -> list[str]:
    """Return all files under a folder or prefix, sorted."""
    return list(storage_for(uri).list_files(str(uri)))


def list_facts(uri: str | Path) -> list[tuple[str, FileFacts]]:
    """Return all files under a folder or prefix, sorted, with what the listing tells of each."""
    return list(storage_for(uri).list_facts(str(uri)))


def delete(uri: str | Path) -> None:
    """Remove a file; one that is not there is no error."""
    storage_for(uri).delete(str(uri))


def digest(uri: str | Path) -> str:
    """Return the sha256 of a file, in hex."""
    sha256 = hashlib.sha256()
    with open_read(uri) as file:
        while chunk := file.read(READ_CHUNK_BYTES):
            sha256.update(chunk)
    return sha256.hexdigest()


def free_bytes(path: str | Path) -> int:
    """Return the free space where a path lies or will lie."""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(path: str | Path, need_bytes: int, *, what: str) -> None:
    """Check that there is room before anything is written.

    Raises:
        DiskSpaceError: there is not; the message holds both numbers.
    """
    free = free_bytes(path)
    if free < need_bytes:
        raise DiskSpaceError(
            f"{path}: {what} needs about {_mib(need_bytes)}, but only {_mib(free)} are free; "
            "free some space or choose another folder"
        )


def raise_if_disk_full(error: OSError, path: str | Path) -> None:
    """Raise a DiskSpaceError if that is what the error means.

    Raises:
        DiskSpaceError: the disk, or the user's quota, is full.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskSpaceError(
            f"{path}: the disk is full ({_mib(free_bytes(path))} free); free some space and run "
            "the same command again"
        ) from error


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
