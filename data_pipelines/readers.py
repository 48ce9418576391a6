"""Raw inputs to documents, as a stream: folders, files, archives; text, Markdown, source code,
HTML, PDF, JSONL, Parquet.

Nothing is extracted to disk and nothing is dropped in silence: what cannot be used comes out as a
Reject with its reason. Archives are walked through by walk.py, PDFs read by pdf.py.
"""

import os
from collections.abc import Collection
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_pipelines import html_text
from data_pipelines import inflate
from data_pipelines import jsonl
from data_pipelines import parquet
from data_pipelines import pdf
from data_pipelines import sources
from data_pipelines import walk
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from data_pipelines.documents import shown_name

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
PARQUET_SUFFIXES = frozenset({".parquet"})
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
# What the manifest of a run, of a prepared folder and of a corpus always holds.
OUTPUT_KEYS = (
    {"config", "config_hash", "data", "start_checkpoint_digest"},
    {"fingerprint", "splits", "token_bytes"},
    {"fingerprint", "experts", "funnel"},
)
STATE = "pipeline_state.json"  # of data in the making, which has no manifest yet
KINDS_SHOWN = 8


class NoDocuments(ValueError):
    """An input without a single usable document."""


def list_inputs(path: str | Path, *, exclude: Collection[Path] = ()) -> list[Path]:
    """Return the files of an input in a fixed order; hidden files and folders are left out.

    So are folders that `prepare` or a run wrote. Folders that cannot be searched (linked ones, and
    those without permission) are in the list, for `read_file` to tell of them.

    Args:
        path: a file, or a folder that is searched to its depth without following linked folders.
        exclude: folders to leave out (the output, if it lies inside).

    Raises:
        ValueError: there is no such path, or the folder has no files.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise ValueError(f"{root}: expected a file or a folder of documents, found nothing there")
    excluded = {each.resolve() for each in exclude}
    found: list[Path] = []
    for folder, folders, names in os.walk(
        root, onerror=lambda error: found.append(Path(error.filename))
    ):
        here = Path(folder)
        inner = [
            here / name
            for name in sorted(folders)
            if not name.startswith(".")
            and name not in SKIPPED_FOLDERS
            and (here / name).resolve() not in excluded
            and not _is_output(here / name)
        ]
        found.extend(each for each in inner if each.is_symlink())
        folders[:] = [each.name for each in inner if not each.is_symlink()]
        found.extend(here / name for name in sorted(names) if not name.startswith("."))
    if not found:
        raise NoDocuments(
            f"{root}: the folder is empty; expected PDF, Markdown, text, source code, HTML, "
            "JSONL, or zip and tar archives of them"
        )
    return found


def _is_output(folder: Path) -> bool:
    """Return whether a folder is a run's, or prepared data: they hold no documents to learn."""
    try:
        manifest = sources.read_json(folder / sources.MANIFEST)
        state = sources.read_json(folder / STATE)
    except OSError:
        return False
    return "fingerprint" in state or any(keys <= manifest.keys() for keys in OUTPUT_KEYS)


def file_size_bytes(file: Path) -> int | None:
    """Return the size of a plain file; None where there is none, or its folder is closed."""
    try:
        return file.stat().st_size if file.is_file() else None
    except PermissionError:
        return None


def no_documents(root: Path, rejects: dict[str, int], examples: list[Reject]) -> NoDocuments:
    """Return the error for an input without a usable document."""
    counts = ", ".join(f"{count} x {kind}" for kind, count in sorted(rejects.items()))
    shown = "; ".join(f"{each.id}: {each.reason}" for each in examples[:KINDS_SHOWN])
    return NoDocuments(f"{root}: no usable document; seen: {counts or 'nothing'} ({shown})")


def name_of(file: Path, root: Path) -> str:
    """Return the id of a file: its path inside the input, with forward slashes."""
    if file == root:
        return shown_name(file.name)
    # Not by relative_to: for a folder of 100,000 files that alone takes ten seconds.
    return shown_name(str(file).removeprefix(f"{str(root).rstrip('/')}/"))


def read_file(
    file: Path, name: str, limits: Limits, pdf_reader: pdf.PdfReader
) -> Iterator[Document | Reject]:
    """Yield the documents and rejects of one file, which may be an archive."""
    try:
        if file.is_dir():
            if file.is_symlink():
                yield Reject(name, "linked_folder", "links are not followed; name it as a source")
            else:
                yield Reject(name, "unreadable", "a folder that cannot be searched")
            return
        if not file.is_file():
            yield Reject(name, "not_a_file", "a link to nothing, or not a plain file")
            return
        with file.open("rb") as stream:
            yield from read_stream(name, stream, limits, pdf_reader, inflate.Budget(limits))
    except PermissionError as error:
        yield Reject(name, "unreadable", f"cannot be opened: {error.strerror}")


def read_stream(
    name: str,
    stream: BinaryIO,
    limits: Limits,
    pdf_reader: pdf.PdfReader,
    budget: inflate.Budget,
    depth: int = 0,
    *,
    path: str | None = None,
) -> Iterator[Document | Reject]:
    """Yield what a stream holds, archives and all; its path says what it is.

    Args:
        name: the id so far.
        stream: at its start; seekable for zip archives at depth 0.
        limits: what may be spent.
        pdf_reader: the process that reads PDFs.
        budget: what the outermost archive has spent so far.
        depth: how many archives lie around it.
        path: the part of the id behind the archive around it; the whole id by default.
    """

    def read_leaf(name: str, path: str, stream: BinaryIO) -> Iterator[Document | Reject]:
        return read_document(name, path, stream, limits, pdf_reader)

    yield from walk.Walk(limits, budget, read_leaf).read(name, stream, depth, path)


def read_document(
    name: str, path: str, stream: BinaryIO, limits: Limits, pdf_reader: pdf.PdfReader
) -> Iterator[Document | Reject]:
    """Yield the documents of a stream that is no archive; its path says what it is."""
    base = path.rpartition("/")[2].lower()
    suffix = Path(base).suffix
    if suffix in JSONL_SUFFIXES:
        yield from jsonl.read_jsonl(name, stream, limits)
    elif suffix in PARQUET_SUFFIXES:
        yield from parquet.read_parquet(name, stream, limits)
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
        text = html_text.html_text(text)
    if not text.strip():
        return Reject(name, "empty", "holds no text")
    return Document(name, "text", text=text)


def _is_text(base: str, suffix: str) -> bool:
    return suffix in TEXT_SUFFIXES or base in TEXT_NAMES
