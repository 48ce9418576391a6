"""corpus/originals.py: a row's text comes back by its id, from wherever it lay."""

import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_pipelines import inflate
from data_pipelines import pdf
from data_pipelines import readers
from data_pipelines.corpus import originals
from data_pipelines.documents import Document
from data_pipelines.documents import Limits

LINES = "\n".join(
    [json.dumps({"text": f"line {n}"}) for n in range(1, 4)] + ["", "not JSON"]
    + [json.dumps({"prompt": "two and two?", "completion": "four"})]
)  # fmt: skip


def tar_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "deep").mkdir()
    (folder / "deep" / "odd!name#3.md").write_text("odd")
    (folder / "deep" / "hard\u00a0space é.txt").write_text("hard")
    (folder / "dump.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (folder / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES.encode())
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        archive.writestr("notes/a.txt", "the text of a")
        archive.writestr("rows.jsonl", LINES)
        archive.writestr("inner.tar.gz", tar_of({"b.md": b"b", "c#1.jsonl": LINES.encode()}))
    return folder


def manifest_of(*paths: str | Path, **more: str) -> dict:
    path = str(paths[0]) if len(paths) == 1 else [str(each) for each in paths]
    return {"settings": {"sources": [{"name": "books", "path": path, **more}]}}


def documents(file: Path, name: str) -> list[Document]:
    limits = Limits()
    with file.open("rb") as stream, pdf.PdfReader(limits) as reader:
        found = readers.read_stream(name, stream, limits, reader, inflate.Budget(limits))
        return [item for item in found if isinstance(item, Document)]


def test_every_document_of_a_folder_comes_back_as_it_was_read(shelf):
    files = readers.list_inputs(shelf)
    named = [(file, f"books/{readers.name_of(file, shelf)}") for file in files]
    wanted = [document for file, name in named for document in documents(file, name)]
    ids = [document.id for document in wanted]
    assert len(ids) == 4 * 4 + 4
    for one in (
        "books/all.zip!inner.tar.gz!c#1.jsonl#6", "books/dump.jsonl.gz!dump.jsonl#6",
        "books/deep/odd!name#3.md",
    ):  # fmt: skip
        assert one in ids
    for document in wanted:
        assert originals.read(manifest_of(shelf), document.id) == document


def test_the_place_of_the_path_and_a_single_file_are_understood(shelf):
    both = manifest_of(shelf / "deep", shelf / "all.zip")
    assert originals.read(both, "books/0/odd!name#3.md").text == "odd"
    assert originals.read(both, "books/1/all.zip!notes/a.txt").text == "the text of a"
    one = manifest_of(shelf / "rows.jsonl")
    assert originals.read(one, "books/rows.jsonl#2").text == "line 2"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("films/a.md", "no source 'films'"),
        ("books/gone.md", "not in .* any more"),
        ("books/../../etc/passwd", "not in .* any more"),
        ("books/all.zip!gone.md", "not in there any more"),
        ("books/rows.jsonl#4", "not in there any more"),
        ("books/rows.jsonl#5", "not JSON"),
        ("books/rows.jsonl#77", "not in there any more"),
    ],
)
def test_what_is_gone_or_bad_is_said(shelf, wanted, said):
    with pytest.raises(originals.NoOriginal, match=said):
        originals.read(manifest_of(shelf), wanted)


def test_nothing_is_fetched_and_no_search_is_endless(shelf, tmp_path):
    with pytest.raises(originals.NoOriginal, match="nothing was fetched"):
        originals.read(manifest_of("s3://bucket/books"), "books/a.md")
    with pytest.raises(originals.NoOriginal, match="took over -1 s"):
        originals.read(manifest_of(shelf), "books/rows.jsonl#1", timeout_s=-1)
    (tmp_path / "cut.zip").write_bytes((shelf / "all.zip").read_bytes()[:200])
    with pytest.raises(originals.NoOriginal, match="damaged or cut short"):
        originals.read(manifest_of(tmp_path), "books/cut.zip!notes/a.txt")


def test_other_members_are_not_parsed(tmp_path):
    """A member of noise before the wanted one would be a reject; here it is not even decoded."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("noise.pdf", os.urandom(1000))
        archive.writestr("z.txt", "z")
    assert originals.read(manifest_of(tmp_path), "books/a.zip!z.txt").text == "z"
