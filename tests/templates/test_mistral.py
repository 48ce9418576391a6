"""Mistral's formats, all versions: drawn conversations token by token as mistral-common has them.

Expected tokens come from mistral-common's own request classes and `encode_chat_completion`; the
mask is compared with a layout that is written out by hand in conversations.py.
"""

import functools
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from mistral_common.protocol.instruct import chunk
from mistral_common.protocol.instruct import messages as typed
from mistral_common.protocol.instruct import tool_calls
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from data_pipelines import jsonl
from data_pipelines import tokenize_documents
from data_pipelines.documents import Limits
from mistral_jax import tokenizers
from tests.templates import conversations

VERSIONS = {**conversations.SHIPPED, **conversations.WRITTEN}
PER_VERSION = 50


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tekken")
    conversations.write_tokenizers(folder)
    return folder


@functools.cache
def load(name: str, written: Path) -> tokenizers.MistralCommonTokenizer:
    shipped = name in conversations.SHIPPED
    uri = f"mistral-common:{name}" if shipped else written / f"{name}.json"
    loaded = tokenizers.load_tokenizer(uri)
    assert isinstance(loaded, tokenizers.MistralCommonTokenizer)
    return loaded


def their_message(message: dict[str, Any]) -> Any:
    """Return a message in mistral-common's class, built field by field."""
    role: str = message["role"]
    content: Any = message.get("content")
    if isinstance(content, list):
        content = [
            chunk.TextChunk(text=part["text"])
            if part["type"] == "text"
            else chunk.ThinkChunk(thinking=part["thinking"])
            for part in content
        ]
    if role == "system":
        return typed.SystemMessage(content=content or "")
    if role == "user":
        return typed.UserMessage(content=content or "")
    if role == "tool":
        return typed.ToolMessage(
            content=content or "", tool_call_id=message["tool_call_id"], name=message.get("name")
        )
    thinking = message.get("reasoning") or message.get("reasoning_content")
    if thinking:
        assert isinstance(content, str)
        content = [chunk.ThinkChunk(thinking=thinking), chunk.TextChunk(text=content)]
    calls = []
    for call in message.get("tool_calls") or ():
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        function = tool_calls.FunctionCall(name=call["function"]["name"], arguments=text)
        calls.append(tool_calls.ToolCall(id=call.get("id", "null"), function=function))
    return typed.AssistantMessage(content=content, tool_calls=calls or None)


def their_tokens(row: dict[str, Any], theirs: MistralTokenizer) -> list[int]:
    tools = [
        tool_calls.Tool(function=tool_calls.Function(**tool["function"]))
        for tool in row.get("tools", [])
    ]
    request = ChatCompletionRequest(
        messages=[their_message(message) for message in row["messages"]], tools=tools or None
    )
    return theirs.encode_chat_completion(request).tokens


def our_tokens(
    row: dict[str, Any], tokenizer: tokenizers.Tokenizer
) -> tokenize_documents.Tokenized:
    """Take the way of `prepare`: a line of JSONL, read, cleaned, rendered."""
    line = json.dumps(row).encode()
    (document,) = jsonl.read_jsonl("x", io.BytesIO(line), Limits())
    assert isinstance(document, jsonl.Document), document
    made = tokenize_documents.tokenize_document(document, tokenizer)
    assert isinstance(made, tokenize_documents.Tokenized), made
    return made


def spelled(
    tokens: list[int], mask: list[int], tokenizer: tokenizers.Tokenizer
) -> list[tuple[bool, str]]:
    """Return runs of learnt and other tokens as text, control tokens by their spelling."""
    special = tokenizer.spelling
    pairs = zip(tokens, mask, strict=True)
    runs = itertools.groupby(pairs, key=lambda pair: (bool(pair[1]), pair[0] in special))
    texts: list[tuple[bool, str]] = []
    for (learnt, is_special), run in runs:
        ids = [token for token, _ in run]
        texts.append((learnt, "".join(map(special.__getitem__, ids)) if is_special else ""))
        if not is_special:
            texts[-1] = (learnt, tokenizer.decode(ids))
    joined = itertools.groupby(texts, key=lambda text: text[0])
    return [(learnt, "".join(text for _, text in run)) for learnt, run in joined]


@pytest.mark.parametrize("name", VERSIONS)
def test_drawn_conversations_are_those_of_mistral_common(name: str, written: Path) -> None:
    tokenizer, version = load(name, written), VERSIONS[name]
    theirs = MistralTokenizer.from_file(tokenizer.path, mode=ValidationMode.finetuning)
    kinds = set()
    for seed in range(PER_VERSION):
        row = conversations.draw(version, seed)
        made = our_tokens(row, tokenizer)
        tokens = made.tokens.tolist()
        assert tokens == their_tokens(row, theirs), (name, seed)
        assert made.mask is not None
        expected = conversations.layout(version, row)
        assert spelled(tokens, made.mask.tolist(), tokenizer) == expected, (name, seed)
        learnt = "".join(text for is_learnt, text in expected if is_learnt)
        kinds |= {
            mark for mark in ("[TOOL_CALLS]", "[THINK]", "[ARGS]", "[CALL_ID]") if mark in learnt
        }
    expected_kinds = {
        "[TOOL_CALLS]": version > 1, "[THINK]": version >= 13, "[ARGS]": version >= 11,
        "[CALL_ID]": version == 11,
    }  # fmt: skip
    # Version 1's words contain the spellings as plain text.
    assert version == 1 or kinds >= {mark for mark, is_there in expected_kinds.items() if is_there}
