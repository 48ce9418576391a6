"""The files of a task to rows: by the loader of their source's type, with what the source says."""

from collections.abc import Iterator
from typing import Any

from data_pipelines import catalog
from data_pipelines.corpus.job import Job
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from mistral_jax.storage import objects

ANY_EXPERT = "general"  # of a source whose expert is "auto", until its processors know better


def read_rows(job: Job, maker: int, files: list[dict[str, Any]]) -> Iterator[Row | Reject]:
    """Yield the rows and rejects of files of one source, in order."""
    source = job.config.sources[maker]
    kind = catalog.type_of(source.type)
    expert = job.makers[maker].expert
    limits = Limits()
    with catalog.Decoders(limits) as decoders:
        for file in files:
            path = objects.local_path(file["uri"])
            for item in catalog.read_file(
                source.type, path, file["name"], limits, decoders, patterns=source.patterns
            ):
                if isinstance(item, Reject):
                    yield item
                    continue
                yield Row(
                    document=item,
                    source=source.name,
                    kind=source.kind or kind.kind,
                    expert=ANY_EXPERT if expert == "auto" else expert,
                    licence=_licence(item, job.makers[maker].licence),
                )


def _licence(document: Document, otherwise: str) -> str:
    """Return the licence that a row carries itself, else its source's."""
    return str(document.facts.get("licence") or otherwise)
