"""Text made regular before it is compared and tokenized: Unicode form, control characters, space.

Nothing here judges quality and nothing changes what a reader would see.
"""

import re
import unicodedata

from data_pipelines.documents import Document

CLEAN_VERSION = 1
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufffe\uffff]")
TRAILING_SPACE = re.compile(r"[ \t]+$", re.MULTILINE)
MANY_BLANK_LINES = re.compile(r"\n{4,}")


def clean_text(text: str) -> str:
    """Return text in NFC with plain line ends, without control characters or trailing space."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    text = text.replace("\u2028", "\n").replace("\u2029", "\n\n").replace("\x85", "\n")
    text = unicodedata.normalize("NFC", CONTROL.sub("", text))
    text = MANY_BLANK_LINES.sub("\n\n\n", TRAILING_SPACE.sub("", text))
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
                {"role": each["role"], "content": clean_turn(each["content"])}
                for each in document.messages
            )
            fields = {"messages": messages}
        case _:
            fields = {
                "prompt": clean_turn(document.prompt),
                "completion": clean_turn(document.completion),
            }
    values = {name: getattr(document, name) for name in document.__slots__}
    return Document(**{**values, **fields})


def clean_turn(text: str) -> str:
    """Return one turn of a chat in NFC, with plain line ends and no control characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", CONTROL.sub("", text))
