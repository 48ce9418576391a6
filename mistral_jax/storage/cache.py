"""The cache of fetched checkpoints on this machine: one folder an entry, never changed once whole.

An entry is made under a lock of its own, so that several processes of a machine fetch it once; it
is in use while a process that asked for it lives. Entries that are in nobody's use go, the longest
unused first, when a new one needs the room.
"""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from mistral_jax import storage

FOLDER_VARIABLE = "MISTRAL_JAX_CACHE"
LIMIT_VARIABLE = "MISTRAL_JAX_CACHE_GIB"
DEFAULT_LIMIT_GIB = 512
GIB = 1 << 30
FETCHED, RUNS = "fetched", "runs"
USUAL = "~/.cache/mistral_jax/weights"
DONE = ".complete"
SPARE_BYTES = 1 << 28  # left free on the disk beside what is fetched

# File descriptors whose shared lock says that this process uses an entry; they end with it.
_in_use: dict[Path, int] = {}


def root() -> Path:
    """Return the cache's folder: MISTRAL_JAX_CACHE, or one below the user's own cache."""
    own = os.environ.get(FOLDER_VARIABLE)
    if own:
        return Path(own).expanduser()
    general = os.environ.get("XDG_CACHE_HOME")
    return Path(f"{general}/mistral_jax/weights" if general else USUAL).expanduser()


def run_folder(uri: str) -> Path:
    """Return the folder of this machine in which a run works whose output is a bucket."""
    key = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]+", "-", uri.rstrip("/").rpartition("/")[2])[:60]
    return root() / RUNS / f"{name}-{key}"


def limit_bytes() -> int:
    """Return how much the cache may hold.

    Raises:
        StorageError: the variable is not a number.
    """
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT_GIB))
    try:
        return int(float(text) * GIB)
    except (ValueError, OverflowError):
        raise storage.StorageError(
            f"{LIMIT_VARIABLE}: expected a number of GiB, got {text!r}"
        ) from None


def entry(*, uri: str, identity: str, need_bytes: int, fill: Callable[[Path], None]) -> Path:
    """Return the folder of an entry, made by `fill` where it is not there yet.

    Args:
        uri: what is fetched; names the folder for people and error messages.
        identity: what makes it this one and no other (file names, sizes and versions).
        need_bytes: what `fill` may write.
        fill: writes into the folder; what it left when it was interrupted is there the next time.

    Raises:
        StorageError: it is larger than the whole cache may be.
        DiskSpaceError: too little disk, with every unused entry gone.
    """
    name = re.sub(r"[^\w.-]+", "-", uri.rstrip("/").rpartition("/")[2])[:60]
    folder = (
        root() / FETCHED / f"{name}-{hashlib.sha256(f'{uri} {identity}'.encode()).hexdigest()[:16]}"
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    _use(folder)
    with _lock_path(folder, "fill").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / DONE).is_file():
            _make_room(folder, need_bytes, uri)
            folder.mkdir(exist_ok=True)
            fill(folder)
            (folder / DONE).write_text(uri + "\n", encoding="utf-8")
    os.utime(folder / DONE)
    return folder


def _lock_path(folder: Path, purpose: str) -> Path:
    return folder.parent / f".{folder.name}.{purpose}.lock"


def _use(folder: Path) -> None:
    if folder not in _in_use:
        handle = os.open(_lock_path(folder, "use"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(handle, fcntl.LOCK_SH)
        _in_use[folder] = handle


def _make_room(wanted: Path, need_bytes: int, uri: str) -> None:
    limit = limit_bytes()
    if need_bytes > limit:
        raise storage.StorageError(
            f"{uri}: needs {need_bytes / GIB:.1f} GiB, and the cache {root()} may hold "
            f"{limit / GIB:.1f} GiB; set {LIMIT_VARIABLE} higher"
        )
    others = [f for f in wanted.parent.iterdir() if f.is_dir() and f != wanted]
    sizes = {folder: _disk_bytes(folder) for folder in others}
    missing = need_bytes - (_disk_bytes(wanted) if wanted.is_dir() else 0)
    for folder in sorted(others, key=_last_used):
        is_full = sum(sizes.values()) + need_bytes > limit
        if not is_full and storage.free_bytes(root()) >= missing + SPARE_BYTES:
            break
        if _remove_unused(folder):
            sizes.pop(folder)
    storage.require_space(root(), missing + SPARE_BYTES, what=f"fetching {uri}")


def _remove_unused(folder: Path) -> bool:
    lock = _lock_path(folder, "use")
    with lock.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder)
    return True


def _last_used(folder: Path) -> float:
    done = folder / DONE
    return (done if done.is_file() else folder).stat().st_mtime


def _disk_bytes(folder: Path) -> int:
    """Return what a folder takes on disk; files of headers alone are mostly holes."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
