"""Questions about a document: their spans point at the answer, and every item has its source."""

from pathlib import Path

import pytest

from data_pipelines import synthesis
from data_pipelines import verify
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.synthesis import base
from data_pipelines.synthesis import spans
from mistral_jax.config import generators

ROOT = Path(__file__).parents[3]
PAGE = (
    "Mercury is the smallest planet of the system. It was seen on 14 March 1986 by Anna van Holt.\n"
)
CODE = 'def area(width, height):\n    """Return the area of a rectangle in square metres."""\n'


def source(text, *, kind="text", pages=(), facts=None, name="guide.md"):
    document = Document(name, "text", text=text, pages=pages, facts=facts or {})
    return Row(document, "docs", kind, "code", "MIT", facts=facts or {})


@pytest.fixture(scope="module")
def asker():
    config = generators.DocumentQuestions(kind="document_questions", name="q")
    return synthesis.build(config, seed=5)


def test_a_real_page_carries_its_questions_and_each_quotes_its_document(asker):
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    page = source(text)
    rows = list(asker.rows(page))
    assert all(isinstance(row, Row) for row in rows)
    assert 15 <= len(rows) <= 25
    assert [row.text for row in rows] == [row.text for row in asker.rows(page)]
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        cited = row.facts["cited"]
        assert text[cited["start"] : cited["end"]] == cited["quote"]
        assert row.document.completion == " ".join(cited["quote"].split())
        assert row.document.made_from == cited["document"] == "guide.md"
        assert (row.licence, row.expert) == ("MIT", "code")
    with verify.Verifier(documents={"guide.md": text}.get) as verifier:
        assert all(score.value == 1 for score in verifier.verify(rows))
        wrong = [base.with_completion(row, row.document.completion[1:] + "?") for row in rows]
        assert not any(score.value for score in verifier.verify(wrong))
    assert any(row.facts["check"].get("in") == "prompt" for row in rows)


def test_pages_are_cited_and_too_few_questions_are_counted(asker):
    text = "x\n" * 30 + PAGE
    made = list(asker.rows(source(text, pages=(0, 20, 50, len(text)))))
    rows = [row for row in made if isinstance(row, Row)]
    assert rows
    assert {row.facts["cited"]["page"] for row in rows} == {3}
    assert made[-1].kind == "too_few_questions"
    assert f"carries {len(rows)}" in made[-1].reason


def test_each_kind_of_statement_is_found():
    text = (
        f"# Planets and moons\n\n{PAGE}\nThe probe weighs 480 kg in all.\n\n"
        "The list of stations is this, in the order of their building:\n\n"
        "- the station at the northern pole\n- the station on the equator\n"
    )
    found = spans.find(text)
    said = {kind: [text[f.start : f.end] for f in each] for kind, each in found.items()}
    assert said["heading"] == ["Planets and moons"]
    assert said["definition"] == ["the smallest planet of the system"]
    assert said["date"] == ["14 March 1986"]
    assert said["name"] == ["Anna van Holt"]
    assert said["number"] == ["480 kg"]
    assert said["item"] == ["the station on the equator"]
    found = spans.find(CODE, is_code=True)
    assert [CODE[f.start : f.end] for f in found["signature"]] == ["def area(width, height):"]


def test_other_languages_kinds_and_sources_are_not_asked(asker):
    assert list(asker.rows(source(PAGE, facts={"language": "de"}))) == []
    chat = Document("c", "chat", messages=({"role": "user", "content": PAGE},))
    assert list(asker.rows(Row(chat, "docs", "text", "general", "MIT"))) == []
    config = generators.DocumentQuestions(kind="document_questions", name="q", sources=("books",))
    assert list(synthesis.build(config).rows(source(PAGE))) == []


@pytest.mark.parametrize("text", ["\n", ". ", "# ", "- x\n", "A b ", "def f(", "Aa 1 "])
def test_hostile_texts_take_linear_time(text, benchmark_seconds):
    assert benchmark_seconds(lambda: spans.find(text * (200_000 // len(text)))) < 2


@pytest.fixture
def benchmark_seconds():
    import time

    def measure(call):
        began = time.process_time()
        call()
        return time.process_time() - began

    return measure
