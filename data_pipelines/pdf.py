"""Text of PDFs, read by a separate process with limits on memory and time.

limited_process.py keeps and ends the process; pdf_worker.py is what it runs.
"""

import itertools
import re
from pathlib import Path

from data_pipelines import limited_process
from data_pipelines import pdf_worker
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject

# PDFium marks a hyphen at a line's end by one of these; the word goes on in the next line.
SOFT_BREAK = re.compile("[\x02\ufffe]\r?\n?")
PAGE_GAP = "\n\n"


class PdfReader(limited_process.Reader):
    """Reads PDFs one by one; use it as a context manager."""

    def __init__(self, limits: Limits):
        super().__init__(
            Path(pdf_worker.__file__),
            timeout_s=limits.pdf_timeout_s,
            memory_bytes=limits.pdf_memory_bytes,
        )

    def read(self, name: str, data: bytes) -> Document | Reject:
        """Return the text of all pages, or why there is none."""
        answer = self._process.ask(data)
        if answer is None:
            return Reject(name, "bad_pdf", self._process.over_limits)
        if "error" in answer:
            kind = "bad_pdf" if answer["kind"] == "unreadable_content" else answer["kind"]
            return Reject(name, kind, answer["error"])
        pages = [SOFT_BREAK.sub("", page) for page in answer["pages"]]
        text = PAGE_GAP.join(pages)
        if not text.strip():
            return Reject(
                name, "no_text", f"{len(answer['pages'])} pages without text (a scan needs OCR)"
            )
        lengths = (len(page) + len(PAGE_GAP) for page in pages)
        starts = tuple(itertools.accumulate(lengths, initial=0))[:-1]
        return Document(name, "text", text=text, pages=starts)
