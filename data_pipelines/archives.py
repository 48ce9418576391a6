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
from tarfile import ReadError as TarReadError
from typing import Any
from typing import BinaryIO

from data_pipelines import inflate
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from data_pipelines.documents import shown_name
from mistral_jax import storage

SPOOL_BYTES = 16 << 20
ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# ValueError comes from numbers and sparse maps in headers that make no sense.
HEADER_ERRORS = (
    tarfile.EmptyHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    tarfile.TruncatedHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    tarfile.InvalidHeaderError,  # pyright: ignore[reportAttributeAccessIssue]
    ValueError,
)
DRIVE = re.compile(r"^[A-Za-z]:")


# What the standard library raises on damaged archives: OSError comes from gzip and bz2,
# RuntimeError and NotImplementedError from zip members that are encrypted or compressed in a way
# that it lacks.
MEMBER_ERRORS = (
    inflate.ArchiveError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
)


def kind_of(name: str) -> str | None:
    """Return "zip" or "tar" if a file's name (lower case) is that of an archive."""
    if name.endswith(ZIP_SUFFIXES):
        return "zip"
    return "tar" if name.endswith(TAR_SUFFIXES) else None


def members(
    name: str, stream: BinaryIO, kind: str, limits: Limits, budget: inflate.Budget
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
    if isinstance(error, inflate.ArchiveError):
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
    name: str, stream: BinaryIO, limits: Limits, budget: inflate.Budget
) -> Iterator[tuple[str, BinaryIO | Reject]]:
    with seekable(stream, limits) as file, _call_zipfile(lambda: zipfile.ZipFile(file)) as archive:
        # What is left of the archive for the members to come, whatever its headers say.
        compressed_bytes = file.seek(0, 2)
        for info in archive.infolist():
            budget.spend_member()
            member = f"{name}!{shown_name(info.orig_filename)}"
            problem = name_problem(info.orig_filename) or name_problem(info.filename)
            if problem:
                yield member, Reject(member, "unsafe_name", f"{problem}; it was not read")
            elif info.is_dir() or _is_hidden(info.filename):
                continue
            elif refused := _refused_in_zip(member, info):
                yield member, refused
            else:
                allowed = min(info.compress_size, compressed_bytes)
                compressed_bytes -= allowed
                try:
                    with _call_zipfile(lambda each=info: archive.open(each)) as inflated:
                        capped = inflate.CappedReader(inflated, lambda c=allowed: c, limits, budget)
                        yield member, io.BufferedReader(capped)
                except inflate.ArchiveError:
                    raise
                except MEMBER_ERRORS as error:
                    yield member, reject_of(member, error)


def _refused_in_zip(member: str, info: zipfile.ZipInfo) -> Reject | None:
    """Return why a member is not read, by what its header says."""
    if (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
        return Reject(member, "not_a_file", "a link or a device; it was not read")
    if info.flag_bits & 1:
        return Reject(member, "encrypted", "needs a password")
    # zipfile inflates the others without a bound on what comes out of one read.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return Reject(
            member,
            "unsupported_compression",
            f"compressed by method {info.compress_type}; pack the zip with deflate",
        )
    return None


def _call_zipfile[T](call: Callable[[], T]) -> T:
    """Call zipfile, which lets the ValueErrors of what it is built on through.

    Raises:
        zipfile.BadZipFile: a name is not what its flag says, or an offset makes no sense.
    """
    try:
        return call()
    except ValueError as error:
        raise zipfile.BadZipFile(str(error)) from None


class _StrictTarInfo(tarfile.TarInfo):
    """Headers of a tar. A damaged one behind the first is an error, not the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> "_StrictTarInfo":
        """Read the next header; only the block of zeros behind the last member ends an archive."""
        try:
            return super().fromtarfile(tarfile)
        except inflate.ArchiveError:
            raise
        except HEADER_ERRORS as error:
            raise TarReadError(f"header at byte {tarfile.offset}: {error}") from None


def _tar_members(
    name: str, stream: BinaryIO, limits: Limits, budget: inflate.Budget
) -> Iterator[tuple[str, BinaryIO | Reject]]:
    counted = inflate.CountingReader(stream)
    start = io.BufferedReader(counted)
    # The caps lie below tarfile, so that members which it skips are counted too.
    plain = inflate.CappedReader(_inflated(start), lambda: counted.count, limits, budget)
    with tarfile.open(fileobj=plain, mode="r|", tarinfo=_StrictTarInfo) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for info in archive:
            budget.spend_member()
            member = f"{name}!{shown_name(info.name)}"
            problem = name_problem(info.name)
            if problem:
                yield member, Reject(member, "unsafe_name", f"{problem}; it was not read")
            elif info.isdir() or _is_hidden(info.name):
                continue
            elif info.issparse():
                # A few bytes may stand for any length of zeros, which no cap on reading sees.
                yield member, Reject(member, "sparse_file", "a sparse file; pack it without holes")
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


def seekable(stream: BinaryIO, limits: Limits) -> BinaryIO:
    """Return a stream that can be sought in: itself, or a copy in a nameless file.

    Raises:
        ArchiveError: a copy would take more than `member_bytes`.
    """
    if stream.seekable():
        return stream
    file = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115  read later
    size = 0
    while chunk := stream.read(1 << 16):
        size += len(chunk)
        if size > limits.member_bytes:
            raise inflate.ArchiveError(
                "too_large", f"a nested file of more than {limits.member_bytes} bytes"
            )
        file.write(chunk)
    file.seek(0)
    return file  # pyright: ignore[reportReturnType]
