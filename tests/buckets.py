"""The S3 on loopback as a test's store: environment, cache folder and short waits."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistral_jax.formats import locate
from mistral_jax.storage import mirror
from mistral_jax.storage import staging
from tests import fake_s3


@contextlib.contextmanager
def fake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_s3.Store]:
    """Run a store that s3:// means while the context lasts; the cache is at `folder`/cache."""
    with fake_s3.serve() as served:
        settings = {
            "MISTRAL_JAX_CACHE": str(folder / "cache"), "AWS_ENDPOINT_URL": served.endpoint,
            "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(folder / "none"),
        }  # fmt: skip
        for key, value in settings.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(staging, "FIRST_WAIT_S", 0.001)
        monkeypatch.setattr(mirror, "FIRST_WAIT_S", 0.02)
        monkeypatch.setattr(mirror, "LONGEST_WAIT_S", 0.1)
        monkeypatch.setattr(mirror, "POLL_S", 0.02)
        monkeypatch.setattr("mistral_jax.storage.s3.MAX_ATTEMPTS", 1)
        locate.forget()
        yield served
    locate.forget()
    living = [thread for thread in threading.enumerate() if thread.name == "owner"]
    assert not living, "an owner outlives its store, and would write into the next test's"


def other_machine(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "other") -> None:
    """Go on as a machine that has fetched nothing yet."""
    monkeypatch.setenv("MISTRAL_JAX_CACHE", str(folder / f"cache-{name}"))
    locate.forget()


def put_folder(store: fake_s3.Store, folder: Path, name: str) -> None:
    """Put the files of a folder under "bucket/prefix"."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
