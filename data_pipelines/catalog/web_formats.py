"""Loaders of web archives (WARC, WET), Project Gutenberg and news (NITF, NewsML-G2, CC-News).

Specifications: ISO 28500 (WARC 1.1); IPTC's NITF 3.6 and NewsML-G2.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_pipelines import html_text
from data_pipelines.catalog import leaf as leaves
from data_pipelines.catalog import xml_stream
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.jsonl import BadLine

MAX_HEADER_LINES, MAX_HEADER_BYTES = 200, 1 << 16
CHARSETS = {"utf-8": "utf-8", "utf8": "utf-8", "us-ascii": "ascii", "ascii": "ascii",
            "iso-8859-1": "cp1252", "latin1": "cp1252", "windows-1252": "cp1252"}  # fmt: skip
NEWS_BLOCKS = {"p", "hl1", "hl2", "headline", "lead", "li", "td", "block"}
# The words that Project Gutenberg puts around a book; older ones begin without "THE".
BOOK_START = re.compile(r"(?m)^\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG EBOOK.*$")
BOOK_END = re.compile(r"(?m)^\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG EBOOK.*$")
BOOK_FACT = re.compile(r"(?m)^(Title|Author|Language|Release [Dd]ate): *(.{1,300})$")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a WARC: its headers by lower-case name, and its block."""

    headers: dict[str, str]
    block: bytes


def read_warc(leaf: Leaf) -> Items:
    """Yield the pages of a WARC (responses of HTTP) and the texts of a WET (conversions)."""
    yield from leaves.each(_records(leaf), _page)


def _records(leaf: Leaf) -> Iterator[tuple[str, Record | Reject]]:
    number, is_lost = 0, False
    while line := leaf.stream.readline(MAX_HEADER_BYTES):
        if not line.strip():
            continue
        if not line.startswith(b"WARC/1."):
            if not is_lost:
                where = f"{leaf.name}#{number + 1}"
                told = "expected a record that begins with WARC/1.x; skipped to the next one"
                yield where, Reject(where, "bad_warc", told)
            is_lost = True
            continue
        number, is_lost = number + 1, False
        where = f"{leaf.name}#{number}"
        headers = _headers(leaf)
        length = "" if headers is None else headers.get("content-length", "")
        if headers is None or not length.isdecimal() or len(length) > 15:
            yield where, Reject(where, "bad_warc", "headers without a sound Content-Length")
            is_lost = True
            continue
        yield where, _record(leaf, where, headers, int(length))
    if not number:
        yield leaf.name, Reject(leaf.name, "bad_warc", "holds no record of WARC/1.x")


def _headers(leaf: Leaf) -> dict[str, str] | None:
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADER_LINES):
        line = leaf.stream.readline(MAX_HEADER_BYTES).rstrip(b"\r\n")
        if not line:
            return headers
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return None


def _record(leaf: Leaf, where: str, headers: dict[str, str], length: int) -> Record | Reject:
    cap = leaf.limits.member_bytes
    block = leaf.stream.read(min(length, cap))
    left = length - len(block)
    while left and len(block) == cap and (skipped := len(leaf.stream.read(min(left, 1 << 20)))):
        left -= skipped
    if length > cap:
        return Reject(where, "too_large", f"a record of {length} bytes; at most {cap} are read")
    if left:
        return Reject(where, "bad_warc", f"cut short: {length} bytes said, {len(block)} found")
    kind, _, digest = headers.get("warc-block-digest", "").partition(":")
    if (
        kind.lower() == "sha1"
        and digest.upper()
        != base64.b32encode(hashlib.sha1(block, usedforsecurity=False).digest()).decode()
    ):
        return Reject(where, "bad_digest", "the block's sha1 is not the one that its headers say")
    return Record(headers, block)


def _page(where: str, record: Record) -> Document | None:
    headers = record.headers
    kind = headers.get("warc-type")
    if kind == "conversion":
        text = _decoded(record.block, "utf-8")
    elif kind == "response" and "http" in headers.get("content-type", "http"):
        text = _html(record.block)
    else:
        return None  # about the archive, or what was asked; no page
    return leaves.document(
        where,
        text,
        title=text.partition("\n")[0][:200],
        url=headers.get("warc-target-uri", "").strip("<>"),
        date=headers.get("warc-date"),
        language=headers.get("warc-identified-content-language", "").partition(",")[0],
    )


def _html(block: bytes) -> str:
    head, _, body = block.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    if not status.startswith("HTTP/"):
        raise BadLine("bad_warc", "the response does not begin with HTTP/")
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    if not re.match(r"HTTP/\S+ 2\d\d", status):
        raise BadLine("not_a_page", f"the server answered {status[:60]!r}")
    if fields.get("content-encoding", "identity") not in ("identity", ""):
        coding = fields["content-encoding"]
        raise BadLine("unsupported_encoding", f"the body is still encoded as {coding[:40]!r}")
    kind, _, rest = fields.get("content-type", "text/html").partition(";")
    if kind.strip().lower() not in ("text/html", "application/xhtml+xml", "text/plain"):
        raise BadLine("not_a_page", f"content of type {kind[:60]!r}")
    asked = re.search(r"charset=\"?([\w-]{1,40})", rest)
    text = _decoded(body, asked[1].lower() if asked else "utf-8")
    return text if kind.strip() == "text/plain" else html_text.html_text(text)


def _decoded(data: bytes, charset: str) -> str:
    if charset not in CHARSETS:
        raise BadLine("unsupported_encoding", f"text in {charset!r}")
    try:
        return data.decode(CHARSETS[charset])
    except UnicodeDecodeError as error:
        told = f"byte {error.start} is not {CHARSETS[charset]}"
        raise BadLine("not_utf8", told) from None


def read_book(leaf: Leaf) -> Items:
    """Yield a book of Project Gutenberg without what stands around it."""
    source = leaf.source_text()
    start, end = BOOK_START.search(source), BOOK_END.search(source)
    if start is None or end is None or end.start() < start.end():
        missing = "START" if start is None else "END"
        lines = source.count("\n") + 1
        told = f'expected "*** {missing} OF THE PROJECT GUTENBERG EBOOK" in {lines} lines'
        raise BadLine("bad_book", f"{told}; the file is cut short or another edition")
    facts = {name.lower(): value for name, value in BOOK_FACT.findall(source[: start.start()])}
    yield leaves.document(
        leaf.name,
        source[start.end() : end.start()].strip(),
        title=facts.get("title"),
        author=facts.get("author"),
        language=facts.get("language"),
        date=facts.get("release date"),
    )


def read_news(leaf: Leaf) -> Items:
    """Yield articles: NITF or NewsML-G2 (XML), CC-News and the like (JSON)."""
    if leaf.suffix in (".xml", ".nitf", ".newsml"):
        yield from leaves.each(leaves.found_elements(leaf, {"nitf", "newsItem"}), _news_xml)
    else:
        yield from leaves.each(leaves.objects(leaf), _news_json)


def _news_json(where: str, row: dict[str, Any]) -> Document:
    text = leaves.field(row, "maintext", "text", "content", "body")
    title = leaves.optional(row, "title", "headline")
    return leaves.document(
        where,
        f"{title}\n\n{text}" if title and not text.startswith(title) else text,
        title=title,
        url=leaves.optional(row, "url", "requested_url"),
        date=leaves.optional(row, "date_publish", "date", "published"),
        language=leaves.optional(row, "language", "lang"),
        publisher=leaves.optional(row, "source_domain", "domain", "publisher"),
        licence=leaves.optional(row, "license", "licence"),
    )


def _news_xml(where: str, found: xml_stream.Found) -> Document:
    item = found.element
    assert item is not None, "larger ones were rejected before"
    title = next(
        (text for tag in ("headline", "hl1", "title") if (text := _first_text(item, tag))), ""
    )
    paragraphs = [xml_stream.text_of(each) for each in item.iter("p")]
    if not any(paragraphs):
        raise BadLine("bad_schema", f"line {found.line}: an article without paragraphs <p>")
    rights = item.find(".//doc.copyright")
    holder = None if rights is None else rights.get("holder")
    date = item.find(".//date.issue")
    return leaves.document(
        where,
        "\n\n".join(filter(None, [title, *paragraphs])),
        title=title,
        licence=_first_text(item, "usageTerms") or (f"copyright {holder}" if holder else None),
        date=_first_text(item, "versionCreated")
        or (date.get("norm") if date is not None else None),
        language=item.get("lang") or found.around.get("lang"),
    )


def _first_text(element: Any, tag: str) -> str:
    return xml_stream.text_of(element.find(f".//{tag}"))
