"""A data URI to a path on this machine: one object, or all under a prefix, verified, in the cache.

What a URI stood for when a process first asked stays so until the process ends, so that a dataset
that changes meanwhile gives one run one dataset. Weights have their own rules: formats/locate.py.
"""

from pathlib import Path

from mistral_jax import storage
from mistral_jax.storage import staging
from mistral_jax.storage import upload

_resolved: dict[str, Path] = {}


def local_path(uri: str | Path) -> Path:
    """Return the local file or folder of a path or URI; what lies in a bucket is fetched whole.

    An object beside a list of files (upload.py) is checked by that list, and refused while the
    list says that its upload has not ended; else by what the store tells.

    Raises:
        StorageError: nothing is there, or its upload has not ended.
        StagingError: a file's content is not what its digest says.
        StorageUnreachable: the store does not answer; what has arrived is kept.
    """
    text = str(uri)
    if not storage.is_remote(text):
        return Path(text).expanduser()
    if text not in _resolved:
        _resolved[text] = _fetch(text)
    return _resolved[text]


def forget() -> None:
    """Ask again where each URI lies."""
    _resolved.clear()


def _fetch(uri: str) -> Path:
    folder, _, name = uri.rstrip("/").rpartition("/")
    may_be_object = not folder.endswith("/") and not uri.endswith("/")
    if may_be_object and storage.exists(uri):
        prefix = staging.Prefix(folder, only=name)
        if upload.LIST_NAME in prefix.names and name not in prefix.content:
            raise storage.StorageError(
                f"{uri}: is not in the list of its folder, {folder}/{upload.LIST_NAME}; upload the "
                "folder again, or move the object to a folder of its own"
            )
        return prefix.stage([name]) / name
    if may_be_object and storage.exists(f"{folder}/{upload.LIST_NAME}"):
        staging.Prefix(folder, only=name)  # refuses where the upload of that folder has not ended
    prefix = staging.Prefix(uri, is_deep=True)
    names = [name for name in prefix.content if name != upload.LIST_NAME]
    if not names:
        raise storage.StorageError(f"{uri}: there are only hidden files under this prefix")
    return prefix.stage(names)
