"""Loaders of the group "math": LaTeX, textbooks, competition problems, computational queries.

proofs.py reads proof libraries.
"""

import ast
import re
from typing import Any

from data_pipelines import readers
from data_pipelines.catalog import leaf as leaves
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.jsonl import BadLine

ARXIV_ID = re.compile(r"(?<!\d)(\d{4}\.\d{4,5})(?:v\d+)?(?!\d)|([a-z-]+(?:\.[A-Z]{2})?/?\d{7})")
COMMENT = re.compile(r"(?m)(?<!\\)%.*$\n?")
LEVEL = re.compile(r"Level ([1-5])")
HEADING = re.compile(r"(?m)^#{1,2} +(.{1,200}?)\s*#*$")


def read_arxiv(leaf: Leaf) -> Items:
    """Yield papers' LaTeX from arXiv's source tars, abstracts from its metadata (JSON lines)."""
    if leaf.suffix in (".json", ".jsonl"):
        yield from leaves.each(leaves.objects(leaf, is_lines=True), _abstract)
        return
    source = leaf.source_text()
    if "\\" not in source:
        raise BadLine("bad_latex", "holds no LaTeX command")
    found = list(ARXIV_ID.finditer(leaf.name))
    number = next(filter(None, found[-1].groups())) if found else None
    yield leaves.document(leaf.name, body_of(source), title=title_of(source), arxiv=number)


def _abstract(where: str, row: dict[str, Any]) -> Document:
    title = " ".join(leaves.field(row, "title").split())
    return leaves.document(
        where,
        f"{title}\n\n{' '.join(leaves.field(row, 'abstract').split())}",
        title=title,
        arxiv=leaves.optional(row, "id"),
        licence=leaves.optional(row, "license"),
        categories=leaves.optional(row, "categories"),
        doi=leaves.optional(row, "doi"),
        date=leaves.optional(row, "update_date"),
    )


def body_of(source: str) -> str:
    """Return LaTeX without comments, and what stands inside of the document environment if any.

    Raises:
        BadLine: the document begins and does not end.
    """
    text = COMMENT.sub("", source)
    begin, end = "\\begin{document}", "\\end{document}"
    start = text.find(begin)
    if start < 0:
        return text.strip()
    stop = text.rfind(end)
    if stop < start:
        line = source.count("\n", 0, source.find(begin)) + 1
        raise BadLine("bad_latex", f"line {line}: {begin} without {end}; the file is cut short")
    return text[start + len(begin) : stop].strip()


def title_of(source: str) -> str:
    """Return what stands in the braces of title; "" without."""
    start = re.search(r"\\title\s*(?:\[[^\[\]]{0,200}\])?\s*\{", source)
    return braced(source, start.end()).strip() if start else ""


def braced(source: str, start: int) -> str:
    """Return the text from behind an opening brace to the one that closes it; "" without one."""
    depth = 1
    for place in range(start, min(len(source), start + 10_000)):
        character = source[place]
        if source[place - 1] == "\\":
            continue
        depth += (character == "{") - (character == "}")
        if not depth:
            return source[start:place]
    return ""


def read_textbook(leaf: Leaf) -> Items:
    """Yield a textbook's chapter or whole: LaTeX, Markdown, PDF, HTML, plain text."""
    if leaf.suffix == ".tex":
        source = leaf.source_text()
        yield leaves.document(leaf.name, body_of(source), title=title_of(source))
        return
    made = readers.read_document(leaf.name, leaf.path, leaf.stream, leaf.limits, leaf.decoders.pdf)
    for item in made:
        if isinstance(item, Document):
            heading = HEADING.search(item.text[:20_000])
            title = heading[1] if heading else item.text.strip().partition("\n")[0]
            item.facts.update(leaves.said({"title": title[:200]}))
        yield item


def read_problems(leaf: Leaf) -> Items:
    """Yield problems with solutions as the MATH data set has them."""
    yield from leaves.each(leaves.objects(leaf), _problem)


def _problem(where: str, row: dict[str, Any]) -> Document:
    problem, solution = leaves.field(row, "problem", "question"), leaves.field(row, "solution")
    level = LEVEL.fullmatch(leaves.optional(row, "level") or "")
    at = solution.rfind("\\boxed{")
    answer = leaves.optional(row, "answer")
    if answer is None and at >= 0:
        answer = braced(solution, at + len("\\boxed{"))
    if at >= 0 and not answer:
        raise BadLine("bad_latex", "the boxed answer is empty or its brace is never closed")
    return leaves.pair(
        where,
        problem,
        solution,
        answer=answer,
        subject=leaves.optional(row, "type", "subject"),
        difficulty=(int(level[1]) - 1) / 4 if level else None,
        licence=leaves.optional(row, "license", "licence"),
    )


def read_queries(leaf: Leaf) -> Items:
    """Yield JSON lines of a question, the program that computes its answer, and the answer.

    Keys: query, program, answer (text or number), language of the program (python by default). A
    Python program that binds `answer` can be verified by running it.
    """
    yield from leaves.each(leaves.objects(leaf), _query)


def _query(where: str, row: dict[str, Any]) -> Document | Reject:
    program, answer = leaves.field(row, "program", "code"), row.get("answer", row.get("result"))
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or answer == "":
        told = f'"answer" must be text or a number, got {type(answer).__name__}'
        raise BadLine("bad_schema", told)
    language = (leaves.optional(row, "language") or "python").lower()
    shown = leaves.field({"answer": str(answer)}, "answer")
    check = None
    if language == "python" and _binds_answer(program):
        check = {"kind": "python_tests", "tests": f"assert str(answer) == {shown!r}"}
    return leaves.pair(
        where,
        leaves.field(row, "query", "question"),
        f"```{language}\n{program.strip()}\n```\n\nAnswer: {shown}",
        answer=shown,
        programming_language=language,
        check=check,
        licence=leaves.optional(row, "license", "licence"),
    )


def _binds_answer(program: str) -> bool:
    """Return whether a program assigns to `answer` at its top level.

    Raises:
        BadLine: it is no Python.
    """
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        raise BadLine("bad_program", f"line {line} of the program is no Python") from None
    targets = [each for node in tree.body if isinstance(node, ast.Assign) for each in node.targets]
    return any(isinstance(each, ast.Name) and each.id == "answer" for each in targets)
