"""XML as a stream of elements, safe against what XML can do to a reader.

Entities are refused: a document type with declarations of its own ends the file, an outside one is
named and never fetched. Only the element at hand is in memory, and it has a cap on size and depth.
"""

from collections.abc import Collection
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from typing import BinaryIO
from xml.etree.ElementTree import Element
from xml.parsers import expat

MAX_DEPTH = 200
CHUNK_BYTES = 1 << 16


class BadXml(ValueError):
    """The rest of the file cannot be read; `kind` names why."""

    def __init__(self, kind: str, line: int, message: str):
        super().__init__(f"line {line}: {message}")
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Found:
    """One element, or None in its place if it was larger than the cap.

    Attributes:
        number: which of the wanted elements it is, from 1.
        line: where it begins.
        tag: its name, without prefix.
        element: names of tags and attributes are without prefix.
        around: attributes of the elements around it, the inner ones first.
    """

    number: int
    line: int
    tag: str
    element: Element | None
    around: dict[str, str]


def elements(stream: BinaryIO, wanted: Collection[str], max_element_bytes: int) -> Iterator[Found]:
    """Yield the outermost elements of the wanted names as they end.

    Args:
        stream: the XML.
        wanted: names without prefixes.
        max_element_bytes: text and attributes of one element.

    Raises:
        BadXml: not well-formed, with declarations, or nested too deeply.
    """
    builder = _Builder(wanted, max_element_bytes)
    try:
        while chunk := stream.read(CHUNK_BYTES):
            builder.parser.Parse(chunk, False)
            yield from builder.take()
        builder.parser.Parse(b"", True)
    except expat.ExpatError as error:
        yield from builder.take()
        told = f"not well-formed: {expat.ErrorString(error.code)}, column {error.offset + 1}"
        raise BadXml("bad_xml", error.lineno, told) from None
    except (LookupError, ValueError) as error:
        yield from builder.take()
        if isinstance(error, BadXml):
            raise
        line = builder.parser.CurrentLineNumber
        raise BadXml("bad_xml", line, f"cannot be decoded ({error})") from None
    yield from builder.take()


def text_of(element: Element | None, *, blocks: Collection[str] = (), skip: Collection[str] = ()):
    """Return the text of an element, spaces made single, with a new line around each block.

    Args:
        element: None has no text.
        blocks: names whose text stands on lines of its own.
        skip: names whose text is left out.
    """
    if element is None:
        return ""
    parts: list[str] = []

    def add(node: Element) -> None:
        if node.tag in skip:
            return
        is_block = node.tag in blocks
        parts.append("\n" if is_block else "")
        parts.append(" ".join((node.text or "").replace("\n", " ").split(" ")))
        for child in node:
            add(child)
            parts.append(" ".join((child.tail or "").replace("\n", " ").split(" ")))
        parts.append("\n" if is_block else "")

    add(element)
    lines = (" ".join(line.split()) for line in "".join(parts).split("\n"))
    return "\n".join(line for line in lines if line)


class _Builder:
    """Handlers of expat, and the elements that are complete."""

    def __init__(self, wanted: Collection[str], max_element_bytes: int):
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.EntityDeclHandler = self._entity
        self.parser.ExternalEntityRefHandler = self._entity
        self._wanted = frozenset(wanted)
        self._max_bytes = max_element_bytes
        self._open: list[tuple[str, dict[str, str]]] = []
        self._building: list[Element] = []
        self._begin = (0, 0)  # depth and line of the element that is being built
        self._size = 0
        self._number = 0
        self._done: list[Found] = []

    def take(self) -> list[Found]:
        done, self._done = self._done, []
        return done

    def _doctype(self, name: str, system: Any, public: Any, has_declarations: int) -> None:
        if has_declarations:
            self._refuse("a document type with declarations of its own is not read")

    def _entity(self, *_: Any) -> int:
        self._refuse("entities are not read")
        return 0

    def _refuse(self, message: str) -> None:
        raise BadXml("unsafe_xml", self.parser.CurrentLineNumber, message)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        tag = _local(name)
        local = {_local(key): value for key, value in attributes.items()}
        self._open.append((tag, {} if self._building else local))
        if len(self._open) > MAX_DEPTH:
            self._refuse(f"elements are nested deeper than {MAX_DEPTH}")
        if not self._begin[0]:
            if tag not in self._wanted:
                return
            self._number += 1
            self._begin = (len(self._open), self.parser.CurrentLineNumber)
            self._size = 0
            self._building = [Element(tag, local)]
            return
        self._spend(64 + sum(len(key) + len(value) for key, value in local.items()))
        if self._building:
            child = Element(tag, local)
            self._building[-1].append(child)
            self._building.append(child)

    def _end(self, name: str) -> None:
        depth, line = self._begin
        if depth == len(self._open):
            around = {}
            for _, attributes in self._open:
                around |= attributes
            element = self._building[0] if self._building else None
            self._done.append(Found(self._number, line, _local(name), element, around))
            self._building, self._begin = [], (0, 0)
        elif self._building:
            self._building.pop()
        self._open.pop()

    def _text(self, data: str) -> None:
        if not self._begin[0]:
            return
        self._spend(len(data))
        if not self._building:
            return
        node = self._building[-1]
        if len(node):
            node[-1].tail = (node[-1].tail or "") + data
        else:
            node.text = (node.text or "") + data

    def _spend(self, count: int) -> None:
        self._size += count
        if self._size > self._max_bytes:
            self._building = []


def _local(name: str) -> str:
    return name.rpartition(":")[2]
