"""The registry of public formats: configs/data/sources.yaml, and which function reads each.

An entry is data: what it is, whose rows it makes, under which licence, which files it reads. The
loaders are imported when one is first asked for.
"""

import fnmatch
import functools
import importlib
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from data_pipelines import archives
from data_pipelines import walk
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf
from mistral_jax.config import load
from mistral_jax.config.base import Node
from mistral_jax.config.corpus_sources import Expert
from mistral_jax.config.corpus_sources import RowKind

REGISTRY = Path(load.__file__).parents[2] / "configs" / "data" / "sources.yaml"
GZIP = ".gz"  # a single compressed file has the name of what is in it
LOADERS = {
    "documents": "plain_formats:read_documents",
    "media": "media_formats:read_media",
    "tfds": "tfds_format:read_shard",
    "stack": "code_formats:read_stack",
    "stack_exchange": "stack_exchange:read_posts",
    "api_docs": "code_formats:read_api_docs",
    "gh_archive": "code_formats:read_code_review",
    "bug_reports": "code_formats:read_bug_reports",
    "arxiv": "math_formats:read_arxiv",
    "textbooks": "math_formats:read_textbook",
    "proofs": "proofs:read_proofs",
    "problems": "math_formats:read_problems",
    "queries": "math_formats:read_queries",
    "warc": "web_formats:read_warc",
    "gutenberg": "web_formats:read_book",
    "news": "web_formats:read_news",
    "mediawiki": "language_formats:read_wiki",
    "tmx": "language_formats:read_translations",
    "puzzles": "knowledge_formats:read_puzzles",
    "jats": "knowledge_formats:read_papers",
    "legal": "knowledge_formats:read_legal",
    "philosophy": "knowledge_formats:read_philosophy",
    "pgn": "games:read_games",
    "image_text": "media_formats:read_image_text",
    "video_captions": "media_formats:read_video_captions",
    "transcripts": "media_formats:read_transcripts",
    "figures": "media_formats:read_figures",
    "screenshots": "media_formats:read_screenshots",
}


class SourceType(Node):
    """One entry of the registry.

    Attributes:
        name: what a source's `type` says.
        title: for people.
        group: which of the five groups of named sources; "plain" for the others.
        what: which public format is read, and what becomes of it.
        loader: key of LOADERS.
        kind: which processors its rows go through.
        expert: whose rows they are.
        also_for: experts that it serves beside; a source's own `expert` chooses one.
        licence: of rows whose format carries none.
        patterns: files and members that are read, on their path, in any case of letters.
        companions: files and members that are looked up from others, and not read by themselves.
        group_by: members of an archive that belong together and follow one another.
    """

    name: str
    title: str
    group: Literal["code", "math", "language", "knowledge", "multimodal", "plain"]
    what: str
    loader: str
    kind: RowKind
    expert: Expert
    also_for: tuple[Expert, ...] = ()
    licence: str
    patterns: tuple[str, ...]
    companions: tuple[str, ...] = ()
    group_by: Literal["stem", "folder"] | None = None


class _Registry(Node):
    sources: tuple[SourceType, ...]


@functools.cache
def types() -> dict[str, SourceType]:
    """Return all entries by name, in the order of the file."""
    tree = load.read_tree(REGISTRY)
    listed = load.validate(tree, _Registry, where=str(REGISTRY)).sources
    found = {each.name: each for each in listed}
    if len(found) != len(listed) or any(each.loader not in LOADERS for each in listed):
        raise ValueError(f"{REGISTRY}: expected different names, each with a loader of LOADERS")
    return found


def type_of(name: str) -> SourceType:
    """Return an entry.

    Raises:
        ValueError: there is none of the name.
    """
    known = types()
    if name not in known:
        raise ValueError(
            f"source type {name!r} is not known; expected one of {', '.join(known)} "
            "(python -m data_pipelines.catalog list)"
        )
    return known[name]


@functools.cache
def loader_of(name: str) -> Callable[[Leaf], Items]:
    """Return the function that reads leaves of an entry's format."""
    module, _, function = LOADERS[name].partition(":")
    return getattr(importlib.import_module(f"data_pipelines.catalog.{module}"), function)


def takes(source_type: SourceType, path: str, patterns: Sequence[str] = ()) -> bool:
    """Return whether a file or member is read: it fits a pattern, or may hold what does.

    Args:
        source_type: the entry.
        path: of the file inside its source, or of the member inside its archive.
        patterns: a source's own; the entry's without them.
    """
    inner = path[: -len(GZIP)] if path.lower().endswith(GZIP) else path
    is_archive = archives.kind_of(path.lower()) is not None or walk.is_container(inner)
    return is_archive or fits(inner, patterns or source_type.patterns)


def fits(path: str, patterns: Sequence[str]) -> bool:
    """Return whether a path, or its last part, fits one of the patterns."""
    low = path.lower()
    base = low.rpartition("/")[2]
    return any(
        fnmatch.fnmatchcase(base, pattern.lower()) or fnmatch.fnmatchcase(low, pattern.lower())
        for pattern in patterns
    )
