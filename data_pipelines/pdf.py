"""Text of PDFs, read by a separate process with limits on memory and time.

The process is kept for many PDFs; when one crashes it or takes too long, it is ended, the PDF is
rejected with the reason, and the next one gets a new process.
"""

import itertools
import json
import re
import selectors
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from data_pipelines import pdf_worker
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject

# PDFium marks a hyphen at a line's end by one of these; the word goes on in the next line.
SOFT_BREAK = re.compile("[\x02\ufffe]\r?\n?")
PAGE_GAP = "\n\n"


class PdfReader:
    """Reads PDFs one by one; use it as a context manager."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "PdfReader":
        """Return itself; the process starts with the first PDF."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process, if one runs."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:  # the dead process had not read all of the PDF
                    continue

    def read(self, name: str, data: bytes) -> Document | Reject:
        """Return the text of all pages, or why there is none."""
        answer = self._ask(data)
        if answer is None:
            self.close()
            limits = self._limits
            return Reject(
                name,
                "bad_pdf",
                f"the reader ended or took over {limits.pdf_timeout_s:g} s or "
                f"{limits.pdf_memory_bytes >> 20} MiB",
            )
        if "error" in answer:
            return Reject(name, answer["kind"], answer["error"])
        pages = [SOFT_BREAK.sub("", page) for page in answer["pages"]]
        text = PAGE_GAP.join(pages)
        if not text.strip():
            return Reject(
                name, "no_text", f"{len(answer['pages'])} pages without text (a scan needs OCR)"
            )
        lengths = (len(page) + len(PAGE_GAP) for page in pages)
        starts = tuple(itertools.accumulate(lengths, initial=0))[:-1]
        return Document(name, "text", text=text, pages=starts)

    def _ask(self, data: bytes) -> dict | None:
        """Return the process's answer, None if it crashed, lied or was late."""
        process = self._start()
        assert process.stdin is not None and process.stdout is not None, "started with pipes"
        try:
            frame = memoryview(len(data).to_bytes(8, "little") + data)
            while frame:  # a raw pipe may take less than all
                frame = frame[process.stdin.write(frame) :]
            deadline = time.monotonic() + self._limits.pdf_timeout_s
            size = _read_exactly(process.stdout, 8, deadline)
            count = int.from_bytes(size, "little")
            if count > pdf_worker.MAX_ANSWER_BYTES:
                return None
            return json.loads(_read_exactly(process.stdout, count, deadline))
        except (OSError, TimeoutError, EOFError, json.JSONDecodeError):
            return None

    def _start(self) -> subprocess.Popen:
        if self._process is None or self._process.poll() is not None:
            self.close()
            # -P keeps this package's folder off the path, where its names could hide others.
            command = [sys.executable, "-P", str(Path(pdf_worker.__file__))]
            command.append(str(self._limits.pdf_memory_bytes))
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        return self._process


def _read_exactly(pipe, count: int, deadline: float) -> bytes:
    """Read bytes from an unbuffered pipe until the deadline.

    Raises:
        TimeoutError: the deadline passed.
        EOFError: the other end closed.
    """
    parts = []
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while count:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not selector.select(left_s):
                raise TimeoutError
            chunk = pipe.read(min(count, 1 << 20))
            if not chunk:
                raise EOFError
            parts.append(chunk)
            count -= len(chunk)
    return b"".join(parts)
