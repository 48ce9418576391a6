"""`prepare` with its results in a folder or a bucket: the prepared shards, and JSONL for people.

What goes to a bucket is made in a folder of the cache, which stays, so that the same command goes
on where it was: documents that are read are not read again, files that have arrived are not sent
again. The list of files, written last, says that a folder in the bucket is whole.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines import export_jsonl
from data_pipelines import prepare
from data_pipelines import sources
from mistral_jax import storage
from mistral_jax.storage import cache
from mistral_jax.storage import upload
from mistral_jax.tokenizers import Tokenizer

PREPARED, JSONL = "prepared", "jsonl"


def deliver(
    given: Sequence[str],
    output: str,
    *,
    tokenizer: Tokenizer,
    name: str | None = None,
    eval_fraction: float = 0.05,
    max_examples_per_document: int | None = None,
    jsonl: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Prepare documents, and put the result where it was asked for.

    Args:
        given: inputs, here or in buckets; see prepare.prepare.
        output: folder or URI that gets the shards.
        tokenizer, name, eval_fraction, max_examples_per_document: as in prepare.prepare.
        jsonl: folder or URI that gets train_dataset.jsonl and val_dataset.jsonl; None for none.
        say: told a line of text now and then.

    Returns:
        What to show: counts and places.

    Raises:
        ValueError: see prepare.prepare; or the destination holds something else, or is closed.
    """
    targets = [each for each in (output, jsonl) if each is not None]
    for target in targets:
        if storage.is_remote(target):
            upload.check_writable(target)
    folder = _workplace(output, PREPARED)
    prepare.prepare(
        given[0] if len(given) == 1 else given,
        folder,
        tokenizer=tokenizer,
        name=name,
        eval_fraction=eval_fraction,
        max_examples_per_document=max_examples_per_document,
        on_progress=say,
    )
    summary = sources.manifest_summary(folder)
    if storage.is_remote(output):
        _publish_prepared(folder, output, say)
        summary |= {"output": output}
    if jsonl is not None:
        pair = _workplace(jsonl, JSONL)
        _refuse_others(pair)
        written = export_jsonl.write_jsonl(given[0] if len(given) == 1 else given, folder, pair)
        if storage.is_remote(jsonl):
            upload.publish(pair, jsonl, say=say)
        summary |= {"jsonl": {jsonl: {n: e["documents"] for n, e in written["files"].items()}}}
    return summary


def _workplace(target: str, purpose: str) -> Path:
    if not storage.is_remote(target):
        return Path(target).expanduser()
    key = hashlib.sha256(target.rstrip("/").encode()).hexdigest()[:16]
    return cache.root() / purpose / key


def _publish_prepared(folder: Path, uri: str, say: Callable[[str], None]) -> None:
    """Send manifest, rejects and shards; what `prepare` keeps for itself stays here."""
    manifest = sources.read_manifest(folder)
    outgoing = folder.with_name(f"{folder.name}.outgoing")
    shutil.rmtree(outgoing, ignore_errors=True)
    try:
        shards = (file for split in manifest["splits"] for file in (folder / split).glob("[!.]*"))
        for file in (folder / sources.MANIFEST, folder / manifest["rejects"]["file"], *shards):
            target = outgoing / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file.absolute())
        upload.publish(outgoing, uri, say=say)
    finally:
        shutil.rmtree(outgoing, ignore_errors=True)


def _refuse_others(folder: Path) -> None:
    known = {export_jsonl.MANIFEST, *export_jsonl.FILES.values()}
    others = {path.name for path in folder.glob("[!.]*")} - known
    if others:
        raise ValueError(
            f"{folder}: expected an empty folder for the JSONL, found {json.dumps(min(others))}; "
            "choose another"
        )
