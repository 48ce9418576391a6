"""The body of a corpus's report as plain values for the template, one function a section.

They read the manifest alone and are lenient: what it lacks is left out, never made up.
"""

from collections.abc import Mapping
from typing import Any

from mistral_jax.report import corpus_pictures
from mistral_jax.report import pictures
from mistral_jax.report.corpus_batches import Batches
from mistral_jax.report.files import Row

STAGES = {
    "all": "together", "processed": "processors", "gated": "quality gate", "exact": "exact copies",
    "near": "near copies",
}  # fmt: skip
BARS_SHOWN = 16
CLUSTERS_SHOWN = 10
MEMBERS_SHOWN = 12
GENERATED_COLOUR, STAGE_COLOUR, LOST_COLOUR = 2, 1, 0
SOURCE_COLUMNS = (
    "files", "read", "rejected", "set_aside", "duplicates", "near_duplicates", "bridges",
    "left_out", "kept", "tokens",
)  # fmt: skip
SHORT = {"duplicates": "copies", "near_duplicates": "near copies", "set_aside": "aside"}


def funnel(manifest: Row) -> list[Row]:
    """Return a bar for each stage, with what it lost against the one before."""
    entries = manifest.get("funnel", [])
    largest = max((each["rows"] for each in entries), default=0) or 1
    found: list[Row] = []
    before: int | None = None
    for each in entries:
        rows, is_generated = each["rows"], each["stage"] == "generated"
        lost = "" if before is None or is_generated or rows >= before else f"−{before - rows:,}"
        found.append(
            {
                "label": STAGES.get(each["stage"], each["stage"]),
                "value": f"{rows:,}",
                "lost": lost,
                "percent": round(100 * rows / largest, 1),
                "colour": GENERATED_COLOUR if is_generated else STAGE_COLOUR,
            }
        )
        # What was generated joins what was read.
        before = rows + before if is_generated and before is not None else rows
    return found


def sources(manifest: Row) -> Row:
    """Return the table of sources."""
    entries = manifest.get("sources", {})
    used = [key for key in SOURCE_COLUMNS if any(one.get(key) for one in entries.values())]
    heads = [_head("source"), _head("expert"), _head("licence")]
    heads += [_head(SHORT.get(key, key).replace("_", " "), is_number=True) for key in used]
    rows = [
        [name, one.get("expert", ""), one.get("licence", "")]
        + [f"{one[key]:,}" if key in one else "" for key in used]
        for name, one in entries.items()
    ]
    return {"heads": heads, "rows": rows}


def experts(manifest: Row) -> list[Row]:
    """Return a card for each expert: counts, levels, histograms."""
    edges = manifest.get("length_bins", [])
    return [
        {
            "name": name,
            "sentence": _expert_sentence(one),
            "levels": pictures.bars(
                [(each["name"].replace("_", " "), each["documents"], 4) for each in one["levels"]],
                lambda value: f"{value:,}",
            )
            if one.get("levels")
            else [],
            "lengths": corpus_pictures.length_chart(name, one.get("lengths", []), edges),
            "difficulty": corpus_pictures.difficulty_chart(name, one.get("difficulty", {})),
        }
        for name, one in manifest.get("experts", {}).items()
    ]


def _expert_sentence(one: Row) -> str:
    parts = []
    for split, name in (("train", "to train on"), ("eval", "held out")):
        if split in one:
            entry = one[split]
            documents = count(entry.get("documents", 0), "document")
            parts.append(f"{documents} {name} ({entry.get('tokens', 0):,} tokens)")
    return ", ".join(parts)


def rejects(manifest: Row) -> Row:
    """Return why rows were kept out: bars by kind; for each kind its sources and examples."""
    entry = manifest.get("rejects", {})
    by_kind = _sorted(entry.get("by_kind", {}))
    details = []
    for kind, number in by_kind:
        by_source = {
            name: kinds[kind] for name, kinds in entry.get("by_source", {}).items() if kind in kinds
        }
        details.append(
            {
                "kind": _words(kind),
                "count": f"{number:,}",
                "sources": ", ".join(f"{name} {n:,}" for name, n in _sorted(by_source)),
                "examples": entry.get("examples", {}).get(kind, []),
            }
        )
    shown = [(_words(kind), number, LOST_COLOUR) for kind, number in by_kind]
    return {
        "bars": pictures.bars(shown, lambda value: f"{value:,}"),
        "kinds": details,
        "file": entry.get("file", ""),
    }


def batch_section(batches: Batches) -> Row:
    """Return the pictures of the metrics, and the batches that failed."""
    drawn = [corpus_pictures.metric_chart(metric) for metric in batches.metrics]
    names = [
        metric.name
        for metric in batches.metrics
        if any(metric.name in each for each in batches.failed)
    ]
    heads = [_head("source"), _head("task", is_number=True), _head("batch", is_number=True)]
    heads += [_head("rows", is_number=True)]
    heads += [_head(name.replace("_", " "), is_number=True) for name in names]
    rows = [
        [
            *(_shown(each.get(key, "")) for key in ("source", "task", "batch", "rows")),
            *(_shown(each.get(name)) for name in names),
            ", ".join(map(str, each["failed"])),
        ]
        for each in batches.failed
    ]
    return {
        "pictures": [each for each in drawn if each],
        "heads": [*heads, _head("failed by")],
        "rows": rows,
        "rest": batches.num_failed - len(rows),
    }


def clusters(manifest: Row) -> Row:
    """Return the near-duplicate clusters: how many of which size, and the largest."""
    entry = manifest.get("near_duplicates", {})
    sizes = sorted((int(size), number) for size, number in entry.get("sizes", {}).items())
    shown = [(f"{size} alike", number, 2) for size, number in sizes[:BARS_SHOWN]]
    if rest := sum(number for _, number in sizes[BARS_SHOWN:]):
        shown.append((f"{sizes[BARS_SHOWN][0]} or more", rest, 2))
    largest = [
        {
            "size": f"{each['size']:,}",
            "kept": each.get("kept", ""),
            "members": each.get("members", [])[:MEMBERS_SHOWN],
            "rest": max(0, each["size"] - len(each.get("members", [])[:MEMBERS_SHOWN])),
        }
        for each in entry.get("largest", [])[:CLUSTERS_SHOWN]
    ]
    sentence = ""
    if entry.get("clusters"):
        rows = f" of {count(entry['rows'], 'row')}" if "rows" in entry else ""
        sentence = f"{count(entry['clusters'], 'cluster')}{rows}; one row of each stays."
    bars = pictures.bars(shown, lambda value: f"{value:,}")
    return {"bars": bars, "largest": largest, "sentence": sentence}


def shares(manifest: Row) -> list[Row]:
    """Return what the kept rows are made of: languages, licences, makers; and personal data."""
    groups = [
        ("Languages, by tokens", "languages", 1),
        ("Licences, by tokens", "licences", 2),
        ("How rows were made, by tokens", "made_by", 3),
    ]
    found = []
    for title, key, colour in groups:
        entries = manifest.get(key, {})
        by_tokens = _sorted({name: one.get("tokens", 0) for name, one in entries.items()})
        total = sum(tokens for _, tokens in by_tokens) or 1
        bars = pictures.bars(
            [(name, tokens, colour) for name, tokens in by_tokens[:BARS_SHOWN]],
            lambda value, total=total: f"{value:,} · {share(value, total)}",
        )
        rest = len(by_tokens) - BARS_SHOWN
        found.append({"title": title, "bars": bars, "rest": rest})
    pii = [(_words(kind), number, 0) for kind, number in _sorted(manifest.get("pii", {}))]
    bars = pictures.bars(pii, lambda value: f"{value:,}")
    found.append({"title": "Personal data found, by places", "bars": bars, "rest": 0})
    return [each for each in found if each["bars"]]


def scans(manifest: Row) -> Row:
    """Return the PDFs without text."""
    entry = manifest.get("scans", {})
    number = entry.get("documents", 0)
    if not number:
        return {}
    verb = "has" if number == 1 else "have"
    return {
        "sentence": f"{count(number, 'PDF')} {verb} pages but no text: scans, which need OCR.",
        "examples": entry.get("examples", []),
    }


def _head(name: str, *, is_number: bool = False) -> Row:
    return {"name": name, "is_number": is_number}


def _sorted(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return counts, the largest first, equal ones by name."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def share(part: Any, whole: Any) -> str:
    """Return a share in percent; neither 0 nor 100 where it is not quite that."""
    share = part / whole
    return f"{share:.1%}" if 0.001 <= share < 0.9995 or share in (0, 1) else f"{share:.3%}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, "1 row" or "2,000 rows"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
