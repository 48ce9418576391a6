"""What a loader gets: a stream that is no archive, what may be spent, and what lies beside it.

And the few things that all loaders do: fields with a check, objects of JSON, rows that fail alone.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import BinaryIO

from data_pipelines import jsonl
from data_pipelines import media
from data_pipelines import pdf
from data_pipelines import readers
from data_pipelines import walk
from data_pipelines.catalog import xml_stream
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from data_pipelines.jsonl import BadLine

Items = Iterator[Document | Reject]
MAX_FACT = 2000  # characters of one fact: a title, a licence, not a text


class Decoders:
    """The processes that decode PDFs and media; use it as a context manager, for many files."""

    def __init__(self, limits: Limits, media_limits: media.MediaLimits | None = None):
        self.pdf = pdf.PdfReader(limits)
        self.media = media.MediaReader(media_limits)

    def __enter__(self) -> "Decoders":
        """Return itself; a process starts with its first file."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self.pdf.close()
        self.media.close()


@dataclass(frozen=True, slots=True)
class Leaf:
    """One file, or one member of an archive.

    Attributes:
        name: its id.
        path: inside the archive around it; the whole id without one.
        stream: at its start; may be read once.
        limits: what may be spent.
        decoders: for PDFs and media.
        beside: returns the bytes of another file by its path from this one's folder, or None.
        file: where it lies on disk; None in an archive.
    """

    name: str
    path: str
    stream: BinaryIO
    limits: Limits
    decoders: Decoders
    beside: Callable[[str], bytes | None]
    file: Path | None = None

    @property
    def suffix(self) -> str:
        """The last suffix of the path, in lower case, with its dot."""
        return walk.suffix_of(self.path)

    def data(self) -> bytes:
        """Return all bytes.

        Raises:
            BadLine: more than `member_bytes`.
        """
        data = self.stream.read(self.limits.member_bytes + 1)
        if len(data) > self.limits.member_bytes:
            raise BadLine("too_large", f"more than {self.limits.member_bytes} bytes; split it")
        return data

    def text(self, *, is_html: bool = False) -> Document | Reject:
        """Return the leaf as one text of strict UTF-8."""
        return readers.read_text(self.name, self.data(), is_html=is_html)

    def source_text(self) -> str:
        """Return the characters of a leaf in strict UTF-8.

        Raises:
            BadLine: it is no text.
        """
        read = self.text()
        if isinstance(read, Reject):
            raise BadLine(read.kind, read.reason)
        return read.text


def document(where: str, text: str, **facts: Any) -> Document:
    """Return a text with those of the facts that say something.

    Raises:
        BadLine: there is no text.
    """
    if not text.strip():
        raise BadLine("empty", "holds no text")
    return Document(where, "text", text=text, facts=said(facts))


def pair(where: str, prompt: str, completion: str, **facts: Any) -> Document:
    """Return a prompt and its completion with those of the facts that say something.

    Raises:
        BadLine: the completion is blank.
    """
    if not completion.strip():
        raise BadLine("empty", "there is no answer to the question")
    return Document(
        where, "prompt_completion", prompt=prompt, completion=completion, facts=said(facts)
    )


def said(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts without those that are empty, as Unicode of bounded length."""
    return {key: _clipped(value) for key, value in facts.items() if value not in (None, "", [])}


def _clipped(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip().encode("utf-8", "replace").decode()[:MAX_FACT]
    return value


def field(row: dict[str, Any], *names: str) -> str:
    """Return the first of the fields that is a text with something in it.

    Raises:
        BadLine: none is.
    """
    found = optional(row, *names)
    if found is None:
        wanted = " or ".join(f'"{name}"' for name in names)
        got = ", ".join(sorted(map(str, row)))[:200]
        raise BadLine("bad_schema", f"expected text in {wanted}, got the keys {got or '(none)'}")
    return found


def optional(row: dict[str, Any], *names: str) -> str | None:
    """Return the first of the fields that is a text with something in it, or None.

    Raises:
        BadLine: it is no Unicode.
    """
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise BadLine("bad_json", f'"{name}" holds half a surrogate pair') from None
            return value
    return None


def inner(row: dict[str, Any], *path: str) -> dict[str, Any]:
    """Return an object inside of objects; {} where there is none."""
    for name in path:
        value = row.get(name)
        row = value if isinstance(value, dict) else {}
    return row


def objects(leaf: Leaf, *, is_lines: bool = False) -> Iterator[tuple[str, dict | Reject]]:
    """Yield (id, object) of JSON lines, of a JSON array, or of one JSON object.

    Args:
        leaf: the file.
        is_lines: lines whatever the suffix says.
    """
    if is_lines or leaf.suffix in readers.JSONL_SUFFIXES:
        yield from jsonl.read_objects(leaf.name, leaf.stream, leaf.limits)
        return
    try:
        value = jsonl.parse(leaf.data())
    except BadLine as bad:
        yield leaf.name, Reject(leaf.name, bad.kind, str(bad))
        return
    if isinstance(value, dict):
        yield leaf.name, value
        return
    if not isinstance(value, list) or not value:
        told = f"expected an object or a list of them, got {type(value).__name__}"
        yield leaf.name, Reject(leaf.name, "bad_schema", told)
        return
    for number, row in enumerate(value, 1):
        where = f"{leaf.name}#{number}"
        told = f"element {number}: expected an object, got {type(row).__name__}"
        yield where, row if isinstance(row, dict) else Reject(where, "bad_schema", told)


def found_elements(leaf: Leaf, wanted: set[str]) -> Iterator[tuple[str, xml_stream.Found | Reject]]:
    """Yield (id, element) of XML, and last a Reject if the file cannot be read to its end."""
    number = 0
    try:
        for found in xml_stream.elements(leaf.stream, wanted, leaf.limits.member_bytes):
            number = found.number
            where = f"{leaf.name}#{number}"
            if found.element is None:
                told = f"line {found.line}: <{found.tag}> is larger than the cap"
                yield where, Reject(where, "too_large", told)
            else:
                yield where, found
    except xml_stream.BadXml as bad:
        where = f"{leaf.name}#{number + 1}"
        yield where, Reject(where, bad.kind, str(bad))
        return
    if not number:
        told = f"expected elements of the name {' or '.join(sorted(wanted))}, found none"
        yield leaf.name, Reject(leaf.name, "bad_schema", told)


def each[T](
    rows: Iterable[tuple[str, T | Reject]],
    make: Callable[[str, T], Document | Reject | Iterable[Document | Reject] | None],
) -> Items:
    """Yield what `make` makes of every row; what it refuses by BadLine costs that row alone."""
    for where, row in rows:
        if isinstance(row, Reject):
            yield row
            continue
        try:
            made = make(where, row)
            if isinstance(made, Document | Reject):
                yield made
            elif made is not None:
                yield from made
        except BadLine as bad:
            yield Reject(where, bad.kind, str(bad))
        except RecursionError:
            yield Reject(where, "bad_schema", "nested too deeply")
