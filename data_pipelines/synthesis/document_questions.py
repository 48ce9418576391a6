"""Questions about one document whose answers are spans of it.

A template asks what a pattern found; a writer is shown the document and answers in JSON with
questions and verbatim quotes. Either way an answer stays only if it is in the document, and the
row cites its place: characters and, for a document of pages, the page. Documents of other kinds
than text are not asked.
"""

import bisect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.synthesis import spans
from data_pipelines.synthesis.draws import Draws
from data_pipelines.synthesis.writers import Writer
from mistral_jax.config import generators

VERSION = 1
PASSAGE_CHARS = 600
TITLE_CHARS = 80
LEVELS = {
    "signature": 1,
    "heading": 0,
    "item": 1,
    "definition": 1,
    "number": 2,
    "date": 2,
    "name": 2,
    "cloze": 3,
    "written": 2,
}
WITH_PASSAGE = (
    "{passage}\n\n{question}",
    "Passage:\n{passage}\n\nQuestion: {question}",
    "{question}\n\nThe text:\n{passage}",
    "Read this.\n\n{passage}\n\n{question} Quote the text.",
)
WITHOUT = (
    'In "{title}": {question}',
    "{question} (source: {title})",
    "About {title}. {question}",
    "From {title}: {question}",
    "{title}\n{question}",
)
WRITTEN = """\
Write {count} questions about the text below. Each answer must be a verbatim quote from the text, \
at most 200 characters long, and the question must make sense without the text. Answer only with a \
JSON list of objects with the keys "question" and "quote".

{text}"""
_FENCE = re.compile(r"\A\s*```(?:json)?\s*|\s*```\s*\Z")


@dataclass(frozen=True)
class DocumentQuestions:
    """Questions about documents.

    Attributes:
        config: its node.
        seed: the corpus's.
        writer: who writes the questions; None takes templates.
    """

    config: generators.DocumentQuestions
    seed: int = 0
    writer: Writer | None = None

    @property
    def name(self) -> str:
        """The generator's name."""
        return self.config.name

    @property
    def made_by(self) -> str:
        """What made the rows, and what it was told."""
        label = self.writer.label if self.writer else "template"
        return f"document_questions/{VERSION} seed={self.seed}.{self.config.seed} {label}"

    def rows(self, row: Row) -> Iterator[Row | Reject]:
        """Yield the questions of one document, and a reject if there are too few."""
        if not self.asks(row):
            return
        text = row.document.text[: self.config.max_document_chars]
        draws = Draws(self.name, f"{self.seed}.{self.config.seed}", row.id)
        made = self._written(row, text, draws) if self.writer else self._found(row, text, draws)
        count = 0
        for each in made:
            count += isinstance(each, Row)
            yield each
        if count < self.config.min_per_document:
            yield Reject(
                f"{row.id}?{self.name}",
                "too_few_questions",
                f"expected {self.config.min_per_document} or more, the document carries {count}",
            )

    def asks(self, row: Row) -> bool:
        """Tell whether the row's document is asked about."""
        language = row.facts.get("language") or row.document.facts.get("language")
        return (
            row.document.kind == "text"
            and (not self.config.sources or row.source in self.config.sources)
            and (not isinstance(language, str) or language in self.config.languages)
        )

    def _found(self, row: Row, text: str, draws: Draws) -> Iterator[Row | Reject]:
        for number, finding in enumerate(
            chosen(text, self.config.max_per_document, draws, is_code=row.kind == "code")
        ):
            asked = spans.question(finding, text, draws)
            yield self._row(row, text, number, draws, finding, asked)

    def _row(
        self, row: Row, text: str, number: int, draws: Draws, finding: spans.Finding, asked: str
    ) -> Row:
        start, end = finding.start, finding.end
        quote = text[start:end]
        cited: dict[str, Any] = {"document": row.id, "start": start, "end": end, "quote": quote}
        if row.document.pages:
            cited["page"] = max(1, bisect.bisect_right(row.document.pages, start))
        check: dict[str, Any] = {"kind": "span", "start": start, "end": end, "quote": quote}
        if finding.kind != "cloze" and draws.chance(self.config.passage_share):
            low, high = _passage(text, finding)
            passage = text[low:high]
            form = draws.pick(WITH_PASSAGE)
            # The question may hold braces and the passage too: fill in one step, then look.
            prompt = form.format(passage=passage, question=asked)
            begin = prompt.index(passage) + start - low
            check |= {"in": "prompt", "start": begin, "end": begin + len(quote)}
        else:
            prompt = draws.pick(WITHOUT).format(title=title_of(row.document), question=asked)
        level = LEVELS[finding.kind]
        return Row(
            document=Document(
                f"{row.id}?{self.name}#{number}",
                "prompt_completion",
                prompt=f"{prompt}\n",
                completion=" ".join(quote.split()),
                made_from=row.id,
            ),
            source=self.name,
            kind="code" if finding.kind == "signature" else "text",
            expert=self.config.expert or row.expert,
            licence=row.licence,
            made_by=self.made_by,
            facts={
                "level": level,
                "difficulty": (level + 0.5) / 5,
                "topic": finding.kind,
                "check": check,
                "cited": cited,
            },
        )

    def _written(self, row: Row, text: str, draws: Draws) -> Iterator[Row | Reject]:
        assert self.writer is not None
        shown = text[: self.config.writer_chars]
        prompt = WRITTEN.format(count=self.config.max_per_document, text=shown)
        said = self.writer.write([prompt], seed=draws.below(1 << 31))[0]
        where = f"{row.id}?{self.name}"
        if isinstance(said, Reject):
            yield Reject(where, said.kind, said.reason)
            return
        taken: set[tuple[int, int]] = set()
        for number, item in enumerate(_items(said)[: self.config.max_per_document]):
            judged = grounded(item, shown)
            if isinstance(judged, str):
                kind, _, reason = judged.partition(": ")
                yield Reject(f"{where}#{number}", kind, reason)
                continue
            finding, asked = judged
            if (finding.start, finding.end) in taken:
                yield Reject(f"{where}#{number}", "asked_twice", "two questions have one answer")
                continue
            taken.add((finding.start, finding.end))
            yield self._row(row, text, number, draws, finding, asked)


def chosen(text: str, count: int, draws: Draws, *, is_code: bool = False) -> list[spans.Finding]:
    """Return at most so many findings: each kind in turn, each sentence once, no answer twice."""
    piles = [draws.shuffled(found) for found in spans.find(text, is_code=is_code).values()]
    kept: list[spans.Finding] = []
    seen: set[object] = set()
    while len(kept) < count and any(piles):
        for pile in piles:
            while pile and len(kept) < count:
                finding = pile.pop()
                answer = text[finding.start : finding.end]
                if finding.around not in seen and answer not in seen:
                    seen |= {finding.around, answer}
                    kept.append(finding)
                    break
    return kept


def grounded(item: Any, text: str) -> tuple[spans.Finding, str] | str:
    """Return where a written answer stands and its question, or "kind: why it is kept out"."""
    match item:
        case {"question": str() as asked, "quote": str() as quote} if asked.strip():
            quote = quote.strip()
        case _:
            return 'bad_question: expected an object with "question" and "quote"'
    start = text.find(quote) if quote else -1
    if start < 0:
        return f"ungrounded: the text does not hold {quote[:80]!r}"
    if quote.lower() in asked.lower():
        return f"answer_in_question: the question holds {quote[:80]!r}"
    end = start + len(quote)
    low = text.rfind("\n", 0, start) + 1
    high = text.find("\n", end)
    return spans.Finding("written", start, end, (low, high if high > 0 else len(text)), {}), asked


def title_of(document: Document) -> str:
    """Return what a document is called: its title, else its name without folders and suffix."""
    title = document.facts.get("title")
    if isinstance(title, str) and title.strip():
        return " ".join(title.split())[:TITLE_CHARS]
    name = document.id.rpartition("!")[2].partition("#")[0].rpartition("/")[2]
    return (name or document.id)[:TITLE_CHARS]


def _passage(text: str, finding: spans.Finding) -> tuple[int, int]:
    """Return whole lines or sentences around the answer, at most PASSAGE_CHARS or so."""
    start, end = finding.around
    room = max(0, PASSAGE_CHARS - (end - start)) // 2
    low = max(text.rfind("\n\n", 0, start) + 2 if "\n\n" in text[:start] else 0, start - room)
    while 0 < low < start and not text[low - 1].isspace():
        low += 1
    stop = text.find("\n\n", end)
    high = min(stop if stop > 0 else len(text), end + room)
    while end < high < len(text) and not text[high].isspace():
        high -= 1
    return low, max(high, end)


def _items(said: str) -> list[Any]:
    """Return the objects of a writer's JSON, fenced or not; one that is none, if it is broken."""
    try:
        made = json.loads(_FENCE.sub("", said))
    except (ValueError, RecursionError):
        return [None]
    return made if isinstance(made, list) else [made]
