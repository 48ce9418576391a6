"""A run's local folder kept in a bucket while the run writes it, by a thread beside it.

The newest step of `checkpoints/` that is not in the bucket goes first. It is linked aside, so that
it stays while it is sent whatever the run deletes; there is one such step at a time. The small
files go before it; its list of files, which makes it count, goes last. A store that does not answer
is asked again until OUTAGE_S have passed; only then is the run asked to stop.
"""

import _thread
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from pathlib import Path

from mistral_jax import storage
from mistral_jax.storage import owner
from mistral_jax.storage import remote_folder
from mistral_jax.storage import upload

POLL_S = 0.5
SMALL_EVERY_S = 60.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
UNFINISHED = (".partial", ".tmp")  # names of files that get another one when they are whole
OUTAGE_VARIABLE, OUTAGE_S = "MISTRAL_JAX_OUTAGE_S", 3600.0
PASSING = (storage.StorageError, storage.StorageUnreachable, upload.UploadError)


class Outage(OSError):
    """The store did not take what was sent for longer than a run may go on without it."""


class Mirror:
    """Sends what appears in a run's folder; a context that ends when everything has arrived.

    Args:
        folder: the run's local folder; it may not exist yet.
        uri: where it is kept.
        keep_last: so many steps stay in the bucket, beside those that are here.
        owned: this process as the owner of `uri`.
        sent_steps: the steps that are in the bucket.
        say: told when the store fails, and when it answers again.
    """

    def __init__(
        self,
        folder: Path,
        uri: str,
        *,
        keep_last: int,
        owned: owner.Owner,
        sent_steps: Collection[int],
        say: Callable[[str], None],
    ) -> None:
        self.folder, self.uri = folder, uri.rstrip("/")
        self._keep_last, self._owned, self._say = keep_last, owned, say
        self._there = set(sent_steps)
        self._aside = folder.with_name(f".{folder.name}.outgoing")
        self._small: dict[str, tuple[int, int]] = {}
        self._small_at = time.monotonic()
        self._may_delete = True
        self._error: Exception | None = None
        self._has_sent_all = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def __enter__(self) -> "Mirror":
        shutil.rmtree(self._aside, ignore_errors=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until all has arrived.

        Raises:
            Outage: the store did not take it; the folder here has all of it.
            owner.Lost: another process has taken the output over.
        """
        self._closing.set()
        self._thread.join()
        shutil.rmtree(self._aside, ignore_errors=True)
        if self._error is not None:
            raise self._error
        assert self._has_sent_all, "the thread ended by an error that is shown above"

    def _work(self) -> None:
        try:
            while not self._closing.wait(POLL_S):
                self._send_new()
            while self._send_new():
                pass
            self._send_small(is_last=True)  # what says that the run has ended comes last of all
            self._has_sent_all = True
        except (OSError, ValueError) as error:
            self._error = error
            self._say(f"the run stops: {error}")
        finally:
            # As Ctrl-C would: the loop ends its step and saves. Nothing happens where nobody
            # listens yet, or any more, so it is asked again.
            while not self._has_sent_all and not self._closing.wait(POLL_S):
                _thread.interrupt_main(signal.SIGTERM)

    def _send_new(self) -> bool:
        """Send what is due, and the newest step that is not there; tell if there was one."""
        step = self._take_aside()
        is_due = time.monotonic() - self._small_at > SMALL_EVERY_S
        if step is not None or is_due:
            self._send_small()
        if step is None:
            return False
        path, uri = self._aside / str(step), self._step_uri(step)
        self._until_it_answers(self._owned.check)
        self._until_it_answers(lambda: upload.replace(path, uri, check=self._owned.check))
        self._there.add(step)
        shutil.rmtree(path)
        self._clear()
        return True

    def _take_aside(self) -> int | None:
        """Link the newest step that is not there to where nobody deletes it."""
        new = [step for step in self._local_steps() if step not in self._there]
        if not new:
            return None
        step = new[-1]
        source = self.folder / remote_folder.CHECKPOINTS / str(step)
        target = self._aside / str(step)
        try:
            for file in [file for file in source.rglob("*") if file.is_file()]:
                linked = target / file.relative_to(source)
                linked.parent.mkdir(parents=True, exist_ok=True)
                remote_folder.link_or_copy(file, linked)
        except FileNotFoundError:  # the run has deleted it meanwhile
            shutil.rmtree(target, ignore_errors=True)
            return None
        return step

    def _send_small(self, *, is_last: bool = False) -> None:
        """Send the small files that have changed; config.yaml first, measured.json last of all."""
        self._small_at = time.monotonic()
        copy = self._aside / "small"
        copy.parent.mkdir(parents=True, exist_ok=True)
        has_checked = False
        for name, file in self._small_files():
            try:
                stat = file.stat()
                mark = (stat.st_mtime_ns, stat.st_size)
                is_early = name == remote_folder.FINISHED and not is_last
                if is_early or self._small.get(name) == mark:
                    continue
                shutil.copyfile(file, copy)  # the run may write on
            except FileNotFoundError:
                continue
            uri = f"{self.uri}/{name}"
            if not has_checked:
                self._until_it_answers(self._owned.check)
                has_checked = True
            self._until_it_answers(lambda u=uri: upload.send_file(copy, u, say=lambda line: None))
            self._small[name] = mark

    def _small_files(self) -> list[tuple[str, Path]]:
        files = [(f.relative_to(self.folder).as_posix(), f) for f in self._walk()]
        order = {remote_folder.CONFIG: -1, remote_folder.FINISHED: 1}
        small = [each for each in files if remote_folder.is_small(each[0])]
        return sorted(small, key=lambda each: (order.get(each[0], 0), each[0]))

    def _walk(self) -> Iterator[Path]:
        for top in (self.folder, *(self.folder / name for name in remote_folder.SMALL_FOLDERS)):
            found = top.glob("*") if top == self.folder else top.rglob("*")
            yield from (file for file in found if file.is_file() and file.suffix not in UNFINISHED)

    def _clear(self) -> None:
        """Remove steps from the bucket that the run keeps no more."""
        kept = {*self._local_steps(), *sorted(self._there)[-self._keep_last :]}
        for step in sorted(self._there - kept) if self._may_delete else ():
            try:
                upload.remove(self._step_uri(step))
            except PASSING as error:
                self._may_delete = False
                self._say(f"old checkpoints stay in the bucket, they cannot be deleted: {error}")
                return
            self._there.discard(step)

    def _step_uri(self, step: int) -> str:
        return f"{self.uri}/{remote_folder.CHECKPOINTS}/{step}"

    def _local_steps(self) -> list[int]:
        folder = self.folder / remote_folder.CHECKPOINTS
        try:
            return sorted(int(name) for name in os.listdir(folder) if name.isdigit())
        except FileNotFoundError:
            return []

    def _until_it_answers(self, action: Callable[[], None]) -> None:
        """Do something in the store, again and again while it fails.

        Raises:
            Outage: it failed for too long.
            owner.Lost: the output is not ours any more.
        """
        until_it_answers(
            action,
            say=self._say,
            begins="the run goes on, but its output cannot be sent now",
            ends="the output is sent again",
            failed=f"{self.uri}: nothing could be sent",
            advice=f"what was saved is in {self.folder}: run the same command here to send it and "
            "go on",
        )


def until_it_answers[T](
    action: Callable[[], T],
    *,
    say: Callable[[str], None],
    begins: str,
    ends: str,
    failed: str,
    advice: str,
    passing: tuple[type[Exception], ...] = PASSING,
    is_stopped: Callable[[], bool] = lambda: False,
) -> T:
    """Do something in a store, again and again while it fails; return what it returned.

    Args:
        action: what is done.
        say: told when it begins to fail, and when it succeeds after that.
        begins, ends: what it is told.
        failed, advice: the error's words after so long.
        passing: errors after which it is tried again.
        is_stopped: nobody waits for it any more; the error at hand is raised.

    Raises:
        Outage: it failed for longer than `outage_s`.
    """
    failing_since, wait_s = None, FIRST_WAIT_S
    while True:
        try:
            done = action()
        except passing as error:
            now = time.monotonic()
            if failing_since is None:
                failing_since = now
                say(f"{begins}: {error}")
            if is_stopped():
                raise
            if now - failing_since > outage_s():
                raise Outage(f"{failed} for {outage_s():.0f} s ({error}); {advice}") from error
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        else:
            if failing_since is not None:
                say(f"{ends}, after {time.monotonic() - failing_since:.0f} s")
            return done


def outage_s() -> float:
    """Return how long a store may fail until the run stops.

    Raises:
        StorageError: the variable is not a number.
    """
    text = os.environ.get(OUTAGE_VARIABLE, str(OUTAGE_S))
    try:
        return float(text)
    except ValueError:
        raise storage.StorageError(
            f"{OUTAGE_VARIABLE}: expected a number of seconds, got {text!r}"
        ) from None
