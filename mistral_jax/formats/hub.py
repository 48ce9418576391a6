"""Checkpoints of the Hugging Face Hub: hf://ORG/NAME[@REVISION][/FILE.gguf].

Files lie in huggingface_hub's own cache and are fetched and resumed by it; only those of one
layout of the weights are asked for. Every refusal says what the user can do about it.
"""

import contextlib
import dataclasses
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

from mistral_jax.formats import checkpoint_files
from mistral_jax.formats import header_files
from mistral_jax.storage import cache

SCHEME = "hf"
NAME = re.compile(r"[\w.-]+")
NUM_THREADS = 8


class HubError(ValueError):
    """A repository that cannot be used as asked; the message says what to do."""


class HubUnreachable(OSError):
    """The Hub did not answer, and nothing usable is in its cache."""


@dataclasses.dataclass(frozen=True)
class Repository:
    """A place on the Hub.

    Attributes:
        name: ORG/NAME.
        revision: branch, tag or commit; None is the default branch.
        file: one GGUF file of it, or None for the checkpoint that it holds.
    """

    name: str
    revision: str | None
    file: str | None

    @property
    def uri(self) -> str:
        """How it is written."""
        revision = f"@{urllib.parse.quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://{self.name}{revision}" + (f"/{self.file}" if self.file else "")


def parse(uri: str) -> Repository:
    """Return the parts of a URI.

    Raises:
        HubError: it is not hf://ORG/NAME[@REVISION].
    """
    parts = uri.removeprefix("hf://").rstrip("/").split("/")
    name, _, revision = parts[1].partition("@") if len(parts) > 1 else ("", "", "")
    is_whole = uri.startswith("hf://") and len(parts) in (2, 3)
    if not is_whole or not NAME.fullmatch(parts[0]) or not NAME.fullmatch(name):
        raise HubError(
            f"{uri!r}: expected hf://ORG/NAME or hf://ORG/NAME@REVISION, such as "
            "hf://mistralai/Mistral-7B-v0.3 (a slash in a revision is written %2F)"
        )
    file = parts[2] if len(parts) == 3 else None
    if file is not None and not file.endswith(".gguf"):
        raise HubError(f"{uri!r}: only a .gguf file is named by itself; give hf://ORG/NAME")
    return Repository(f"{parts[0]}/{name}", urllib.parse.unquote(revision) or None, file)


def fetch(uri: str) -> Path:
    """Return the local folder (or GGUF file) of a checkpoint, fetched where it is not there yet.

    Raises:
        HubError: it does not exist, is gated or private, or holds no weights that can be read.
        HubUnreachable: no network and no cached copy; the message says how to fetch by hand.
    """
    snapshot = _Snapshot(parse(uri))
    folder = snapshot.download(snapshot.choose().all)
    return folder / snapshot.repository.file if snapshot.repository.file else folder


def fetch_headers(uri: str, *, has_text: bool) -> Path:
    """Return a local folder (or file) with a checkpoint's configuration and weights' headers.

    Args:
        uri: hf://ORG/NAME[@REVISION].
        has_text: tokenizer and chat template too.

    Raises:
        HubError, HubUnreachable: as `fetch`.
    """
    snapshot = _Snapshot(parse(uri))
    chosen = snapshot.choose()
    if snapshot.holds(chosen.all):
        folder = snapshot.folder
    else:
        folder = cache.entry(
            uri=uri,
            identity=f"headers {snapshot.commit} {has_text}",
            need_bytes=len(chosen.weights) * header_files.FIRST_READ_BYTES,
            fill=lambda folder: snapshot.write_headers(chosen, folder, has_text=has_text),
        )
    return folder / snapshot.repository.file if snapshot.repository.file else folder


class _Snapshot:
    """One commit of a repository: what it holds, and which of it is in the Hub's cache."""

    def __init__(self, repository: Repository) -> None:
        # Imported here: half a second that a local checkpoint need not pay.
        import huggingface_hub
        from huggingface_hub import constants

        # No telemetry: it would ask the Hub which program starts this one.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        self.repository, self._hub = repository, huggingface_hub
        self._api = huggingface_hub.HfApi()
        with _explained(repository):
            self._revision = self._api.resolve_revision(
                repository.name, revision=repository.revision
            )
            self.commit = self._revision.resolved
        self.folder = self._cached_folder()
        self._sizes = self._list()

    def _cached_folder(self) -> Path:
        from huggingface_hub import constants

        root = Path(constants.HF_HUB_CACHE).expanduser()
        name = f"models--{self.repository.name.replace('/', '--')}"
        return root / name / "snapshots" / self.commit

    def _list(self) -> dict[str, int]:
        """Return the sizes of the repository's files; without network, of those in the cache."""
        from huggingface_hub import hf_api

        try:
            with _explained(self.repository):
                tree = self._api.list_repo_tree(self.repository.name, revision=self.commit)
                return {
                    entry.path: entry.size for entry in tree if isinstance(entry, hf_api.RepoFile)
                }
        except HubUnreachable:
            self._sizes = {f.name: f.stat().st_size for f in self.folder.glob("*") if f.is_file()}
            with contextlib.suppress(HubError, checkpoint_files.CheckpointFilesError):
                if self.holds(self.choose().all):
                    return self._sizes
            raise

    def choose(self) -> checkpoint_files.CheckpointFiles:
        """Return the files of the one checkpoint, or the file that was asked for by name."""
        file = self.repository.file
        if file is None:
            return checkpoint_files.choose(self._sizes, self._read, self.repository.uri)
        if file not in self._sizes:
            raise HubError(
                f"{self.repository.uri}: the repository has no such file; it has: "
                f"{', '.join(sorted(self._sizes)[:8])}"
            )
        return checkpoint_files.CheckpointFiles((), (), (file,))

    def holds(self, names: list[str]) -> bool:
        """Tell whether files are in the Hub's cache already."""
        return all((self.folder / name).is_file() for name in names)

    def download(self, names: list[str]) -> Path:
        """Return the Hub's folder of this commit, with these files in it."""
        if not self.holds(names):
            with _explained(self.repository):
                self._hub.snapshot_download(
                    self.repository.name, revision=self._revision, allow_patterns=names
                )
        return self.folder

    def write_headers(
        self, chosen: checkpoint_files.CheckpointFiles, folder: Path, *, has_text: bool
    ) -> None:
        """Write configuration, and text where asked for, and the weights' headers."""
        small = [*chosen.headers, *(chosen.text if has_text else ())]
        if small:
            source = self.download(small)
            for name in small:
                shutil.copyfile(source / name, folder / name)
        with futures.ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(lambda name: self._write_header(name, folder), chosen.weights))

    def _write_header(self, name: str, folder: Path) -> None:
        with _explained(self.repository):
            header_files.write_header(
                folder / name,
                self._sizes[name],
                lambda start, size: self._read_range(name, start, size),
            )

    def _read(self, name: str) -> bytes:
        return (self.download([name]) / name).read_bytes()

    def _read_range(self, name: str, start: int, size: int) -> bytes:
        from huggingface_hub import utils

        url = self._hub.hf_hub_url(self.repository.name, name, revision=self.commit)
        headers = utils.build_hf_headers() | {
            "Range": f"bytes={start}-{start + size - 1}",
            "Accept-Encoding": "identity",
        }
        session = self._hub.get_session()
        with session.stream("GET", url, headers=headers, follow_redirects=True) as answer:
            utils.hf_raise_for_status(answer)
            # A server that knows no ranges sends the whole file: only its first bytes are taken.
            raw, skip = b"", 0 if answer.status_code == 206 else start
            for chunk in answer.iter_bytes():
                raw += chunk
                if len(raw) >= skip + size:
                    break
        return raw[skip : skip + size]


@contextlib.contextmanager
def _explained(repository: Repository) -> Iterator[None]:
    """Turn the Hub's errors into one sentence with a way on."""
    from huggingface_hub import constants
    from huggingface_hub import errors

    try:
        yield
    except (errors.HFValidationError, errors.HfUriError) as error:
        raise HubError(f"{repository.uri}: not a name that the Hub takes: {error}") from error
    except (
        OSError,
        errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        errors.RevisionResolutionError,
        errors.EntryNotFoundError,
        errors.XetDownloadError,
    ) as error:
        if getattr(error, "errno", None):  # this machine's disk, not the network
            raise
        page = f"{constants.ENDPOINT}/{repository.name}"
        raise _refusal(repository, page, error) from error


def _refusal(repository: Repository, page: str, error: BaseException) -> Exception:
    from huggingface_hub import errors

    answered = _answer(error)
    status = answered.response.status_code if answered is not None else 0
    if isinstance(answered, errors.GatedRepoError):
        return HubError(
            f"{repository.uri}: the model is gated; accept its terms on {page}, then log in with: "
            "hf auth login (or set HF_TOKEN)"
        )
    if isinstance(answered, errors.RevisionNotFoundError):
        return HubError(
            f"{repository.uri}: the repository has no revision "
            f"{repository.revision or 'main'!r}; see {page}/tree/main"
        )
    if status == 404:
        return HubError(
            f"{repository.uri}: there is no such repository, or your token may not see it; "
            f"check the name on {page}"
        )
    if status in (401, 403):
        return HubError(
            f"{repository.uri}: the Hub refuses access: the model is private or gated, or there is "
            f"none of this name; check {page}, ask for access there, then log in with: "
            "hf auth login (or set HF_TOKEN)"
        )
    reason = f"the Hub answered {status}" if status else _reason(error)
    return HubUnreachable(f"{repository.uri}: {reason}; {by_hand(repository)}")


def by_hand(repository: Repository) -> str:
    """Return how to fetch a checkpoint on another machine."""
    folder = repository.name.rpartition("/")[2]
    command = f"hf download {repository.name} {repository.file or ''}".rstrip()
    if repository.revision:
        command += f" --revision {repository.revision}"
    # The same weights in other layouts, and pickles, are left out.
    kinds = "" if repository.file else " --exclude '*.bin' --exclude '*.pt*' --exclude '*/*'"
    return (
        f"where there is network, run: {command}{kinds} --local-dir {folder} and give the folder "
        f"{folder} here in place of {repository.uri}"
    )


def _answer(error: BaseException | None) -> Any:
    """Return the Hub's own answer among the causes of an error; None where it gave none."""
    from huggingface_hub import errors

    while error is not None:
        if isinstance(error, errors.HfHubHTTPError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _reason(error: BaseException) -> str:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set, and its files are not all in the Hub's cache"
    return f"the Hub cannot be reached ({type(error).__name__}), and its files are not all cached"
