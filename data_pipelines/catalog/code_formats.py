"""Loaders of the group "code": The Stack, API documentation, GH Archive, bug trackers.

Each reads one public format as its makers write it; registry.py says where they are described.
"""

import json
from typing import Any

from data_pipelines import html_text
from data_pipelines import parquet
from data_pipelines.catalog import leaf as leaves
from data_pipelines.catalog import xml_stream
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.jsonl import BadLine

# fmt: off
STACK_COLUMNS = (
    "content", "text", "lang", "language", "ext", "license", "licenses", "max_stars_repo_licenses",
    "detected_licenses", "path", "max_stars_repo_path", "repo_name", "max_stars_repo_name",
    "hexsha", "blob_id", "max_stars_count", "star_events_count",
)
DOCBOOK = {"refentry", "section", "sect1", "chapter", "article", "preface", "appendix"}
DOCBOOK_BLOCKS = {
    "title", "para", "simpara", "programlisting", "screen", "listitem", "term", "refname",
    "refpurpose", "synopsis", "entry", "varlistentry", "refnamediv", "section", "sect2", "sect3",
}
# fmt: on


def read_stack(leaf: Leaf) -> Items:
    """Yield the files of The Stack's Parquet, or of JSON lines with its columns."""
    if leaf.suffix == ".parquet":
        rows = parquet.read_rows(leaf.name, leaf.stream, leaf.limits, STACK_COLUMNS)
    else:
        rows = leaves.objects(leaf, is_lines=leaf.suffix != ".json")
    yield from leaves.each(rows, _stack_file)


def _stack_file(where: str, row: dict[str, Any]) -> Document:
    licences = next(
        (
            found
            for key in ("max_stars_repo_licenses", "detected_licenses", "licenses", "license")
            if (found := row.get(key))
        ),
        None,
    )
    listed = licences if isinstance(licences, list) else [licences] if licences else []
    return leaves.document(
        where,
        leaves.field(row, "content", "text"),
        licence=" OR ".join(sorted(str(each) for each in listed)),
        programming_language=leaves.optional(row, "lang", "language", "ext"),
        repository=leaves.optional(row, "max_stars_repo_name", "repo_name"),
        path=leaves.optional(row, "max_stars_repo_path", "path"),
        digest=leaves.optional(row, "hexsha", "blob_id"),
    )


def read_api_docs(leaf: Leaf) -> Items:
    """Yield pages: DevDocs' db.json, Sphinx's JSON builder, DocBook, HTML."""
    if leaf.suffix == ".fjson":
        yield from leaves.each(leaves.objects(leaf), _sphinx_page)
    elif leaf.suffix == ".json":
        yield from leaves.each(leaves.objects(leaf), _devdocs)
    elif leaf.suffix in (".xml", ".docbook", ".dbk"):
        yield from leaves.each(leaves.found_elements(leaf, DOCBOOK), _docbook)
    else:
        source = leaf.source_text()
        title = html_text.html_text(_between(source, "<title", "</title"))
        text = html_text.html_text(source)
        yield leaves.document(leaf.name, text, title=title)


def _sphinx_page(where: str, row: dict[str, Any]) -> Document:
    title = html_text.html_text(leaves.optional(row, "title") or "")
    body = html_text.html_text(leaves.field(row, "body"))
    name = leaves.optional(row, "current_page_name")
    return leaves.document(where, body, title=title, page=name)


def _devdocs(where: str, row: dict[str, Any]) -> Items:
    if isinstance(row.get("entries"), list):  # index.json names the pages that db.json holds
        yield Reject(where, "unsupported_type", "an index of DevDocs; db.json holds the pages")
        return
    if not row:
        raise BadLine("empty", "holds no pages")
    for number, (page, source) in enumerate(row.items(), 1):
        at = f"{where}#{number}"
        if not isinstance(source, str):
            told = f"page {number}: expected HTML, got {type(source).__name__}"
            yield Reject(at, "bad_schema", told)
            continue
        text = html_text.html_text(leaves.field({"page": source}, "page") if source.strip() else "")
        if text:
            yield leaves.document(at, text, title=text.partition("\n")[0], page=page)
        else:
            yield Reject(at, "empty", f"page {number} holds no text")


def _docbook(where: str, found: xml_stream.Found) -> Document:
    element = found.element
    assert element is not None, "larger ones were rejected before"
    name = element.find(".//refname")
    named = element.find(".//title") if name is None else name
    return leaves.document(
        where,
        xml_stream.text_of(element, blocks=DOCBOOK_BLOCKS, skip={"indexterm", "remark"}),
        title=xml_stream.text_of(named),
        page=element.get("id"),
        language=found.around.get("lang"),
    )


def read_code_review(leaf: Leaf) -> Items:
    """Yield review comments of GH Archive's events, each with the piece of the diff it is on."""
    yield from leaves.each(leaves.objects(leaf, is_lines=True), _review)


def _review(where: str, event: dict[str, Any]) -> Document | None:
    kind = leaves.field(event, "type")
    if kind not in ("PullRequestReviewCommentEvent", "PullRequestReviewEvent"):
        return None  # GH Archive's files hold every kind of event
    payload = leaves.inner(event, "payload")
    key = "comment" if kind == "PullRequestReviewCommentEvent" else "review"
    said = payload.get(key)
    if not isinstance(said, dict):
        raise BadLine("bad_schema", f'"payload" of a {kind} lacks the object "{key}"')
    if key == "review" and leaves.optional(said, "body") is None:
        return None  # an approval without words
    pull = leaves.inner(payload, "pull_request")
    licence = leaves.inner(pull, "base", "repo", "license")
    hunk = leaves.optional(said, "diff_hunk")
    parts = [
        leaves.optional(pull, "title"),
        f"File: {said['path']}" if leaves.optional(said, "path") else None,
        f"```diff\n{hunk}\n```" if hunk else None,
        f"Review: {leaves.field(said, 'body')}",
    ]
    return leaves.document(
        where,
        "\n\n".join(part for part in parts if part),
        title=leaves.optional(pull, "title"),
        licence=leaves.optional(licence, "spdx_id", "key"),
        repository=leaves.optional(leaves.inner(event, "repo"), "name"),
        url=leaves.optional(said, "html_url"),
        date=leaves.optional(event, "created_at"),
        verdict=leaves.optional(said, "state"),
    )


def read_bug_reports(leaf: Leaf) -> Items:
    """Yield issues of GitHub's REST API (JSON), and bugs of Bugzilla's XML."""
    if leaf.suffix == ".xml":
        yield from leaves.each(leaves.found_elements(leaf, {"bug"}), _bugzilla)
    else:
        yield from leaves.each(leaves.objects(leaf), _github_issue)


def _github_issue(where: str, row: dict[str, Any]) -> Document | Reject:
    if "pull_request" in row:
        return Reject(where, "unsupported_type", "a pull request, which GitHub lists with issues")
    title, body = leaves.field(row, "title"), leaves.optional(row, "body") or ""
    parts = [f"# {title}", body]
    comments = row.get("comments")
    for comment in comments if isinstance(comments, list) else []:
        if isinstance(comment, dict) and (text := leaves.optional(comment, "body")):
            parts.append(f"## Comment\n\n{text}")
    labels = row.get("labels")
    named = [
        each if isinstance(each, str) else str(each.get("name"))
        for each in (labels if isinstance(labels, list) else [])
        if isinstance(each, str | dict)
    ]
    return leaves.document(
        where,
        "\n\n".join(part for part in parts if part),
        title=title,
        labels=json.dumps(named) if named else None,
        state=leaves.optional(row, "state"),
        url=leaves.optional(row, "html_url", "url"),
        date=leaves.optional(row, "created_at"),
    )


def _bugzilla(where: str, found: xml_stream.Found) -> Document:
    bug = found.element
    assert bug is not None, "larger ones were rejected before"
    if refused := bug.get("error"):
        raise BadLine("bad_schema", f"line {found.line}: Bugzilla gave {refused!r} for this bug")
    title = bug.findtext("short_desc") or ""
    said = [xml_stream.text_of(each.find("thetext")) for each in bug.iter("long_desc")]
    if not title or not any(said):
        told = f"line {found.line}: expected <short_desc> and <long_desc> with text"
        raise BadLine("bad_schema", told)
    parts = [f"# {title}", said[0], *(f"## Comment\n\n{text}" for text in said[1:] if text)]
    return leaves.document(
        where,
        "\n\n".join(parts),
        title=title,
        bug=bug.findtext("bug_id"),
        state=bug.findtext("bug_status"),
        product=bug.findtext("product"),
        date=bug.findtext("creation_ts"),
    )


def _between(source: str, start: str, end: str) -> str:
    """Return what stands between an opening tag and its end; "" without both."""
    low = source[: 1 << 16].lower()
    first = low.find(">", low.find(start)) + 1 if start in low else 0
    last = low.find(end, first)
    return source[first:last] if 0 < first <= last else ""
