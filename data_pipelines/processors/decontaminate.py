"""The step `decontaminate`: rows that share a run of words with an evaluation set are left out.

The runs of all evaluation sets stand as sorted 64-bit hashes in one file, made once before the
workers start. Two different runs share a hash by chance about once in 10**12 pairs at the sizes of
public benchmarks against a billion words.
"""

import gzip
import hashlib
import json
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from jaxtyping import UInt64

from data_pipelines.corpus.row import Row
from data_pipelines.documents import Reject
from data_pipelines.processors import ngrams
from data_pipelines.processors.resources import Resources
from mistral_jax.config import processors

FILTER_BITS = 20
CHUNK_WORDS = 1 << 20
FOLDER_SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt", ".md", ".py", ".gz")


class Index:
    """The runs of evaluation sets, by length."""

    def __init__(self, path: Path) -> None:
        """Read an index that `write_index` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            self.names = [str(name) for name in stored["names"]]
            self.tables = [
                _Table(int(length), stored[f"hashes_{length}"], stored[f"owners_{length}"])
                for length in stored["lengths"]
            ]

    def hits(self, text: str) -> tuple[int, str]:
        """Return how many runs of a text are in the sets, and the set of the first."""
        words = ngrams.word_hashes(ngrams.normalised(text))
        count, name = 0, ""
        for table in self.tables:
            for start in range(0, max(1, len(words) - table.length + 1), CHUNK_WORDS):
                part = words[start : start + CHUNK_WORDS + table.length - 1]
                owners = table.owners_of(ngrams.run_hashes(part, table.length))
                count += len(owners)
                name = name or (self.names[int(owners[0])] if len(owners) else "")
        return count, name


@dataclass(frozen=True)
class _Table:
    """Sorted hashes of runs of one length, and whose each is."""

    length: int
    hashes: UInt64[np.ndarray, " n"]
    owners: np.ndarray

    def __post_init__(self) -> None:
        """Make the filter that most runs fail: one bit for each value of the first bits."""
        seen: Bool[np.ndarray, " b"] = np.zeros(1 << FILTER_BITS, bool)
        seen[self.hashes >> np.uint64(64 - FILTER_BITS)] = True
        object.__setattr__(self, "seen", seen)

    def owners_of(self, runs: UInt64[np.ndarray, " m"]) -> np.ndarray:
        """Return the sets of those runs that are in the table, in the order of the runs."""
        seen: np.ndarray = getattr(self, "seen")  # noqa: B009 (set after the fields froze)
        likely = runs[seen[runs >> np.uint64(64 - FILTER_BITS)]]
        at = np.minimum(np.searchsorted(self.hashes, likely), len(self.hashes) - 1)
        return self.owners[at[self.hashes[at] == likely]]


def build(config: processors.Decontaminate, resources: Resources) -> Callable[[Row], Row | Reject]:
    """Return the step.

    Raises:
        ValueError: there are sets, and no index of them.
    """
    if not config.sets:
        return lambda row: row
    if resources.folder is None:
        raise ValueError("decontaminate: expected resources with the index of its sets, got none")
    return partial(run, config=config, index=Index(resources.folder / file_name(config)))


def run(row: Row, *, config: processors.Decontaminate, index: Index) -> Row | Reject:
    """Return the row, or a reject that names the evaluation set it shares words with."""
    count, name = index.hits(row.text)
    if count < config.min_hits:
        return row
    return Reject(
        row.id,
        "contaminated",
        f"shares {count} runs of up to {config.ngram_words} words with evaluation sets, the first "
        f"with {name!r}",
    )


def file_name(config: processors.Decontaminate) -> str:
    """Return the name of the index of a config."""
    key = hashlib.sha256(config.model_dump_json().encode()).hexdigest()
    return f"contamination-{key[:16]}.npz"


def write_index(config: processors.Decontaminate, folder: Path) -> str:
    """Write the index of the evaluation sets, and return a digest of what is in it.

    Raises:
        ValueError: a set is not there, cannot be read, or holds no text long enough.
    """
    runs: dict[int, dict[int, int]] = {}
    for owner, each in enumerate(config.sets):
        found = False
        for text in texts_of(each):
            words = ngrams.word_hashes(ngrams.normalised(text))
            length = min(len(words), config.ngram_words)
            if length < min(config.min_words, config.ngram_words):
                continue
            found = True
            table = runs.setdefault(length, {})
            for value in ngrams.run_hashes(words, length).tolist():
                table.setdefault(value, owner)
        if not found:
            raise ValueError(
                f"decontaminate: {each.name} ({each.path}): no text of {config.min_words} words or "
                f"more in {', '.join(each.fields) or 'any field'}; name the fields that hold text"
            )
    arrays: dict[str, Any] = {
        "names": np.array([each.name for each in config.sets]),
        "lengths": np.array(sorted(runs), np.int64),
    }
    for length, table in runs.items():
        hashes = np.array(sorted(table), np.uint64)
        arrays[f"hashes_{length}"] = hashes
        arrays[f"owners_{length}"] = np.array([table[int(each)] for each in hashes], np.uint16)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file_name(config)
    draft = target.with_suffix(".draft.npz")
    np.savez(draft, **arrays)
    draft.replace(target)
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def texts_of(given: processors.EvaluationSet) -> Iterator[str]:
    """Yield the texts of an evaluation set.

    Raises:
        ValueError: there is no such file, or it is not what its suffix says.
    """
    root = Path(given.path)
    if root.is_dir():
        files = sorted(each for each in root.rglob("*") if each.name.endswith(FOLDER_SUFFIXES))
    else:
        files = [root]
    for file in files:
        try:
            data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            text = data.decode("utf-8")
            yield from _texts_in(text, file.name.removesuffix(".gz"), given.fields)
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(
                f"decontaminate: {given.name}: {file} cannot be read ({error}); expected JSONL, "
                "JSON or text in UTF-8, plain or .gz"
            ) from None


def _texts_in(text: str, name: str, fields: tuple[str, ...]) -> Iterator[str]:
    if name.endswith((".jsonl", ".ndjson")):
        # Not splitlines: U+2028 may stand inside a string of JSON.
        for line in text.split("\n"):
            if line.strip():
                yield from _strings(_chosen(json.loads(line), fields))
    elif name.endswith(".json"):
        parsed = json.loads(text)
        rows = parsed if isinstance(parsed, list) else [parsed]
        for row in rows:
            yield from _strings(_chosen(row, fields))
    else:
        yield text


def _chosen(row: Any, fields: tuple[str, ...]) -> Any:
    if not fields or not isinstance(row, dict):
        return row
    return [row[field] for field in fields if field in row]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
