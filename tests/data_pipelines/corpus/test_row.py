"""A row as a line of JSON, and back."""

import pytest

from data_pipelines.corpus import row
from data_pipelines.documents import Document
from data_pipelines.jsonl import Infill
from mistral_jax.config import presets

DOCUMENTS = [
    Document("a.pdf", "text", text="one\n\ntwo", pages=(0, 5), facts={"title": "A"}),
    Document("b.jsonl#3", "prompt_completion", prompt="1+1=", completion="2", made_from="book"),
    Document(
        "c.jsonl#1",
        "chat",
        messages=({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}),
    ),
    Infill("d", "prompt_completion", prompt="a", completion="b", suffix="c"),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.id)
def test_a_row_comes_back_from_its_line(document):
    made = row.Row(document, "books", "text", "general", "CC0-1.0", span=(0, 3))
    back = row.from_line(row.to_line(made))
    assert row.to_line(back) == row.to_line(made)
    assert row.text_of(back.document) == row.text_of(document)
    assert back.document.made_from == document.made_from
    assert back.span == (0, 3)


def test_text_of_a_gap_is_the_whole_text():
    assert row.text_of(DOCUMENTS[3]) == "abc"


def test_experts_are_the_domains_of_the_sparse_model():
    assert row.EXPERTS == presets.DOMAINS
