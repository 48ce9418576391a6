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
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mistral_jax import storage
from mistral_jax.storage import cache
from mistral_jax.storage import digests
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
    names = [n for n in storage.list_files(uri) if not n.rpartition("/")[2].startswith(".")]
    where = f"{uri.rstrip('/')}/{LIST_NAME}"
    is_ours = where in names and not read_list(where).is_complete
    if names and not is_ours:
        raise UploadError(f"{uri}: holds files already ({names[0]} is one); choose another prefix")


def check_writable(uri: str) -> None:
    """Write a small object and remove it, so that missing rights show before the work is done.

    Raises:
        StorageError: the store does not let us write there.
    """
    probe = f"{uri.rstrip('/')}/.write-probe"
    storage.write_bytes(probe, b"probe\n")
    # Who may write and not delete leaves it there; hidden objects count nowhere.
    with contextlib.suppress(storage.StorageError):
        storage.delete(probe)


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
    if path.is_file():
        send_file(path, uri)
    else:
        _send_listed(path, uri.rstrip("/"), _listed(path), say=_to_stderr)


def publish(folder: Path, uri: str, *, say: Callable[[str], None] | None = None) -> None:
    """Send a folder's files, hidden ones left out, so that the prefix holds these and no others.

    A prefix that holds the same already is left as it is; one that an earlier call began goes on.

    Raises:
        UploadError: the prefix holds something else, or a file did not arrive as it was sent.
    """
    listed, base = _listed(folder), uri.rstrip("/")
    where = f"{base}/{LIST_NAME}"
    if storage.exists(where):
        there = read_list(where)
        wanted = {name: fields["sha256"] for name, fields in listed.items()}
        if there.is_complete and dict(there.sha256) == wanted:
            return
        if there.is_complete:
            raise UploadError(f"{uri}: holds other files already; choose another prefix")
    else:
        check_free(uri)
    _send_listed(folder, base, listed, say=say or _to_stderr)


def replace(
    folder: Path,
    uri: str,
    *,
    check: Callable[[], None],
    is_part: Callable[[str], bool] = lambda name: True,
    last: str = "",
) -> None:
    """Send a folder's files in the place of what lies there.

    Args:
        folder: what is sent.
        uri: where to.
        check: called before each file, and before the list says that all has arrived; it raises
            where another process has begun to write there, whose files may have the same names.
        is_part: tells by its name whether a file counts; others are neither sent nor removed.
        last: the file that is sent when all others have arrived, and goes first where it is old.
    """
    kind, base = storage.storage_for(uri), uri.rstrip("/")
    listed = {name: each for name, each in _listed(folder).items() if is_part(name)}
    if last in listed:  # a dict keeps the order in which names come
        listed[last] = listed.pop(last)
    known = {f"{base}/{name}" for name in (*listed, LIST_NAME)} - {f"{base}/{last}"}
    others = [name.removeprefix(f"{base}/") for name in kind.list_files(base) if name not in known]
    strays = [f"{base}/{name}" for name in others if is_part(name)]
    _send_listed(folder, base, listed, say=lambda line: None, check=check, strays=strays)


def remove(uri: str) -> None:
    """Remove a folder that `send` made, its list first, so that it never counts as whole."""
    kind, base = storage.storage_for(uri), uri.rstrip("/")
    kind.delete(f"{base}/{LIST_NAME}")
    for name in list(kind.list_files(base)):
        kind.delete(name)


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of each file that is not hidden."""
    files = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
    return {
        name.as_posix(): {"size_bytes": file.stat().st_size, "sha256": storage.digest(file)}
        for name, file in sorted(files.items())
        if not any(part.startswith(".") for part in name.parts)
    }


def _send_listed(
    folder: Path,
    base: str,
    listed: Mapping[str, Any],
    *,
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
    strays: Sequence[str] = (),
) -> None:
    kind = storage.storage_for(base)
    _write_list(base, listed, is_complete=False)
    for stray in strays:
        kind.delete(stray)
    for name, fields in listed.items():
        check()
        send_file(folder / name, f"{base}/{name}", fields["sha256"], kind=kind, say=say)
    check()
    _write_list(base, listed, is_complete=True)


def send_file(
    path: Path,
    uri: str,
    sha256: str | None = None,
    *,
    kind: Storage | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Send one file, unless it is there; what the store computed of it is compared with ours.

    Raises:
        UploadError: something else arrived.
    """
    kind, sha256 = kind or storage.storage_for(uri), sha256 or storage.digest(path)
    size = path.stat().st_size
    there = kind.facts(uri)
    if there is not None and there.size_bytes == size and there.digest == f"sha256:{sha256}":
        return
    (say or _to_stderr)(f"sending {uri}: {size / (1 << 20):,.1f} MiB")
    kind.upload(path, uri, sha256)
    there = kind.facts(uri)
    if there is None or there.size_bytes != size:
        found = "nothing" if there is None else f"{there.size_bytes} bytes"
        raise UploadError(f"{uri}: sent {size} bytes, {found} arrived; run the same command again")
    complaint = digests.check_digest(path, there.computed)
    if complaint is not None:
        kind.delete(uri)  # else its sha256, which came along, would vouch for it
        raise UploadError(f"{uri}: arrived damaged ({complaint}); run the same command again")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _write_list(base: str, files: Mapping[str, Any], *, is_complete: bool) -> None:
    content = {"complete": is_complete, "files": files}
    raw = (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
    storage.write_bytes(f"{base}/{LIST_NAME}", raw)
