"""The top and the end of a corpus's report, and how its sections go together.

The body's sections are in corpus_tables.py. What the manifest lacks is left out, never made up.
"""

import json
from pathlib import Path

from mistral_jax.report import corpus_tables
from mistral_jax.report import units
from mistral_jax.report.corpus_batches import Batches
from mistral_jax.report.files import Row

SPLITS = ("train", "eval")


def build(manifest: Row, batches: Batches, place: str) -> Row:
    """Return every variable of the template; `place` is the corpus's folder or URI."""
    folder_name = Path(place).resolve().name
    fingerprint = str(manifest.get("fingerprint", ""))[:12]
    settings = manifest.get("settings")
    return {
        "page_name": "corpus report",
        "title": str(manifest.get("name") or folder_name),
        "subtitle": subtitle(manifest),
        "notes": notes(manifest),
        "tiles": tiles(manifest, batches),
        "funnel": corpus_tables.funnel(manifest),
        "sources": corpus_tables.sources(manifest),
        "experts": corpus_tables.experts(manifest),
        "rejects": corpus_tables.rejects(manifest),
        "batches": corpus_tables.batch_section(batches),
        "clusters": corpus_tables.clusters(manifest),
        "shares": corpus_tables.shares(manifest),
        "scans": corpus_tables.scans(manifest),
        "commands": commands(manifest, place),
        "facts_name": "Corpus",
        "facts": facts(manifest),
        "versions": [(name, str(value)) for name, value in manifest.get("versions", {}).items()],
        "config_name": "the settings, as they were resolved",
        "config": json.dumps(settings, indent=2, ensure_ascii=False) if settings else "",
        "made_from": folder_name + (f", fingerprint {fingerprint}" if fingerprint else ""),
    }


def subtitle(manifest: Row) -> str:
    """Return one line: what went in, for whom, by which tokenizer."""
    parts = []
    inputs = manifest.get("inputs", {})
    if "files" in inputs:
        size = f", {units.format_bytes(inputs['bytes'])}" if "bytes" in inputs else ""
        parts.append(f"{inputs['files']:,} files{size}")
    for name in ("sources", "experts"):
        if count := len(manifest.get(name, {})):
            parts.append(f"{count} {name if count > 1 else name[:-1]}")
    if tokenizer := (manifest.get("tokenizer") or {}).get("name"):
        parts.append(f"tokenizer {tokenizer}")
    return " · ".join(parts)


def notes(manifest: Row) -> list[str]:
    """Return what a reader must not overlook."""
    found = []
    empty = [name for name, one in manifest.get("experts", {}).items() if not _documents(one)]
    if empty:
        found.append(f"No document was kept for: {', '.join(empty)}.")
    if bridges := manifest.get("split", {}).get("bridges"):
        found.append(
            f"{corpus_tables.count(bridges, 'row')} set aside for resembling both a training and "
            "a held-out document of an earlier run."
        )
    return found


def tiles(manifest: Row, batches: Batches) -> list[Row]:
    """Return the key figures of the page's top."""
    rows = {each["stage"]: each["rows"] for each in manifest.get("funnel", [])}
    given = rows.get("read", 0) + rows.get("generated", 0)
    found = []
    if "kept" in rows:
        share = f"{corpus_tables.share(rows['kept'], given)} of " if given else ""
        found.append(_tile("rows kept", f"{rows['kept']:,}", f"{share}{given:,} read or generated"))
    tokens = {split: _total(manifest, split, "tokens") for split in SPLITS}
    if any(tokens.values()):
        held_out = f"and {tokens['eval']:,} held out"
        found.append(_tile("tokens to train on", f"{tokens['train']:,}", held_out))
    by_kind = manifest.get("rejects", {}).get("by_kind", {})
    kinds = corpus_tables.count(len(by_kind), "kind")
    found.append(_tile("kept out with a reason", f"{sum(by_kind.values()):,}", kinds))
    copies = {key: _of_sources(manifest, key) for key in ("duplicates", "near_duplicates")}
    near = f"and {copies['near_duplicates']:,} near copies"
    found.append(_tile("exact copies dropped", f"{copies['duplicates']:,}", near))
    if batches.num_batches:
        found.append(
            _tile(
                "quality batches",
                f"{batches.num_batches - batches.num_failed:,} of {batches.num_batches:,} passed",
                f"{_of_sources(manifest, 'set_aside'):,} rows set aside",
                "bad" if batches.num_failed else "good",
            )
        )
    if pii := manifest.get("pii"):
        found.append(_tile("personal data", f"{sum(pii.values()):,}", "places found"))
    return found


def _tile(label: str, value: str, detail: str, tone: str = "") -> Row:
    return {"label": label, "value": value, "detail": detail, "tone": tone}


def facts(manifest: Row) -> list[tuple[str, str]]:
    """Return what identifies the corpus, and how it was split."""
    split = manifest.get("split", {})
    tokenizer = manifest.get("tokenizer") or {}
    pairs = [
        ("name", manifest.get("name")),
        ("fingerprint", manifest.get("fingerprint")),
        ("tokenizer", tokenizer.get("name")),
        ("tokenizer digest", tokenizer.get("digest")),
        ("held-out fraction", split.get("eval_fraction")),
        ("assignments from before", split.get("from_before")),
        ("split bridges", split.get("bridges")),
    ]
    return [(name, str(value)) for name, value in pairs if value not in (None, "")]


def commands(manifest: Row, place: str) -> list[tuple[str, str]]:
    """Return what to do with the corpus."""
    found = [("Look at it in the terminal", f"./run inspect {place}")]
    kept = [
        (one.get("folder") or name)
        for name, one in manifest.get("experts", {}).items()
        if one.get("train", {}).get("documents")
    ]
    if kept:
        found += [
            ("See where one training row comes from", f"./run inspect {place}/{kept[0]}/train#0"),
            (
                "Train on one expert's shards",
                f"./run train configs/demo/finetune.yaml data.train={place}/{kept[0]}",
            ),
        ]
    return found


def _documents(one: Row) -> int:
    return sum(one.get(split, {}).get("documents", 0) for split in SPLITS)


def _total(manifest: Row, split: str, key: str) -> int:
    return sum(one.get(split, {}).get(key, 0) for one in manifest.get("experts", {}).values())


def _of_sources(manifest: Row, key: str) -> int:
    return sum(one.get(key, 0) for one in manifest.get("sources", {}).values())
