"""Posts.xml of Stack Exchange's dump to threads: a question with its answers, the best first.

Answers stand behind their question by any distance, so posts go into a nameless table on disk and
come out in the order of the questions; memory stays the same for a dump of any size.
"""

import errno
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from data_pipelines import html_text
from data_pipelines.catalog import leaf as leaves
from data_pipelines.catalog import xml_stream
from data_pipelines.catalog.leaf import Items
from data_pipelines.catalog.leaf import Leaf
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.jsonl import BadLine
from mistral_jax import storage

QUESTION, ANSWER = "1", "2"
MAX_ANSWERS = 5
TABLE = (
    "CREATE TABLE post (question INTEGER, rank INTEGER, score INTEGER, id INTEGER, number INTEGER,"
    " title TEXT, tags TEXT, body TEXT, licence TEXT, date TEXT)"
)


def read_posts(leaf: Leaf) -> Items:
    """Yield a document for each question, with its accepted answer and then those of most votes."""
    with tempfile.TemporaryDirectory(prefix="threads-") as folder:
        table = sqlite3.connect(Path(folder) / "posts", isolation_level=None)
        try:
            for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-16384"):
                table.execute(f"PRAGMA {pragma}")
            table.execute(TABLE)
            table.execute("BEGIN")
            for where, found in leaves.found_elements(leaf, {"row"}):
                if isinstance(found, Reject):
                    yield found
                    continue
                try:
                    post = _post(found)
                except BadLine as bad:
                    yield Reject(where, bad.kind, str(bad))
                    continue
                if post is not None:
                    table.execute(f"INSERT INTO post VALUES ({','.join('?' * 10)})", post)
            table.execute("COMMIT")
            yield from leaves.each(_threads(leaf.name, table), _thread)
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                full = OSError(errno.ENOSPC, str(error))
                storage.raise_if_disk_full(full, folder)
            raise
        finally:
            table.close()


def _post(found: xml_stream.Found) -> tuple | None:
    """Return a row of the table; None for wiki pages, moderators' posts and the like."""
    assert found.element is not None, "larger ones were rejected before"
    row = found.element.attrib
    kind = row.get("PostTypeId")
    if kind is None:
        raise BadLine("bad_schema", f"line {found.line}: a row without PostTypeId is no post")
    if kind not in (QUESTION, ANSWER):
        return None
    question = _number(found, "Id" if kind == QUESTION else "ParentId")
    body = html_text.html_text(row.get("Body", ""))
    if not body:
        raise BadLine("empty", f"line {found.line}: the post has no text")
    # A question carries the number of its accepted answer as its score: no other use is made of it.
    score = _number(found, "AcceptedAnswerId", 0) if kind == QUESTION else _number(found, "Score")
    return (
        question,
        int(kind),
        score,
        _number(found, "Id"),
        found.number,
        row.get("Title", ""),
        row.get("Tags", ""),
        body,
        row.get("ContentLicense", ""),
        row.get("CreationDate", ""),
    )


def _number(found: xml_stream.Found, name: str, otherwise: int | None = None) -> int:
    assert found.element is not None
    value = found.element.get(name)
    if value is None and otherwise is not None:
        return otherwise
    if value is None or not value.lstrip("-").isdecimal() or len(value) > 18:
        told = f"line {found.line}: expected a number in {name}, got {value!r}"
        raise BadLine("bad_schema", told)
    return int(value)


def _threads(name: str, table: sqlite3.Connection) -> Iterator[tuple[str, list[tuple]]]:
    thread: list[tuple] = []
    order = "SELECT * FROM post ORDER BY question, rank, score DESC, id"
    for post in table.execute(order):
        if thread and post[0] != thread[0][0]:
            yield f"{name}#{thread[0][4]}", thread
            thread = []
        thread.append(post)
    if thread:
        yield f"{name}#{thread[0][4]}", thread


def _thread(where: str, posts: list[tuple]) -> Document:
    _, rank, accepted, number, _, title, tags, body, licence, date = posts[0]
    if rank != int(QUESTION):
        raise BadLine("no_question", f"answers to {posts[0][0]}, which is not in the file")
    answers = sorted(posts[1:], key=lambda post: post[3] != accepted)[:MAX_ANSWERS]
    if not answers:
        raise BadLine("no_answer", f"question {number} has no answer")
    parts = [f"# {title}" if title else "", body]
    parts += [
        f"## {'Accepted answer' if post[3] == accepted else 'Answer'}\n\n{post[7]}"
        for post in answers
    ]
    return leaves.document(
        where,
        "\n\n".join(part for part in parts if part),
        title=title,
        licence=licence,
        tags=tags,
        date=date,
        post=str(number),
        num_answers=len(posts) - 1,
        score=answers[0][2],
    )
