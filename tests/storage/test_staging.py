"""storage/staging.py, upload.py, cache.py: checkpoints from and to a bucket, over real HTTP."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mistral_jax import convert
from mistral_jax import storage
from mistral_jax.formats import checkpoint_files
from mistral_jax.formats import detect
from mistral_jax.formats import locate
from mistral_jax.storage import cache
from mistral_jax.storage import staging
from mistral_jax.storage import upload
from tests import buckets
from tests import checkpoint_on_disk
from tests import fake_s3

pytest.importorskip("boto3")
URI = "s3://bucket/models/tiny"
SHARD = checkpoint_on_disk.SHARDS[0]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_s3.Store]:
    with buckets.fake(tmp_path, monkeypatch) as served:
        monkeypatch.setattr(staging, "PIECE_BYTES", 16 << 10)
        locate.forget()
        yield served
    locate.forget()


def put_checkpoint(store: fake_s3.Store, at: str = "bucket/models/tiny") -> dict[str, bytes]:
    files = checkpoint_on_disk.files()
    for name, raw in files.items():
        store.put(f"{at}/{name}", raw)
    return files


def test_a_checkpoint_is_fetched_once_and_whole(store):
    files = put_checkpoint(store)
    folder = locate.local_path(URI)
    for shard in checkpoint_on_disk.SHARDS:
        assert (folder / shard).read_bytes() == files[shard]
    assert not (folder / "consolidated.safetensors").exists()
    assert not (folder / "pytorch_model.bin").exists()
    assert not (folder / staging.PARTS).exists()
    store.requests.clear()
    locate.forget()
    assert locate.local_path(f"{URI}/") == folder
    assert not store.gets(".safetensors")  # facts only; the index is read to choose


def test_headers_cost_no_weights(store):
    put_checkpoint(store)
    big = b"\0" * (4 << 20)
    header = json.dumps({"a": {"dtype": "U8", "shape": [len(big)],
                               "data_offsets": [0, len(big)]}}).encode()  # fmt: skip
    store.objects.clear()
    config = json.dumps(checkpoint_on_disk.CONFIG).encode()
    store.put("bucket/models/tiny/config.json", config)
    raw = len(header).to_bytes(8, "little") + header + big
    store.put("bucket/models/tiny/model.safetensors", raw)
    folder = locate.headers_path(URI)
    assert detect.open_weights(folder).shape("a") == (len(big),)
    assert (folder / "model.safetensors").stat().st_blocks * 512 < 1 << 20
    whole = locate.local_path(URI)
    assert whole != folder and (whole / "model.safetensors").read_bytes() == raw


def test_a_fetch_that_was_cut_off_goes_on_with_the_missing_pieces(store, monkeypatch):
    files = put_checkpoint(store)
    monkeypatch.setattr(staging, "NUM_THREADS", 1)
    monkeypatch.setattr(staging, "MAX_TRIES", 1)
    real, done, has_cut = staging._PartialFile.fetch, [], []

    def fetch(self, kind, piece):
        if len(done) == 6 and not has_cut:
            has_cut.append(True)
            store.cuts = 1
        real(self, kind, piece)
        done.append((self.uri, piece.number))

    monkeypatch.setattr(staging._PartialFile, "fetch", fetch)
    with pytest.raises(storage.StorageUnreachable, match="does not answer, or broke off"):
        locate.local_path(URI)
    assert 6 <= len(done) <= 7
    folder = locate.local_path(URI)
    total = sum(-(-(folder / n).stat().st_size // staging.PIECE_BYTES) for n in files
                if (folder / n).exists())  # fmt: skip
    assert len(done) == len(set(done)) == total  # nothing twice
    assert (folder / SHARD).read_bytes() == files[SHARD]


def test_a_connection_that_breaks_off_is_tried_again(store):
    files = put_checkpoint(store)
    store.cuts = 3
    assert (locate.local_path(URI) / SHARD).read_bytes() == files[SHARD]
    assert store.cuts == 0


@pytest.mark.parametrize("kind", ["md5", "parts", "ours"])
def test_a_flipped_bit_is_found_and_thrown_away(store, kind):
    files = put_checkpoint(store)
    name = f"bucket/models/tiny/{SHARD}"
    good = store.objects[name]
    damaged = files[SHARD][:-1] + bytes([files[SHARD][-1] ^ 1])
    if kind == "md5":
        store.objects[name] = good._replace(raw=damaged)
    elif kind == "parts":
        halves = files[SHARD][:100_000], files[SHARD][100_000:]
        joined = b"".join(hashlib.md5(half).digest() for half in halves)
        good = fake_s3.Stored(
            files[SHARD], f"{hashlib.md5(joined).hexdigest()}-2", {}, tuple(map(len, halves))
        )
        store.objects[name] = good._replace(raw=damaged)
    else:
        sha256 = hashlib.sha256(files[SHARD]).hexdigest()
        store.put(name, damaged, {"x-amz-meta-sha256": sha256})
    with pytest.raises(staging.StagingError, match=rf"{SHARD}: the content's .* should be"):
        locate.local_path(URI)
    store.objects[name] = good
    assert (locate.local_path(URI) / SHARD).read_bytes() == files[SHARD]


def test_a_file_that_changes_while_it_is_read_is_not_mixed(store, monkeypatch):
    put_checkpoint(store)
    prefix = staging.Prefix(URI)
    prefix.facts(SHARD)
    store.put(f"bucket/models/tiny/{SHARD}", b"another")
    with pytest.raises(storage.StorageError, match="changed while it was read"):
        prefix.stage([SHARD])


def test_another_version_is_another_folder(store):
    put_checkpoint(store)
    before = locate.local_path(URI)
    locate.forget()
    store.put("bucket/models/tiny/config.json", b'{"changed": true}')
    after = locate.local_path(URI)
    assert after != before and (after / "config.json").read_bytes() == b'{"changed": true}'


def test_the_cache_is_bounded_and_keeps_what_is_in_use(store, monkeypatch):
    put_checkpoint(store)
    put_checkpoint(store, "bucket/second")
    first = locate.local_path(URI)
    size = sum(f.stat().st_blocks * 512 for f in first.iterdir())
    monkeypatch.setenv(cache.LIMIT_VARIABLE, str(1.5 * size / cache.GIB))
    second = locate.local_path("s3://bucket/second")
    assert first.is_dir() and second.is_dir()  # this process uses the first
    os.close(cache._in_use.pop(first))
    os.close(cache._in_use.pop(second))
    put_checkpoint(store, "bucket/third")
    third = locate.local_path("s3://bucket/third")
    assert third.is_dir() and not first.exists()
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "0.00001")
    put_checkpoint(store, "bucket/fourth")
    with pytest.raises(storage.StorageError, match="set MISTRAL_JAX_CACHE_GIB higher"):
        locate.local_path("s3://bucket/fourth")
    monkeypatch.setenv(cache.LIMIT_VARIABLE, "much")
    with pytest.raises(storage.StorageError, match="expected a number of GiB, got 'much'"):
        locate.local_path("s3://bucket/fourth")


def test_a_model_goes_up_comes_back_and_is_verified(store, tmp_path):
    put_checkpoint(store)
    exported = convert.export_model(
        URI, "s3://bucket/out/copy", format="consolidated", dtype="float32"
    )
    assert exported.path == "s3://bucket/out/copy"
    assert exported.largest_logit_difference == 0.0
    listed = upload.read_list(f"s3://bucket/out/copy/{upload.LIST_NAME}")
    assert listed.is_complete and "consolidated.safetensors" in listed.sha256
    sent = [request for request in store.requests if request.startswith("PUT ")]
    assert sent[0] == sent[-1] == f"PUT bucket/out/copy/{upload.LIST_NAME}"
    assert convert.compare(URI, "s3://bucket/out/copy") == 0.0
    assert not any((cache.root() / upload.OUTBOX).glob("[!.]*"))
    with pytest.raises(upload.UploadError, match="holds files already"):
        convert.import_checkpoint(URI, "s3://bucket/out/copy", dtype="checkpoint")
    gguf = convert.export_model(URI, "s3://bucket/out/a.gguf", format="gguf", dtype="float32")
    assert gguf.path == "s3://bucket/out/a.gguf"
    opened = detect.open_weights(locate.headers_path("s3://bucket/out/a.gguf"))
    assert opened.kind == "gguf" and opened.decoder_config()["width"] == 32


def test_an_upload_that_was_cut_off_is_not_taken_for_a_checkpoint_and_goes_on(store, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, raw in checkpoint_on_disk.files().items():
        (folder / name).write_bytes(raw)
    store.broken_uploads = 4
    with pytest.raises(storage.StorageError, match="refuses access"):
        upload.send(folder, URI)
    arrived = set(store.objects)
    assert len(arrived) == 4
    with pytest.raises(storage.StorageError, match=r"was interrupted.*run again what"):
        locate.local_path(URI)
    upload.check_free(URI)
    store.broken_uploads = None
    store.requests.clear()
    upload.send(folder, URI)
    sent = {request[4:] for request in store.requests if request.startswith("PUT ")}
    assert sent & arrived == {f"bucket/models/tiny/{upload.LIST_NAME}"}
    assert detect.open_weights(locate.local_path(URI)).kind == "hf"
    (name,) = [n for n in store.objects if n.endswith(SHARD)]
    del store.objects[name]
    locate.forget()
    with pytest.raises(storage.StorageError, match=f"tells of '{SHARD}', which is not there"):
        locate.local_path(URI)


def test_large_objects_go_in_parts_and_keep_their_digest(store, tmp_path, monkeypatch):
    from mistral_jax.storage import s3

    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    path = tmp_path / "large.gguf"
    path.write_bytes(np.random.default_rng(0).bytes(11 << 20))
    upload.send(path, "s3://bucket/large.gguf")
    assert store.objects["bucket/large.gguf"].parts == (5 << 20, 5 << 20, 1 << 20)
    monkeypatch.setattr(staging, "PIECE_BYTES", 4 << 20)
    assert locate.local_path("s3://bucket/large.gguf").read_bytes() == path.read_bytes()


def test_wrong_places_are_told(store, monkeypatch):
    with pytest.raises(storage.StorageError, match="no files under this prefix"):
        locate.local_path("s3://bucket/nothing")
    store.put("bucket/notes/a.txt", b"x")
    with pytest.raises(checkpoint_files.CheckpointFilesError, match=r"no checkpoint.*a\.txt"):
        locate.local_path("s3://bucket/notes")
    files = put_checkpoint(store)
    del store.objects[f"bucket/models/tiny/{SHARD}"]
    del store.objects["bucket/models/tiny/consolidated.safetensors"]
    with pytest.raises(checkpoint_files.CheckpointFilesError, match=f"{SHARD}.*not there"):
        locate.local_path(URI)
    assert files
    store.is_closed = True
    with pytest.raises(storage.StorageError, match="refuses access"):
        locate.local_path(URI)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("mistral_jax.storage.s3.MAX_ATTEMPTS", 1)
    with pytest.raises(storage.StorageUnreachable, match="check the network and AWS_ENDPOINT_URL"):
        locate.local_path(URI)


def test_without_credentials_the_way_to_them_is_told(store, monkeypatch, tmp_path):
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(storage.StorageError, match=r"no usable AWS credentials.*aws configure"):
        locate.local_path(URI)
