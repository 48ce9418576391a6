"""Raw inputs to documents, as a stream: folders, files, archives; text, Markdown, source code,
HTML, PDF, JSONL.

Nothing is extracted to disk and nothing is dropped in silence: what cannot be used comes out as a
Reject with its reason. Archives are read in archives.py, PDFs in pdf.py.
"""

import gzip
import hashlib
import html.parser
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_pipelines import archives
from data_pipelines import jsonl
from data_pipelines import pdf
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject

# fmt: off
TEXT_SUFFIXES = frozenset({
    ".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".tex", ".org", ".log", ".csv", ".tsv",
    ".py", ".pyi", ".ipy", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".rs", ".go",
    ".java", ".kt", ".scala", ".js", ".jsx", ".ts", ".tsx", ".mjs", ".rb", ".php", ".pl", ".pm",
    ".lua", ".r", ".jl", ".hs", ".ml", ".ex", ".exs", ".erl", ".clj", ".swift", ".m", ".cs",
    ".fs", ".sql", ".sh", ".bash", ".zsh", ".ps1", ".bat", ".cmake", ".make", ".mk", ".proto",
    ".thrift", ".graphql", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".xml", ".css",
    ".scss", ".dockerfile", ".lean", ".v", ".agda", ".f90", ".f", ".asm", ".s", ".vim", ".el",
    ".lisp", ".scm", ".dart", ".zig",
})
TEXT_NAMES = frozenset({
    "readme", "license", "licence", "copying", "authors", "changelog", "news", "makefile",
    "dockerfile",
})
# fmt: on
HTML_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
KINDS_SHOWN = 8


class NoDocuments(ValueError):
    """An input without a single usable document."""


def list_inputs(path: str | Path, *, exclude: Path | None = None) -> list[Path]:
    """Return the files of an input in a fixed order; hidden files and folders are left out.

    Args:
        path: a file, or a folder that is searched to its depth without following linked folders.
        exclude: a folder to leave out (the output, if it lies inside).

    Raises:
        ValueError: there is no such path, or the folder has no files.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise ValueError(f"{root}: expected a file or a folder of documents, found nothing there")
    excluded = exclude.resolve() if exclude else None
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in SKIPPED_FOLDERS
            and (here / name).resolve() != excluded
        )
        found += [here / name for name in sorted(names) if not name.startswith(".")]
    if not found:
        raise NoDocuments(
            f"{root}: the folder is empty; expected PDF, Markdown, text, source code, HTML, "
            "JSONL, or zip and tar archives of them"
        )
    return found


def read_documents(
    path: str | Path, limits: Limits | None = None, *, exclude: Path | None = None
) -> Iterator[Document | Reject]:
    """Yield every document, and every reject, of a file, a folder or an archive.

    Raises:
        NoDocuments: nothing usable came out; the message lists what was seen.
        ValueError: there is no such path.
    """
    root = Path(path)
    limits = limits or Limits()
    num_documents = 0
    rejects: dict[str, int] = {}
    examples: list[Reject] = []
    with pdf.PdfReader(limits) as pdf_reader:
        for file in list_inputs(root, exclude=exclude):
            for item in read_file(file, name_of(file, root), limits, pdf_reader):
                if isinstance(item, Document):
                    num_documents += 1
                else:
                    rejects[item.kind] = rejects.get(item.kind, 0) + 1
                    examples.append(item)
                    del examples[KINDS_SHOWN:]
                yield item
    if not num_documents:
        raise no_documents(root, rejects, examples)


def no_documents(root: Path, rejects: dict[str, int], examples: list[Reject]) -> NoDocuments:
    """Return the error for an input without a usable document."""
    counts = ", ".join(f"{count} x {kind}" for kind, count in sorted(rejects.items()))
    shown = "; ".join(f"{each.id}: {each.reason}" for each in examples[:KINDS_SHOWN])
    return NoDocuments(f"{root}: no usable document; seen: {counts or 'nothing'} ({shown})")


def name_of(file: Path, root: Path) -> str:
    """Return the id of a file: its path inside the input, with forward slashes."""
    return file.name if file == root else file.relative_to(root).as_posix()


def read_file(
    file: Path, name: str, limits: Limits, pdf_reader: pdf.PdfReader
) -> Iterator[Document | Reject]:
    """Yield the documents and rejects of one file, which may be an archive."""
    try:
        if not file.is_file():
            yield Reject(name, "not_a_file", "a link to nothing, or not a plain file")
            return
        with file.open("rb") as stream:
            yield from read_stream(name, stream, limits, pdf_reader, archives.Budget(limits))
    except PermissionError as error:
        yield Reject(name, "unreadable", f"cannot be opened: {error.strerror}")


def read_stream(
    name: str,
    stream: BinaryIO,
    limits: Limits,
    pdf_reader: pdf.PdfReader,
    budget: archives.Budget,
    depth: int = 0,
) -> Iterator[Document | Reject]:
    """Yield what a stream holds; its name says what it is.

    Args:
        name: the id so far; what follows the last "!" or "/" is the file's name.
        stream: at its start; seekable for zip archives at depth 0.
        limits: what may be spent.
        pdf_reader: the process that reads PDFs.
        budget: what the outermost archive has spent so far.
        depth: how many archives lie around it.
    """
    base = name.rpartition("!")[2].rpartition("/")[2].lower()
    suffix = Path(base).suffix
    kind = archives.kind_of(base)
    if kind is not None:
        if depth >= limits.max_depth:
            yield Reject(
                name, "too_deep", f"archives are read to a depth of {limits.max_depth}; unpack it"
            )
            return
        for member, inner in archives.members(name, stream, kind, limits, budget):
            if isinstance(inner, Reject):
                yield inner
            else:
                try:
                    yield from read_stream(member, inner, limits, pdf_reader, budget, depth + 1)
                except archives.MEMBER_ERRORS as error:
                    yield archives.reject_of(member, error)
    elif suffix == ".gz":
        yield from _read_gzip(name, stream, limits, pdf_reader, budget, depth)
    elif suffix in JSONL_SUFFIXES:
        yield from jsonl.read_jsonl(name, stream, limits)
    elif suffix == ".pdf" or suffix in HTML_SUFFIXES or _is_text(base, suffix):
        data = stream.read(limits.member_bytes + 1)
        if len(data) > limits.member_bytes:
            yield Reject(name, "too_large", f"more than {limits.member_bytes} bytes; split it")
        elif suffix == ".pdf":
            yield pdf_reader.read(name, data)
        else:
            yield read_text(name, data, is_html=suffix in HTML_SUFFIXES)
    else:
        yield Reject(name, "unsupported_type", f"files of type {suffix or base!r} are not read")


def read_text(name: str, data: bytes, *, is_html: bool) -> Document | Reject:
    """Return a text file as a document; only strict UTF-8 passes."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Reject(
            f"{name}#{line}",
            "not_utf8",
            f"line {line}, byte {error.start}: not UTF-8; save the file as UTF-8",
        )
    if "\0" in text:
        return Reject(name, "binary", "holds NUL characters, so it is not text")
    if is_html:
        text = html_text(text)
    if not text.strip():
        return Reject(name, "empty", "holds no text")
    return Document(name, "text", text=text, source_digest=hashlib.sha256(data).hexdigest())


def html_text(source: str) -> str:
    """Return the readable text of an HTML page, block by block, without scripts and styles."""
    parser = _HtmlText()
    parser.feed(source)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)


class _HtmlText(html.parser.HTMLParser):
    """Collects text outside of script and style; a block's border is a new line."""

    SILENT = frozenset({"script", "style", "template", "noscript", "svg"})
    # fmt: off
    BLOCKS = frozenset({
        "p", "div", "br", "li", "ul", "ol", "dl", "dt", "dd", "tr", "table", "h1", "h2", "h3",
        "h4", "h5", "h6", "pre", "blockquote", "section", "article", "header", "footer", "main",
        "nav", "aside", "title", "hr",
    })
    # fmt: on

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in self.SILENT
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SILENT:
            self._silent = max(0, self._silent - 1)
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)


def _read_gzip(
    name: str,
    stream: BinaryIO,
    limits: Limits,
    pdf_reader: pdf.PdfReader,
    budget: archives.Budget,
    depth: int,
) -> Iterator[Document | Reject]:
    """Read a single compressed file (corpus.jsonl.gz) under the caps of an archive."""
    if depth >= limits.max_depth:
        yield Reject(name, "too_deep", f"archives are read to a depth of {limits.max_depth}")
        return
    counted = archives.CountingReader(stream)
    inflated = archives.CappedReader(
        gzip.GzipFile(fileobj=counted), lambda: counted.count, limits, budget
    )
    try:
        inner = read_stream(
            f"{name}!{name.rpartition('!')[2].rpartition('/')[2][:-3]}",
            io.BufferedReader(inflated),
            limits,
            pdf_reader,
            budget,
            depth + 1,
        )
        yield from inner
    except archives.MEMBER_ERRORS as error:
        yield archives.reject_of(name, error)


def _is_text(base: str, suffix: str) -> bool:
    return suffix in TEXT_SUFFIXES or base in TEXT_NAMES
