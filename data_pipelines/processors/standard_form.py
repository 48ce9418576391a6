"""The step `standard_form`: one spelling for code fences, threads and chats.

What a row says stays; a chat that nobody answers is left out.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.processors import texts
from data_pipelines.processors.resources import Resources
from mistral_jax.config import processors

FENCE = re.compile(r"^( {0,3})(`{3,}|~{3,})[ \t]{0,8}([^\n`]{0,80})$", re.MULTILINE)
LANGUAGES = {
    "py": "python", "python3": "python", "js": "javascript", "ts": "typescript", "sh": "bash",
    "shell": "bash", "c++": "cpp", "golang": "go", "yml": "yaml", "rb": "ruby", "rs": "rust",
}  # fmt: skip
SPEAKER = re.compile(
    r"^[ \t]{0,4}(?:\*\*)?(Q|Question|User|Human|A|Answer|Assistant)(?:\*\*)?[ \t]{0,2}:"
    r"(?:\*\*)?[ \t]{0,4}",
    re.MULTILINE | re.IGNORECASE,
)
ASKS = frozenset({"q", "question", "user", "human"})


def build(config: processors.StandardForm, resources: Resources) -> Callable[[Row], Row | Reject]:
    """Return the step."""
    del resources
    return partial(run, config=config)


def run(row: Row, *, config: processors.StandardForm) -> Row | Reject:
    """Return the row in standard form, or a reject for a chat without an answer."""
    document = row.document
    if config.threads and document.kind == "text" and not document.pages:
        document = thread_of(document)
    if config.chats and document.kind == "chat":
        messages = standard_turns(document.messages)
        if not any(each["role"] == "assistant" for each in messages):
            return Reject(row.id, "no_answer", "a chat without an answer of the assistant")
        document = replace(document, messages=messages)
    if config.fences:
        document = texts.change_texts(document, standard_fences)
    return row if document is row.document else replace(row, document=document)


def thread_of(document: Document) -> Document:
    """Return a text of questions and answers in turn as a chat; other texts as they are."""
    found = list(SPEAKER.finditer(document.text)) if ":" in document.text[:200] else []
    if len(found) < 2 or document.text[: found[0].start()].strip():
        return document
    ends = [*(match.start() for match in found[1:]), len(document.text)]
    turns = [
        (
            "user" if match.group(1).lower() in ASKS else "assistant",
            document.text[match.end() : end],
        )
        for match, end in zip(found, ends, strict=True)
    ]
    in_turn = all(role == ("user", "assistant")[at % 2] for at, (role, _) in enumerate(turns))
    if not in_turn or not all(said.strip() for _, said in turns) or len(turns) % 2:
        return document
    messages = tuple({"role": role, "content": said.strip()} for role, said in turns)
    return replace(document, kind="chat", text="", messages=messages)


def standard_turns(messages: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Return a chat without empty turns, with one turn after another, ending in an answer."""
    turns: list[dict[str, Any]] = []
    for each in messages:
        if _is_plain(each) and not each["content"].strip():
            continue
        last = turns[-1] if turns else None
        if last and last["role"] == each["role"] and _is_plain(last) and _is_plain(each):
            turns[-1] = {**last, "content": f"{last['content']}\n\n{each['content']}"}
        else:
            turns.append(each)
    while turns and turns[-1]["role"] in ("user", "system"):
        turns.pop()
    return tuple(turns)


def _is_plain(message: dict[str, Any]) -> bool:
    """Tell whether a turn is a role and a text and nothing else, so that two can become one."""
    return isinstance(message.get("content"), str) and message.keys() <= {"role", "content"}


def standard_fences(text: str) -> str:
    """Return text with code fences of three backticks, known languages named, the last closed."""
    if "```" not in text and "~~~" not in text:
        return text
    is_open = ""
    parts, last = [], 0
    for match in FENCE.finditer(text):
        mark, name = match.group(2), match.group(3).strip()
        parts.append(text[last : match.start()])
        last = match.end()
        if not is_open:
            is_open = mark
            name = LANGUAGES.get(name.lower(), name)
            parts.append(f"{match.group(1)}{'`' * _kept(mark)}{name}")
        elif mark[0] == is_open[0] and len(mark) >= len(is_open) and not name:
            parts.append(f"{match.group(1)}{'`' * _kept(is_open)}")
            is_open = ""
        else:
            parts.append(match.group())
    parts.append(text[last:])
    if is_open:
        parts.append(("" if text.endswith("\n") else "\n") + "`" * _kept(is_open))
    return "".join(parts)


def _kept(mark: str) -> int:
    """Return the backticks of a fence: a longer one encloses fences, and stays."""
    return len(mark) if mark[0] == "`" else 3
