"""Sources in a bucket: listed once, read whole and unchanged or not at all."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.corpus import build
from data_pipelines.corpus import companions
from data_pipelines.corpus import fetching
from data_pipelines.corpus import inventory
from data_pipelines.corpus import progress
from mistral_jax import storage
from mistral_jax.config.corpus_sources import CorpusSource
from mistral_jax.storage import cache
from mistral_jax.storage import mirror
from mistral_jax.storage import staging
from mistral_jax.storage import upload
from tests import buckets
from tests import fake_s3
from tests.data_pipelines.corpus import test_build

SOURCE = {"name": "notes", "path": "s3://texts/in", "kind": "text", "expert": "general"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_s3.Store]:
    pytest.importorskip("boto3")
    with buckets.fake(tmp_path, monkeypatch) as served:
        yield served


@pytest.fixture
def texts(store, tmp_path) -> fake_s3.Store:
    folder = test_build.write_sources(tmp_path / "in", files=4, rows=5)
    buckets.put_folder(store, folder, "texts/in")
    return store


def config_of(folder: Path):
    return test_build.config_of(folder, sources=[SOURCE])


def readable(folder: Path) -> list[str]:
    names = ("train_dataset.jsonl", "val_dataset.jsonl")
    return sorted(line for name in names for line in (folder / "general" / name).open())


def test_a_prefix_is_listed_once_and_read_past_the_cache(texts, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "0.000001")  # smaller than any of the files
    monkeypatch.setattr(staging, "PIECE_BYTES", 700)
    texts.cuts = 7
    config = config_of(tmp_path)
    made = build.build(config, tmp_path / "out")
    here = {**SOURCE, "path": str(tmp_path / "in")}
    local = build.build(test_build.config_of(tmp_path, sources=[here]), tmp_path / "local")
    assert readable(made.folder) == readable(local.folder)
    assert texts.requests.count("GET texts") == 1
    heads = [request for request in texts.requests if request.startswith("HEAD")]
    assert heads == ["HEAD texts/in"]  # is it an object itself?
    assert not (cache.root() / cache.FETCHED).exists()
    assert build.build(config, made.folder).is_reused


@pytest.mark.parametrize("fault", ["changed", "gone", "flipped", "down"])
def test_what_is_not_what_the_inventory_saw_stops_the_run(texts, tmp_path, monkeypatch, fault):
    config = config_of(tmp_path)
    monkeypatch.setenv(mirror.OUTAGE_VARIABLE, "0")
    real = inventory.tasks

    def planned(*arguments, **options):
        tasks = real(*arguments, **options)
        name = "texts/in/02.jsonl"
        stored = texts.objects[name]
        if fault == "changed":
            texts.put(name, stored.raw + b'{"text": "more"}\n')
        elif fault == "gone":
            texts.objects.pop(name)
        elif fault == "flipped":  # at rest, or on its way: the ETag stays
            raw = bytes([stored.raw[0] ^ 1]) + stored.raw[1:]
            texts.objects[name] = stored._replace(raw=raw)
        else:
            texts.is_down = True
        return tasks

    monkeypatch.setattr(inventory, "tasks", planned)
    expected = {
        "changed": (storage.StorageError, "changed while it was read"),
        "gone": (storage.StorageError, "no such file"),
        "flipped": (staging.StagingError, "md5 is .* but should be"),
        "down": (storage.StorageError, "cannot be read for 0 s .*run the same command"),
    }
    kind, words = expected[fault]
    with pytest.raises(kind, match=words):
        build.build(config, tmp_path / "out")
    if fault == "flipped":
        assert len(texts.gets("02.jsonl")) == fetching.DAMAGED_TRIES
    texts.is_down = False
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_etag_that_is_no_md5_is_asked_about(store, tmp_path):
    store.put("texts/in/a.jsonl", b'{"text": "of an encrypted bucket"}', {"x-amz-meta-sha256": "0"})
    stored = store.objects["texts/in/a.jsonl"]
    store.objects["texts/in/a.jsonl"] = stored._replace(etag="0" * 32)
    (file,) = inventory.list_files(CorpusSource.model_validate(SOURCE))
    wrong = pytest.raises(staging.StagingError, match="sha256 is")
    with wrong, fetching.fetched(tmp_path, [file]):
        pass
    digest = hashlib.sha256(stored.raw).hexdigest()
    store.objects["texts/in/a.jsonl"] = stored._replace(
        etag="0" * 32, metadata={"x-amz-meta-sha256": digest}
    )
    with fetching.fetched(tmp_path, [file]) as (path,):
        assert path.read_bytes() == stored.raw
    assert not path.exists()


def test_uploads_of_ours_are_read_by_their_list(store, tmp_path):
    folder = test_build.write_sources(tmp_path / "in", files=2, rows=2)
    upload.send(folder, "s3://texts/in/sent")
    store.put("texts/in/sent/stray.jsonl", b"{}")
    store.put("texts/in/.hidden.jsonl", b"{}")
    store.put("texts/in/out/rejects.jsonl", b"{}")
    source = CorpusSource.model_validate(SOURCE)
    found = inventory.list_files(source, outside="s3://texts/in/out/")
    assert [file["name"] for file in found] == ["notes/sent/00.jsonl", "notes/sent/01.jsonl"]
    assert all(file["digest"].startswith("sha256:") for file in found)
    name = f"texts/in/sent/{upload.LIST_NAME}"
    listed = json.loads(store.objects[name].raw) | {"complete": False}
    store.put(name, json.dumps(listed).encode())
    with pytest.raises(storage.StorageError, match="interrupted"):
        inventory.list_files(source)


def test_companions_come_along_and_count(store, tmp_path):
    for name in ("a.png", "a.txt", "b.png", "b.txt", "deep/c.png", "deep/c.json"):
        store.put(f"texts/in/{name}", name.encode())
    source = CorpusSource.model_validate({**SOURCE, "type": "media", "kind": "media"})
    found = {file["name"]: file for file in inventory.list_files(source)}
    assert list(found) == ["notes/a.png", "notes/b.png", "notes/deep/c.png"]
    beside = {name: [each["path"] for each in file["beside"]] for name, file in found.items()}
    assert beside == {
        "notes/a.png": ["a.txt", "b.txt"],
        "notes/b.png": ["a.txt", "b.txt"],
        "notes/deep/c.png": ["c.json"],
    }
    with fetching.fetched(tmp_path, list(found.values())) as paths:
        assert (paths[0].parent / "a.txt").read_bytes() == b"a.txt"
        look = fetching.beside(found["notes/a.png"], paths[0].parent, 100)
        assert look("deep/c.json") == b"deep/c.json"
        assert look("none.txt") is None and look("../in/b.txt") is None
    store.put("texts/in/a.txt", b"another caption")
    assert inventory.list_files(source) != list(found.values())


def test_of_many_companions_those_of_the_stem_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(companions, "FEW", 1)
    for name in ("a.png", "a.txt", "b.png", "b.txt"):
        (tmp_path / name).write_bytes(name.encode())
    source = {**SOURCE, "type": "media", "kind": "media", "path": str(tmp_path)}
    found = inventory.list_files(CorpusSource.model_validate(source))
    assert [[each["path"] for each in file["beside"]] for file in found] == [["a.txt"], ["b.txt"]]


@pytest.mark.parametrize("change", [lambda file: file.write_text("other"), Path.unlink])
def test_a_local_file_that_changes_while_it_is_read_stops_the_run(tmp_path, change):
    folder = test_build.write_sources(tmp_path / "in", files=3, rows=2)
    config = test_build.config_of(tmp_path)

    class Meddler(progress.Progress):
        def stage(self, name: str, *arguments, **options) -> None:
            super().stage(name, *arguments, **options)
            if name == "map":
                change(folder / "01.jsonl")

    with pytest.raises(storage.StorageError, match=r"01\.jsonl: changed while the corpus was made"):
        build.build(config, tmp_path / "out", progress=Meddler(is_silent=True))
    again = build.build(config, tmp_path / "out")
    calm = build.build(config, tmp_path / "calm")
    assert test_build.tree(again.folder) == test_build.tree(calm.folder)
