"""What every kind of storage offers, and the errors that all of them raise."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from typing import Protocol
from typing import runtime_checkable

# Our own digest of an object, kept in the object's metadata.
SHA256_KEY = "sha256"


class StorageError(ValueError):
    """A path or URI that cannot be used as asked."""


class StorageUnreachable(OSError):
    """A store that did not answer, or broke off; trying again may help."""


class AlreadyExists(ValueError):
    """A conditional write found that the object exists."""


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """What a store tells about a file without sending it.

    Attributes:
        size_bytes: its size.
        version: changes when the content does (an ETag, a generation, a time of change).
        digest: what the content can be checked against: `sha256:HEX`, `md5:HEX`, `crc32c:HEX`,
            `etag:PART_BYTES:HEX-COUNT` (S3's MD5 of the parts' MD5s); empty where nothing is told.
            Our own sha256 where it was sent along, else what the store computed.
        computed: what the store itself computed of the content, in the same spelling.
        modified_s: when it was written, in seconds by the store's clock.
    """

    size_bytes: int
    version: str
    digest: str = ""
    computed: str = ""
    modified_s: float = 0.0


@runtime_checkable
class Storage(Protocol):
    """What a kind of storage can do; one object per scheme."""

    def open_read(self, uri: str) -> BinaryIO:
        """Open for reading from the start."""
        ...

    def read_range(self, uri: str, start: int, size: int, version: str) -> bytes:
        """Return `size` bytes from `start` on of a file that is still of this version."""
        ...

    def write(self, uri: str, data: bytes, *, only_if_absent: bool) -> None:
        """Write whole or not at all."""
        ...

    def upload(self, path: Path, uri: str, sha256: str) -> None:
        """Copy a local file, whole or not at all, and keep its sha256 with it."""
        ...

    def size_bytes(self, uri: str) -> int | None:
        """Return the size of a file; None when there is no such file."""
        ...

    def facts(self, uri: str) -> FileFacts | None:
        """Return what is known of a file; None when there is no such file."""
        ...

    def list_files(self, uri: str) -> Iterator[str]:
        """Yield all files under a folder, sorted, as paths or URIs."""
        ...

    def list_facts(self, uri: str) -> Iterator[tuple[str, FileFacts]]:
        """Yield the same with what the listing itself tells; see staging.fetch on its digests."""
        ...

    def delete(self, uri: str) -> None:
        """Remove a file; one that is not there is no error."""
        ...


def split_bucket(uri: str) -> tuple[str, str]:
    """Return bucket and key of s3://bucket/key.

    Raises:
        StorageError: the bucket is missing.
    """
    bucket, _, key = uri.partition("://")[2].partition("/")
    if not bucket:
        raise StorageError(f"{uri}: expected scheme://bucket/key, the bucket is missing")
    return bucket, key


def changed(uri: str) -> StorageError:
    """Return the error of a file that became another one while it was read."""
    return StorageError(f"{uri}: changed while it was read; run the same command again")
