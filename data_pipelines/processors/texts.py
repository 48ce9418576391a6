"""One change made to every text of a document: its pages, turns, prompt and completion.

Paged text is changed page by page, so that the page of a passage stays known; what spans the gap
between two pages is therefore not seen whole by a step.
"""

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from data_pipelines import jsonl
from data_pipelines.documents import Document

Change = Callable[[str], str]


def change_texts(document: Document, change: Change) -> Document:
    """Return the document with `change` made to each text in it."""
    match document.kind:
        case "text":
            pages = [change(each) for each in pages_of(document)]
            return with_pages(document, pages)
        case "chat":
            messages = tuple(change_message(each, change) for each in document.messages)
            return replace(document, messages=messages)
    fields = {"prompt": change(document.prompt), "completion": change(document.completion)}
    if isinstance(document, jsonl.Infill):
        fields["suffix"] = change(document.suffix)
    return replace(document, **fields)


def change_message(message: dict[str, Any], change: Change) -> dict[str, Any]:
    """Return one turn of a chat with `change` made to its text, or to each part that is text."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": change(content)}
    if not isinstance(content, list):
        return message
    parts = [
        {**part, part["type"]: change(part[part["type"]])}
        if isinstance(part.get(part.get("type")), str)
        else part
        for part in content
    ]
    return {**message, "content": parts}


def pages_of(document: Document) -> list[str]:
    """Return the pages of a text, each with the gap that follows it; one where it has none."""
    if not document.pages:
        return [document.text]
    ends = (*document.pages[1:], len(document.text))
    starts = (0, *document.pages[1:])
    return [document.text[start:end] for start, end in zip(starts, ends, strict=True)]


def with_pages(document: Document, pages: list[str]) -> Document:
    """Return the document with other pages, each with the gap that follows it."""
    if not document.pages:
        return replace(document, text=pages[0])
    return replace(document, text="".join(pages), pages=tuple(_starts(pages)))


def _starts(pages: list[str]) -> Iterator[int]:
    start = 0
    for page in pages:
        yield start
        start += len(page)
