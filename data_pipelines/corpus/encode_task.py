"""The stage `encode`: the rows of one part that stay, as records, in order.

records.array_record   one record for each encoded row
encoded.npy            an ENCODED entry for each of them
rejects.jsonl          rows that turned out to be of no use to this tokenizer
"""

import functools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import records
from data_pipelines import shards
from data_pipelines import tokenize_documents
from data_pipelines.corpus import fates
from data_pipelines.corpus import job as jobs
from data_pipelines.corpus import parts
from data_pipelines.corpus import row as rows
from data_pipelines.corpus import state
from data_pipelines.documents import Reject
from mistral_jax import tokenizers

RECORDS, ENCODED_FILE = "records.array_record", "encoded.npy"
UNKNOWN = "unknown"

ENCODED = np.dtype(
    [
        ("row", "<i4"),  # in the part
        ("tokens", "<i4"),
        ("bytes", "<i8"),  # of its line
    ]
)


@functools.lru_cache(maxsize=2)
def tokenizer_of(name: str) -> tokenizers.Tokenizer:
    """Return a tokenizer; kept, for a process does many tasks."""
    return tokenizers.load_tokenizer(name)


def run(folder: Path, number: int) -> dict[str, Any]:
    """Encode the rows of part `number` that stay; return counts and the result's digest."""
    job = jobs.load(folder)
    part = job.part("map", number)
    wanted = fates.kept_rows(job, number)
    tokenizer = None if job.config.tokenizer is None else tokenizer_of(job.config.tokenizer)
    target = job.part("encode", number)
    making = target.with_name(f"{target.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    counts = Counts()
    encoded = []
    rejected: Counter[str] = Counter()
    writer = None if tokenizer is None else shards.RecordFile(making / RECORDS)
    with (making / parts.REJECTS).open("w", encoding="utf-8") as rejects:
        for index, line in zip(wanted.tolist(), parts.lines(part, wanted.tolist()), strict=True):
            row = rows.from_line(line)
            num_tokens = 0
            if tokenizer is not None and writer is not None:
                made = tokenize_documents.tokenize_document(row.document, tokenizer)
                if isinstance(made, Reject):
                    rejected[made.kind] += 1
                    rejects.write(shards.reject_line(made))
                    continue
                width = records.token_bytes_for(tokenizer.vocab_size)
                writer.write(
                    records.encode_record(made.tokens, made.mask, row.id, token_bytes=width)
                )
                num_tokens = len(made.tokens)
            encoded.append((index, num_tokens, len(line)))
            counts.add(row, num_tokens)
    if writer is not None:
        writer.close()
    np.save(making / ENCODED_FILE, np.array(encoded, ENCODED))
    shutil.rmtree(target, ignore_errors=True)
    making.rename(target)
    return {
        "rows": len(encoded),
        "rejected": dict(sorted(rejected.items())),
        "sha256": state.folder_digest(target),
        **counts.summary(),
    }


class Counts:
    """Documents and tokens by licence, language and maker; what was taken out of them."""

    def __init__(self) -> None:
        self._by: dict[str, dict[str, list[int]]] = {
            "licences": {}, "languages": {}, "made_by": {},
        }  # fmt: skip
        self._pii: Counter[str] = Counter()

    def add(self, row: rows.Row, num_tokens: int) -> None:
        """Count a row."""
        facts = {**row.document.facts, **row.facts}
        maker = row.made_by.split(" ", 1)[0]
        values = (row.licence or UNKNOWN, str(facts.get("language") or UNKNOWN), maker)
        for by, value in zip(self._by.values(), values):
            entry = by.setdefault(value, [0, 0])
            entry[0] += 1
            entry[1] += num_tokens
        self._pii.update(facts.get("pii") or {})

    def merge(self, summary: dict[str, Any]) -> None:
        """Add what another one counted."""
        for name, by in self._by.items():
            for value, (documents, tokens) in summary[name].items():
                entry = by.setdefault(value, [0, 0])
                entry[0] += documents
                entry[1] += tokens
        self._pii.update(summary["pii"])

    def summary(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        sums = {name: dict(sorted(by.items())) for name, by in self._by.items()}
        return {**sums, "pii": dict(sorted(self._pii.items()))}
