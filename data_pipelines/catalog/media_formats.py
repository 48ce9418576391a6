"""Loaders of media with words: LAION's tables and webdataset, subtitles, transcripts, figures,
screenshots, and plain media files.

A file that lies beside its words is decoded and its metadata checked; where it does not, the row
names it and says that it was not checked.
"""

from collections.abc import Iterator
from typing import Any

from data_pipelines import parquet
from data_pipelines import subtitles
from data_pipelines.catalog import knowledge_formats
from data_pipelines.catalog import leaf as leaves
from data_pipelines.catalog import xml_stream
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.jsonl import BadLine

# fmt: off
LAION_COLUMNS = (
    "URL", "url", "TEXT", "text", "caption", "WIDTH", "width", "HEIGHT", "height", "LICENSE",
    "license", "NSFW", "similarity", "LANGUAGE", "image", "jpg", "png",
)
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".tif", ".webp")
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi")
SOUNDS = ("", ".flac", ".wav", ".mp3", ".ogg", ".m4a")
# fmt: on


def read_media(leaf: Leaf) -> Items:
    """Yield one media file with the caption that lies beside it."""
    yield leaf.decoders.media.read(leaf.name, leaf.path, leaf.data(), leaf.beside)


def read_image_text(leaf: Leaf) -> Items:
    """Yield pairs: LAION's Parquet (addresses, or images inside), webdataset's members."""
    if leaf.suffix != ".parquet":
        for item in read_media(leaf):
            is_bare = isinstance(item, Document) and not item.text
            told = "no .txt, .json or .caption of the image's name lies beside it"
            yield Reject(leaf.name, "no_caption", told) if is_bare else item
        return

    def make(where: str, row: dict[str, Any]) -> Document | Reject:
        return _laion(leaf, where, row)

    rows = parquet.read_rows(leaf.name, leaf.stream, leaf.limits, LAION_COLUMNS)
    yield from leaves.each(rows, make)


def _laion(leaf: Leaf, where: str, row: dict[str, Any]) -> Document | Reject:
    text = leaves.field(row, "TEXT", "text", "caption")
    url = leaves.optional(row, "URL", "url")
    image = next((row[key] for key in ("image", "jpg", "png") if row.get(key)), None)
    data = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(data, bytes):
        suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg"
        checked = leaf.decoders.media.check(where, f"image{suffix}", data)
        if isinstance(checked, Reject):
            return checked
        facts = {**checked, "path": None}
    elif url is None:
        raise BadLine("bad_schema", "expected an image, or its address in URL")
    else:
        size = {key: row.get(key.upper(), row.get(key)) for key in ("width", "height")}
        facts = {"kind": "image", "checked": False, **size}
    similarity = row.get("similarity")
    return leaves.document(
        where,
        text,
        media={**facts, **({"url": url} if url else {})},
        url=url,
        licence=_unless(leaves.optional(row, "LICENSE", "license"), "?"),
        language=leaves.optional(row, "LANGUAGE"),
        nsfw=leaves.optional(row, "NSFW"),
        similarity=round(similarity, 4) if isinstance(similarity, float) else None,
    )


def _unless(value: str | None, empty: str) -> str | None:
    return None if value == empty else value


def beside(leaf: Leaf, where: str, stem: str, suffixes: tuple[str, ...], kind: str) -> dict:
    """Return the metadata of a media file beside a leaf, not checked if it does not lie there.

    Raises:
        BadLine: it lies there and cannot be decoded.
    """
    for suffix in suffixes:
        data = leaf.beside(stem + suffix)
        if data is None:
            continue
        checked = leaf.decoders.media.check(where, stem + suffix, data)
        if isinstance(checked, Reject):
            raise BadLine(checked.kind, f"{stem + suffix}: {checked.reason}")
        return checked
    return {"kind": kind, "path": stem + (suffixes[0] or suffixes[-1]), "checked": False}


def read_video_captions(leaf: Leaf) -> Items:
    """Yield the captions of a video: WebVTT or SubRip, with their times as facts."""
    try:
        cues = subtitles.parse(leaf.source_text(), is_vtt=leaf.suffix == ".vtt")
    except subtitles.BadSubtitles as bad:
        where = f"{leaf.name}#{bad.line}"
        yield Reject(where, "bad_subtitles", str(bad))
        return
    stem, _, language = leaf.path.rpartition("/")[2].rpartition(".")[0].partition(".")
    facts = beside(leaf, leaf.name, stem, VIDEOS, "video")
    yield leaves.document(
        leaf.name,
        "\n".join(cue.text for cue in cues),
        media=facts,
        language=language,
        num_cues=len(cues),
        start_s=cues[0].start_s,
        end_s=cues[-1].end_s,
    )


def read_transcripts(leaf: Leaf) -> Items:
    """Yield utterances: LibriSpeech's *.trans.txt, Common Voice's tables (.tsv)."""
    if leaf.suffix != ".tsv":
        yield from leaves.each(_lines(leaf), lambda where, line: _utterance(leaf, where, line))
        return
    lines = _lines(leaf)
    where, header = next(lines, (leaf.name, ""))
    if isinstance(header, Reject):
        yield header
        return
    names = header.split("\t")
    if not {"path", "sentence"} <= set(names):
        told = f"expected the columns path and sentence, got {', '.join(names)[:200]}"
        yield Reject(where, "bad_schema", told)
        return
    yield from leaves.each(lines, lambda where, line: _clip(leaf, where, names, line))


def _lines(leaf: Leaf) -> Iterator[tuple[str, str | Reject]]:
    number = 0
    while data := leaf.stream.readline(leaf.limits.line_bytes + 1):
        number += 1
        where = f"{leaf.name}#{number}"
        if len(data) > leaf.limits.line_bytes:
            while data and not data.endswith(b"\n"):
                data = leaf.stream.readline(leaf.limits.line_bytes)
            yield where, Reject(where, "line_too_long", f"more than {leaf.limits.line_bytes} bytes")
            continue
        try:
            line = data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            told = f"line {number}, byte {error.start}: not UTF-8"
            yield where, Reject(where, "not_utf8", told)
            continue
        if line.strip():
            yield where, line
    if not number:
        yield leaf.name, Reject(leaf.name, "empty", "holds no lines")


def _utterance(leaf: Leaf, where: str, line: str) -> Document:
    number, _, said = line.partition(" ")
    if not said.strip() or number.count("-") != 2 or "/" in number:
        told = "expected SPEAKER-CHAPTER-NUMBER and what is said, as LibriSpeech writes it"
        raise BadLine("bad_transcript", told)
    facts = beside(leaf, where, number, SOUNDS[1:], "audio")
    speaker, chapter, _ = number.split("-")
    return leaves.document(where, said.strip(), media=facts, speaker=speaker, chapter=chapter)


def _clip(leaf: Leaf, where: str, names: list[str], line: str) -> Document:
    cells = line.split("\t")
    if len(cells) != len(names):
        told = f"expected {len(names)} columns, got {len(cells)}"
        raise BadLine("bad_transcript", told)
    row = dict(zip(names, cells))
    path = leaves.field(row, "path")
    clips = [f"clips/{path}", path]
    stem = next((each for each in clips if leaf.beside(each) is not None), clips[0])
    return leaves.document(
        where,
        leaves.field(row, "sentence"),
        media=beside(leaf, where, stem, ("",), "audio"),
        language=row.get("locale"),
        licence=row.get("licence"),
        up_votes=row.get("up_votes"),
    )


def read_figures(leaf: Leaf) -> Items:
    """Yield figures with captions: JSON lines (image, caption), or the figures of JATS articles."""
    if leaf.suffix in (".xml", ".nxml"):
        found = leaves.found_elements(leaf, {"article"})
        yield from leaves.each(found, lambda where, each: _jats_figures(leaf, where, each))
    else:
        rows = leaves.objects(leaf)
        yield from leaves.each(rows, lambda where, row: _figure(leaf, where, row))


def _figure(leaf: Leaf, where: str, row: dict[str, Any]) -> Document:
    image = leaves.field(row, "image", "figure", "path", "file_name")
    return leaves.document(
        where,
        leaves.field(row, "caption", "text"),
        media=beside(leaf, where, image, ("",), "image"),
        title=leaves.optional(row, "title", "label"),
        licence=leaves.optional(row, "license", "licence"),
        paper=leaves.optional(row, "paper", "paper_id"),
        url=leaves.optional(row, "url"),
    )


def _jats_figures(leaf: Leaf, where: str, found: xml_stream.Found) -> Items:
    article = found.element
    assert article is not None, "larger ones were rejected before"
    figures = list(article.iter("fig"))
    if not figures:
        raise BadLine("no_figures", f"line {found.line}: an article without <fig>")
    facts = knowledge_formats.jats_facts(article, found)
    for number, figure in enumerate(figures, 1):
        at = f"{where}.{number}"
        graphic = figure.find(".//graphic")
        image = None if graphic is None else graphic.get("href")
        caption = xml_stream.text_of(figure.find("caption"), blocks={"p", "title"})
        if not image or not caption:
            yield Reject(at, "bad_schema", f"figure {number} lacks <graphic> or <caption>")
            continue
        try:
            checked = beside(leaf, at, image, ("", *IMAGES), "image")
        except BadLine as bad:
            yield Reject(at, bad.kind, str(bad))
            continue
        label = xml_stream.text_of(figure.find("label"))
        yield leaves.document(at, caption, **facts, media=checked, title=label)


def read_screenshots(leaf: Leaf) -> Items:
    """Yield screens: Rico's view hierarchies, what can be read on them from top to bottom."""
    for where, row in leaves.objects(leaf):
        if isinstance(row, Reject):
            yield row
            continue
        yield from leaves.each([(where, row)], lambda at, each: _screen(leaf, at, each))


def _screen(leaf: Leaf, where: str, row: dict[str, Any]) -> Document:
    root = leaves.inner(row, "activity", "root") or (row if "children" in row else {})
    if not root:
        raise BadLine("bad_schema", "expected a view hierarchy in activity.root, or children")
    shown, num_views = [], 0
    waiting: list[Any] = [root]
    while waiting:
        view = waiting.pop()
        if not isinstance(view, dict):
            continue
        num_views += 1
        if view.get("visible-to-user") is False or view.get("visibility") in ("gone", "invisible"):
            continue
        described = view.get("content-desc")
        words = described[0] if isinstance(described, list) and described else described
        said = leaves.optional(view, "text") or leaves.optional({"words": words}, "words")
        if said:
            kind = str(view.get("class") or "").rpartition(".")[2]
            shown.append(f"{kind}: {' '.join(said.split())}" if kind else " ".join(said.split()))
        children = view.get("children")
        waiting.extend(reversed(children if isinstance(children, list) else []))
    if not shown:
        raise BadLine("empty", f"none of the {num_views} views has words")
    stem = leaf.path.rpartition("/")[2].rpartition(".")[0]
    return leaves.document(
        where,
        "\n".join(shown),
        media=beside(leaf, where, stem, (".jpg", ".png"), "image"),
        title=leaves.optional(row, "activity_name"),
        num_views=num_views,
    )
