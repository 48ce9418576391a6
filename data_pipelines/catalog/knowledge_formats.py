"""Loaders of logic puzzles, papers (JATS), legal cases, and philosophy (TEI, encyclopedia HTML).

Specifications: NISO JATS 1.3; TEI P5; the Caselaw Access Project's and CourtListener's JSON.
"""

import re
from typing import Any
from xml.etree.ElementTree import Element

from data_pipelines import html_text
from data_pipelines.catalog import leaf as leaves
from data_pipelines.catalog import xml_stream
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf
from data_pipelines.documents import Document
from data_pipelines.jsonl import BadLine

JATS_BLOCKS = {"p", "title", "sec", "list-item", "disp-formula", "disp-quote", "article-title"}
JATS_SKIP = {"table-wrap", "fig", "xref", "object-id", "label", "tex-math-source"}
TEI_BLOCKS = {"p", "head", "l", "lg", "item", "quote", "sp", "speaker", "div", "ab"}
HEADING = re.compile(r"<h1(?:\s[^<>]{0,300})?>", re.I)
META = re.compile(
    r"<meta\s[^<>]{0,200}name=[\"'](?:dc\.|dcterms\.)?(rights|license|creator|language)[\"']"
    r"[^<>]{0,100}content=[\"']([^\"'<>]{1,300})[\"']",
    re.I,
)


def read_puzzles(leaf: Leaf) -> Items:
    """Yield JSON lines of question and answer; reasoning-gym's entries keep their verifier."""
    yield from leaves.each(leaves.objects(leaf), _puzzle)


def _puzzle(where: str, row: dict[str, Any]) -> Document:
    question, answer = leaves.field(row, "question", "puzzle", "prompt"), row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise BadLine("bad_schema", f'"answer" must be text, got {type(answer).__name__}')
    shown = leaves.field({"answer": str(answer)}, "answer")
    metadata = leaves.inner(row, "metadata")
    dataset = leaves.optional(metadata, "source_dataset")
    check: dict[str, Any] = {"kind": "exact", "expected": shown}
    if dataset:
        entry = {"question": question, "answer": shown, "metadata": metadata}
        check = {"kind": "reasoning_gym", "dataset": dataset, "entry": entry}
    solution = leaves.optional(row, "reasoning", "solution", "explanation")
    if solution:
        check["after"] = "Answer:"
    return leaves.pair(
        where,
        question,
        f"{solution}\n\nAnswer: {shown}" if solution else shown,
        answer=shown,
        check=check,
        family=dataset,
        licence=leaves.optional(row, "license", "licence"),
    )


def read_papers(leaf: Leaf) -> Items:
    """Yield articles of JATS XML: title, abstract and body, without tables and figures."""
    yield from leaves.each(leaves.found_elements(leaf, {"article"}), _paper)


def _paper(where: str, found: xml_stream.Found) -> Document:
    article = found.element
    assert article is not None, "larger ones were rejected before"
    title = xml_stream.text_of(article.find(".//article-meta//article-title"))
    parts = [
        xml_stream.text_of(part, blocks=JATS_BLOCKS, skip=JATS_SKIP)
        for part in (article.find(".//article-meta//abstract"), article.find("body"))
    ]
    if not any(parts):
        raise BadLine("bad_schema", f"line {found.line}: an <article> without abstract and body")
    return leaves.document(
        where,
        "\n\n".join(filter(None, [title, *parts])),
        title=title,
        **jats_facts(article, found),
    )


def jats_facts(article: Element, found: xml_stream.Found) -> dict[str, Any]:
    """Return licence, identifiers and language of an article of JATS."""
    licence = article.find(".//permissions/license")
    href = None
    if licence is not None:
        links = (each.get("href") for each in licence.iter() if each.get("href"))
        href = next(links, None) or licence.get("license-type") or xml_stream.text_of(licence)
    numbers = {each.get("pub-id-type", ""): each.text for each in article.findall(".//article-id")}
    return {
        "licence": href,
        "doi": numbers.get("doi"),
        "pmc": numbers.get("pmc") or numbers.get("pmcid"),
        "language": article.get("lang") or found.around.get("lang"),
        "journal": xml_stream.text_of(article.find(".//journal-title")),
    }


def read_legal(leaf: Leaf) -> Items:
    """Yield decisions: the Caselaw Access Project's JSON, CourtListener's opinions."""
    yield from leaves.each(leaves.objects(leaf), _case)


def _case(where: str, row: dict[str, Any]) -> Document:
    name = leaves.optional(row, "name", "case_name", "caseName", "name_abbreviation")
    body = leaves.inner(row, "casebody", "data") or leaves.inner(row, "casebody")
    opinions = body.get("opinions", row.get("opinions"))
    parts: list[str] = []
    if isinstance(opinions, list):
        for opinion in opinions:
            if isinstance(opinion, dict) and (text := leaves.optional(opinion, "text")):
                kind = leaves.optional(opinion, "type")
                author = leaves.optional(opinion, "author")
                parts.append(" ".join(filter(None, [kind and f"({kind})", author])))
                parts.append(text)
    elif text := leaves.optional(row, "plain_text"):
        parts.append(text)
    elif source := leaves.optional(row, "html_with_citations", "html", "xml_harvard"):
        parts.append(html_text.html_text(source))
    if not any(parts):
        raise BadLine("bad_schema", "expected opinions with text, or plain_text, or html")
    head = leaves.optional(body, "head_matter")
    return leaves.document(
        where,
        "\n\n".join(filter(None, [name, head, *parts])),
        title=name,
        court=leaves.optional(leaves.inner(row, "court"), "name"),
        jurisdiction=leaves.optional(leaves.inner(row, "jurisdiction"), "name", "name_long"),
        date=leaves.optional(row, "decision_date", "date_filed", "date_created"),
        url=leaves.optional(row, "frontend_url", "absolute_url", "url"),
        licence=leaves.optional(row, "license", "licence"),
    )


def read_philosophy(leaf: Leaf) -> Items:
    """Yield texts of TEI XML, and entries of an encyclopedia in HTML."""
    if leaf.suffix == ".xml":
        yield from leaves.each(leaves.found_elements(leaf, {"TEI", "TEI.2"}), _tei)
        return
    source = leaf.source_text()
    heading = HEADING.search(source)
    if heading is None:
        raise BadLine("bad_schema", "expected an entry with a heading <h1>")
    end = source.find("</h1", heading.end())
    if end < 0:
        line = source.count("\n", 0, heading.start()) + 1
        raise BadLine("bad_schema", f"line {line}: <h1> is never closed; the file is cut short")
    facts = {name.lower(): value for name, value in META.findall(source[: 1 << 16])}
    yield leaves.document(
        leaf.name,
        html_text.html_text(source[heading.start() :]),
        title=html_text.html_text(source[heading.end() : end]),
        author=facts.get("creator"),
        licence=facts.get("license") or facts.get("rights"),
        language=facts.get("language"),
    )


def _tei(where: str, found: xml_stream.Found) -> Document:
    tei = found.element
    assert tei is not None, "larger ones were rejected before"
    body = tei.find("text")
    if body is None:
        raise BadLine("bad_schema", f"line {found.line}: a <TEI> without <text>")
    text = xml_stream.text_of(body, blocks=TEI_BLOCKS, skip={"note", "fw", "pb"})
    if not text:
        raise BadLine("empty", f"line {found.line}: <text> holds no text")
    language = tei.find(".//langUsage/language")
    licence = tei.find(".//availability/licence")
    target = None if licence is None else licence.get("target")
    return leaves.document(
        where,
        text,
        title=xml_stream.text_of(tei.find(".//titleStmt/title")),
        author=xml_stream.text_of(tei.find(".//titleStmt/author")),
        licence=target or xml_stream.text_of(licence),
        language=tei.get("lang") or (language.get("ident") if language is not None else None),
    )
