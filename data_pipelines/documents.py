"""What readers hand on: a document, or a reject with its reason; and the limits that they keep."""

from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import Literal

NO_ORIGIN = bytes(32)  # the mark of a document that was not made from another one


@dataclass(frozen=True, slots=True)
class Document:
    """One document as it was read.

    Attributes:
        id: where it came from: "file", "archive.zip!member", "file.jsonl#12" (line 12).
        kind: which of the fields is filled.
        text: the text (kind "text").
        messages: dicts of "role" and "content" (kind "chat"); "weight" 0 keeps an answer out of
            the loss.
        prompt, completion: kind "prompt_completion".
        made_from: the name of the document that a row of JSONL says it was made from; "" if none.
        pages: where each page begins in `text`, in characters; () for what has no pages.
        facts: what the reader knows beside the text, as JSON: licence, language, title, ...
    """

    id: str
    kind: Literal["text", "chat", "prompt_completion"]
    text: str = ""
    messages: tuple[dict[str, Any], ...] = field(default=())
    prompt: str = ""
    completion: str = ""
    made_from: str = ""
    pages: tuple[int, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def shown_name(name: str) -> str:
    """Return a file's or member's name as printable UTF-8, whatever bytes it has on disk."""
    return name if name.isprintable() else name.encode("unicode_escape").decode()


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that was kept out.

    Attributes:
        id: as Document.id.
        kind: a short name to count by, such as "not_utf8".
        reason: one sentence for the reader of the manifest.
    """

    id: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What one input may cost. Bytes are counted as they are inflated; headers are not believed.

    Attributes:
        max_ratio: inflated over compressed bytes, counted after the first MiB.
        total_bytes: inflated bytes of one archive, nested ones included.
        member_bytes: bytes of one file or member that is read as a whole.
        max_members: members of one archive.
        max_depth: archives in archives; 2 allows one inside another.
        line_bytes: one line of JSONL.
        pdf_timeout_s: wall time for one PDF.
        pdf_memory_bytes: address space of the process that reads PDFs.
    """

    max_ratio: int = 200
    total_bytes: int = 1 << 40
    member_bytes: int = 256 << 20
    max_members: int = 1_000_000
    max_depth: int = 2
    line_bytes: int = 16 << 20
    pdf_timeout_s: float = 60.0
    pdf_memory_bytes: int = 2 << 30
