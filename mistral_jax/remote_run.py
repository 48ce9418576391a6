"""A run whose output is a bucket: it works in a folder of this machine, which is kept there.

On a machine that does not have the run, its small files and the newest step (and the best ones)
come down first, and it goes on from there bit for bit. storage/mirror.py sends what it writes.
"""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

from mistral_jax import distributed
from mistral_jax import run_directory
from mistral_jax import storage
from mistral_jax.config import run as run_config
from mistral_jax.storage import cache
from mistral_jax.storage import mirror
from mistral_jax.storage import owner
from mistral_jax.storage import remote_folder
from mistral_jax.storage import upload


def train[T](
    run: run_config.RunConfig,
    *,
    fresh: bool,
    say: Callable[[str], None],
    train_here: Callable[..., T],
) -> T:
    """Train with the output in a bucket.

    Args:
        run: its run directory is an s3:// or gs:// URI.
        fresh: start beside what is there.
        say: told a line of text now and then.
        train_here: trains in the local folder `folder`, with `output` the URI in use.

    Raises:
        owner.InUse: another process writes to the same output.
        run_directory.ResumeRefused: another experiment's run is there.
        upload.UploadError: something that is no run is there.
        mirror.Outage: the store failed for too long; what was saved is in the local folder.
    """
    mirror.outage_s()
    with contextlib.ExitStack() as held:
        opened = distributed.on_main(lambda: list(held.enter_context(_kept(run, fresh, say))))
        uri, folder = opened[0], Path(opened[1])
        distributed.everywhere(lambda: _check_shared(folder))
        return train_here(run.model_copy(update={"output": uri}), folder=folder)


@contextlib.contextmanager
def _kept(
    run: run_config.RunConfig, fresh: bool, say: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    """Own the output, bring what it holds here, and send what is written while the context lasts.

    Yields:
        The output's URI, and the folder here.
    """
    uri = _beside(run.run_directory()) if fresh else run.run_directory().rstrip("/")
    folder = local_folder(uri)
    place, wait_s = owner.place_of(folder), owner.wait_s()
    refusal = (
        f"{uri}: another process of this machine trains this run now; wait for it, or start "
        "beside it with fresh=true"
    )
    with owner.held(folder, refusal), owner.Owner(uri, place, wait_s=wait_s) as owned:
        there = remote_folder.look(uri)
        _fetch(run, there, folder, say)
        say(f"output: {uri}; here: {folder}")
        with mirror.Mirror(
            folder,
            uri,
            keep_last=run.checkpoint.keep_last,
            owned=owned,
            sent_steps=there.steps,
            say=say,
        ):
            yield uri, str(folder)


def _check_shared(folder: Path) -> None:
    """Check that this process sees the folder that process 0 holds.

    Raises:
        ValueError: it does not.
    """
    if not folder.with_name(f".{folder.name}.lock").exists():
        raise ValueError(
            f"{folder}: this process of the run does not see it; with output= in a bucket, the "
            f"processes of a run share its local folder: set {cache.FOLDER_VARIABLE} to a folder "
            "on a file system that every host mounts"
        )


def local_folder(uri: str) -> Path:
    """Return the folder of this machine in which a run works whose output is a bucket."""
    return cache.run_folder(uri)


def _beside(uri: str) -> str:
    number, base = 1, uri.rstrip("/")
    while storage.list_files(base if number == 1 else f"{base}-{number}"):
        number += 1
    return base if number == 1 else f"{base}-{number}"


def _fetch(
    run: run_config.RunConfig,
    there: remote_folder.RemoteFolder,
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Bring the local folder to what the bucket holds, where that is further on."""
    if not there.is_run:
        if found := (*there.small, *there.others):
            raise upload.UploadError(
                f"{there.uri}: holds files that are not a run's ({found[0]} is one); choose "
                "another output="
            )
        return
    _set_other_run_aside(there, folder, say)
    here = _steps(folder)
    newest = there.steps[-1] if there.steps else 0
    has_ended = remote_folder.FINISHED in there.small
    is_behind = newest > max(here, default=0)
    is_unfinished = has_ended and not (folder / remote_folder.FINISHED).is_file()
    if is_behind or is_unfinished or not (folder / remote_folder.MANIFEST).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        remote_folder.fetch_small(there, folder)
    try:
        run_directory.refuse_other_experiment(folder, run)
    except run_directory.ResumeRefused as error:
        raise run_directory.ResumeRefused(str(error).replace(str(folder), there.uri)) from None
    wanted = there.best_steps(run.checkpoint.keep_best) | {newest} if is_behind else set()
    remote_folder.fetch_steps(there, wanted - here, folder)


def _set_other_run_aside(
    there: remote_folder.RemoteFolder, folder: Path, say: Callable[[str], None]
) -> None:
    """Move a local folder away that is of another start than what the bucket holds."""
    manifest = folder / remote_folder.MANIFEST
    if not manifest.is_file() or remote_folder.MANIFEST not in there.small:
        return
    if storage.read_bytes(f"{there.uri}/{remote_folder.MANIFEST}") == manifest.read_bytes():
        return
    number = 1
    while (old := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(old)
    say(f"{there.uri} holds a run that began elsewhere; the one that began here is now in {old}")


def _steps(folder: Path) -> set[int]:
    found = (folder / remote_folder.CHECKPOINTS).glob("*")
    return {int(path.name) for path in found if path.name.isdigit()}
