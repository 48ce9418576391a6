"""What `inspect` shows of chats with tools and of gaps: the learnt part in colour."""

import io
import json
from pathlib import Path

from rich.console import Console

from mistral_jax.inspect import documents

FUNCTION = {"name": "lake", "description": "d", "parameters": {"type": "object"}}
CALL = {"id": "abcdefgh1", "function": {"name": "lake", "arguments": {"n": 1}}}
CHAT = [
    {"role": "user", "content": "Which?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefgh1", "content": "Blue"},
    {"role": "assistant", "content": "Blue."},
]
ROWS = [
    {"messages": CHAT, "tools": [{"type": "function", "function": FUNCTION}]},
    {"prefix": "def f", "suffix": "return x", "middle": "(x):"},
]
GREEN, DIM = "\x1b[32m", "\x1b[2m"


def shown(path: Path, tokenizer: str) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=4000, force_terminal=True, color_system="standard")
    documents.show_jsonl(path, 9, tokenizer, console)
    return stream.getvalue()


def test_calls_and_middles_are_green_and_results_are_not(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    text = shown(path, "mistral-common:v7")
    runs = [line.split("\x1b[0m") for line in text.splitlines()]
    green = [run.removeprefix(GREEN) for line in runs for run in line if run.startswith(GREEN)]
    call = '[TOOL_CALLS][{"name": "lake", "arguments": {"n": 1}, "id": "abcdefgh1"}]</s>'
    assert green == [call, "Blue.</s>", "(x):</s>"]
    dim = [run.removeprefix(DIM) for line in runs for run in line if run.startswith(DIM)]
    assert "[TOOL_RESULTS]abcdefgh1[TOOL_CONTENT]Blue[/TOOL_RESULTS]" in dim
    assert "<s>[SUFFIX]return x[PREFIX]def f" in dim


def test_formats_without_a_place_for_them_say_so(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    text = shown(path, "bytes")
    assert "kept out: x.jsonl#1: the chat template leaves out the tool 'lake'" in text
    assert "kept out: x.jsonl#2: tokenizer bytes has no [SUFFIX]" in text
