"""Members of zip and tar archives as streams, under caps. Nothing is ever extracted to disk.

Names that leave the archive, links and devices are refused and listed, not repaired. Bytes are
counted while they are inflated, because the sizes in headers may lie.
"""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import BinaryIO

from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from mistral_jax import storage

SLACK_BYTES = 1 << 20  # below this no ratio is asked: a short log may well shrink a thousandfold
SPOOL_BYTES = 16 << 20
ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
DRIVE = re.compile(r"^[A-Za-z]:")


class ArchiveError(ValueError):
    """A cap was reached; `kind` names it."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


# What the standard library raises on damaged archives: OSError comes from gzip and bz2,
# RuntimeError and NotImplementedError from zip members that are encrypted or compressed in a way
# that it lacks.
MEMBER_ERRORS = (
    ArchiveError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
)


class Budget:
    """What one outermost archive has spent."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self.inflated_bytes = 0
        self.members = 0

    def spend_bytes(self, count: int) -> None:
        """Count inflated bytes.

        Raises:
            ArchiveError: more than `total_bytes`.
        """
        self.inflated_bytes += count
        if self.inflated_bytes > self._limits.total_bytes:
            raise ArchiveError(
                "too_large", f"inflates to more than {self._limits.total_bytes} bytes"
            )

    def spend_member(self) -> None:
        """Count a member.

        Raises:
            ArchiveError: more than `max_members`.
        """
        self.members += 1
        if self.members > self._limits.max_members:
            raise ArchiveError(
                "too_many_members", f"has more than {self._limits.max_members} members"
            )


class CountingReader(io.RawIOBase):
    """Passes bytes on and counts them."""

    def __init__(self, stream: BinaryIO):
        super().__init__()
        self._stream = stream
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


class CappedReader(io.RawIOBase):
    """Passes inflated bytes on until a cap is reached."""

    def __init__(
        self,
        stream: Any,
        compressed_bytes: Callable[[], int],
        limits: Limits,
        budget: Budget,
    ):
        super().__init__()
        self._stream = stream
        self._compressed_bytes = compressed_bytes
        self._limits = limits
        self._budget = budget
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(min(len(buffer), 1 << 16))
        buffer[: len(data)] = data
        self._count += len(data)
        self._budget.spend_bytes(len(data))
        allowed = SLACK_BYTES + self._limits.max_ratio * self._compressed_bytes()
        if self._count > allowed:
            raise ArchiveError(
                "bomb", f"inflates more than {self._limits.max_ratio}-fold; it was not read further"
            )
        return len(data)


def kind_of(name: str) -> str | None:
    """Return "zip" or "tar" if a file's name (lower case) is that of an archive."""
    if name.endswith(ZIP_SUFFIXES):
        return "zip"
    return "tar" if name.endswith(TAR_SUFFIXES) else None


def members(
    name: str, stream: BinaryIO, kind: str, limits: Limits, budget: Budget
) -> Iterator[tuple[str, BinaryIO | Reject]]:
    """Yield (id, stream) of every readable member, and (id, Reject) of every other.

    A stream must be read before the next one is asked for.
    """
    reader = _zip_members if kind == "zip" else _tar_members
    try:
        yield from reader(name, stream, limits, budget)
    except MEMBER_ERRORS as error:
        yield name, reject_of(name, error)


def reject_of(name: str, error: BaseException) -> Reject:
    """Return the reject that tells of a damaged or oversized archive or member.

    Raises:
        DiskSpaceError: it was not the archive but our disk.
    """
    if isinstance(error, OSError):
        storage.raise_if_disk_full(error, tempfile.gettempdir())
    if isinstance(error, ArchiveError):
        return Reject(name, error.kind, str(error))
    if isinstance(error, RuntimeError) and "password" in str(error):
        return Reject(name, "encrypted", "needs a password")
    return Reject(
        name, "damaged_archive", f"damaged or cut short ({error or type(error).__name__})"
    )


def name_problem(member: str) -> str | None:
    """Return why a member's name is refused, None if it is a plain relative path."""
    parts = member.replace("\\", "/").split("/")
    if not member or "\0" in member:
        return "its name is empty or holds NUL"
    if member.startswith(("/", "\\")) or DRIVE.match(member):
        return "its name is an absolute path"
    if ".." in parts:
        return "its name leaves the archive by '..'"
    return None


def _zip_members(
    name: str, stream: BinaryIO, limits: Limits, budget: Budget
) -> Iterator[tuple[str, BinaryIO | Reject]]:
    with _seekable(stream, limits) as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            budget.spend_member()
            member = f"{name}!{_shown(info.orig_filename)}"
            problem = name_problem(info.orig_filename) or name_problem(info.filename)
            mode = info.external_attr >> 16
            if problem:
                yield member, Reject(member, "unsafe_name", f"{problem}; it was not read")
            elif info.is_dir() or _is_hidden(info.filename):
                continue
            elif mode & 0o170000 not in (0, 0o100000):
                yield member, Reject(member, "not_a_file", "a link or a device; it was not read")
            elif info.flag_bits & 1:
                yield member, Reject(member, "encrypted", "needs a password")
            else:
                try:
                    with archive.open(info) as inflated:
                        compressed = info.compress_size
                        capped = CappedReader(inflated, lambda c=compressed: c, limits, budget)
                        yield member, io.BufferedReader(capped)
                except ArchiveError:
                    raise
                except MEMBER_ERRORS as error:
                    yield member, reject_of(member, error)


def _tar_members(
    name: str, stream: BinaryIO, limits: Limits, budget: Budget
) -> Iterator[tuple[str, BinaryIO | Reject]]:
    counted = CountingReader(stream)
    start = io.BufferedReader(counted)
    # The caps lie below tarfile, so that members which it skips are counted too.
    plain = CappedReader(_inflated(start), lambda: counted.count, limits, budget)
    with tarfile.open(fileobj=plain, mode="r|") as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for info in archive:
            budget.spend_member()
            member = f"{name}!{_shown(info.name)}"
            problem = name_problem(info.name)
            if problem:
                yield member, Reject(member, "unsafe_name", f"{problem}; it was not read")
            elif info.isdir() or _is_hidden(info.name):
                continue
            elif not info.isreg():
                yield member, Reject(member, "not_a_file", "a link or a device; it was not read")
            else:
                content = archive.extractfile(info)
                assert content is not None, "a regular member has a stream"
                yield member, io.BufferedReader(_Forward(content))
            # A stream of a million members keeps none of them.
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]


class _Forward(io.RawIOBase):
    """A member of a stream: it can be read once, and not be sought in."""

    def __init__(self, stream: Any):
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _inflated(stream: Any) -> Any:
    """Return a stream of the tar's plain bytes, whatever the name says about compression."""
    magic = stream.peek(6)[:6]
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=stream)
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(stream)
    if magic.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(stream)
    return stream


def _is_hidden(member: str) -> bool:
    """Resource forks and dot files of whoever packed the archive are no documents."""
    parts = member.split("/")
    return any(part.startswith(".") and part != "." for part in parts) or parts[0] == "__MACOSX"


def _seekable(stream: BinaryIO, limits: Limits) -> BinaryIO:
    """Return a stream that zipfile can seek in: itself, or a copy in a nameless file."""
    if stream.seekable():
        return stream
    file = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115  read later
    size = 0
    while chunk := stream.read(1 << 16):
        size += len(chunk)
        if size > limits.member_bytes:
            raise ArchiveError(
                "too_large", f"a nested archive of more than {limits.member_bytes} bytes"
            )
        file.write(chunk)
    file.seek(0)
    return file  # pyright: ignore[reportReturnType]


def _shown(member: str) -> str:
    return member.encode("unicode_escape").decode() if not member.isprintable() else member
