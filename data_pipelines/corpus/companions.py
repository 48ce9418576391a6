"""Files that a format looks up from others: captions of images, the description of a TFDS folder.

The inventory tells of them with the file that looks them up, so that a changed caption makes
another corpus, and so that of a bucket they come along.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from data_pipelines import catalog
from data_pipelines import walk
from data_pipelines.catalog import registry
from data_pipelines.documents import Limits
from mistral_jax import storage
from mistral_jax.storage.base import FileFacts

FEW = 16  # so many of a folder are told with each of its files; of more those of its stem


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A file that was found under a source's path.

    Attributes:
        name: its path inside the source.
        uri: where it is.
        size_bytes: None where that cannot be known.
        facts: of an object in a bucket.
    """

    name: str
    uri: str
    size_bytes: int | None
    facts: FileFacts | None = None

    def entry(self) -> dict[str, Any]:
        """Return what a task says of it; a local file is read once for its digest."""
        known: dict[str, Any] = {"uri": self.uri, "size_bytes": self.size_bytes or 0}
        if self.facts is not None:
            return {**known, "version": self.facts.version, "digest": self.facts.digest}
        try:
            version = None if self.size_bytes is None else storage.digest(self.uri)
        except PermissionError:  # the reader lists it as unreadable
            version = None
        return {**known, "version": version}


class Companions:
    """The companions among the files of a source."""

    def __init__(self, kind: catalog.SourceType, patterns: Sequence[str], listed: Sequence[Found]):
        self._by_folder: dict[str, list[Found]] = {}
        self._by_stem: dict[str, list[Found]] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        self._count = 0
        largest = Limits().member_bytes
        for file in listed if kind.companions else ():
            is_one = registry.fits(file.name, kind.companions)
            if not is_one or catalog.takes(kind, file.name, patterns):
                continue
            self._count += 1
            if (file.size_bytes or 0) <= largest:  # others are not read
                self._by_folder.setdefault(walk.folder_of(file.name), []).append(file)
                self._by_stem.setdefault(walk.stem_of(file.name), []).append(file)

    def of(self, file: Found) -> dict[str, Any]:
        """Return "beside", the companions of a file, and "has_more_beside"; nothing without any."""
        if not self._count or walk.is_container(file.name):
            return {}
        beside = self._by_folder.get(walk.folder_of(file.name), [])
        if len(beside) > FEW:
            beside = self._by_stem.get(walk.stem_of(file.name), [])
        told = [self._entry(each) for each in beside]
        return {"beside": told, "has_more_beside": len(told) < self._count}

    def _entry(self, file: Found) -> dict[str, Any]:
        if file.uri not in self._entries:
            path = file.name.rpartition("/")[2]
            self._entries[file.uri] = {**file.entry(), "path": path}
        return self._entries[file.uri]
