"""What people read of a corpus: train_dataset and val_dataset of an expert, JSONL or Parquet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import shards
from data_pipelines.corpus import table as tables
from data_pipelines.corpus.job import Job

NAMES = {"train": "train_dataset", "eval": "val_dataset"}
PARQUET_ROWS = 1024
# Columns whose values differ in shape from row to row hold JSON.
JSON_COLUMNS = frozenset({"messages", "tools", "facts", "pages", "span"})


def write(
    job: Job, made: tables.Table, chosen: np.ndarray, folder: Path, split: str
) -> dict[str, Any] | None:
    """Write one split's rows as the config asks; return the file's entry in the manifest."""
    match job.config.readable:
        case None:
            return None
        case "jsonl":
            path = folder / f"{NAMES[split]}.jsonl"
            with path.open("wb") as file:
                file.writelines(tables.lines(job, made, chosen))
        case "parquet":
            path = folder / f"{NAMES[split]}.parquet"
            _write_parquet(path, tables.lines(job, made, chosen))
    return shards.file_entry(path)


def _write_parquet(path: Path, given: Iterator[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = (
        "id", "source_name", "kind", "expert", "licence", "made_by", "document",
        "text", "prompt", "completion", "prefix", "suffix", "middle", *sorted(JSON_COLUMNS),
    )  # fmt: skip
    schema = pa.schema([(name, pa.string()) for name in text])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for line in given:
            row = json.loads(line)
            batch.append({key: _cell(key, value) for key, value in row.items()})
            if len(batch) >= PARQUET_ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))


def _cell(key: str, value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if key in JSON_COLUMNS else value
