"""storage/objects.py: data objects and prefixes to this machine, checked, or refused by name."""

import json

import pytest

from mistral_jax import storage
from mistral_jax.storage import objects
from mistral_jax.storage import staging
from mistral_jax.storage import upload
from tests import buckets


def test_an_object_is_fetched_once_and_a_path_is_itself(store, tmp_path):
    store.put("bucket/datasets/x/train.jsonl", b'{"text": "a"}\n')
    path = objects.local_path("s3://bucket/datasets/x/train.jsonl")
    assert path.name == "train.jsonl" and path.read_bytes() == b'{"text": "a"}\n'
    objects.forget()
    assert objects.local_path("s3://bucket/datasets/x/train.jsonl") == path
    assert len(store.gets("train.jsonl")) == 1
    assert objects.local_path(tmp_path) == tmp_path


def test_a_prefix_comes_with_its_folders_and_without_hidden_objects(store, tmp_path):
    for name in ("a.pdf", "deep/er/b.zip", ".hidden", "deep/.git/x"):
        store.put(f"bucket/docs/{name}", name.encode())
    folder = objects.local_path("s3://bucket/docs/")
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("[!.]*") if p.is_file()}
    assert found == {"a.pdf", "deep/er/b.zip"}
    assert (folder / "deep/er/b.zip").read_bytes() == b"deep/er/b.zip"


def test_more_files_than_may_be_open_at_once_come_too(store, monkeypatch):
    monkeypatch.setattr(staging, "OPEN_FILES", 3)
    for number in range(8):
        store.put(f"bucket/docs/{number}.txt", str(number).encode() * 10)
    folder = objects.local_path("s3://bucket/docs")
    assert [p.read_text() for p in sorted(folder.glob("*.txt"))] == [str(n) * 10 for n in range(8)]


def test_a_changed_object_is_another_one_for_the_next_process(store):
    store.put("bucket/x.jsonl", b"1\n")
    first = objects.local_path("s3://bucket/x.jsonl")
    store.put("bucket/x.jsonl", b"2\n")
    assert objects.local_path("s3://bucket/x.jsonl") == first
    objects.forget()
    assert objects.local_path("s3://bucket/x.jsonl").read_bytes() == b"2\n"


def test_a_half_uploaded_dataset_is_refused_and_goes_on(store, tmp_path, monkeypatch):
    folder = tmp_path / "pair"
    folder.mkdir()
    for name in ("train.jsonl", "val.jsonl"):
        (folder / name).write_text(json.dumps({"text": name}) + "\n")
    store.broken_uploads = 2
    with pytest.raises(storage.StorageError, match="refuses access"):
        upload.publish(folder, "s3://bucket/datasets/x")
    for uri in ("s3://bucket/datasets/x/train.jsonl", "s3://bucket/datasets/x"):
        with pytest.raises(storage.StorageError, match="was interrupted, it is incomplete"):
            objects.local_path(uri)
    store.broken_uploads = None
    upload.publish(folder, "s3://bucket/datasets/x")
    requests = len(store.requests)
    upload.publish(folder, "s3://bucket/datasets/x")  # the same again: nothing to do
    assert not [r for r in store.requests[requests:] if r.startswith("PUT")]
    path = objects.local_path("s3://bucket/datasets/x/train.jsonl")
    assert path.read_text() == '{"text": "train.jsonl"}\n'
    assert {p.name for p in objects.local_path("s3://bucket/datasets/x").glob("[!.]*")} == {
        "train.jsonl", "val.jsonl"
    }  # fmt: skip
    (folder / "val.jsonl").write_text("other\n")
    with pytest.raises(upload.UploadError, match="holds other files already"):
        upload.publish(folder, "s3://bucket/datasets/x")
    store.put("bucket/datasets/x/stray.jsonl", b"x")
    with pytest.raises(storage.StorageError, match="is not in the list of its folder"):
        objects.local_path("s3://bucket/datasets/x/stray.jsonl")
    # One whose content is not that of the list, which other programs may have put there.
    store.put("bucket/datasets/x/val.jsonl", b"changed\n")
    buckets.other_machine(tmp_path, monkeypatch)
    with pytest.raises(staging.StagingError, match=r"val\.jsonl: the content's sha256"):
        objects.local_path("s3://bucket/datasets/x/val.jsonl")


def test_missing_things_and_bad_names_are_told(store):
    with pytest.raises(storage.StorageError, match="no files under this prefix"):
        objects.local_path("s3://bucket/none.jsonl")
    for name in ("../up.txt", "a//b.txt", "x" * 300):
        store.put(f"bucket/bad/{name}", b"x")
        with pytest.raises(storage.StorageError, match="cannot be a file here"):
            objects.local_path("s3://bucket/bad")
        store.objects.clear()
    store.put("bucket/hidden/.a", b"x")
    with pytest.raises(storage.StorageError, match="only hidden files"):
        objects.local_path("s3://bucket/hidden")


def test_closed_and_expired_stores_are_one_sentence_each(store):
    store.put("bucket/a.jsonl", b"x")
    store.is_closed = True
    with pytest.raises(storage.StorageError, match=r"refuses access.*AWS_PROFILE"):
        objects.local_path("s3://bucket/a.jsonl")
    store.is_closed, store.is_expired = False, True
    with pytest.raises(storage.StorageError, match=r"credentials have expired.*aws sso login"):
        objects.local_path("s3://bucket/a.jsonl")
