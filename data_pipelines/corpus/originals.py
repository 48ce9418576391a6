"""A row's text as it was read, found again in its source by its id, while that is on this machine.

Leaves that the id does not name are passed over unread, and so are the lines before its own.
"""

import dataclasses
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import BinaryIO

from data_pipelines import archives
from data_pipelines import inflate
from data_pipelines import jsonl
from data_pipelines import pdf
from data_pipelines import readers
from data_pipelines import walk
from data_pipelines.corpus import places
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from data_pipelines.documents import shown_name
from mistral_jax import storage
from mistral_jax.config.corpus_sources import CorpusSource

PLAIN_TYPE = "documents"  # what readers.py reads; other types have loaders of their own
TIMEOUT_S = 30.0  # for looking at one row


class NoOriginal(ValueError):
    """The text cannot be read again; the message says why."""


def read(manifest: dict[str, Any], wanted: str, *, timeout_s: float = TIMEOUT_S) -> Document:
    """Return the document of an id.

    Args:
        manifest: the corpus's; its settings name the sources.
        wanted: the id, such as "books/shelf/a.zip!chapter.jsonl#12": the source's name first.
        timeout_s: how long to search.

    Raises:
        NoOriginal: the source is not here or has changed, or the search took too long.
    """
    source = _source_of(manifest, wanted)
    file, name = _file_of(source, wanted)
    deadline_s = time.monotonic() + timeout_s
    try:
        found = next(_documents(source, file, name, wanted, deadline_s), None)
    except TimeoutError:
        raise NoOriginal(f"the search in {file} took over {timeout_s:g} s") from None
    except archives.MEMBER_ERRORS as error:
        raise NoOriginal(f"{file}: {archives.reject_of(name, error).reason}") from None
    if isinstance(found, Document):
        return found
    raise NoOriginal(f"{file}: {found.reason if found else 'it is not in there any more'}")


def _source_of(manifest: dict[str, Any], wanted: str) -> CorpusSource:
    name = wanted.partition("/")[0]
    for one in (manifest.get("settings") or {}).get("sources", ()):
        if one.get("name") == name:
            return CorpusSource.model_validate_json(json.dumps(one))
    raise NoOriginal(f"the corpus has no source {name!r}")


def _file_of(source: CorpusSource, wanted: str) -> tuple[Path, str]:
    """Return the file of an id, and the part of the id that names it."""
    paths = (source.path,) if isinstance(source.path, str) else source.path
    prefix, path = f"{source.name}/", paths[0]
    if len(paths) > 1:  # the source's name is followed by the place of the path
        place = wanted.removeprefix(prefix).partition("/")[0]
        if not place.isdecimal() or int(place) >= len(paths):
            raise NoOriginal(f"source {source.name!r} has no path {place!r}")
        prefix, path = f"{prefix}{place}/", paths[int(place)]
    if storage.is_remote(path):
        raise NoOriginal(f"it lies in {path}, and nothing was fetched")
    root, inner = Path(places.place_of(path)).expanduser(), wanted.removeprefix(prefix)
    # "!" and "#" may stand in a file's own name too: every cut is tried, the longest first.
    cuts = [place for place, letter in enumerate(inner) if letter in "!#"]
    for cut in (len(inner), *reversed(cuts)):
        if not inner[:cut] or archives.name_problem(inner[:cut]):
            continue
        on_disk = _unshown(inner[:cut])
        file = root if root.is_file() else root / on_disk
        if file.is_file() and (file != root or root.name == on_disk):
            return file, prefix + inner[:cut]
    raise NoOriginal(f"it is not in {root} any more")


def _unshown(name: str) -> str:
    """Return the name on disk that `shown_name` spells so."""
    if "\\" not in name or not name.isascii():
        return name
    try:
        on_disk = name.encode("ascii").decode("unicode_escape")
    except UnicodeDecodeError:
        return name  # has a backslash of its own
    is_it = shown_name(on_disk) == name and not archives.name_problem(on_disk)
    return on_disk if is_it else name


def _documents(
    source: CorpusSource, file: Path, name: str, wanted: str, deadline_s: float
) -> Iterator[Document | Reject]:
    """Yield what has the wanted id, and what is wrong with an archive around it."""
    if source.type == PLAIN_TYPE:
        found = _plain(file, name, wanted, deadline_s)
    else:
        found = _by_loader(source, file, name, deadline_s)
    for item in found:
        is_around = isinstance(item, Reject) and wanted.startswith(f"{item.id}!")
        if item.id == wanted or is_around:
            yield item


def _plain(file: Path, name: str, wanted: str, deadline_s: float) -> Iterator[Document | Reject]:
    limits = Limits()
    with pdf.PdfReader(limits) as pdf_reader, file.open("rb") as stream:

        def read_leaf(leaf: str, path: str, inner: BinaryIO) -> Iterator[Document | Reject]:
            _check(deadline_s)
            rest = wanted.removeprefix(leaf)
            if not wanted.startswith(leaf) or rest[:1] not in ("", "#"):
                return
            if walk.suffix_of(path) in readers.JSONL_SUFFIXES and rest[1:].isdecimal():
                yield from _line(leaf, inner, int(rest[1:]), limits, deadline_s)
            else:
                yield from readers.read_document(leaf, path, inner, limits, pdf_reader)

        yield from walk.Walk(limits, inflate.Budget(limits), read_leaf).read(name, stream)


def _line(
    name: str, stream: BinaryIO, number: int, limits: Limits, deadline_s: float
) -> Iterator[Document | Reject]:
    """Yield one line of JSONL; those before it are not parsed."""
    cap = limits.line_bytes + 1
    line = b""
    for passed in range(number):
        if passed % 4096 == 0:
            _check(deadline_s)
        line = part = stream.readline(cap)
        while len(part) == cap and not part.endswith(b"\n"):
            part = stream.readline(cap)
    if not line.strip():  # the file has fewer lines now, or this one is blank
        return
    for item in jsonl.read_jsonl(name, io.BytesIO(line), limits):
        yield dataclasses.replace(item, id=f"{name}#{number}")


def _by_loader(
    source: CorpusSource, file: Path, name: str, deadline_s: float
) -> Iterator[Document | Reject]:
    from data_pipelines import catalog  # its loaders and their libraries, where they are needed

    limits = Limits()
    with catalog.Decoders(limits) as decoders:
        for item in catalog.read_file(
            source.type, file, name, limits, decoders, patterns=source.patterns
        ):
            _check(deadline_s)
            yield item


def _check(deadline_s: float) -> None:
    if time.monotonic() > deadline_s:
        raise TimeoutError
