"""Files by path or URI: read, list, write atomically, digest. Local paths, s3:// and gs://.

The only place that talks to object stores; boto3 and gcsfs are imported when a URI asks for them.
A write is seen whole or not at all: locally by a temporary file, fsync and rename, in a bucket
because an object appears when its upload is complete.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from typing import Protocol
from typing import runtime_checkable

READ_CHUNK_BYTES = 1 << 20


class StorageError(ValueError):
    """A path or URI that cannot be used as asked."""


class DiskSpaceError(ValueError):
    """Too little free space for what is about to be written; the CLI exits with 3."""

    exit_code = 3  # refused by a gate; see cli.py


class AlreadyExists(ValueError):
    """A conditional write found that the object exists."""


@runtime_checkable
class Storage(Protocol):
    """What a kind of storage can do; one object per scheme."""

    def open_read(self, uri: str) -> BinaryIO:
        """Open for reading from the start."""
        ...

    def write(self, uri: str, data: bytes, *, only_if_absent: bool) -> None:
        """Write whole or not at all."""
        ...

    def size_bytes(self, uri: str) -> int | None:
        """Return the size of a file; None when there is no such file."""
        ...

    def list_files(self, uri: str) -> Iterator[str]:
        """Yield all files under a folder, sorted, as paths or URIs."""
        ...


class LocalStorage:
    """Plain files."""

    def open_read(self, uri: str) -> BinaryIO:
        """Open a local file for reading."""
        return Path(_local(uri)).open("rb")

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
            os.chmod(temporary, 0o666 & ~_umask())
            if only_if_absent:
                os.link(temporary, path)
            else:
                os.replace(temporary, path)
        except FileExistsError:
            raise AlreadyExists(f"{path}: exists already; nothing was written") from None
        finally:
            Path(temporary).unlink(missing_ok=True)
        sync_folder(path.parent)

    def size_bytes(self, uri: str) -> int | None:
        """Return the size of a local file; None when there is no such file."""
        path = Path(_local(uri))
        return path.stat().st_size if path.is_file() else None

    def list_files(self, uri: str) -> Iterator[str]:
        """Yield all files under a folder, sorted by path."""
        root = Path(_local(uri))
        yield from sorted(str(path) for path in root.rglob("*") if path.is_file())


class S3Storage:
    """Objects in S3 or a store that speaks its protocol (endpoint from AWS_ENDPOINT_URL)."""

    def __init__(self) -> None:
        """Make a client; credentials come from the usual places of boto3."""
        try:
            import boto3
        except ImportError:
            raise StorageError(
                "s3:// needs boto3, which is not installed; install mistral_jax[data]"
            ) from None
        self._client = boto3.client("s3")

    def open_read(self, uri: str) -> BinaryIO:
        """Download an object into a temporary file, which goes when it is closed."""
        bucket, key = split_bucket(uri)
        file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
        self._client.download_fileobj(bucket, key, file)
        file.seek(0)
        return file  # pyright: ignore[reportReturnType]

    def write(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Put an object; `only_if_absent` uses If-None-Match, which the store must honour."""
        from botocore.exceptions import ClientError

        bucket, key = split_bucket(uri)
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        try:
            self._client.put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            if only_if_absent and error.response["Error"]["Code"] == "PreconditionFailed":
                raise AlreadyExists(f"{uri}: exists already; nothing was written") from None
            raise

    def size_bytes(self, uri: str) -> int | None:
        """Return the size of an object; None when there is no such object."""
        from botocore.exceptions import ClientError

        bucket, key = split_bucket(uri)
        try:
            return self._client.head_object(Bucket=bucket, Key=key)["ContentLength"]
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise

    def list_files(self, uri: str) -> Iterator[str]:
        """Yield the URIs of all objects under a prefix, sorted."""
        bucket, key = split_bucket(uri)
        prefix = f"{key.rstrip('/')}/" if key else ""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for found in page.get("Contents", []):
                if not found["Key"].endswith("/"):
                    yield f"s3://{bucket}/{found['Key']}"


class GsStorage:
    """Objects in Google Cloud Storage."""

    def __init__(self) -> None:
        """Make a file system; credentials come from the usual places of gcsfs."""
        try:
            import gcsfs
        except ImportError:
            raise StorageError(
                "gs:// needs gcsfs, which is not installed; install mistral_jax[data]"
            ) from None
        self._files = gcsfs.GCSFileSystem()

    def open_read(self, uri: str) -> BinaryIO:
        """Open an object for reading."""
        return self._files.open(uri, "rb")

    def write(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Put an object; `only_if_absent` makes the store refuse when it exists."""
        try:
            self._files.pipe_file(uri, data, mode="create" if only_if_absent else "overwrite")
        except FileExistsError:
            raise AlreadyExists(f"{uri}: exists already; nothing was written") from None

    def size_bytes(self, uri: str) -> int | None:
        """Return the size of an object; None when there is no such object."""
        return self._files.info(uri)["size"] if self._files.isfile(uri) else None

    def list_files(self, uri: str) -> Iterator[str]:
        """Yield the URIs of all objects under a prefix, sorted."""
        yield from sorted(f"gs://{name}" for name in self._files.find(uri))


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


def list_files(uri: str | Path) -> list[str]:
    """Return all files under a folder or prefix, sorted."""
    return list(storage_for(uri).list_files(str(uri)))


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


def split_bucket(uri: str) -> tuple[str, str]:
    """Return bucket and key of s3://bucket/key.

    Raises:
        StorageError: the bucket is missing.
    """
    bucket, _, key = uri.partition("://")[2].partition("/")
    if not bucket:
        raise StorageError(f"{uri}: expected scheme://bucket/key, the bucket is missing")
    return bucket, key


def sync_folder(folder: str | Path) -> None:
    """Make the names in a folder durable, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _local(uri: str) -> str:
    return uri.removeprefix("file://")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
