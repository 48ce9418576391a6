"""Documents to tokens: one text where prompt and completion meet, weights, what cannot be encoded.

What a mask covers in chats is tested with the templates.
"""

import functools

import pytest

from data_pipelines import tokenize_documents
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from mistral_jax import tokenizers

QUESTION = {"role": "user", "content": "q"}


@functools.cache
def load(name: str) -> tokenizers.Tokenizer:
    return tokenizers.load_tokenizer(name)


def tokenized(document: Document, name: str) -> tokenize_documents.Tokenized:
    made = tokenize_documents.tokenize_document(document, load(name))
    assert isinstance(made, tokenize_documents.Tokenized), made
    return made


@pytest.mark.parametrize("name", ["bytes", "mistral-common:v3", "mistral-common:tekken-240911"])
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("2+2=", "4"),
        ("The lake is", " deep."),
        ("The lake is ", "deep."),  # SentencePiece joins the space to the word behind it
        ("def f(x):\n", "    return x\n"),
        ("in", "side"),
        ("", "whole"),
    ],
)
def test_prompt_and_completion_are_one_text(name, prompt, completion):
    tokenizer = load(name)
    made = tokenized(Document("x", "prompt_completion", prompt=prompt, completion=completion), name)
    ids = made.tokens.tolist()
    assert tokenizer.decode(ids) == prompt + completion
    assert made.mask is not None
    learnt = int(made.mask.argmax())
    assert made.mask.tolist() == [0] * learnt + [1] * (len(ids) - learnt)
    assert ids[:learnt] == tokenizer.encode(prompt, bos=True)


def test_answers_of_weight_0_make_another_document():
    chats = []
    for weight in ({}, {"weight": 0}):
        first = {"role": "assistant", "content": "bad", **weight}
        messages = (QUESTION, first, QUESTION, {"role": "assistant", "content": "good"})
        chats.append(tokenized(Document("x", "chat", messages=messages), "bytes"))
    assert (chats[0].tokens == chats[1].tokens).all()
    assert chats[0].digest != chats[1].digest
    for chat, answers in zip(chats, ("badgood", "good")):
        assert chat.mask is not None
        learnt = chat.tokens[chat.mask.astype(bool)].tolist()
        assert load("bytes").decode(learnt) == answers


def test_a_text_that_the_tokenizer_gives_up_on_is_kept_out():
    document = Document("x", "text", text="a" + " " * 1_000_000 + "b")
    tokenizer = load("mistral-common:tekken-240911")
    made = tokenize_documents.tokenize_document(document, tokenizer)
    assert isinstance(made, Reject)
    assert made.kind == "not_tokenizable"
