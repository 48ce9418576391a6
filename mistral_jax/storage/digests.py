"""A local file against what a store tells of its content: MD5, CRC32C, sha256, or S3's of parts."""

import hashlib
import os
from pathlib import Path

READ_BYTES = 1 << 20


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
