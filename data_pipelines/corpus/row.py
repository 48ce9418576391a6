"""A row: one document on its way through the data plant, with where it comes from.

As a line of JSON it is what people read (`text`, `messages`, `prompt` and `completion`, or
`prefix`, `suffix`, `middle`), beside `id`, `source_name`, `expert`, `licence` and the rest. The
same line can be read back.
"""

import json
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Any
from typing import Literal
from typing import get_args

from data_pipelines import export_jsonl
from data_pipelines import jsonl
from data_pipelines.documents import Document

Kind = Literal["text", "code", "math", "media"]
KINDS: tuple[str, ...] = get_args(Kind)
# The eight domains of the sparse model; tests/data_pipelines/corpus holds them to the presets'.
EXPERTS = (
    "code", "math", "language", "reasoning", "multimodal", "scientific", "creative", "general",
)  # fmt: skip
READ = "read"


@dataclass(frozen=True, slots=True)
class Row:
    """One document and what is known of it.

    Attributes:
        document: what it says; its id leads to file, archive member and line.
        source: the name of its source in the corpus's config.
        kind: which processors it goes through.
        expert: whose it is, one of EXPERTS.
        licence: SPDX identifier, or the source's own words.
        made_by: "read", or the generator with its version and what it was told.
        span: first and last + 1 character in the reader's text; None for the whole.
        facts: what readers, processors and generators found, as JSON. Keys in use: `language`,
            `toxicity`, `pii` (counts by kind), `check` (how the row can be verified: see
            verify/), `verified` (by what), `level` (0 to 4, where the maker knows it),
            `difficulty` (0 to 1, where the maker knows it), `media` (checked metadata).
    """

    document: Document
    source: str
    kind: Kind
    expert: str
    licence: str
    made_by: str = READ
    span: tuple[int, int] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The document's id."""
        return self.document.id

    @property
    def text(self) -> str:
        """Everything that the document says, as one text: for filters, scores and signatures."""
        return text_of(self.document)

    def with_facts(self, **found: Any) -> "Row":
        """Return the row with further facts."""
        return replace(self, facts={**self.facts, **found})

    def with_text(self, text: str) -> "Row":
        """Return a row of kind "text" that says something else."""
        return replace(self, document=replace(self.document, text=text))


def text_of(document: Document) -> str:
    """Return all that a document says as one text."""
    match document.kind:
        case "text":
            return document.text
        case "chat":
            return "\n".join(_said(message) for message in document.messages)
        case _:
            suffix = document.suffix if isinstance(document, jsonl.Infill) else ""
            gap = "" if suffix else "\n"
            return gap.join((document.prompt, document.completion)) + suffix


def to_json(row: Row) -> dict[str, Any]:
    """Return a row as the object of its line."""
    document = row.document
    return {
        "id": document.id,
        "source_name": row.source,
        "kind": row.kind,
        "expert": row.expert,
        "licence": row.licence,
        "made_by": row.made_by,
        **({"span": list(row.span)} if row.span else {}),
        **({"pages": list(document.pages)} if document.pages else {}),
        "facts": {**document.facts, **row.facts},
        **export_jsonl.row_of(document),
    }


def to_line(row: Row) -> str:
    """Return a row as a line of JSON."""
    return json.dumps(to_json(row), ensure_ascii=False) + "\n"


def from_json(made: dict[str, Any]) -> Row:
    """Return the row of an object that `to_json` made."""
    document = jsonl.document_of(made["id"], made)
    span = made.get("span")
    return Row(
        document=replace(document, pages=tuple(made.get("pages", ()))),
        source=made["source_name"],
        kind=made["kind"],
        expert=made["expert"],
        licence=made["licence"],
        made_by=made["made_by"],
        span=None if span is None else (span[0], span[1]),
        facts=made["facts"],
    )


def from_line(line: str | bytes) -> Row:
    """Return the row of a line that `to_line` made."""
    return from_json(json.loads(line))


def _said(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get(part.get("type"), "")) for part in content)
