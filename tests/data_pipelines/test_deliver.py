"""Inputs in several buckets to shards and JSONL in a bucket: one split, whole or not at all."""

import io
import json
import zipfile
from pathlib import Path

import pytest

from data_pipelines import deliver
from data_pipelines import export_jsonl
from data_pipelines import gather
from data_pipelines import jsonl
from data_pipelines import prepare
from data_pipelines import sources
from data_pipelines.documents import Document
from mistral_jax import storage
from mistral_jax import tokenizers
from mistral_jax.corpus import write_pdf
from mistral_jax.storage import objects
from mistral_jax.storage import upload
from tests import buckets

pytest.importorskip("boto3")
CORPUS, ARCHIVES = "s3://texts/corpus.jsonl", "s3://papers/archives"
TOKENIZER = tokenizers.load_tokenizer("bytes")
NUM_ROWS, NUM_PAGES = 30, 4


@pytest.fixture
def store(tmp_path, monkeypatch):
    with buckets.fake(tmp_path, monkeypatch) as served:
        rows = [{"text": f"Row {number} speaks of {number * 17} ships."} for number in range(28)]
        rows.append({"messages": [{"role": "user", "content": "Hello?"},
                                  {"role": "assistant", "content": "Good day."}]})  # fmt: skip
        rows.append({"prompt": "2+2=", "completion": "4"})
        lines = [json.dumps(row) for row in (*rows, rows[0])]  # one comes twice
        served.put("texts/corpus.jsonl", "\n".join(lines).encode())
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for number in range(NUM_PAGES):
                archive.writestr(f"{number}.pdf", write_pdf(f"Page {number} of the lake atlas."))
        served.put("papers/archives/pages.zip", packed.getvalue())
        yield served


def run(output: str = "s3://out/shards/x", **changes) -> dict:
    options = {"tokenizer": TOKENIZER, "eval_fraction": 0.2, "jsonl": "s3://out/datasets/x"}
    return deliver.deliver([CORPUS, ARCHIVES], output, say=lambda line: None, **options | changes)


def test_two_buckets_become_one_split_as_shards_and_as_jsonl(store):
    summary = run()
    splits = {name: entry["documents"] for name, entry in summary["splits"].items()}
    total = NUM_ROWS + NUM_PAGES
    assert sum(splits.values()) == total and summary["rejects_by_kind"] == {"duplicate": 1}
    assert 1 <= splits["eval"] <= total / 2
    found = {}
    for split, name in export_jsonl.FILES.items():
        raw = store.objects[f"out/datasets/x/{name}"].raw
        found[split] = [json.loads(line) for line in raw.decode().splitlines()]
    assert {split: len(rows) for split, rows in found.items()} == splits
    texts = [row.get("text", "") for row in found["train"] + found["eval"]]
    assert sum("lake atlas" in text for text in texts) == NUM_PAGES
    manifest = json.loads(store.objects["out/datasets/x/manifest.json"].raw)
    assert manifest["files"]["val_dataset.jsonl"]["documents"] == splits["eval"]
    for prefix in ("out/datasets/x", "out/shards/x"):
        assert json.loads(store.objects[f"{prefix}/{upload.LIST_NAME}"].raw)["complete"]
    folder = objects.local_path("s3://out/shards/x")
    assert len(sources.ArrayRecordSource(folder, "train")) == splits["train"]
    assert not (folder / "pipeline_state.json").exists()


def test_the_jsonl_trains_as_the_shards_do(store, tmp_path):
    run()
    shards = objects.local_path("s3://out/shards/x")
    for split, name in export_jsonl.FILES.items():
        prepare.prepare(
            objects.local_path(f"s3://out/datasets/x/{name}"),
            tmp_path / split, tokenizer=TOKENIZER, eval_fraction=0.0,
        )  # fmt: skip
        ours = sources.ArrayRecordSource(shards, split)
        again = sources.ArrayRecordSource(tmp_path / split, "train")
        assert [x.tokens.tolist() for x in map(ours.__getitem__, range(len(ours)))] == [
            x.tokens.tolist() for x in map(again.__getitem__, range(len(again)))
        ]


def test_the_same_command_sends_nothing_twice_and_goes_on_after_a_cut(store):
    store.broken_uploads = 2 + 2 + 3  # two probes, written and removed; then within the shards
    with pytest.raises(storage.StorageError, match="refuses access"):
        run()
    store.broken_uploads = None
    with pytest.raises(storage.StorageError, match="was interrupted"):
        objects.local_path("s3://out/shards/x")
    run()
    before = len(store.requests)
    run()
    puts = [r for r in store.requests[before:] if r.startswith("PUT")]
    assert puts == ["PUT out/shards/x/.write-probe", "PUT out/datasets/x/.write-probe"]


def test_other_data_at_the_destination_and_closed_buckets_are_refused(store, tmp_path):
    run()
    store.put("texts/corpus.jsonl", b'{"text": "Something else, and longer."}\n')
    objects.forget()
    with pytest.raises(upload.UploadError, match="holds other files already"):
        run()
    store.put("out/foreign/a.txt", b"x")
    with pytest.raises(upload.UploadError, match="holds files already"):
        run("s3://out/foreign")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r'found "thesis\.txt"'):
        run(str(tmp_path / "shards"), jsonl=str(tmp_path / "taken"))
    store.is_closed = True
    before = len(store.requests)
    with pytest.raises(storage.StorageError, match="refuses access"):
        run()
    assert len(store.requests) == before + 1  # before any work was done


def test_names_do_not_depend_on_where_inputs_lie(store, tmp_path):
    with gather.gathered([CORPUS, ARCHIVES]) as (root, files):
        names = [file.relative_to(root).as_posix() for file in files]
    assert names == ["1-corpus.jsonl", "2-archives/pages.zip"]
    assert not root.exists()
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "pages.zip").write_bytes(
        store.objects["papers/archives/pages.zip"].raw
    )
    with gather.gathered([CORPUS, tmp_path / "archives"]) as (root, files):
        assert [file.relative_to(root).as_posix() for file in files] == names
    with pytest.raises(ValueError, match="one input at least"), gather.gathered([]):
        pass


def test_inputs_that_changed_after_they_were_prepared_are_told(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(3):
        (docs / f"{number}.txt").write_text(f"Text number {number}.")
    prepare.prepare(docs, tmp_path / "shards", tokenizer=TOKENIZER)
    (docs / "1.txt").unlink()
    with pytest.raises(export_jsonl.InputsChanged, match=r"1 of its documents.*1\.txt"):
        export_jsonl.write_jsonl(docs, tmp_path / "shards", tmp_path / "out")


def test_every_kind_of_document_becomes_the_row_that_is_read_as_it(tmp_path):
    chat = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    documents = [
        Document("x#1", "text", text="äöü"),
        Document("x#1", "chat", messages=chat),
        jsonl.ToolChat("x#1", "chat", messages=chat, tools=(tool,)),
        Document("x#1", "prompt_completion", prompt="p", completion="c"),
        jsonl.Infill("x#1", "prompt_completion", prompt="p", completion="m", suffix="s"),
    ]
    for document in documents:
        line = json.dumps(export_jsonl.row_of(document)).encode()
        path = Path(tmp_path / "x")
        path.write_bytes(line)
        with path.open("rb") as stream:
            (again,) = jsonl.read_jsonl("x", stream, prepare.Limits())
        assert export_jsonl.row_of(again) == export_jsonl.row_of(document)
        assert type(again) is type(document)
