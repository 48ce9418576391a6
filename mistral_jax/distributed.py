"""Several processes as one run: how they find each other, agree, and notice that one is gone.

The environment says who takes part: MISTRAL_JAX_DISTRIBUTED=auto where the platform knows (a TPU
slice, SLURM), or MISTRAL_JAX_COORDINATOR=host:port, MISTRAL_JAX_NUM_PROCESSES and
MISTRAL_JAX_PROCESS_ID. Without them a run is one process and nothing here does anything.

A process whose heartbeat stays away ends all others, by jax's own abort; a supervisor around the
processes starts them again. What is told to a user is told by process 0 alone.
"""

import atexit
import contextlib
import dataclasses
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jaxtyping import Array
from jaxtyping import Int
from jaxtyping import Shaped

from mistral_jax import sharding

DISTRIBUTED = "MISTRAL_JAX_DISTRIBUTED"
COORDINATOR = "MISTRAL_JAX_COORDINATOR"
NUM_PROCESSES = "MISTRAL_JAX_NUM_PROCESSES"
PROCESS_ID = "MISTRAL_JAX_PROCESS_ID"
HEARTBEAT = "MISTRAL_JAX_HEARTBEAT_S"
NAMED = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)

# jax waits 100 s for a heartbeat; with 10 s a killed or stopped process was noticed in 8 s.
HEARTBEAT_S = 10
# Hosts of a slice come up minutes apart; a process that ends waits for the others so long.
START_TIMEOUT_S, END_TIMEOUT_S = 300, 60
ADDRESS = re.compile(r"[A-Za-z0-9_.\-\[\]:]+:[0-9]{1,5}")
# How the backends' messages of a lost peer begin or what they hold; they have no class.
LOST = re.compile(
    r"gloo|connection (reset|refused|closed)|socket closed|coordination service|heartbeat"
    r"|UNAVAILABLE|DEADLINE_EXCEEDED|barrier timed out",
    re.IGNORECASE,
)
AGREED = "is_agreed"  # set on an error that every process of the run raises
EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 1, 2, 130


class PeerLost(OSError):
    """Another process of the run is gone, or never came; the work failed, not the input."""


class FailedElsewhere(ValueError):
    """Another process of the run was refused; the message is its own.

    Attributes:
        exit_code: as that process ends.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclasses.dataclass(frozen=True)
class Membership:
    """What the environment says of this process.

    Attributes:
        coordinator: host:port of process 0; None where the platform knows it all.
        num_processes, process_id: of the run; None likewise.
        heartbeat_s: after how long without a sign a process counts as gone.
    """

    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    heartbeat_s: int


def membership(environment: Mapping[str, str]) -> Membership | None:
    """Read the environment; None where the run is one process.

    Raises:
        ValueError: a variable is missing beside the others, or is not what it should be.
    """
    given = {name: environment[name] for name in NAMED if environment.get(name)}
    heartbeat_s = _number(environment, HEARTBEAT, 2) if environment.get(HEARTBEAT) else HEARTBEAT_S
    if not given:
        mode = environment.get(DISTRIBUTED, "")
        if mode not in ("", "auto"):
            raise ValueError(f"{DISTRIBUTED}: expected auto or nothing, got {mode!r}; unset it")
        return Membership(None, None, None, heartbeat_s) if mode else None
    count = _number(environment, NUM_PROCESSES, 1) if NUM_PROCESSES in given else None
    if count == 1:
        return None
    missing = [name for name in NAMED if name not in given]
    if count is None or missing:
        raise ValueError(
            f"{', '.join(given)} without {', '.join(missing)}: set all of {', '.join(NAMED)}, or "
            "none of them"
        )
    index = _number(environment, PROCESS_ID, 0)
    if index >= count:
        raise ValueError(f"{PROCESS_ID} must be below {NUM_PROCESSES} ({count}), got {index}")
    if not ADDRESS.fullmatch(given[COORDINATOR]):
        raise ValueError(f"{COORDINATOR}: expected host:port, got {given[COORDINATOR]!r}")
    return Membership(given[COORDINATOR], count, index, heartbeat_s)


def _number(environment: Mapping[str, str], name: str, least: int) -> int:
    text = environment[name]
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ValueError(f"{name}: expected a whole number of {least} or more, got {text!r}")
    return int(text)


def start() -> None:
    """Join the other processes, once; before jax is used. Without the environment, do nothing.

    Raises:
        ValueError: see membership.
        PeerLost: the others did not come.
    """
    mine = membership(os.environ)
    if mine is None or jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler would take SIGTERM for itself; see train/signals.py.
    jax.config.update("jax_enable_preemption_service", False)
    if mine.process_id:
        _wait_for(mine.coordinator or "", START_TIMEOUT_S)
    try:
        jax.distributed.initialize(
            coordinator_address=mine.coordinator,
            num_processes=mine.num_processes,
            process_id=mine.process_id,
            cluster_detection_method=None if mine.coordinator is None else "deactivate",
            initialization_timeout=START_TIMEOUT_S,
            heartbeat_timeout_seconds=mine.heartbeat_s,
            shutdown_timeout_seconds=END_TIMEOUT_S,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PeerLost(
            f"the processes of the run did not find each other at {mine.coordinator or 'auto'} "
            f"within {START_TIMEOUT_S} s ({reason}); start all of them, or unset "
            f"{DISTRIBUTED} and {COORDINATOR} to run as one"
        ) from error


def _wait_for(coordinator: str, timeout_s: float) -> None:
    """Wait until process 0 listens: jax would end this process without a word that helps.

    Raises:
        PeerLost: it does not, within the time.
    """
    host, port = coordinator.rsplit(":", 1)
    end = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > end:
                raise PeerLost(
                    f"process 0 does not listen at {coordinator} after {timeout_s:.0f} s "
                    f"({error}); start it too, and check {COORDINATOR} and the hosts' firewall"
                ) from None
        time.sleep(0.2)


@contextlib.contextmanager
def group() -> Iterator[None]:
    """Join the other processes for the work inside; where it fails, end without waiting for them.

    Raises:
        PeerLost: another process is gone, in place of what the backend raised.
    """
    start()
    if not is_shared():
        yield
        return
    try:
        # gloo gives the first meeting 30 s and later ones no limit: all meet before one of them
        # works while the others wait (on_main), which may take it long.
        gather(None)
        yield
    except (RuntimeError, ValueError, OSError) as error:
        if getattr(error, AGREED, False):
            # All end now, and meet; the first one tells for all of them.
            if is_main():
                raise
            raise SystemExit(_code_of(error)) from error
        lost = None if isinstance(error, FailedElsewhere) else _lost(error)
        if lost is None:
            _end_with(_code_of(error))
            raise
        _end_with(EXIT_FAILED)
        raise PeerLost(
            f"another process of the run is gone ({lost}); start all of them again to go on "
            "from the last checkpoint"
        ) from error
    except BaseException as error:
        _end_with(_code_of(error))
        raise


def _lost(error: BaseException | None) -> str | None:
    """Return what a backend said of a lost peer, here or before what followed from it."""
    while error is not None:
        if LOST.search(str(error)):
            return " ".join(str(error).split())[:300]
        error = error.__cause__ or error.__context__
    return None


def _code_of(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    usual = EXIT_INPUT if isinstance(error, ValueError) else EXIT_FAILED
    return getattr(error, "exit_code", usual)


def _end_with(code: int) -> None:
    """End the process by `code` once it has said what is wrong.

    jax would first wait for processes that may hang in a collective with nobody at the other end,
    and then abort, whose code says nothing to a supervisor.
    """

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)


def is_main() -> bool:
    """Tell whether this process speaks and writes for the run."""
    return jax.process_index() == 0


def index() -> int:
    """Return this process's number in the run, from 0."""
    return jax.process_index()


def is_shared() -> bool:
    """Tell whether the run has more than one process."""
    return jax.process_count() > 1


def gather(value: Any) -> list[Any]:
    """Return every process's value, plain JSON, by process; all must call."""
    if not is_shared():
        return [value]
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(len(content), np.int32)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(content)] = content
    found = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(found, sizes, strict=True)]


def everywhere[T](work: Callable[[], T]) -> T:
    """Do the same on every process; where one is refused, all are.

    Raises:
        ValueError, OSError: what this process raised.
        FailedElsewhere: what another one did.
    """
    if not is_shared():
        return work()
    failure, result, own = None, None, None
    try:
        result = work()
    except (ValueError, OSError) as error:
        own = error
        failure = {"text": str(error), "code": _code_of(error)}
    failures = gather(failure)
    if own is not None:
        setattr(own, AGREED, True)
        raise own
    for index, found in enumerate(failures):
        if found is not None:
            text = found["text"] if index == 0 else f"process {index}: {found['text']}"
            failed = FailedElsewhere(text, found["code"])
            setattr(failed, AGREED, True)
            raise failed
    return result  # pyright: ignore[reportReturnType]


def on_main(work: Callable[[], Any]) -> Any:
    """Do something on process 0 while the others wait; all get its result, which is plain JSON.

    Raises:
        ValueError, OSError, FailedElsewhere: see everywhere.
    """
    result = everywhere(lambda: work() if is_main() else None)
    return gather(result)[0]


def whole(array: Shaped[Array | np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Return a whole array on every process; all must call."""
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def data_shards(mesh: Mesh) -> list[int]:
    """Return which shards of a batch's rows lie on this process's devices, in order."""
    count = sharding.data_parallel_size(mesh)
    target = sharding.batch_sharding(mesh)
    places = target.addressable_devices_indices_map((count, mesh.size)).values()
    return sorted({(place or (slice(None),))[0].start or 0 for place in places})


def held_rows(mesh: Mesh, num_rows: int) -> Int[np.ndarray, " rows"]:
    """Return which rows of a global batch this process reads, in order."""
    size = num_rows // sharding.data_parallel_size(mesh)
    shards = np.asarray(data_shards(mesh))
    return (shards[:, None] * size + np.arange(size)).reshape(-1)


def place_rows(
    local: Shaped[np.ndarray, "..."], target: NamedSharding, *, axis: int
) -> Shaped[Array, "..."]:
    """Put the rows that this process has read, along `axis`, on its devices.

    Args:
        local: the rows of `held_rows`, in this order; whole along every other axis.
        target: of the global array; rows are split as batches are.
        axis: which one the rows are.
    """
    shards = data_shards(target.mesh)  # pyright: ignore[reportArgumentType]
    size = local.shape[axis] // len(shards)
    shape = list(local.shape)
    shape[axis] = size * sharding.data_parallel_size(target.mesh)

    def part(index: tuple[slice, ...]) -> Shaped[np.ndarray, "..."]:
        start = shards.index((index[axis].start or 0) // size) * size
        inner = list(index)
        inner[axis] = slice(start, start + size)
        return local[tuple(inner)]

    return jax.make_array_from_callback(tuple(shape), target, part)  # pyright: ignore[reportArgumentType]
