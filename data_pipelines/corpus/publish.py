"""The last stages: levels of difficulty, shards and readable files of each expert, manifests.

OUT/<expert>/manifest.json train/ eval/   a prepared folder, as a run's data.train takes it
OUT/<expert>/<split>/levels.npy           the level of each document; they are in its order
OUT/<expert>/<split>/provenance.jsonl     where each document comes from
OUT/<expert>/train_dataset.jsonl val_dataset.jsonl    for people
OUT/manifest.json rejects.jsonl batches.jsonl set_aside.jsonl
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines import levels
from data_pipelines import records
from data_pipelines import shards
from data_pipelines import sources
from data_pipelines.corpus import encode_task
from data_pipelines.corpus import parts
from data_pipelines.corpus import readable
from data_pipelines.corpus import row as rows
from data_pipelines.corpus import table as tables
from data_pipelines.corpus.job import Job
from data_pipelines.corpus.provenance import ProvenanceWriter
from mistral_jax.tokenizers import Tokenizer

FILES = (parts.REJECTS, parts.BATCHES, parts.SET_ASIDE, "report.html")
MEDIA = "media"
ORIGIN_KEYS = ("id", "source_name", "kind", "licence", "made_by", "span")
LENGTH_BINS = tuple(1 << power for power in range(24))
DIFFICULTY_EDGES = tuple(step / 20 for step in range(21))


def name_of(expert: int) -> str:
    """Return the name of an expert, which is that of its folder."""
    return rows.EXPERTS[expert]


def write_expert(
    job: Job,
    made: tables.Table,
    expert: int,
    folder: Path,
    tokenizer: Tokenizer | None,
    fingerprint: str,
) -> dict[str, Any]:
    """Write the folder of one expert, and return its entry in the corpus's manifest."""
    name = rows.EXPERTS[expert]
    folder.mkdir(parents=True)
    splits: dict[str, Any] = {}
    by_split = {split: made.of(expert, is_eval=split == "eval") for split in shards.SPLITS}
    for split, chosen in by_split.items():
        entry = _write_split(job, made, chosen, folder / split, has_tokens=tokenizer is not None)
        entry["readable"] = readable.write(job, made, chosen, folder, split)
        splits[split] = entry
    if tokenizer is not None:
        shards.write_json(
            folder / sources.MANIFEST, _expert_manifest(job, name, tokenizer, fingerprint, splits)
        )
    train = by_split["train"]
    return {
        "folder": name,
        **{
            split: {
                "documents": len(chosen),
                "tokens": int(made.tokens[chosen].sum()),
                "digest": splits[split].get("digest"),
                "readable": splits[split]["readable"],
            }
            for split, chosen in by_split.items()
        },
        "levels": [
            {
                "name": level_name,
                "documents": int(np.count_nonzero(made.level[train] == level)),
                "tokens": int(made.tokens[train][made.level[train] == level].sum()),
            }
            for level, level_name in enumerate(levels.NAMES[name])
        ],
        "lengths": np.histogram(made.tokens[train], [*LENGTH_BINS, 1 << 62])[0].tolist(),
        "difficulty": {
            "edges": list(DIFFICULTY_EDGES),
            "counts": np.histogram(made.score[train], DIFFICULTY_EDGES)[0].tolist(),
        },
    }


def _write_split(
    job: Job, made: tables.Table, chosen: np.ndarray, folder: Path, *, has_tokens: bool
) -> dict[str, Any]:
    folder.mkdir(parents=True)
    provenance = ProvenanceWriter(folder)
    for index, line in zip(chosen.tolist(), tables.lines(job, made, chosen), strict=True):
        row = json.loads(line)
        provenance.add(_origin(row, made, index))
        _take_media(job, row, folder.parent / MEDIA)
    entry: dict[str, Any] = {}
    if has_tokens:
        writer = shards.SplitWriter(folder)
        level = None
        for index, record in zip(chosen.tolist(), _records(job, made, chosen), strict=True):
            if level is not None and made.level[index] != level:
                writer.end_shard()
            level = made.level[index]
            writer.add(record)
        entry = writer.close()
        entry["levels"] = shards.file_entry(levels.write(folder, made.level[chosen]))
    entry["provenance"] = provenance.close()
    return entry


def _take_media(job: Job, row: dict[str, Any], folder: Path) -> None:
    """Put the media file of a generated row, named by its content, beside the shards."""
    name = row["facts"].get("media", {}).get("path")
    if name is None or row["made_by"] == rows.READ or (folder / name).exists():
        return
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(job.media / name, folder / name)


def _origin(row: dict[str, Any], made: tables.Table, index: int) -> dict[str, Any]:
    """Return where a row comes from, as provenance.jsonl tells it."""
    pages = row.get("pages")
    return {
        **{key: row.get(key) for key in ORIGIN_KEYS},
        "page_first": 1 if pages else None,
        "page_last": len(pages) if pages else None,
        "level": int(made.level[index]),
        "difficulty": round(float(made.score[index]), 4),
        "digest": made.digest[index].tobytes().hex(),
        "made_from": row.get("document"),
    }


def _records(job: Job, made: tables.Table, chosen: np.ndarray) -> Iterator[bytes]:
    """Yield records in the order chosen, opening one part at a time."""
    for number, places in tables.runs_of(made.part[chosen]):
        path = job.part("encode", number) / encode_task.RECORDS
        reader = array_record_module.ArrayRecordReader(str(path), sources.READER_OPTIONS)
        wanted = made.record[chosen[places]].tolist()
        for start in range(0, len(wanted), shards.READ_RECORDS):
            yield from reader.read(wanted[start : start + shards.READ_RECORDS])
        reader.close()


def _expert_manifest(
    job: Job, name: str, tokenizer: Tokenizer, fingerprint: str, splits: dict[str, Any]
) -> dict[str, Any]:
    """Return the manifest that makes an expert's folder one that a run can read."""
    config = job.config
    described = {
        "name": tokenizer.name,
        "digest": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        "add_bos": tokenizer.add_bos,
    }
    kept = sum(entry["documents"] for entry in splits.values())
    return {
        "version": sources.MANIFEST_VERSION,
        "name": name,
        "corpus": config.name,
        "fingerprint": fingerprint,
        "tokenizer": described,
        "token_bytes": records.token_bytes_for(tokenizer.vocab_size),
        "settings": {"eval_fraction": config.eval_fraction},
        "counts": {"kept": kept},
        "rejects": {"file": f"../{parts.REJECTS}", "by_kind": {}},
        "level_names": list(levels.NAMES[name]),
        "splits": splits,
    }
