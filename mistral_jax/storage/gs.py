"""Objects in Google Cloud Storage, or in an emulator (STORAGE_EMULATOR_HOST).

gcsfs is imported when the first gs:// URI is used, and credentials come from its usual places.
"""

import base64
import contextlib
import datetime
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import BinaryIO

from mistral_jax.storage import base


class GsStorage:
    """Objects in Google Cloud Storage."""

    def __init__(self) -> None:
        """Make a file system."""
        try:
            import gcsfs
        except ImportError:
            raise base.StorageError(
                "gs:// needs gcsfs, which is not installed; "
                "run: MISTRAL_JAX_LOCKS=data ./run doctor"
            ) from None
        with _explained("gs://"):
            # A listing that was kept would hide what another process has written since.
            self._files = gcsfs.GCSFileSystem(use_listings_cache=False)

    def open_read(self, uri: str) -> BinaryIO:
        """Download an object into a temporary file, which goes when it is closed."""
        file = tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
        with _explained(uri), self._files.open(uri, "rb") as source:
            shutil.copyfileobj(source, file)  # pyright: ignore[reportArgumentType]
        file.seek(0)
        return file  # pyright: ignore[reportReturnType]

    def read_range(self, uri: str, start: int, size: int, version: str) -> bytes:
        """Return a part of an object; the caller compares versions when it has all of it."""
        with _explained(uri):
            raw = self._files.cat_file(uri, start=start, end=start + size) if size else b""
        assert isinstance(raw, bytes)
        return raw

    def write(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Put an object; `only_if_absent` makes the store refuse when it exists."""
        with _explained(uri):
            try:
                self._files.pipe_file(uri, data, mode="create" if only_if_absent else "overwrite")
            except FileExistsError:
                raise base.AlreadyExists(f"{uri}: exists already; nothing was written") from None

    def upload(self, path: Path, uri: str, sha256: str) -> None:
        """Put a file; it appears when its last piece has arrived."""
        with _explained(uri):
            self._files.put_file(str(path), uri, metadata={base.SHA256_KEY: sha256})

    def size_bytes(self, uri: str) -> int | None:
        """Return the size of an object; None when there is no such object."""
        found = self._info(uri)
        return None if found is None else int(found["size"])

    def facts(self, uri: str) -> base.FileFacts | None:
        """Return size, generation and the store's own digest."""
        found = self._info(uri)
        return None if found is None else _facts(found)

    def list_files(self, uri: str) -> Iterator[str]:
        """Yield the URIs of all objects under a prefix, sorted."""
        with _explained(uri):
            yield from sorted(f"gs://{name}" for name in self._files.find(uri))

    def list_facts(self, uri: str) -> Iterator[tuple[str, base.FileFacts]]:
        """Yield the same with size, generation and digest."""
        with _explained(uri):
            found = self._files.find(uri, detail=True)
        assert isinstance(found, dict)
        yield from sorted((f"gs://{name}", _facts(each)) for name, each in found.items())

    def delete(self, uri: str) -> None:
        """Remove an object; one that is not there is no error."""
        with _explained(uri), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(uri)

    def _info(self, uri: str) -> dict[str, Any] | None:
        with _explained(uri):
            try:
                found = self._files.info(uri)
            except FileNotFoundError:
                return None
        return found if found.get("type") == "file" else None


def _facts(found: dict[str, Any]) -> base.FileFacts:
    computed = _computed(found)
    sha256 = (found.get("metadata") or {}).get(base.SHA256_KEY)
    return base.FileFacts(
        int(found["size"]),
        str(found.get("generation") or found.get("etag")),
        f"sha256:{sha256}" if sha256 else computed,
        computed,
        _seconds(found.get("updated") or found.get("timeCreated")),
    )


def _computed(found: dict[str, Any]) -> str:
    # An object that was composed of others has no MD5.
    for key, name in (("md5Hash", "md5"), ("crc32c", "crc32c")):
        if found.get(key):
            return f"{name}:{base64.b64decode(found[key]).hex()}"
    return ""


def _seconds(stamp: str | None) -> float:
    return datetime.datetime.fromisoformat(stamp).timestamp() if stamp else 0.0


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn the libraries' errors into ours: what the user can change, and what may pass."""
    import aiohttp
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except FileNotFoundError as error:
        raise base.StorageError(f"{uri}: no such file or bucket") from error
    except GoogleAuthError as error:
        raise base.StorageError(
            f"{uri}: no usable Google credentials ({error}); "
            "run: gcloud auth application-default login"
        ) from error
    except HttpError as error:
        if str(error.code) in ("401", "403"):
            raise _refused(uri) from error
        raise _unreachable(uri, error) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _unreachable(uri, error) from error
    except OSError as error:
        if isinstance(error, base.StorageUnreachable):
            raise
        if str(error).startswith("Forbidden"):
            raise _refused(uri) from error
        if error.errno is None:  # not this machine's disk: gcsfs's own
            raise _unreachable(uri, error) from error
        raise


def _refused(uri: str) -> base.StorageError:
    return base.StorageError(
        f"{uri}: the store refuses access; use an account that may read and write there "
        "(gcloud auth application-default login)"
    )


def _unreachable(uri: str, error: Exception) -> base.StorageUnreachable:
    return base.StorageUnreachable(
        f"{uri}: the store does not answer, or broke off ({error}); check the network, then run "
        "the same command again"
    )
