"""manifest.json of a corpus: counts after every stage, rejects with reasons, licences, digests.

The lists beside it (rejects, batches, rows set aside) are joined from the parts here.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import records
from data_pipelines import shards
from data_pipelines import sources
from data_pipelines.corpus import encode_task
from data_pipelines.corpus import fates
from data_pipelines.corpus import parts
from data_pipelines.corpus import publish
from data_pipelines.corpus import table as tables
from data_pipelines.corpus.job import Job
from data_pipelines.documents import Reject
from mistral_jax.tokenizers import Tokenizer

VERSION = 1
KIND = "corpus"
EXAMPLES_SHOWN = 5
LARGEST_SHOWN = 20
SCAN = "no_text"
SINGLE_FILES = ("lengths", "levels")


def manifest(
    job: Job,
    folder: Path,
    *,
    mapped: dict[int, Any],
    joined: fates.Joined,
    encoded: dict[int, Any],
    made: tables.Table,
    experts: dict[str, Any],
    fingerprint: str,
    tokenizer: Tokenizer | None,
) -> dict[str, Any]:
    """Write the lists of what was kept out into a folder, and return the manifest."""
    rejects = _write_rejects(job, folder, mapped, joined)
    batches = _write_batches(job, folder, mapped)
    counts = encode_task.Counts()
    for entry in encoded.values():
        counts.merge(entry)
    totals = counts.summary()
    by_maker = _by_maker(job, mapped, joined, encoded, made)
    return {
        "version": VERSION,
        "kind": KIND,
        "name": job.config.name,
        "fingerprint": fingerprint,
        "settings": job.config.facts(),
        "tokenizer": None
        if tokenizer is None
        else {
            "name": tokenizer.name,
            "digest": tokenizer.digest,
            "vocab_size": tokenizer.vocab_size,
        },
        "versions": {"manifest": sources.MANIFEST_VERSION, "record": records.FORMAT_VERSION},
        "inputs": {
            "files": sum(len(task.get("files", ())) for task in job.tasks),
            "bytes": sum(f["size_bytes"] for task in job.tasks for f in task.get("files", ())),
        },
        "funnel": _funnel(by_maker),
        "sources": by_maker,
        "experts": experts,
        "length_bins": list(publish.LENGTH_BINS),
        "rejects": rejects,
        **{
            name: {
                value: {"documents": pair[0], "tokens": pair[1]}
                for value, pair in totals[name].items()
            }
            for name in ("licences", "languages", "made_by")
        },
        "pii": totals["pii"],
        "batches": batches,
        "near_duplicates": joined.clusters,
        "split": {
            "eval_fraction": job.config.eval_fraction,
            "bridges": joined.count("split_bridge"),
            "from_before": joined.num_from_before,
        },
        "scans": {
            "documents": rejects["by_kind"].get(SCAN, 0),
            "examples": [each["id"] for each in rejects["examples"].get(SCAN, [])],
        },
    }


def read_rows(mapped: dict[int, Any]) -> int:
    """Return how many rows were read or made, usable or not."""
    return sum(
        count["accepted"] + sum(count["rejected"].values())
        for entry in mapped.values()
        for count in entry["read"].values()
    )


def digests(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield (file, sha256) of every file that training or people read."""
    for name, expert in manifest["experts"].items():
        own = sources.read_json(folder / name / sources.MANIFEST)
        for split in shards.SPLITS:
            entry = own.get("splits", {}).get(split, {})
            single = [each for key in SINGLE_FILES if (each := entry.get(key)) is not None]
            for file in [*entry.get("shards", ()), *entry.get("provenance", ()), *single]:
                yield folder / name / split / file["file"], file["sha256"]
            if (file := expert[split]["readable"]) is not None:
                yield folder / name / file["file"], file["sha256"]


def _by_maker(
    job: Job,
    mapped: dict[int, Any],
    joined: fates.Joined,
    encoded: dict[int, Any],
    made: tables.Table,
) -> dict[str, Any]:
    """Return what became of the rows of each source and generator."""
    found: dict[str, Any] = {}
    for index, maker in enumerate(job.makers):
        mine = made.maker == index
        found[maker.name] = {
            "type": maker.kind,
            "expert": maker.expert,
            "licence": maker.licence,
            "is_generator": maker.is_generator,
            "files": sum(
                len(t["files"]) for t in job.tasks if t["maker"] == index and "files" in t
            ),
            "read": 0,
            "rejected": 0,
            "set_aside": 0,
            "duplicates": joined.count("duplicate", index),
            "near_duplicates": joined.count("near_duplicate", index),
            "bridges": joined.count("split_bridge", index),
            "left_out": joined.count("over_limit", index) + joined.count("document_left", index),
            "kept": int(np.count_nonzero(mine)),
            "tokens": int(made.tokens[mine].sum()),
        }
    for entry in mapped.values():
        for name, count in entry["read"].items():
            found[name]["read"] += count["accepted"] + sum(count["rejected"].values())
        for name, kinds in entry["rejected"].items():
            found[name]["duplicates"] += kinds.get("duplicate", 0)
            found[name]["set_aside"] += kinds.get("set_aside", 0)
            left = sum(kinds.values()) - kinds.get("duplicate", 0) - kinds.get("set_aside", 0)
            found[name]["rejected"] += left
    for entry in found.values():
        # What the tokenizer had no use for is all that is not accounted for yet.
        gone = ("rejected", "set_aside", "duplicates", "near_duplicates", "bridges", "left_out")
        entry["rejected"] += entry["read"] - entry["kept"] - sum(entry[each] for each in gone)
    return found


def _funnel(by_maker: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows that are left after each stage."""
    total = Counter[str]()
    made = 0
    for entry in by_maker.values():
        total.update({k: v for k, v in entry.items() if isinstance(v, int)})
        made += entry["read"] if entry["is_generator"] else 0
    left = total["read"]
    stages = [("read", left - made), ("generated", made), ("all", left)]
    for stage, gone in (
        ("processed", ("rejected",)),
        ("gated", ("set_aside",)),
        ("exact", ("duplicates",)),
        ("near", ("near_duplicates", "bridges")),
        ("kept", ("left_out",)),
    ):
        left -= sum(total[each] for each in gone)
        stages.append((stage, left))
    return [{"stage": stage, "rows": rows} for stage, rows in stages]


def _write_rejects(
    job: Job, folder: Path, mapped: dict[int, Any], joined: fates.Joined
) -> dict[str, Any]:
    """Write every reject of every stage, a line each, and return the counts and examples."""
    by_kind: Counter[str] = Counter()
    by_source: dict[str, Counter[str]] = {}
    examples: dict[str, list[dict[str, str]]] = {}
    generators = {maker.name for maker in job.makers if maker.is_generator}
    with (folder / parts.REJECTS).open("w", encoding="utf-8") as listed:
        for number in mapped:
            for reject in _rejects_of(job, number, joined):
                by_kind[reject.kind] += 1
                source = _source_of(reject.id, generators)
                by_source.setdefault(source, Counter())[reject.kind] += 1
                shown = examples.setdefault(reject.kind, [])
                if len(shown) < EXAMPLES_SHOWN:
                    shown.append({"id": reject.id, "reason": reject.reason})
                listed.write(json.dumps(asdict(reject), ensure_ascii=False) + "\n")
    return {
        "file": parts.REJECTS,
        "by_kind": dict(sorted(by_kind.items())),
        "by_source": {
            source: dict(sorted(kinds.items())) for source, kinds in sorted(by_source.items())
        },
        "examples": dict(sorted(examples.items())),
    }


def _source_of(name: str, generators: set[str]) -> str:
    """Return whose row has an id: "notes/a.txt", "maths#7", "notes/a.txt?questions#3"."""
    asked = name.rpartition("?")[2].partition("#")[0]
    return asked if asked in generators else name.partition("/")[0]


def _rejects_of(job: Job, number: int, joined: fates.Joined) -> Iterator[Reject]:
    yield from parts.rejects(job.part("map", number))
    yield from joined.rejects(job, number)
    yield from parts.rejects(job.part("encode", number))


def _write_batches(job: Job, folder: Path, mapped: dict[int, Any]) -> dict[str, Any]:
    """Join the scores of all batches, and the rows of those that failed."""
    failed = total = 0
    with (
        (folder / parts.BATCHES).open("wb") as scores,
        (folder / parts.SET_ASIDE).open("wb") as aside,
    ):
        for number in mapped:
            part = job.part("map", number)
            with (part / parts.BATCHES).open("rb") as lines:
                for line in lines:
                    total += 1
                    failed += bool(json.loads(line)["failed"])
                    scores.write(line)
            with (part / parts.SET_ASIDE).open("rb") as lines:
                shutil.copyfileobj(lines, aside)
    return {
        "file": parts.BATCHES,
        "set_aside": parts.SET_ASIDE,
        "passed": total - failed,
        "failed": failed,
    }
