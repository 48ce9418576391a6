"""Text made regular before it is compared and tokenized: Unicode form, control characters, space.

Nothing here judges quality and nothing changes what a reader would see.
"""

import re
import unicodedata
from dataclasses import replace

from data_pipelines.documents import Document

CLEAN_VERSION = 3
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufffe\uffff]")
LINE_END = re.compile("\r\n|[\r\v\f\x85]")
ODD_LINE_ENDS = "\r\v\f\x85"
MANY_BLANK_LINES = re.compile(r"\n{4,}")


def clean_text(text: str) -> str:
    """Return text in NFC with plain line ends, without control characters or trailing space."""
    text = clean_turn(text.replace("\u2028", "\n").replace("\u2029", "\n\n"))
    # Not by a pattern: `[ \t]+$` takes time by the square of a long run of spaces.
    if " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    if "\n\n\n\n" in text:
        text = MANY_BLANK_LINES.sub("\n\n\n", text)
    return text.strip("\n").rstrip()


def clean_document(document: Document) -> Document:
    """Return a document with its text cleaned.

    Chats and completions only lose control characters and odd line ends: their space at the ends
    is what the model is taught to write.
    """
    match document.kind:
        case "text":
            fields = {"text": clean_text(document.text)}
        case "chat":
            messages = tuple(
                {**each, "content": clean_turn(each["content"])} for each in document.messages
            )
            fields = {"messages": messages}
        case _:
            fields = {
                "prompt": clean_turn(document.prompt),
                "completion": clean_turn(document.completion),
            }
    return replace(document, **fields)


def clean_turn(text: str) -> str:
    """Return one turn of a chat in NFC, with plain line ends and no control characters."""
    if any(each in text for each in ODD_LINE_ENDS):  # a fifth of the pattern's time, and rare
        text = LINE_END.sub("\n", text)
    return unicodedata.normalize("NFC", CONTROL.sub("", text))
