"""Who may write to a prefix: one process at a time, by objects that only one can create.

Each owner creates `.owner/N.json`, N one higher than the newest there, under the condition that it
does not exist, and writes it again while it lives; the newest is the owner. One that has not been
written for EXPIRY_S (by the store's own clock, so that clocks need not agree) is taken to be dead.
The store must honour conditional writes; Amazon, Google, SeaweedFS and MinIO do.
"""

import contextlib
import fcntl
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mistral_jax import storage
from mistral_jax.storage import local

RELEASE_PAUSES_S = (0.0, 1.0, 5.0)
HEARTBEAT_S, EXPIRY_S = 20.0, 120.0
WAIT_VARIABLE, WAIT_POLL_S = "MISTRAL_JAX_OWNER_WAIT_S", 5.0
FOLDER = ".owner"
NAME = re.compile(r"(\d+)\.json")


class InUse(ValueError):
    """Another process writes to the prefix."""

    exit_code = 3  # refused by a gate; see cli.py


class Lost(ValueError):
    """Another process has taken the prefix over."""

    exit_code = 3


class Owner:
    """This process as the one that writes to a prefix: a context, and a thread that says so.

    Args:
        uri: the prefix.
        place: names the folder that the caller holds by a lock of this machine; an owner of the
            same place was a process that has ended.
        wait_s: so long another owner is waited for, that may be dead: what starts a run again on
            a new machine, within EXPIRY_S of a kill, sets it.
    """

    def __init__(self, uri: str, place: str, *, wait_s: float = 0.0) -> None:
        self.uri, self._wait_s = uri.rstrip("/"), wait_s
        self._record = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "place": place,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "released": False,
            "id": os.urandom(16).hex(),
        }
        self._number = 0
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)

    def __enter__(self) -> "Owner":
        """Become the owner.

        Raises:
            InUse: another process is; the message says who, and how to take over.
            StorageError: the bucket does not let us write.
        """
        former = self._until_none_is_alive()
        self._number = max(former, default=0) + 1
        try:
            storage.write_bytes(self._name(self._number), self._content(), only_if_absent=True)
        except storage.AlreadyExists:
            # Ours, where an answer was lost and the client has asked again.
            if (read(self._name(self._number)) or {}).get("id") != self._record["id"]:
                raise self._in_use(self._number) from None
        if max(self._numbers(), default=0) > self._number:
            storage.delete(self._name(self._number))
            raise self._in_use(self._number + 1)
        with contextlib.suppress(storage.StorageError, storage.StorageUnreachable):
            for number in former:  # no harm is done where they stay
                storage.delete(self._name(number))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the prefix to others; where that cannot be said, it is known after EXPIRY_S."""
        self._has_ended.set()
        self._thread.join()
        self._record["released"] = True
        for pause_s in RELEASE_PAUSES_S:  # unsaid, it costs the next owner a wait
            time.sleep(pause_s)
            with contextlib.suppress(storage.StorageError, storage.StorageUnreachable):
                try:
                    self.check()
                    storage.write_bytes(self._name(self._number), self._content())
                except Lost:
                    pass
                return

    def check(self) -> None:
        """Check that this process is the owner still.

        Raises:
            Lost: it is not.
        """
        numbers = self._numbers()
        if not numbers or max(numbers) != self._number:
            now = self._name(max(numbers)) if numbers else "its owner object is gone"
            raise Lost(
                f"{self.uri}: another process has taken this output over ({now}); nothing more is "
                "sent from here, what was saved is in the run's local folder"
            )

    def _beat(self) -> None:
        while not self._has_ended.wait(HEARTBEAT_S):
            try:
                self.check()
                storage.write_bytes(self._name(self._number), self._content())
            except (storage.StorageError, storage.StorageUnreachable):
                continue  # who sends something meets it too, and tells
            except Lost:
                return  # the same

    def _name(self, number: int) -> str:
        return f"{self.uri}/{FOLDER}/{number:06d}.json"

    def _content(self) -> bytes:
        return (json.dumps(self._record, indent=1) + "\n").encode()

    def _numbers(self) -> list[int]:
        listed = storage.list_files(f"{self.uri}/{FOLDER}")
        found = (name.rpartition("/")[2] for name in listed)
        return [int(match[1]) for match in map(NAME.fullmatch, found) if match]

    def _until_none_is_alive(self) -> list[int]:
        """Return the numbers of former owners, once the newest has left, died or been removed."""
        end = time.monotonic() + self._wait_s
        while True:
            former = self._numbers()
            try:
                if former:
                    self._refuse_if_alive(max(former))
                return former
            except InUse:
                if time.monotonic() >= end:
                    raise
            time.sleep(WAIT_POLL_S)

    def _refuse_if_alive(self, number: int) -> None:
        there = read(self._name(number))
        if there is None or there.get("released") or there.get("place") == self._record["place"]:
            return
        # Written now, so that both times are the store's; it also shows that we may write. Nobody
        # else may delete it: without it the owner would seem dead.
        probe = f"{self.uri}/{FOLDER}/probe-{self._record['id']}"
        storage.write_bytes(probe, b"probe\n")
        now, then = storage.facts(probe), storage.facts(self._name(number))
        storage.delete(probe)
        if now is None or then is None or now.modified_s - then.modified_s < EXPIRY_S:
            raise self._in_use(number)

    def _in_use(self, number: int) -> InUse:
        name = self._name(number)
        there = read(name) or {}
        tool = "aws s3 rm" if name.startswith("s3://") else "gcloud storage rm"
        return InUse(
            f"{self.uri}: process {there.get('process')} on {there.get('host')} writes there since "
            f"{there.get('since')}; wait for it, or choose another output=. If it is dead, this "
            f"ends {EXPIRY_S:.0f} s after its last sign of life; at once with: {tool} {name}"
        )


@contextlib.contextmanager
def held(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder of this machine as the one process that works in it.

    Raises:
        InUse: another process does; `refusal` is what it says.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(refusal) from None
        yield


def wait_s() -> float:
    """Return how long a run waits for a former owner.

    Raises:
        StorageError: the variable is not a number.
    """
    text = os.environ.get(WAIT_VARIABLE) or "0"
    try:
        return float(text)
    except ValueError:
        raise storage.StorageError(
            f"{WAIT_VARIABLE}: expected a number of seconds, got {text!r}"
        ) from None


def read(uri: str) -> dict[str, Any] | None:
    """Return what an owner object says; None where there is none, or no sense in it."""
    try:
        content = json.loads(storage.read_bytes(uri))
    except (storage.StorageError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def place_of(folder: Path) -> str:
    """Return the name that a folder of this machine goes by, made where it has none."""
    path = folder.with_name(f".{folder.name}.place")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        local.LocalStorage().write(str(path), os.urandom(16).hex().encode())
    return path.read_text(encoding="utf-8")
