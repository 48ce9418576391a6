"""The decoder of PDFs for decode_worker.py: the text of their pages. Imports nothing of ours."""


def decode(hint: str, data: bytes) -> dict:
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
