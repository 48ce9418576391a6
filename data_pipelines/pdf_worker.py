"""The process behind pdf.py: PDFs in on stdin, their pages' text out on stdout as JSON.

Runs as a script and imports nothing of ours. Frames are 8 bytes of length, little endian, then
the bytes. It limits its own address space before it touches a PDF.
"""

import json
import os
import resource
import sys

MAX_ANSWER_BYTES = 1 << 30


def pages_of(data: bytes) -> dict:
    """Return {"pages": [...]}, or {"kind", "error"} if PDFium refuses the document."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        text = str(error)
        if "password" in text.lower() or "security" in text.lower():
            return {"kind": "encrypted", "error": "the PDF is encrypted; remove its password"}
        return {"kind": "bad_pdf", "error": f"not a readable PDF ({text})"}
    pages = []
    try:
        for index in range(len(document)):
            page = document[index]
            text_page = page.get_textpage()
            pages.append(text_page.get_text_bounded())
            text_page.close()
            page.close()
    except (pypdfium2.PdfiumError, ValueError) as error:
        return {"kind": "bad_pdf", "error": f"page {len(pages) + 1} cannot be read ({error})"}
    finally:
        document.close()
    return {"pages": pages}


def main() -> None:
    """Answer frames until stdin ends."""
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.dup(1)
    os.dup2(2, 1)  # what a C library prints must not get between the frames
    with os.fdopen(out, "wb") as answers:
        while len(size := sys.stdin.buffer.read(8)) == 8:
            data = sys.stdin.buffer.read(int.from_bytes(size, "little"))
            try:
                answer = pages_of(data)
            except Exception as error:  # noqa: BLE001  the border of a process: all becomes a frame
                answer = {"kind": "bad_pdf", "error": f"cannot be read ({type(error).__name__})"}
            frame = json.dumps(answer).encode()
            answers.write(len(frame).to_bytes(8, "little") + frame)
            answers.flush()


if __name__ == "__main__":
    main()
