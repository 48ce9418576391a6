"""The named public formats that a corpus may be made of: the registry, and what reads them.

    catalog.types()                         every entry by name
    catalog.read_file(type, file, ...)      documents and rejects of a file on disk
    catalog.read(type, name, stream, ...)   the same of a stream

Archives around any format are walked through under the caps of readers.py; every id says file,
archive member, and line or element.
"""

import io
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from data_pipelines import archives
from data_pipelines import inflate
from data_pipelines import walk
from data_pipelines.catalog import registry
from data_pipelines.catalog.leaf import Decoders
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf
from data_pipelines.catalog.registry import SourceType
from data_pipelines.catalog.registry import fits
from data_pipelines.catalog.registry import takes
from data_pipelines.catalog.registry import type_of
from data_pipelines.catalog.registry import types
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from data_pipelines.jsonl import BadLine

__all__ = ["Decoders", "SourceType", "fits", "read", "read_file", "takes", "type_of", "types"]

VERSION = 1  # counts up when a loader gives something else for the same file
Beside = Callable[[str], bytes | None]


def nothing_beside(path: str) -> None:
    """Say that no other file is known."""


def read(
    type_name: str,
    name: str,
    stream: BinaryIO,
    limits: Limits,
    decoders: Decoders,
    *,
    patterns: Sequence[str] = (),
    file: Path | None = None,
    beside: Beside = nothing_beside,
) -> Iterator[Document | Reject]:
    """Yield the documents and rejects of a stream in a format of the registry.

    Args:
        type_name: an entry's name.
        name: the id of the file: its path inside the source.
        stream: at its start; seekable if it is a zip.
        limits: what it may cost.
        decoders: processes that decode PDFs and media.
        patterns: which members of archives are read; the entry's by default.
        file: where the stream lies on disk, if it does.
        beside: returns the bytes of another file by its path from this one's folder, or None.

    Raises:
        ValueError: no such type, or a library that it needs is not installed.
    """
    entry = registry.type_of(type_name)
    reading = _Reading(entry, limits, decoders, tuple(patterns), file, beside)
    grouping = None
    if entry.group_by:
        key_of = walk.stem_of if entry.group_by == "stem" else walk.folder_of
        grouping = walk.Grouping(key_of, reading.group)
    yield from walk.Walk(limits, inflate.Budget(limits), reading.leaf, grouping).read(name, stream)


def read_file(
    type_name: str,
    file: Path,
    name: str,
    limits: Limits,
    decoders: Decoders,
    *,
    patterns: Sequence[str] = (),
) -> Iterator[Document | Reject]:
    """Yield the documents and rejects of a file on disk; see `read`."""
    try:
        if not file.is_file():
            yield Reject(name, "not_a_file", "a link to nothing, a folder, or not a plain file")
            return
        with file.open("rb") as stream:
            yield from read(
                type_name,
                name,
                stream,
                limits,
                decoders,
                patterns=patterns,
                file=file,
                beside=lambda path: _from_folder(file.parent, path, limits),
            )
    except PermissionError as error:
        yield Reject(name, "unreadable", f"cannot be opened: {error.strerror}")


class _Reading:
    """One file in one format."""

    def __init__(
        self,
        entry: SourceType,
        limits: Limits,
        decoders: Decoders,
        patterns: tuple[str, ...],
        file: Path | None,
        beside: Beside,
    ):
        self._entry, self._limits, self._decoders = entry, limits, decoders
        self._patterns = patterns or entry.patterns
        self._is_users = bool(patterns)
        self._file, self._beside = file, beside
        self._load = registry.loader_of(entry.loader)

    def leaf(self, name: str, path: str, stream: BinaryIO) -> Items:
        """Read a stream that is no archive."""
        is_whole = name == path  # not a member of an archive
        beside = self._beside if is_whole else nothing_beside
        yield from self._read(name, path, stream, beside, self._file if is_whole else None)

    def group(self, members: list[walk.Member]) -> Items:
        """Read members that belong together: each may look the others up."""
        by_path = {member.path: member.data for member in members}
        for member in members:
            folder = walk.folder_of(member.path)

            def beside(path: str, folder: str = folder) -> bytes | None:
                return by_path.get(f"{folder}/{path}" if folder else path)

            stream = io.BytesIO(member.data)
            yield from self._read(member.name, member.path, stream, beside, None)

    def _read(
        self, name: str, path: str, stream: BinaryIO, beside: Beside, file: Path | None
    ) -> Items:
        if not registry.fits(path, self._patterns):
            # What the user's own patterns leave out is no reject, here as in folders.
            is_told = not self._is_users and not registry.fits(path, self._entry.companions)
            if is_told:
                told = f"not one of the files of the type {self._entry.name!r}"
                yield Reject(name, "unsupported_type", told)
            return
        leaf = Leaf(name, path, stream, self._limits, self._decoders, beside, file)
        try:
            yield from self._load(leaf)
        except BadLine as bad:
            yield Reject(name, bad.kind, str(bad))
        except archives.MEMBER_ERRORS as error:
            yield archives.reject_of(name, error)


def _from_folder(folder: Path, path: str, limits: Limits) -> bytes | None:
    """Return a file below a folder, unless its path leaves it or it is larger than one may be."""
    if archives.name_problem(path):
        return None
    file = folder / path
    try:
        if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
            return None
        with file.open("rb") as stream:
            data = stream.read(limits.member_bytes + 1)
    except OSError:  # a name that no file system takes, or no permission
        return None
    return data if len(data) <= limits.member_bytes else None
