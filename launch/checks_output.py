"""Pre-flight of what the run writes on this machine: folder, disk, another run that is there.

Nothing is written but one small file, which goes again. What is in a bucket: checks_store.py.
"""

import fcntl
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from launch import checks
from launch import memory as memory_lib
from launch.checks import Answer
from launch.checks import Check
from launch.checks import Context
from mistral_jax import storage
from mistral_jax.config import load
from mistral_jax.config.run import RunConfig
from mistral_jax.formats import locate
from mistral_jax.storage import cache
from mistral_jax.storage import remote_folder
from mistral_jax.storage import staging

CHECKPOINT_MARGIN = 1.2  # DISK_MARGIN of mistral_jax/checkpoint.py
LOCK = ".train.lock"  # of mistral_jax/run_directory.py
SHOWN_DIFFERENCES = 4


def folder_of(context: Context) -> Path:
    """Return the local folder that a run works in: its output, or the cache of a bucket's."""
    if context.has_bucket_output:
        return cache.root() / "runs"
    return Path(context.output).expanduser()


def _existing(folder: Path) -> Path:
    whole = folder.absolute()
    return next(path for path in (whole, *whole.parents) if path.exists())


def _writable(context: Context) -> Answer:
    folder = folder_of(context)
    there = _existing(folder)
    fix = context.command("output=ANOTHER_FOLDER")
    if not there.is_dir():
        return checks.failed(f"{there} is a file, not a folder", fix)
    if not os.access(there, os.W_OK | os.X_OK):
        return checks.failed(f"{there} is not writable", fix)
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".preflight-") as probe:
            probe.write(b"probe\n")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return checks.failed(f"{there}: {error.strerror or error}", fix)
    return checks.ok(f"{folder} can be written")


def _unused(context: Context) -> Answer:
    folder = folder_of(context)
    lock = folder / LOCK
    if context.is_fresh or context.has_bucket_output or not lock.is_file():
        return checks.ok("no other process trains there")
    if context.is_under_way:
        return checks.ok(checks.UNDER_WAY)
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return checks.failed(
                f"another process trains in {folder} now", context.command("fresh=true")
            )
    return checks.ok("no other process trains there")


def _experiment(context: Context) -> Answer:
    if context.is_fresh:
        return checks.ok("fresh=true: it starts beside what is there")
    if context.has_bucket_output:
        uri = context.output.rstrip("/")
        there = remote_folder.look(uri)
        if not there.is_run:
            if found := (*there.small, *there.others):
                return checks.failed(
                    f"{uri} holds files that are no run's ({found[0]} is one)",
                    context.command(f"output={uri}-2"),
                )
            return checks.ok("no run is there yet")
        text = storage.read_bytes(f"{uri}/{remote_folder.CONFIG}").decode()
        is_finished = remote_folder.FINISHED in there.small
    elif not context.on_host:
        return checks.skipped(checks.ON_HOST)
    else:
        folder = folder_of(context)
        saved = folder / remote_folder.CONFIG
        if not saved.is_file():
            return checks.ok("no run is there yet")
        text = saved.read_text(encoding="utf-8")
        is_finished = (folder / remote_folder.FINISHED).is_file()
    return _compare(context, text, is_finished)


def _compare(context: Context, text: str, is_finished: bool) -> Answer:
    where = f"{context.output}/{remote_folder.CONFIG}"
    before = load.validate(load.parse_yaml(text, where=where), RunConfig, where=where)
    if before.science_hash() != context.run.science_hash():
        found = differences(before.science(), context.run.science())
        shown = "; ".join(found[:SHOWN_DIFFERENCES])
        return checks.failed(
            f"{context.output} holds another experiment ({before.science_hash()[:8]}, this is "
            f"{context.run.science_hash()[:8]}): {shown}",
            context.command("fresh=true"),
        )
    if is_finished:
        return checks.warning("this run has ended there already", context.command("fresh=true"))
    return checks.ok(f"the run {context.run.science_hash()[:8]} goes on there")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return one `path: old -> new` for each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if old == new else [f"{path}: {json.dumps(old)[:60]} -> {json.dumps(new)[:60]}"]


def checkpoint_bytes(context: Context) -> int | None:
    """Return what the kept checkpoints take, and one more while it is written; None: no shape."""
    run, decoder = context.run, context.decoder
    if decoder is None:
        return None
    whole: dict[str, int] = dict.fromkeys(("data", "fsdp", "expert", "tensor", "context"), 1)
    trained = memory_lib.trained_tensors(decoder, run.adapter)
    state = memory_lib.optimizer_bytes(decoder, run.adapter, run.optimizer, whole)
    each = sum(tensor.local_size(whole) for tensor in trained) * 4 + state
    copies = run.checkpoint.keep_last + run.checkpoint.keep_best + 1
    return int(each * copies * CHECKPOINT_MARGIN)


def _checkpoint_disk(context: Context) -> Answer:
    need = checkpoint_bytes(context)
    if need is None:
        return checks.skipped("the model's shape is not known")
    folder = folder_of(context)
    free = storage.free_bytes(folder)
    saved = _saved_bytes(folder)
    shown = f"{checks.gib(need)} for checkpoints, {checks.gib(free)} free at {_existing(folder)}"
    if need > free + saved:
        fewer = ("checkpoint.keep_last=1", "checkpoint.keep_best=0")
        return checks.failed(shown, context.command(*fewer))
    return checks.ok(shown)


def _saved_bytes(folder: Path) -> int:
    """Return what a run's checkpoints take already: they count for what it needs."""
    files = (folder / remote_folder.CHECKPOINTS).rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _input_disk(context: Context) -> Answer:
    """Compare what has to be fetched from buckets with the cache's room."""
    uris = context.input_uris()
    if not uris:
        return checks.skipped("no bucket is named")
    total = sum(_size_bytes(uri) for uri in dict.fromkeys(uris.values()))
    root, limit = cache.root(), cache.limit_bytes()
    free = storage.free_bytes(root)
    shown = (
        f"{checks.gib(total)} to fetch, {checks.gib(free)} free at {root}, which may hold "
        f"{checks.gib(limit)}"
    )
    if total > limit:
        return checks.failed(shown, f"export {cache.LIMIT_VARIABLE}={total // checks.GIB + 16}")
    if total + cache.SPARE_BYTES > free:
        return checks.failed(shown, f"export {cache.FOLDER_VARIABLE}=/A/LARGER/DISK")
    return checks.ok(shown)


def _size_bytes(uri: str) -> int:
    """Return the bytes of an object, or of all that belongs under a prefix."""
    single = storage.size_bytes(uri)
    if single is not None:
        return single
    if locate.scheme_of(uri) in locate.BUCKET_SCHEMES:
        prefix = staging.Prefix(uri, is_deep=True)
        return sum(prefix.facts(name).size_bytes for name in prefix.content)
    return 0


CHECKS = (
    Check("output folder", _writable, "host"),
    Check("output in use", _unused, "host"),
    Check("experiment", _experiment),
    Check("checkpoint disk", _checkpoint_disk, "host"),
    Check("input disk", _input_disk, "host"),
)
