"""A prepared corpus: its counts; and one row of it, back to file, member, page, line, characters.

The row's text is read again from the input while that lies on this machine.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from data_pipelines import sources
from data_pipelines.corpus import originals
from data_pipelines.corpus import provenance
from data_pipelines.corpus import row as rows
from data_pipelines.documents import Reject
from mistral_jax.inspect import documents
from mistral_jax.inspect import table
from mistral_jax.report import corpus as manifests

SPLITS = ("train", "eval")
TEXT_SHOWN = 600  # characters of a row's original
REJECTS_SHOWN = 8
STEPS = {"exact": "exact copies dropped", "near": "near copies dropped"}


def is_corpus(folder: Path) -> bool:
    """Return whether a folder is a prepared corpus of experts."""
    path = folder / sources.MANIFEST
    return path.is_file() and sources.read_json(path).get("kind") == manifests.KIND


def show(folder: Path, console: Console) -> None:
    """Print a corpus's counts, and those of its experts."""
    manifest = manifests.read_manifest(folder)
    by_kind = manifest.get("rejects", {}).get("by_kind", {})
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in by_kind.items())
    given = {
        "kind": "prepared corpus",
        "name": str(manifest.get("name", "")),
        "fingerprint": str(manifest.get("fingerprint", "")),
        "tokenizer": str((manifest.get("tokenizer") or {}).get("name", "")),
        "rows": ", ".join(f"{one['rows']:,} {one['stage']}" for one in manifest.get("funnel", [])),
        "kept out": kinds or "nothing",
    }
    for name, one in manifest.get("sources", {}).items():
        shown = {key.replace("_", " "): f"{one[key]:,}" for key in ("read", "kept") if key in one}
        given[f"source {name}"] = table.one_line(
            {"expert": one.get("expert"), "licence": one.get("licence")} | shown
        )
    for name, one in manifest.get("experts", {}).items():
        parts = [
            f"{split} {one[split].get('documents', 0):,} documents, "
            f"{one[split].get('tokens', 0):,} tokens"
            for split in SPLITS
            if split in one
        ]
        levels = ", ".join(
            f"{each['name']} {each['documents']:,}" for each in one.get("levels", [])
        )
        given[f"expert {name}"] = "; ".join([*parts, *([f"levels: {levels}"] if levels else [])])
    if (folder / "report.html").is_file():
        given["report"] = str(folder / "report.html")
    console.print(
        table.two_columns(str(folder), {key: text for key, text in given.items() if text})
    )


def split_of(spelled: str | Path) -> tuple[Path, int] | None:
    """Return (split folder, index) of OUT/code/train#17; None if it is not spelled so."""
    name, mark, number = str(spelled).rpartition("#")
    folder = Path(name).expanduser()
    if not mark or not number.isdecimal() or not (folder / provenance.PROVENANCE).is_file():
        return None
    return folder, int(number)


def show_index(split: Path, index: int, tokenizer: str | None, console: Console) -> None:
    """Print where a document of a split comes from, and its text."""
    _show_row(split, index, provenance.locate(split, index), tokenizer, console)


def show_row(folder: Path, wanted: str, tokenizer: str | None, console: Console) -> None:
    """Print where the documents with an id or a digest come from, or why they were kept out.

    Args:
        folder: a corpus, or one of its experts.
        wanted: an id, or the first 8 or more characters of a digest.
        tokenizer: spells the tokens; that of the corpus by default.
        console: where to print.

    Raises:
        ValueError: no document and no reject of that name.
    """
    num_found = 0
    for split in _splits(folder):
        for index, facts in provenance.find(split, wanted):
            _show_row(split, index, facts, tokenizer, console)
            num_found += 1
    for reject in _rejects(folder, wanted):
        documents.print_reject(reject, console)
        num_found += 1
        if num_found >= REJECTS_SHOWN:
            break
    if not num_found:
        raise ValueError(
            f"{folder}: no row {wanted!r}; expected an id as provenance.jsonl and rejects.jsonl "
            "spell it, or the first 8 or more characters of a digest"
        )


def _splits(folder: Path) -> list[Path]:
    """Return the splits of a corpus or of an expert, in a fixed order."""
    if is_corpus(folder):
        experts = sources.read_json(folder / sources.MANIFEST).get("experts", {})
        folders = [folder / (one.get("folder") or name) for name, one in experts.items()]
    else:
        folders = [folder]
    found = [each / split for each in folders for split in SPLITS]
    return [each for each in found if (each / provenance.PROVENANCE).is_file()]


def _rejects(folder: Path, wanted: str) -> Iterator[Reject]:
    """Yield what rejects.jsonl says of an id."""
    entry = sources.read_json(folder / sources.MANIFEST).get("rejects", {})
    path = folder / str(entry.get("file") or "rejects.jsonl")
    if not path.is_file():
        return
    needle = json.dumps(wanted, ensure_ascii=False)[1:-1].encode("utf-8", "replace")
    with path.open("rb") as lines:
        for line in lines:
            if needle in line:
                one = json.loads(line)
                if one.get("id") == wanted:
                    yield Reject(wanted, str(one.get("kind", "")), str(one.get("reason", "")))


def _show_row(
    split: Path, index: int, facts: dict[str, Any], tokenizer: str | None, console: Console
) -> None:
    expert = split.parent
    root = expert.parent
    manifest = sources.read_json(root / sources.MANIFEST)
    source = manifest.get("sources", {}).get(facts["source_name"], {})
    is_read = facts.get("made_by", rows.READ) == rows.READ
    original = facts["id"] if is_read else facts.get("made_from", "")
    levels = manifest.get("experts", {}).get(expert.name, {}).get("levels", [])
    shown = {
        "source": table.one_line({"name": facts["source_name"], "type": source.get("type")}),
        **_place(original),
        "pages": _range(facts.get("page_first"), facts.get("page_last")),
        "characters": _range(*facts.get("span", (None, None))),
        "licence": facts.get("licence", ""),
        "made": "as it was read" if is_read else f"by {facts['made_by']}",
        "made from": "" if is_read else facts.get("made_from", ""),
        "went through": _way(manifest, facts, is_read),
        "level": _level(facts.get("level"), levels),
        "difficulty": f"{facts['difficulty']:.3f}" if "difficulty" in facts else "",
        "digest": facts.get("digest", ""),
    }
    console.print(
        table.two_columns(
            f"{split}#{index}  {facts['id']}", {key: text for key, text in shown.items() if text}
        )
    )
    documents.show_document(expert, split.name, index, tokenizer, console)
    if original:
        _show_original(manifest, facts, original, console)


def _place(name: str) -> dict[str, str]:
    """Return the file, the members and the line that an id names."""
    outer, *members = name.split("!")
    last, mark, line = (members[-1] if members else outer).rpartition("#")
    if mark and line.isdecimal():
        outer, members = (outer, [*members[:-1], last]) if members else (last, [])
    else:
        line = ""
    what = "archive" if members else "file"
    return {what: outer, "member": " ! ".join(members), "line": line}


def _range(first: int | None, last: int | None) -> str:
    if first is None or last is None:
        return ""
    return str(first) if first == last else f"{first:,} to {last:,}"


def _level(level: int | None, levels: list[dict[str, Any]]) -> str:
    if level is None:
        return ""
    return f"{level}, {levels[level]['name']}" if 0 <= level < len(levels) else str(level)


def _way(manifest: dict[str, Any], facts: dict[str, Any], is_read: bool) -> str:
    """Return the stages that the row went through, as the manifest tells of them."""
    settings = manifest.get("settings", {})
    steps = settings.get("processors", {}).get(facts.get("kind", ""), [])
    named = [str(each.get("kind", "")) if isinstance(each, dict) else str(each) for each in steps]
    done = {each["stage"] for each in manifest.get("funnel", [])}
    way = ["read" if is_read else "generated"]
    way += [f"processors ({', '.join(named)})"] if named else []
    way += ["quality gate"] if "gated" in done else []
    way += [text for stage, text in STEPS.items() if stage in done]
    return " → ".join([*way, "kept"])


def _show_original(
    manifest: dict[str, Any], facts: dict[str, Any], name: str, console: Console
) -> None:
    """Print the beginning of the row's text as its input has it."""
    try:
        found = originals.read(manifest, name)
    except originals.NoOriginal as why:
        _say(f"the original cannot be shown: {why}", console)
        return
    text = rows.text_of(found)
    start, stop = facts.get("span") or (0, len(text))
    shown = table.visible(text[start : min(stop, start + TEXT_SHOWN)])
    rest = max(0, stop - start - TEXT_SHOWN)
    console.print(f"\n[bold]as it was read[/bold]: {stop - start:,} of {len(text):,} characters")
    console.print(Text(shown + (f" ... {rest:,} more" if rest else "")))


def _say(text: str, console: Console) -> None:
    console.print(Text(table.visible(text), style=documents.OTHER_STYLE))
