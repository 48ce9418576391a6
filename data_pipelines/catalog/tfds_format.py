"""Shards of a prepared TFDS folder to documents, without tensorflow.

A shard (NAME-SPLIT.array_record-00000-of-00002) lies beside the dataset_info.json and features.json
that say how its records are read. Only ArrayRecord shards: tfds reads others by tensorflow.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines import jsonl
from data_pipelines.catalog import leaf as leaves
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.parquet import FACT_COLUMNS
from data_pipelines.parquet import TEXT_COLUMNS

BATCH_RECORDS = 32
FEATURES = "tensorflow_datasets.core.features."


def read_shard(leaf: Leaf) -> Items:
    """Yield the examples of one shard: keys as JSONL has them, `content` or `document` for text."""
    if leaf.file is None:
        told = "a TFDS folder is read from disk, not from an archive; unpack it"
        yield Reject(leaf.name, "unsupported_type", told)
        return
    if ".array_record" not in leaf.path:
        told = "expected a shard in ArrayRecord; prepare with file_format='array_record'"
        yield Reject(leaf.name, "unsupported_type", told)
        return
    yield from leaves.each(_examples(leaf), _example)


def _examples(leaf: Leaf) -> Iterator[tuple[str, dict[str, Any] | Reject]]:
    try:
        import tensorflow_datasets
    except ImportError:
        raise ValueError(
            "TFDS sources need tensorflow-datasets; set up with MISTRAL_JAX_LOCKS=data ./run doctor"
        ) from None
    assert leaf.file is not None, "checked by read_shard"
    if strange := _strange_features(leaf):
        told = f"features.json names {strange}; only those of tfds itself are read"
        yield leaf.name, Reject(leaf.name, "unsafe_features", told)
        return
    features: Any
    try:
        builder = tensorflow_datasets.builder_from_directory(str(leaf.file.parent))
        features, licence = builder.info.features, builder.info.redistribution_info.license
        reader = array_record_module.ArrayRecordReader(
            str(leaf.file), "readahead_buffer_size:0,max_parallelism:0"
        )
        total = reader.num_records()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).partition("\n")[0][:200]
        yield leaf.name, Reject(leaf.name, "bad_tfds", f"not a shard of a TFDS folder ({first})")
        return
    for start in range(0, total, BATCH_RECORDS):
        numbers = range(start, min(start + BATCH_RECORDS, total))
        try:
            records = reader.read(list(numbers))
        except (ValueError, RuntimeError, IndexError) as error:
            where = f"{leaf.name}#{start + 1}"
            yield where, Reject(where, "bad_tfds", f"records cannot be read ({error})")
            return
        for number, record in zip(numbers, records):
            where = f"{leaf.name}#{number + 1}"
            try:
                example: dict[str, Any] = features.deserialize_example_np(record)
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                first = str(error).partition("\n")[0][:200]
                yield where, Reject(where, "bad_tfds", f"not an example ({first})")
                continue
            yield where, {"licence": licence, **{k: _plain(v) for k, v in example.items()}}


def _strange_features(leaf: Leaf) -> str | None:
    """Return a class that features.json names outside of tfds, which tfds would import."""
    try:
        listed = jsonl.parse_object(leaf.beside("features.json") or b"")
    except jsonl.BadLine:
        return None  # read_shard's own reject tells of the damage
    waiting: list[Any] = [listed]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            name = node.get("pythonClassName", node.get("type", FEATURES))
            if isinstance(name, str) and "." in name and not name.startswith(FEATURES):
                return repr(name)[:100]
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return None


def _plain(value: Any) -> Any:
    """Return what JSON would hold: text for bytes, lists for arrays of text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_plain(each) for each in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value


def _example(where: str, row: dict[str, Any]) -> Document:
    facts = {new: row[old] for old, new in FACT_COLUMNS.items() if isinstance(row.get(old), str)}
    given = {key: row[key] for key in TEXT_COLUMNS if row.get(key) is not None}
    if not given.keys() & {"text", "messages", "completion", "middle"}:
        given = {"text": leaves.field(row, "content", "document", "sentence")}
    made = jsonl.document_of(where, given)
    made.facts.update(leaves.said(facts))
    return made
