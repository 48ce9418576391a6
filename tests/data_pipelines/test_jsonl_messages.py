"""Lines with tools, calls, thinking and gaps: one spelling inside, refusals that name the place."""

import io
import json
import re
from typing import Any

import pytest

from data_pipelines import jsonl
from data_pipelines import tokenize_documents
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject
from mistral_jax import tokenizers

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


def read(row: Any) -> Document | Reject:
    (item,) = jsonl.read_jsonl("x", io.BytesIO(json.dumps(row).encode()), Limits())
    return item


def calling(**function: Any) -> dict[str, Any]:
    call = {"id": "abcdefgh1", "index": 0, "function": {"name": "f", **function}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def tokenized(row: Any, name: str = "mistral-common:v7") -> tokenize_documents.Tokenized | Reject:
    document = read(row)
    assert isinstance(document, Document), document
    return tokenize_documents.tokenize_document(document, tokenizers.load_tokenizer(name))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"a": "é"}, '{"a": "é"}'), ('{"a":1}', '{"a":1}'), (None, "{}"), ("not json", "not json")],
)
def test_arguments_become_text(arguments: Any, text: str) -> None:
    document = read({"messages": [USER, calling(arguments=arguments)], "tools": [TOOL]})
    assert isinstance(document, jsonl.ToolChat)
    assert document.tools == (TOOL,)
    function = {"name": "f", "arguments": text}
    call = {"id": "abcdefgh1", "type": "function", "function": function}
    assert document.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_results_keep_their_call_and_other_messages_lose_what_no_format_knows() -> None:
    result = {"role": "tool", "content": "r", "tool_call_id": "abcdefgh1", "name": "f", "x": 1}
    document = read({"messages": [{**USER, "name": "Ann"}, calling(), result, ANSWER]})
    assert isinstance(document, Document) and not isinstance(document, jsonl.ToolChat)
    assert document.messages[0] == USER
    assert document.messages[2] == {k: v for k, v in result.items() if k != "x"}


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_thinking_beside_the_content_becomes_its_first_part(key: str) -> None:
    document = read({"messages": [USER, {**ANSWER, key: "hm"}]})
    assert isinstance(document, Document)
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]
    assert document.messages[1]["content"] == parts


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"prefix": "a", "suffix": "b", "middle": "c"}, ("a", "b", "c")),
        ({"prefix": "", "suffix": "", "middle": "c"}, ("", "", "c")),
        ({"prompt": "a", "suffix": "b", "completion": "c"}, ("a", "b", "c")),
    ],
)
def test_gaps_are_read_in_both_spellings(row: dict, texts: tuple) -> None:
    document = read(row)
    assert isinstance(document, jsonl.Infill)
    assert (document.prompt, document.suffix, document.completion) == texts
    made = tokenize_documents.tokenize_document(document, tokenizers.load_tokenizer("bytes"))
    assert isinstance(made, Reject)
    assert (made.kind, made.id) == ("bad_infill", "x#1")


@pytest.mark.parametrize("suffix", [None, ""])
def test_a_completion_without_anything_behind_it_stays_one(suffix: str | None) -> None:
    document = read({"prompt": "a", "suffix": suffix, "completion": "c"})
    assert isinstance(document, Document) and not isinstance(document, jsonl.Infill)


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        ({"messages": [USER, ANSWER], "tools": "[]"}, "bad_schema", '"tools" must be a list'),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "bad_schema", r"tools\[0\] must be"),
        ({"messages": [USER, ANSWER], "tools": [{"function": {}}]}, "bad_schema", "name"),
        (
            {"messages": [USER, ANSWER], "tools": [{"function": {"name": "f", "parameters": []}}]},
            "bad_schema",
            "parameters must be an object",
        ),
        (
            {"messages": [USER, ANSWER], "tools": [{"function": {"name": "f", "x": nested(99)}}]},
            "bad_schema",
            "nested more than 64 deep",
        ),
        ({"text": "t", "tools": [TOOL]}, "bad_schema", '"tools" needs "messages"'),
        ({"messages": [USER, calling(arguments=[1])]}, "bad_schema", "arguments must be an object"),
        ({"messages": [USER, calling(name="")]}, "bad_schema", "name is empty"),
        ({"messages": [USER, calling(arguments={"a": "\ud800"})]}, "bad_json", "surrogate"),
        ({"messages": [USER, calling(arguments=nested(99))]}, "bad_schema", "64 deep"),
        ({"messages": [{**USER, "tool_calls": [1]}, ANSWER]}, "bad_schema", "of an assistant"),
        ({"messages": [USER, {**ANSWER, "function_call": {"a": 1}}]}, "bad_schema", "tool_calls"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "bad_schema",
            "image",
        ),
        ({"messages": [USER, {"role": "assistant", "content": []}]}, "empty_chat", "no assistant"),
        ({"messages": [USER, ANSWER | {"reasoning": 3}]}, "bad_schema", "must be a string"),
        ({"prefix": "a", "middle": "b"}, "bad_schema", '"suffix" must be a string'),
        ({"suffix": "a", "middle": "b", "completion": "c"}, "bad_schema", "expected"),
        ({"prefix": "a", "suffix": "b", "middle": " "}, "empty", '"middle" is blank'),
    ],
)
def test_lines_that_make_no_sense_are_kept_out(row: dict, kind: str, reason: str) -> None:
    rejected = read(row)
    assert isinstance(rejected, Reject), rejected
    assert rejected.kind == kind
    assert re.search(reason, rejected.reason), rejected.reason


def test_formats_without_a_place_for_calls_keep_the_chat_out() -> None:
    row = {"messages": [USER, calling()], "tools": [TOOL]}
    assert isinstance(tokenized(row), tokenize_documents.Tokenized)
    for name, reason in (("bytes", "leaves out"), ("mistral-common:v1", "no place for tools")):
        made = tokenized(row, name)
        assert isinstance(made, Reject)
        assert made.kind == "bad_chat" and reason in made.reason and "\n" not in made.reason


def test_tools_calls_and_suffixes_make_another_document() -> None:
    rows = [
        {"messages": [USER, calling()]},
        {"messages": [USER, calling()], "tools": [TOOL]},
        {"messages": [USER, calling(arguments={"a": 1})], "tools": [TOOL]},
        {"prompt": "a", "completion": "c"},
        {"prefix": "a", "suffix": "b", "middle": "c"},
        {"prefix": "a", "suffix": "d", "middle": "c"},
    ]
    made = [tokenized(row) for row in rows]
    digests = {each.digest for each in made if isinstance(each, tokenize_documents.Tokenized)}
    assert len(digests) == len(rows)


def test_texts_of_parts_and_gaps_are_cleaned() -> None:
    parts = [{"type": "text", "text": "a\x00"}]
    pairs = [
        ({"messages": [USER, {**ANSWER, "content": parts}]}, {"messages": [USER, ANSWER]}),
        (
            {"prefix": "a\r\n", "suffix": "b\x07", "middle": "e\u0301"},
            {"prefix": "a\n", "suffix": "b", "middle": "é"},
        ),
    ]
    for dirty, clean in pairs:
        first, second = tokenized(dirty), tokenized(clean)
        assert isinstance(first, tokenize_documents.Tokenized)
        assert isinstance(second, tokenize_documents.Tokenized)
        assert (first.tokens == second.tokens).all()
