"""Parquet as documents: the shapes of JSONL, row groups streamed, damage and bombs refused."""

import io
import random
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from data_pipelines import inflate
from data_pipelines import parquet
from data_pipelines import pdf
from data_pipelines import readers
from data_pipelines.documents import Document
from data_pipelines.documents import Limits
from data_pipelines.documents import Reject


def packed(rows: list[dict] | pyarrow.Table, **options) -> bytes:
    table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, **options)
    return buffer.getvalue()


def read(data: bytes, **limits) -> list[Document | Reject]:
    return list(parquet.read_parquet("a.parquet", io.BytesIO(data), Limits(**limits)))


def test_every_shape_of_jsonl_is_read():
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    texts = [{"text": "one", "n": 1, "license": "MIT"}, {"text": None, "n": 2, "license": None}]
    first, second = read(packed(texts, row_group_size=1))
    assert isinstance(first, Document) and isinstance(second, Reject)
    assert (first.id, first.text, first.facts) == ("a.parquet#1", "one", {"licence": "MIT"})
    assert (second.id, second.kind) == ("a.parquet#2", "bad_schema")
    shapes = [{"content": "c"}, {"messages": chat}, {"prompt": "p", "completion": "c"}]
    made = [read(packed([row]))[0] for row in shapes]
    assert [each.kind for each in made] == ["text", "chat", "prompt_completion"]
    assert made[1].messages == tuple(chat)


def test_it_is_read_from_archives_and_beside_other_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/a.parquet", packed([{"text": "inside"}]))
    limits = Limits()
    with pdf.PdfReader(limits) as pdf_reader:
        items = list(readers.read_file(tmp_path / "a.zip", "a.zip", limits, pdf_reader))
    assert [(each.id, each.text) for each in items] == [("a.zip!in/a.parquet#1", "inside")]


def test_values_that_are_not_unicode_cost_their_row():
    column = pyarrow.array([b"good", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    good, bad = read(packed(pyarrow.table({"text": column})))
    assert (good.text, bad.id, bad.kind) == ("good", "a.parquet#2", "not_utf8")


def test_rows_that_repeat_one_value_are_a_bomb():
    value = pyarrow.array(["x" * 10_000])
    indices = pyarrow.array([0] * 2000, pyarrow.int32())
    data = packed(pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays(indices, value)}))
    assert len(data) * Limits().max_ratio + inflate.SLACK_BYTES < 20_000_000
    *rows, last = read(data)
    assert isinstance(last, Reject)
    assert last.kind == "bomb"
    assert len(rows) * 10_000 < len(data) * Limits().max_ratio + 2 * inflate.SLACK_BYTES


def test_caps_and_other_columns_are_named():
    (long,) = read(packed([{"text": "y" * 5000}]), line_bytes=1000)
    (other,) = read(packed([{"body": "y"}]))
    assert (long.kind, other.kind) == ("line_too_long", "bad_schema")
    assert "got body" in other.reason
    assert [each.kind for each in read(packed(pyarrow.table({"text": [""][:0]})))] == ["empty"]


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_never_raises(seed):
    data = bytearray(packed([{"text": f"row {number} " * 20} for number in range(50)]))
    chance = random.Random(seed)
    for _ in range(1 + seed % 4):
        data[chance.randrange(len(data))] = chance.randrange(256)
    cut = len(data) if seed % 3 else chance.randrange(len(data))
    for item in read(bytes(data[:cut])):
        assert isinstance(item, Document) or item.reason
