"""The files of a task to rows: by the loader of their source's type, with what the source says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines import catalog
from data_pipelines.corpus import fetching
from data_pipelines.corpus.job import Job
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from mistral_jax import storage
from mistral_jax.config.corpus_sources import CorpusSource

ANY_EXPERT = "general"  # of a source whose expert is "auto", until its processors know better


def read_rows(job: Job, maker: int, files: list[dict[str, Any]]) -> Iterator[Row | Reject]:
    """Yield the rows and rejects of files of one source, in order."""
    source = job.config.sources[maker]
    kind = catalog.type_of(source.type)
    expert = job.makers[maker].expert
    limits = Limits()
    with (
        fetching.fetched(job.folder, files) as paths,
        catalog.Decoders(limits) as decoders,
    ):
        for file, path in zip(files, paths, strict=True):
            for item in _items(source, file, path, limits, decoders):
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


def _items(
    source: CorpusSource,
    file: dict[str, Any],
    path: Path,
    limits: Limits,
    decoders: catalog.Decoders,
) -> Iterator[Document | Reject]:
    name, patterns = file["name"], source.patterns
    if not file.get("has_more_beside") or not storage.is_remote(file["uri"]):
        yield from catalog.read_file(source.type, path, name, limits, decoders, patterns=patterns)
        return
    beside = fetching.beside(file, path.parent, limits.member_bytes)
    with path.open("rb") as stream:
        yield from catalog.read(
            source.type, name, stream, limits, decoders, patterns=patterns, file=path, beside=beside
        )


def _licence(document: Document, otherwise: str) -> str:
    """Return the licence that a row carries itself, else its source's."""
    return str(document.facts.get("licence") or otherwise)
