"""A folder or a file up to a bucket: what has arrived is not sent again, the list comes last.

The list, LIST_NAME, holds size and sha256 of every file. It is written first with
`complete: false`, so that a half-sent checkpoint is known as one, and last with `complete: true`.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistral_jax import storage
from mistral_jax.storage import cache
from mistral_jax.storage.base import Storage

LIST_NAME = "mistral_jax_files.json"
OUTBOX = "outbox"


class UploadError(ValueError):
    """A destination that cannot be written, or a file that did not arrive."""


@dataclasses.dataclass(frozen=True)
class FileList:
    """What a folder of a bucket should hold.

    Attributes:
        is_complete: everything has arrived.
        sha256: digests in hex by file name.
    """

    is_complete: bool
    sha256: Mapping[str, str]


def read_list(uri: str) -> FileList:
    """Read a list of files.

    Raises:
        UploadError: it is not one.
    """
    raw = storage.read_bytes(uri)
    try:
        content = json.loads(raw)
        files = {name: fields["sha256"] for name, fields in content["files"].items()}
        is_complete = content["complete"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UploadError(f"{uri}: expected a list of files with digests: {error!r}") from error
    if not isinstance(is_complete, bool) or not all(isinstance(d, str) for d in files.values()):
        raise UploadError(f"{uri}: expected `complete` and a sha256 for each file")
    return FileList(is_complete, files)


def check_free(uri: str) -> None:
    """Refuse a destination that holds something already; one that was interrupted goes on.

    Raises:
        UploadError: it does; the message says what to do.
    """
    if storage.exists(uri):
        raise UploadError(f"{uri}: exists already; choose another name")
    names = storage.list_files(uri)
    where = f"{uri.rstrip('/')}/{LIST_NAME}"
    is_ours = where in names and not read_list(where).is_complete
    if names and not is_ours:
        raise UploadError(f"{uri}: holds files already ({names[0]} is one); choose another prefix")


@contextlib.contextmanager
def outbox(uri: str) -> Iterator[Path]:
    """Give a local path to write to; what lies there at the end goes up to `uri`.

    Raises:
        UploadError: `uri` holds something already, or a file did not arrive as it was sent.
    """
    check_free(uri)
    key = hashlib.sha256(uri.encode()).hexdigest()[:16]
    folder = cache.root() / OUTBOX / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{key}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UploadError(f"{uri}: another process of this machine writes there") from None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            path = folder / uri.rstrip("/").rpartition("/")[2]
            yield path
            send(path, uri)
        finally:
            shutil.rmtree(folder)


def send(path: Path, uri: str) -> None:
    """Send a file, or the files of a folder and then their list."""
    kind = storage.storage_for(uri)
    if path.is_file():
        _send_file(kind, path, uri, storage.digest(path))
        return
    base = uri.rstrip("/")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = {
        file.relative_to(path).as_posix(): {
            "size_bytes": file.stat().st_size,
            "sha256": storage.digest(file),
        }
        for file in files
    }
    _write_list(base, listed, is_complete=False)
    for name, fields in listed.items():
        _send_file(kind, path / name, f"{base}/{name}", fields["sha256"])
    _write_list(base, listed, is_complete=True)


def _send_file(kind: Storage, path: Path, uri: str, sha256: str) -> None:
    size = path.stat().st_size
    there = kind.facts(uri)
    expected = f"sha256:{sha256}"
    if there is not None and there.size_bytes == size and there.digest == expected:
        return
    print(f"sending {uri}: {size / (1 << 20):,.1f} MiB", file=sys.stderr)
    kind.upload(path, uri, sha256)
    there = kind.facts(uri)
    if there is None or there.size_bytes != size:
        found = "nothing" if there is None else f"{there.size_bytes} bytes"
        raise UploadError(f"{uri}: sent {size} bytes, {found} arrived; run the same command again")


def _write_list(base: str, files: Mapping[str, Any], *, is_complete: bool) -> None:
    content = {"complete": is_complete, "files": files}
    raw = (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
    storage.write_bytes(f"{base}/{LIST_NAME}", raw)
