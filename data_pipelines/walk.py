"""Files, archives and single compressed files to leaves: streams that are no archive themselves.

Whoever walks says what a leaf is read by. Caps hold for the outermost archive as a whole; what is
wrong with one member costs that member. archives.py knows zip and tar.
"""

import gzip
import io
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_pipelines import archives
from data_pipelines import inflate
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject

Items = Iterator[Document | Reject]
TAR_MAGIC = slice(257, 262)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive that was read into memory.

    Attributes:
        name: its id.
        path: its path inside the archive.
        data: its bytes.
    """

    name: str
    path: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Grouping:
    """Members of an archive that belong together and follow one another.

    Attributes:
        key_of: the group of a member's path; a new key ends the group before it.
        read: what reads a group.
    """

    key_of: Callable[[str], str]
    read: Callable[[list[Member]], Items]


@dataclass(frozen=True, slots=True)
class Walk:
    """One walk through a file, whatever archives it is made of.

    Attributes:
        limits: what may be spent.
        budget: what the outermost archive has spent so far.
        read_leaf: reads (id, path inside the archive around it, stream).
        grouping: reads members of archives together; None reads each as a leaf.
    """

    limits: Limits
    budget: inflate.Budget
    read_leaf: Callable[[str, str, BinaryIO], Items]
    grouping: Grouping | None = None

    def read(self, name: str, stream: BinaryIO, depth: int = 0, path: str | None = None) -> Items:
        """Yield what a stream holds; its path says whether it is an archive.

        Args:
            name: the id so far.
            stream: at its start; seekable for zip archives at depth 0.
            depth: how many archives lie around it.
            path: the part of the id behind the archive around it; the whole id by default.
        """
        path = path or name
        base = path.rpartition("/")[2].lower()
        kind = archives.kind_of(base)
        is_gzip = kind is None and base.endswith(".gz")
        if kind is None and not is_gzip:
            yield from self.read_leaf(name, path, stream)
            return
        if depth >= self.limits.max_depth:
            yield Reject(
                name,
                "too_deep",
                f"archives are read to a depth of {self.limits.max_depth}; unpack it",
            )
            return
        if is_gzip:
            buffered = stream if hasattr(stream, "peek") else _Peekable(stream)
            if not holds_tar(buffered.peek(1 << 16)):  # pyright: ignore[reportAttributeAccessIssue]
                yield from self._gzip(name, path, buffered, depth)
                return
            stream, kind = buffered, "tar"
        yield from self._archive(name, stream, kind or "tar", depth)

    def _archive(self, name: str, stream: BinaryIO, kind: str, depth: int) -> Items:
        group: list[Member] = []
        for member, inner in archives.members(name, stream, kind, self.limits, self.budget):
            if isinstance(inner, Reject):
                yield inner
                continue
            path = member.removeprefix(f"{name}!")
            try:
                if self.grouping is None or is_container(path):
                    yield from self.read(member, inner, depth + 1, path)
                    continue
                taken = self._take(member, path, inner)
            except archives.MEMBER_ERRORS as error:
                yield archives.reject_of(member, error)
                continue
            if group and self.grouping.key_of(path) != self.grouping.key_of(group[-1].path):
                yield from self.grouping.read(group)
                group = []
            size = sum(len(each.data) for each in group)
            if isinstance(taken, Reject) or size + len(taken.data) > self.limits.member_bytes:
                limit = f"more than {self.limits.member_bytes} bytes, or with its group"
                yield Reject(member, "too_large", limit)
            else:
                group.append(taken)
        if group and self.grouping is not None:
            yield from self.grouping.read(group)

    def _take(self, name: str, path: str, stream: BinaryIO) -> Member | Reject:
        data = stream.read(self.limits.member_bytes + 1)
        if len(data) > self.limits.member_bytes:
            return Reject(name, "too_large", f"more than {self.limits.member_bytes} bytes")
        return Member(name, path, data)

    def _gzip(self, name: str, path: str, stream: BinaryIO, depth: int) -> Items:
        """Read a single compressed file (corpus.jsonl.gz) under the caps of an archive."""
        inner_name = path.rpartition("/")[2][: -len(".gz")]
        counted = inflate.CountingReader(stream)
        inflated = inflate.CappedReader(
            gzip.GzipFile(fileobj=counted), lambda: counted.count, self.limits, self.budget
        )
        try:
            inner = io.BufferedReader(inflated)
            yield from self.read(f"{name}!{inner_name}", inner, depth + 1, inner_name)
        except archives.MEMBER_ERRORS as error:
            yield archives.reject_of(name, error)


def is_container(path: str) -> bool:
    """Return whether a path is that of an archive or of a single compressed file."""
    base = path.rpartition("/")[2].lower()
    return archives.kind_of(base) is not None or base.endswith(".gz")


def stem_of(path: str) -> str:
    """Return a path up to the first dot of its last part, as webdataset groups members."""
    folder, slash, base = path.rpartition("/")
    return folder + slash + base.partition(".")[0]


def folder_of(path: str) -> str:
    """Return the folder of a path; "" at the top."""
    return path.rpartition("/")[0]


def suffix_of(path: str) -> str:
    """Return the last suffix of a path in lower case, with its dot."""
    return Path(path.rpartition("/")[2].lower()).suffix


def holds_tar(head: bytes) -> bool:
    """Return whether gzip's first bytes inflate to a tar, as arXiv packs a paper's sources."""
    if not head.startswith(b"\x1f\x8b"):
        return False
    try:
        first = zlib.decompressobj(wbits=31).decompress(head, 512)
    except zlib.error:
        return False
    return first[TAR_MAGIC] == b"ustar"


class _Peekable(io.BufferedReader):
    """A stream of any kind, buffered."""

    def __init__(self, stream: BinaryIO):
        super().__init__(inflate.CountingReader(stream))
