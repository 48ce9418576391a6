"""Checkpoints of a run: parameters, optimizer, rng, data position, config; one saver, on Orbax.

Orbax makes a step atomic and asynchronous; we add a digest of every array, because Orbax restored
140 of 140 flipped bits without a word. A step whose digests do not match is set aside by name and
the one before it is taken. Where a run has several processes, all of them call every method that
is not a reader's, each writes its own shards into the one folder, and they judge a step together.
"""

import contextlib
import dataclasses
import errno
import json
import re
import shutil
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mistral_jax import array_digest
from mistral_jax import distributed
from mistral_jax.config.evaluate import CheckpointConfig

# An async save holds a second copy of the state on disk until the old step is deleted.
DISK_MARGIN = 1.2
EVAL_LOSS = "eval_loss"
RECORD = "(record)"  # its name among the digests; no array's path looks so
UNREADABLE = (ValueError, OSError, KeyError, TypeError)
# What the system says of a file that is gone; its other errors say nothing about the bytes.
GONE = (errno.ENOENT, errno.ENOTDIR)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TENSORSTORE_CODE = re.compile(r"os_error_code='(\d+)'")


class CheckpointCorrupt(ValueError):
    """A saved step does not hold what was saved; the message names array and folder."""


class DiskTooSmall(ValueError):
    """The checkpoints will not fit; the message holds both figures."""

    exit_code = 3  # refused by a gate; see cli.py


@dataclasses.dataclass(frozen=True)
class Restored:
    """One restored step.

    Attributes:
        step: its number.
        state: the training state, on the shardings that were asked for.
        record: the JSON that was saved with it (data position, held-out losses).
    """

    step: int
    state: Any
    record: dict


class Checkpointer:
    """Saves and restores the steps of one run folder.

    Args:
        folder: where the steps are.
        config: what is kept.
        is_reader: only look; a folder whose run is still training stays as it is.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, *, is_reader: bool = False) -> None:
        self.folder = Path(folder).resolve()
        if is_reader:
            # Nothing is made or cleaned up, and of the steps, any of which may go meanwhile, only
            # the names are read. Orbax's own read_only is the same with a warning on each use.
            looking = ocp.CheckpointManagerOptions(
                create=False, cleanup_tmp_directories=False, lightweight_initialize=True
            )
            self._manager = self._reader = ocp.CheckpointManager(self.folder, options=looking)
            return
        policies: list[Any] = [checkpoint_managers.LatestN(n=config.keep_last)]
        if config.keep_best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: -metrics["loss"],
                    n=config.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                create=True,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                # Without best_fn no loss is written, and a reopened folder has no best step.
                best_fn=lambda metrics: metrics["loss"],
                best_mode="min",
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
            ),
        )

        self._reader = self._manager
        if distributed.is_shared():
            # Orbax's restore ends in a barrier, at which a process whose part is damaged would
            # be missed for ever: each reads by itself, and they compare what they found.
            alone = ocp.options.MultiprocessingOptions(
                primary_host=distributed.index(),
                active_processes={distributed.index()},
                barrier_sync_key_prefix=f"process_{distributed.index()}",
            )
            self._reader = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    create=False, cleanup_tmp_directories=False, multiprocessing_options=alone
                ),
            )

    def steps(self) -> list[int]:
        """Return the finished steps, oldest first."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Return the step with the lowest held-out loss, or None if none was evaluated.

        A step whose record is damaged is left out, with a warning.
        """
        known: dict[int, float] = {}
        for step in self.steps():
            try:
                loss = self.read_record(step).get(EVAL_LOSS)
            except CheckpointCorrupt as error:
                warnings.warn(f"left out of the choice of the best step: {error}", stacklevel=2)
                continue
            if loss is not None:
                known[step] = loss
        return min(known, key=lambda step: (known[step], step)) if known else None

    def save(self, step: int, state: Any, record: dict, *, eval_loss: float | None = None) -> None:
        """Start saving a step; returns when the arrays are off the devices.

        Raises:
            DiskTooSmall: this save, or the one before, does not fit; earlier steps stay.
        """
        # A loss that is not a number must not be taken for the best one.
        is_known = eval_loss is not None and np.isfinite(eval_loss)
        known = float(eval_loss) if is_known else None  # pyright: ignore[reportArgumentType]
        metrics = None if known is None else {"loss": known}
        record = {**record, EVAL_LOSS: known}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            record=ocp.args.JsonSave(record),
            digests=ocp.args.JsonSave(
                {**array_digest.digests_of(state), RECORD: record_digest(record)}
            ),
        )
        with self._full_disk_named():
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def wait(self) -> None:
        """Wait until everything started is on disk; raises what a save in the background met."""
        with self._full_disk_named():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and release; the object is of no use afterwards."""
        try:
            self.wait()
        finally:
            if self._reader is not self._manager:
                self._reader.close()
            self._manager.close()

    def restore(self, abstract_state: Any, step: int) -> Restored:
        """Restore one step onto the shardings of `abstract_state`, digests checked.

        Raises:
            CheckpointCorrupt: an array is not what was saved, or a file is damaged or missing.
            OSError: the system cannot read now, which says nothing about the step.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state),
            record=ocp.args.JsonRestore(),
            digests=ocp.args.JsonRestore(),
        )
        where = self.folder / str(step)
        found = distributed.everywhere(lambda: self._read(step, items))
        complaints = distributed.gather(str(found) if isinstance(found, CheckpointCorrupt) else "")
        if isinstance(found, CheckpointCorrupt) or any(complaints):
            raise CheckpointCorrupt(next(text for text in complaints if text))
        for name, digest in array_digest.digests_of(found["state"]).items():
            if found["digests"].get(name) != digest:
                raise CheckpointCorrupt(
                    f"{where}: array {name} is not what was saved "
                    f"(digest {digest}, expected {found['digests'].get(name)})"
                )
        if found["digests"].get(RECORD) != record_digest(found["record"]):
            raise CheckpointCorrupt(f"{where}: record is not what was saved")
        return Restored(step, found["state"], found["record"])

    def _read(self, step: int, items: Any) -> Any:
        """Return what a step holds, or the complaint, so that processes can compare theirs."""
        try:
            with _damage_named(self.folder / str(step)):
                return self._reader.restore(step, args=items)
        except CheckpointCorrupt as error:
            return error

    def read_record(self, step: int) -> dict:
        """Return the JSON saved with a step, without its arrays.

        Raises:
            CheckpointCorrupt: it is damaged or missing.
        """
        items = ocp.args.Composite(record=ocp.args.JsonRestore())
        with _damage_named(self.folder / str(step)):
            return self._manager.restore(step, args=items)["record"]

    def restore_newest(self, abstract_state: Any) -> tuple[Restored | None, list[str]]:
        """Restore the newest sound step.

        Returns:
            The step (None if there is none), and a sentence for each damaged one that was set
            aside on the way.

        Raises:
            CheckpointCorrupt: there are steps, set aside now or earlier, and none of them is sound.
            OSError: as `restore`.
        """
        complaints: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.restore(abstract_state, step), complaints
            except CheckpointCorrupt as error:
                complaints.append(str(error))
                self._set_aside(step)
        if complaints:
            raise CheckpointCorrupt(
                "no sound checkpoint is left; " + "; ".join(complaints) + "; "
                "start again with fresh=true"
            )
        if self._damaged.is_dir() and any(self._damaged.iterdir()):
            raise CheckpointCorrupt(
                f"no sound checkpoint is left; {self._damaged} holds the damaged ones; repair and "
                f"move one back to {self.folder}, or start again with fresh=true"
            )
        return None, complaints

    @property
    def _damaged(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}-damaged")

    def _set_aside(self, step: int) -> None:
        def move() -> None:
            self._damaged.mkdir(exist_ok=True)
            shutil.move(self.folder / str(step), self._damaged / str(step))

        distributed.on_main(move)
        self._manager.reload()

    @contextlib.contextmanager
    def _full_disk_named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore have no class of their own for it
            if _system_code(error) not in DISK_FULL:
                raise
            raise DiskTooSmall(
                f"{self.folder}: the disk is full, the newest step was not saved; free some space "
                "and run the same command to go on from the step before"
            ) from error


@contextlib.contextmanager
def _damage_named(where: Path) -> Iterator[None]:
    """Turn what reading a damaged step raises into CheckpointCorrupt; let the rest through."""
    try:
        yield
    except Exception as error:
        # Orbax raises the bare class where TensorStore finds a damaged file; a subclass that
        # we do not know (out of memory, say) is no reason to distrust the step.
        if type(error) is not Exception and not isinstance(error, UNREADABLE):
            raise
        reason = " ".join(str(error).split())[:300]
        code = _system_code(error)
        if code is not None and code not in GONE:
            raise OSError(code, f"{where}: cannot be read now: {reason}") from error
        raise CheckpointCorrupt(f"{where}: cannot be read: {reason}") from error


def _system_code(error: Exception) -> int | None:
    """Return the errno behind an error, TensorStore's own included; None where there is none."""
    if isinstance(error, OSError):
        return error.errno
    found = TENSORSTORE_CODE.search(str(error))
    return int(found.group(1)) if found else None


def record_digest(record: dict) -> str:
    """Return the crc32 of a record in canonical JSON; the data position is in there."""
    text = json.dumps(record, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def size_bytes(tree: Any) -> int:
    """Return the bytes of a tree's arrays, real or abstract."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def saved_steps(folder: Path) -> list[int]:
    """Return the finished steps in a folder without opening it, oldest first."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def check_disk(folder: Path, state: Any, config: CheckpointConfig) -> None:
    """Refuse a run whose checkpoints cannot fit, before it starts; those that are there count.

    Raises:
        DiskTooSmall: with the bytes needed, the bytes free and what to do.
    """
    # One more than is kept: an old step goes when the new one is whole.
    copies = max(config.keep_last + config.keep_best + 1 - len(saved_steps(folder)), 1)
    needed = size_bytes(state) * copies * DISK_MARGIN
    parent = next(p for p in [folder, *folder.parents] if p.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise DiskTooSmall(
            f"{parent}: {free / 2**30:.2f} GiB free, but the run's checkpoints need "
            f"{needed / 2**30:.2f} GiB; free some space, set output=, or lower checkpoint.keep_last"
        )
