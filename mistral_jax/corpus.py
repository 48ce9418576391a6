"""The demo's documents: this project's own pages and Python's standard library. Nothing fetched.

They are laid out as a user's folder would be: Markdown and PDF inside a zip, sources inside a
tar.gz, docstrings as JSONL.
"""

import ast
import ctypes
import gzip
import io
import json
import re
import sysconfig
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pypdfium2
import pypdfium2.raw as pdfium

ROOT = Path(__file__).resolve().parent.parent
MAX_SOURCE_BYTES = 60_000
MAX_SOURCES = 120
PAGE_WIDTH, PAGE_HEIGHT, MARGIN = 595, 842, 50  # A4 in points
FONT_SIZE, LINE_HEIGHT = 9, 11
LINES_PER_PAGE = (PAGE_HEIGHT - 2 * MARGIN) // LINE_HEIGHT
COLUMNS = 100
CREATED = re.compile(rb"(/CreationDate ?\(D:)[0-9]{14}")
FILE_ID = re.compile(rb"/ID ?\[<[0-9A-F]{32}><[0-9A-F]{32}>\]")
FIXED_TIME = (2026, 1, 1, 0, 0, 0)


def build(folder: Path) -> Path:
    """Write the demo's documents into a folder, the same bytes every time, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
    if not pages:
        # Installed from a wheel: the pages are not there, the docstrings of the package are.
        pages = sorted((ROOT / "mistral_jax").rglob("*.py"))
    _write_zip(folder / "project_pages.zip", pages)
    sources = _library_sources()
    _write_tar(folder / "python_library.tar.gz", sources)
    lines = [json.dumps({"text": text}) for path in sources for text in docstrings(path)]
    (folder / "python_docstrings.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def docstrings(path: Path) -> list[str]:
    """Return the docstrings of a source file, each with its name, 100 characters or longer."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= 100:
                name = getattr(node, "name", "module")
                found.append(f"{path.stem}.{name}\n\n{text}")
    return found


def _library_sources() -> list[Path]:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(library.glob("*.py")) if not path.name.startswith("_")]
    small = [path for path in files if 2_000 < path.stat().st_size <= MAX_SOURCE_BYTES]
    return small[:MAX_SOURCES]


def _write_zip(target: Path, pages: list[Path]) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, page in enumerate(pages):
            text = page.read_text(encoding="utf-8")
            is_pdf = number % 2 == 1
            name = f"{page.stem}.pdf" if is_pdf else page.name
            content = write_pdf(text) if is_pdf else text.encode()
            archive.writestr(zipfile.ZipInfo(f"pages/{name}", FIXED_TIME), content)


def _write_tar(target: Path, files: list[Path]) -> None:
    with (
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        for path in files:
            content = path.read_bytes()
            member = tarfile.TarInfo(f"library/{path.name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_pdf(text: str) -> bytes:
    """Return a plain A4 PDF of a text, in Helvetica."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, COLUMNS) or [""]]
    document = pypdfium2.PdfDocument.new()
    for start in range(0, len(lines), LINES_PER_PAGE):
        page = document.new_page(PAGE_WIDTH, PAGE_HEIGHT)
        for row, line in enumerate(lines[start : start + LINES_PER_PAGE]):
            # Helvetica as a standard font covers Latin-1.
            shown = line.encode("latin-1", "replace").decode("latin-1")
            if shown:
                _place_line(document, page, shown, PAGE_HEIGHT - MARGIN - row * LINE_HEIGHT)
        page.gen_content()
    buffer = io.BytesIO()
    document.save(buffer)
    # PDFium writes the clock, and an id by chance: both become constants of the same length.
    dated = CREATED.sub(rb"\g<1>20260101000000", buffer.getvalue())
    return FILE_ID.sub(b"/ID[<%b><%b>]" % (b"0" * 32, b"0" * 32), dated)


def _place_line(
    document: pypdfium2.PdfDocument, page: pypdfium2.PdfPage, line: str, height: int
) -> None:
    shape = pdfium.FPDFPageObj_NewTextObj(document, b"Helvetica", FONT_SIZE)
    encoded = (line + "\0").encode("utf-16-le")
    buffer = (ctypes.c_ushort * (len(encoded) // 2)).from_buffer_copy(encoded)
    pdfium.FPDFText_SetText(shape, buffer)
    pdfium.FPDFPageObj_Transform(shape, 1, 0, 0, 1, MARGIN, height)
    pdfium.FPDFPage_InsertObject(page, shape)
