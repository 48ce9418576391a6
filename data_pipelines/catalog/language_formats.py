"""Loaders of MediaWiki's dumps and of TMX translation memories.

Specifications: MediaWiki's export-0.11.xsd; TMX 1.4b.
"""

from data_pipelines.catalog import leaf as leaves
from data_pipelines.catalog import wikitext
from data_pipelines.catalog import xml_stream
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.jsonl import BadLine

ARTICLES = "0"  # the namespace of articles
HIDDEN = ("6", "-2", "14")  # the namespaces of files, media and categories
TMX_NOT_SHOWN = {"bpt", "ept", "it", "ph", "ut"}  # the formatting of the tool that wrote a segment


def read_wiki(leaf: Leaf) -> Items:
    """Yield the articles of a MediaWiki XML dump as plain text, redirects aside."""
    site = {"language": "", "base": ""}
    hidden = set(wikitext.HIDDEN)

    def make(where: str, found: xml_stream.Found) -> Document | None:
        page = found.element
        assert page is not None, "larger ones were rejected before"
        if found.tag == "siteinfo":
            named = page.iter("namespace")
            hidden.update((n.text or "").lower() for n in named if n.get("key") in HIDDEN)
            site["base"] = page.findtext("base") or ""
            database = page.findtext("dbname") or ""
            site["language"] = found.around.get("lang") or database.removesuffix("wiki")
            return None
        revisions = page.findall("revision")
        title = page.findtext("title")
        if not title or not revisions:
            told = f"line {found.line}: a page without <title> or <revision>"
            raise BadLine("bad_schema", told)
        if page.findtext("ns") not in (ARTICLES, None) or page.find("redirect") is not None:
            return None  # talk, templates, files: no articles
        model = revisions[-1].findtext("model") or "wikitext"
        if model != "wikitext":
            raise BadLine("unsupported_type", f"a page of the content model {model!r}")
        text = wikitext.plain(revisions[-1].findtext("text") or "", frozenset(hidden))
        if not text:
            raise BadLine("empty", f"line {found.line}: the article {title!r} has no text")
        return leaves.document(
            where,
            f"{title}\n\n{text}",
            title=title,
            language=site["language"] or found.around.get("lang"),
            url=_url(site["base"], title),
            page=page.findtext("id"),
            revision=revisions[-1].findtext("id"),
        )

    yield from leaves.each(leaves.found_elements(leaf, {"page", "siteinfo"}), make)


def _url(base: str, title: str) -> str | None:
    """Return an article's address beside that of the main page."""
    return f"{base.rpartition('/')[0]}/{title.replace(' ', '_')}" if "/" in base else None


def read_translations(leaf: Leaf) -> Items:
    """Yield the units of a TMX: a segment to translate, and its translation."""
    header = {"language": ""}

    def make(where: str, found: xml_stream.Found) -> Items | None:
        unit = found.element
        assert unit is not None, "larger ones were rejected before"
        if found.tag == "header":
            header["language"] = unit.get("srclang", "")
            return None
        return _pairs(where, found, header["language"])

    yield from leaves.each(leaves.found_elements(leaf, {"tu", "header"}), make)


def _pairs(where: str, found: xml_stream.Found, source_language: str) -> Items:
    unit = found.element
    assert unit is not None, "larger ones were rejected before"
    segments: list[tuple[str, str]] = []
    for variant in unit.findall("tuv"):
        said = xml_stream.text_of(variant.find("seg"), skip=TMX_NOT_SHOWN)
        language = variant.get("lang", "")
        if not said or not language:
            told = f"line {found.line}: a <tuv> without xml:lang or <seg> text"
            raise BadLine("bad_schema", told)
        segments.append((language, said))
    if len(segments) < 2:
        raise BadLine("bad_schema", f"line {found.line}: a <tu> needs two languages at least")
    asked = (unit.get("srclang") or source_language).lower()
    first = next((i for i, each in enumerate(segments) if each[0].lower() == asked), 0)
    language, source = segments.pop(first)
    for number, (target_language, target) in enumerate(segments, 1):
        at = where if number == 1 else f"{where}.{number}"
        if target == source:
            yield Reject(at, "untranslated", f"line {found.line}: both segments say the same")
            continue
        yield leaves.pair(
            at,
            f"Translate from {language} to {target_language}:\n{source}",
            target,
            language=target_language,
            source_language=language,
            licence=unit.findtext("prop[@type='licence']"),
        )
