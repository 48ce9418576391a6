"""Parquet to rows and documents: row groups are streamed, a few rows in memory at a time.

Columns have the names that JSONL's keys have, `content` may stand for `text`. pyarrow is in the
extra `data`; without it a Parquet file is a Reject that says so.
"""

from collections.abc import Collection
from collections.abc import Iterator
from typing import Any
from typing import BinaryIO

from data_pipelines import archives
from data_pipelines import inflate
from data_pipelines import jsonl
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject

# fmt: off
TEXT_COLUMNS = (
    "text", "content", "messages", "tools", "prompt", "completion", "prefix", "suffix", "middle",
    "document", "source",
)
FACT_COLUMNS = {
    "licence": "licence", "license": "licence", "language": "language", "lang": "language",
    "url": "url", "title": "title",
}
# fmt: on
BATCH_ROWS = 32
WITHOUT_PYARROW = (
    "needs pyarrow, which is not installed; set up with MISTRAL_JAX_LOCKS=data ./run doctor"
)


def read_parquet(name: str, stream: BinaryIO, limits: Limits) -> Iterator[Document | Reject]:
    """Yield a document or a reject for every row."""
    for where, row in read_rows(name, stream, limits, {*TEXT_COLUMNS, *FACT_COLUMNS}):
        if isinstance(row, Reject):
            yield row
            continue
        facts = {new: row.pop(old) for old, new in FACT_COLUMNS.items() if row.get(old)}
        if "content" in row and "text" not in row and "messages" not in row:
            row["text"] = row.pop("content")
        try:
            document = jsonl.document_of(where, _given(row))
        except jsonl.BadLine as bad:
            yield Reject(where, bad.kind, str(bad))
            continue
        document.facts.update({key: str(value) for key, value in facts.items()})
        yield document


def read_rows(
    name: str, stream: BinaryIO, limits: Limits, columns: Collection[str]
) -> Iterator[tuple[str, dict[str, Any] | Reject]]:
    """Yield (id, row) for every row, with those of the columns that the file has.

    Args:
        name: the file's id; rows count from 1 behind it.
        stream: at its start; copied to a nameless file if it cannot be sought in.
        limits: caps on a row (`line_bytes`) and on bytes for bytes of the file (`max_ratio`).
        columns: names to read; others cost nothing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        yield name, Reject(name, "unsupported_type", WITHOUT_PYARROW)
        return
    number = 0
    try:
        seekable = archives.seekable(stream, limits)
        size_bytes = seekable.seek(0, 2)
        seekable.seek(0)
        with pyarrow.parquet.ParquetFile(
            seekable, memory_map=False, pre_buffer=False, buffer_size=1 << 20
        ) as file:
            chosen = [each for each in file.schema_arrow.names if each in columns]
            if not chosen:
                has = ", ".join(file.schema_arrow.names)[:200]
                wanted = ", ".join(sorted(columns))
                yield name, Reject(name, "bad_schema", f"expected columns {wanted}, got {has}")
                return
            allowed = inflate.SLACK_BYTES + limits.max_ratio * size_bytes
            for batch in file.iter_batches(BATCH_ROWS, columns=chosen, use_threads=False):
                for where, row in _rows_of(batch, name, number, limits):
                    # A value that is stored once may stand in any number of rows.
                    allowed -= _size(row) if isinstance(row, dict) else 0
                    if allowed < 0:
                        told = f"gives more than {limits.max_ratio}-fold; it was not read further"
                        yield name, Reject(name, "bomb", told)
                        return
                    yield where, row
                number += batch.num_rows
    except (pyarrow.ArrowException, *archives.MEMBER_ERRORS, ValueError, TypeError) as error:
        where = f"{name}#{number + 1}" if number else name
        if isinstance(error, inflate.ArchiveError):
            yield where, archives.reject_of(where, error)
        else:
            first = str(error).partition("\n")[0][:200]
            yield where, Reject(where, "bad_parquet", f"damaged or cut short ({first})")
        return
    if not number:
        yield name, Reject(name, "empty", "holds no rows")


def _rows_of(
    batch: Any, name: str, start: int, limits: Limits
) -> Iterator[tuple[str, dict[str, Any] | Reject]]:
    for index in range(batch.num_rows):
        where = f"{name}#{start + index + 1}"
        row = batch.slice(index, 1)
        if row.nbytes > limits.line_bytes:
            yield where, Reject(where, "line_too_long", f"more than {limits.line_bytes} bytes")
            continue
        try:
            yield where, row.to_pylist()[0]
        except UnicodeDecodeError as error:
            told = f"byte {error.start} of a column is not UTF-8"
            yield where, Reject(where, "not_utf8", told)
        except ValueError as error:
            yield where, Reject(where, "bad_parquet", f"a value cannot be read ({error})")


def _size(value: Any) -> int:
    """Return about how many bytes a value takes."""
    if isinstance(value, str | bytes):
        return 8 + len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return 8 + sum(map(_size, value)) if isinstance(value, list) else 8


def _given(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without columns that say nothing in it."""
    return {key: value for key, value in row.items() if value is not None}
