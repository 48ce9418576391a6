"""PDF: pages per CPU-second through our limited process, plain and out of a zip, against PDFium.

The peer is raw pypdfium2 in one process: open, text of every page, close. Ours adds the process
with limits on memory and time, the frames to it and back, hyphens mended and page starts; out of
a zip also the archive's walk, its checks and inflating. CPU-seconds of the process tree, imports
included, rounds in turns, after a check that all give the same text of every page. PDFs: some that
LaTeX and FOP made, where this machine has them, and plain ones of many pages that PDFium writes
from real texts. `python -m benchmarks.pdf_pages [--pages N] [--rounds R]`.
"""

import argparse
import hashlib
import importlib.metadata
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import measure

REAL_ROOTS = ("/usr/share/doc", "/usr/share/texmf", "/usr/share/texlive")
MIN_REAL_BYTES = 20_000
PAGE_CHARACTERS = 4_000  # of a text: about what fills a page of corpus.write_pdf
PAGES_A_FILE = 40
REAL = "real"


def write_files(folder: Path, num_pages: int) -> dict[str, int]:
    """Write PDFs of about so many pages, and one zip of all; return what there is."""
    from benchmarks import near_duplicates
    from mistral_jax import corpus

    plain = folder / "plain"
    plain.mkdir()
    real = [
        path
        for root in REAL_ROOTS
        for path in sorted(Path(root).rglob("*.pdf"))
        if path.stat().st_size >= MIN_REAL_BYTES
    ]
    for number, path in enumerate(real):
        (plain / f"{REAL}{number:03d}.pdf").write_bytes(path.read_bytes())
    texts = near_duplicates.find_texts(num_pages * PAGE_CHARACTERS)
    size = PAGES_A_FILE * PAGE_CHARACTERS
    written = 0
    for number, text in enumerate(_pieces(texts, size)):
        (plain / f"written{number:03d}.pdf").write_bytes(corpus.write_pdf(text))
        written += 1
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(plain.iterdir()):
            archive.write(path, path.name)
    return {"real_files": len(real), "written_files": written}


def _pieces(texts: Iterator[str], size: int) -> Iterator[str]:
    """Join texts to pieces of a size."""
    waiting: list[str] = []
    length = 0
    for text in texts:
        waiting.append(text)
        length += len(text)
        if length >= size:
            yield "\n\n".join(waiting)
            waiting, length = [], 0
    if waiting:
        yield "\n\n".join(waiting)


def read_raw(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (file, text of each page) by pypdfium2 in this process."""
    import pypdfium2

    for path in sorted((folder / "plain").iterdir()):
        document = pypdfium2.PdfDocument(path.read_bytes())
        pages = []
        for page in document:
            text_page = page.get_textpage()
            pages.append(text_page.get_text_bounded())
            text_page.close()
            page.close()
        document.close()
        yield path.name, pages


def read_ours(folder: Path, *, is_zip: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield (file, text of each page) through the readers of `prepare`."""
    from data_pipelines import pdf
    from data_pipelines import readers
    from data_pipelines.documents import Document
    from data_pipelines.documents import Limits

    files = [folder / "all.zip"] if is_zip else sorted((folder / "plain").iterdir())
    with pdf.PdfReader(Limits()) as reader:
        for file in files:
            for item in readers.read_file(file, file.name, Limits(), reader):
                assert isinstance(item, Document), item
                edges = [*item.pages, len(item.text) + len(pdf.PAGE_GAP)]
                pages = [
                    item.text[start : stop - len(pdf.PAGE_GAP)]
                    for start, stop in itertools.pairwise(edges)
                ]
                yield item.id.rpartition("!")[2], pages


def digest_of(read: Iterator[tuple[str, list[str]]], *, is_raw: bool) -> dict[str, Any]:
    """Return the number of pages (real ones too) and characters and the sha256 of all texts."""
    from data_pipelines import pdf

    total = hashlib.sha256()
    num_pages = num_real = num_characters = 0
    for name, pages in read:
        told = [pdf.SOFT_BREAK.sub("", page) for page in pages] if is_raw else pages
        total.update(json.dumps([name, told]).encode())
        num_pages += len(pages)
        num_real += len(pages) if name.startswith(REAL) else 0
        num_characters += sum(map(len, told))
    counts = {"pages": num_pages, "real_pages": num_real, "characters": num_characters}
    return {**counts, "sha256": total.hexdigest()}


def run(folder: Path, how: str, *, is_check: bool) -> None:
    """Read everything one way; with `is_check` print the digest of what was read."""
    read = read_raw(folder) if how == "raw" else read_ours(folder, is_zip=how == "zip")
    if is_check:
        print(json.dumps(digest_of(read, is_raw=how == "raw")))
        return
    for _ in read:
        pass


def _answer(command: list[str]) -> dict[str, Any]:
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def measure_all(folder: Path, options: argparse.Namespace) -> None:
    """Write the files, check that the texts are equal, time, print the line."""
    from benchmarks import near_duplicates  # here, so that the timed processes do not pay for it

    files = write_files(folder, options.pages)
    own = [sys.executable, "-m", "benchmarks.pdf_pages", "--folder", str(folder), "--how"]
    found = {how: _answer([*own, how, "--check"]) for how in ("raw", "process", "zip")}
    assert found["process"] == found["raw"], "our text must be PDFium's"
    assert found["zip"] == found["raw"], "our text out of a zip must be PDFium's"
    spent: dict[str, list[float]] = {how: [] for how in found}
    for _ in range(options.rounds):
        for how, each in spent.items():
            each.append(near_duplicates.cpu_seconds([*own, how]))
    pages = found["raw"]["pages"]
    rates = {how: pages / statistics.median(each) for how, each in spent.items()}
    ratios = {
        how: statistics.median(r / o for r, o in zip(spent["raw"], spent[how], strict=True))
        for how in ("process", "zip")
    }
    size_bytes = sum(path.stat().st_size for path in (folder / "plain").iterdir())
    real_bytes = sum(path.stat().st_size for path in (folder / "plain").glob(f"{REAL}*"))
    measure.report(
        "pdf: pages per CPU-second through the reader's limited process",
        value=round(rates["process"], 1),
        unit="pages / CPU-s",
        peer="pypdfium2 in one process",
        peer_value=round(rates["raw"], 1),
        ratio=round(ratios["process"], 3),
        out_of_zip={"value": round(rates["zip"], 1), "ratio": round(ratios["zip"], 3)},
        bytes_a_page=round(size_bytes / pages),
        real_bytes_a_page=round(real_bytes / max(1, found["raw"]["real_pages"])),
        characters_a_page=round(found["raw"]["characters"] / pages),
        megabytes_per_cpu_s=round(size_bytes / 1e6 / statistics.median(spent["zip"]), 2),
        shapes={
            "pages": pages,
            "real_pages": found["raw"]["real_pages"],
            **files,
            "megabytes": round(size_bytes / 1e6, 1),
        },
        n=options.rounds,
        spread=measure.spread([pages / each for each in spent["process"]], digits=1),
        versions={"pypdfium2": importlib.metadata.version("pypdfium2")},
        command="python -m benchmarks.pdf_pages",
    )


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pages", type=int, default=2000, help="that are written, about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.how:
        run(options.folder, options.how, is_check=options.check)
        return
    with tempfile.TemporaryDirectory() as name:
        measure_all(Path(name), options)


if __name__ == "__main__":
    main()
