"""The sources of a corpus: where documents lie, what public format they are in, whose they are.

`type` names an entry of configs/data/sources.yaml (`python -m data_pipelines.catalog list` shows
them); what the entry says of kind, expert, licence and patterns holds unless the source says
otherwise.
"""

from typing import Annotated
from typing import Literal

from pydantic import Field

from mistral_jax.config.base import Count
from mistral_jax.config.base import Node

SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
RowKind = Literal["text", "code", "math", "media"]
Expert = Literal[
    "code", "math", "language", "reasoning", "multimodal", "scientific", "creative", "general"
]


class CorpusSource(Node):
    """One source of documents.

    Attributes:
        name: unique in the corpus; becomes part of file names and of every row.
        type: the public format: an entry of the registry; "documents" reads what `prepare` reads
            of a folder (PDF, text kinds, JSONL, Parquet), "media" images, sound and video, "tfds"
            a prepared TFDS folder.
        path: a file, folder or URI, or several of them.
        kind: which processors its rows go through; by default the entry's.
        expert: whose rows they are, "auto" to let the processors decide; by default the entry's.
        licence: SPDX identifier or the owner's words, for rows whose format carries none; by
            default the entry's.
        patterns: which files and archive members are read, as shell patterns on their path; by
            default the entry's.
        max_documents: of this source, in the order of its files.
        optional: a path that is not there is passed over.
    """

    name: SourceName
    type: str = "documents"
    path: str | tuple[str, ...]
    kind: RowKind | None = None
    expert: Expert | Literal["auto"] | None = None
    licence: str | None = None
    patterns: tuple[str, ...] = ()
    max_documents: Count | None = None
    optional: bool = False
