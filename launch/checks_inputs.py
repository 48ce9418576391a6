"""Pre-flight of what the run reads: files that the config names, data, tokenizer, base model.

Headers and lists are read, not tensors and tokens: a whole 7B checkpoint takes longer than a person
waits. Of data in a bucket only names, sizes and small files come here.
"""

import itertools
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from pathlib import PurePosixPath
from typing import Any

from launch import checks
from launch.checks import Answer
from launch.checks import Check
from launch.checks import Context
from mistral_jax import storage
from mistral_jax.formats import locate
from mistral_jax.storage import staging
from mistral_jax.storage import upload

MANIFEST, VERSION = "manifest.json", 1  # of data_pipelines/sources.py
UNFINISHED = ("pipeline_state.json", "work")  # what `prepare` leaves where it was interrupted
JSONL = (".jsonl", ".ndjson")
ROW_KEYS = ("messages", "completion", "middle", "text")  # of data_pipelines/jsonl.py
ROWS_READ = 50
MAX_ROW_BYTES = 1 << 20
SHARDS_ASKED = 64  # of a prepared prefix in a bucket, one question each
NAMED_TOKENIZERS = ("auto", "bytes")


def local_paths(context: Context) -> dict[str, str]:
    """Return the paths of no store and no package that the config names, by their keys."""
    named = {"model.weights": context.run.model.weights, **context.source_paths()}
    tokenizer = context.run.data.tokenizer
    if tokenizer not in NAMED_TOKENIZERS and not tokenizer.startswith("mistral-common:"):
        named["data.tokenizer"] = tokenizer
    return {key: text for key, text in named.items() if text and _is_path(text)}


def _is_path(text: str) -> bool:
    return not checks.is_bucket(text) and locate.scheme_of(text) is None


def is_here(context: Context, text: str) -> bool:
    """Tell whether a path can be looked at on this machine."""
    return Path(text).expanduser().exists()


def _files(context: Context) -> Answer:
    named = local_paths(context)
    missing = {key: text for key, text in named.items() if not is_here(context, text)}
    if not missing:
        return checks.ok(f"{len(named)} path(s), all here" if named else "the config names none")
    if context.on_host:
        hopeless = missing
    else:
        hopeless = {key: text for key, text in missing.items() if not _may_be_there(context, text)}
    if hopeless:
        key = next(iter(hopeless)).split()[0]
        where = "not here" if context.on_host else "not here, and no new machine has it"
        return checks.failed(f"{where}: {_shown(hopeless)}", context.command(f"{key}=PATH_OR_URI"))
    return checks.warning(
        f"not here, so nothing is sent and it must be {checks.ON_HOST}: {_shown(missing)}",
        f"ls -d {shlex.join(missing.values())}",
    )


def _shown(named: dict[str, str]) -> str:
    return ", ".join(f"{key} {text!r}" for key, text in named.items())


def _may_be_there(context: Context, text: str) -> bool:
    """Tell whether a machine that is not this one may have what is not here."""
    launcher = context.target.launcher
    if getattr(launcher, "host", None) is not None or launcher.kind == "slurm":
        return True
    return PurePosixPath(text).is_absolute() and launcher.kind in ("jobset", "ec2")


def _train_data(context: Context) -> Answer:
    return _data(context, "data.train")


def _eval_data(context: Context) -> Answer:
    data = context.run.data
    if data.eval is not None:
        return _data(context, "data.eval")
    if data.eval_fraction == 0:
        return checks.warning(
            "nothing is held out: no data.eval, and data.eval_fraction is 0",
            context.command("data.eval_fraction=0.05"),
        )
    return checks.ok(f"{data.eval_fraction:.0%} of the documents are held out")


def _data(context: Context, key: str) -> Answer:
    """Look at each source of a key until one is wrong."""
    shown, worst = [], None
    for name, place in context.source_paths().items():
        if not name.startswith(key):
            continue
        if checks.is_bucket(place):
            answer = _bucket_data(context, place)
        elif not is_here(context, place):
            where = "it is not here" if context.on_host else checks.ON_HOST
            answer = checks.skipped(f"{place}: {where}")
        else:
            answer = _local_data(context, Path(place).expanduser())
        if answer.status == "failed":
            return answer
        worst = answer if answer.status == "warning" else worst
        shown.append(answer)
    if worst is not None:
        return worst
    if all(answer.status == "skipped" for answer in shown):
        return shown[0]
    return checks.ok("; ".join(answer.detail for answer in shown))


def _local_data(context: Context, path: Path) -> Answer:
    listed = path / upload.LIST_NAME if path.is_dir() else path.parent / upload.LIST_NAME
    if listed.is_file() and not upload.read_list(str(listed)).is_complete:
        return checks.failed(
            f"{path}: {listed} says that its copy has not ended", _prepare_line(path)
        )
    if path.is_file():
        return _rows(context, path) if path.suffix in JSONL else _some_bytes(path)
    manifest = path / MANIFEST
    if manifest.is_file():
        content = _manifest(manifest.read_bytes(), str(manifest))
        for name, wanted in _shards(content):
            file = path / name
            found = file.stat().st_size if file.is_file() else None
            if found != wanted:
                got = "it is not there" if found is None else f"it has {found}"
                return checks.failed(f"{file}: {wanted} bytes expected, {got}", _prepare_line(path))
        return _prepared(context, content, str(path))
    if any((path / name).exists() for name in UNFINISHED):
        return checks.failed(f"{path}: prepare has not ended there", _prepare_line(path))
    first = next(_documents(path), None)
    if first is None:
        return checks.failed(f"{path}: holds no file with anything in it", _prepare_line(path))
    answer = _rows(context, first) if first.suffix in JSONL else None
    return answer if answer and answer.status != "ok" else checks.ok(f"{path}: raw documents")


def _prepare_line(path: Path | str) -> str:
    return f"./run prepare DOCUMENTS {checks.word(str(path))} --tokenizer MODEL"


def _documents(folder: Path) -> Iterator[Path]:
    return (
        file
        for file in folder.rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
        and file.stat().st_size
    )


def _some_bytes(path: Path) -> Answer:
    size = path.stat().st_size
    if not size:
        return checks.failed(f"{path} is empty", f"ls -l {checks.word(str(path))}")
    return checks.ok(f"{path}: {checks.gib(size)}")


def _rows(context: Context, path: Path) -> Answer:
    """Read the first rows of a JSONL file."""
    with path.open("rb") as file:
        lines = [file.readline(MAX_ROW_BYTES) for _ in range(ROWS_READ)]
    lines = [line for line in lines if line.strip()]
    problems = [(number, text) for number, line in enumerate(lines, 1) if (text := _problem(line))]
    if not lines or len(problems) == len(lines):
        number, text = problems[0] if problems else (1, "there is none")
        return checks.failed(
            f"{path}, row {number}: {text}", f"head -n {number} {checks.word(str(path))}"
        )
    if problems:
        number, text = problems[0]
        return checks.warning(
            f"{path}, row {number}: {text}; such rows are left out",
            f"sed -n {number}p {checks.word(str(path))}",
        )
    return checks.ok(f"{path}: {checks.gib(path.stat().st_size)} of JSONL")


def _problem(line: bytes) -> str | None:
    if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
        return None  # a long row; the preparation reads it whole
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if not isinstance(row, dict) or not any(key in row for key in ROW_KEYS):
        return f"expected one of {', '.join(ROW_KEYS)}"
    return None


def _bucket_data(context: Context, uri: str) -> Answer:
    folder, _, name = uri.rstrip("/").rpartition("/")
    again = _prepare_line(uri)
    try:
        size = storage.size_bytes(uri)
        if size is not None:
            prefix = staging.Prefix(folder, only=name)
            if upload.LIST_NAME in prefix.names and name not in prefix.content:
                return checks.failed(f"{uri}: is not in its folder's list of files", again)
            if not size:
                return checks.failed(f"{uri} is empty", again)
            return checks.ok(f"{uri}: {checks.gib(size)}")
        prefix = staging.Prefix(uri, is_deep=True)
    except storage.StorageError as error:
        return checks.failed(checks.sentence(error), _store_fix(uri, str(error), again))
    if MANIFEST not in prefix.names:
        return checks.ok(f"{uri}: {len(prefix.content)} files")
    content = _manifest(prefix.read_all(MANIFEST), f"{uri}/{MANIFEST}")
    for shard, wanted in itertools.islice(_shards(content), SHARDS_ASKED):
        found = prefix.facts(shard).size_bytes if shard in prefix.names else None
        if found != wanted:
            got = "it is not there" if found is None else f"it has {found}"
            return checks.failed(f"{uri}/{shard}: {wanted} bytes expected, {got}", again)
    return _prepared(context, content, uri)


def _store_fix(uri: str, text: str, otherwise: str) -> str:
    """Return what mends a store's refusal."""
    if "expired" in text:
        return "aws sso login" if uri.startswith("s3://") else "gcloud auth login"
    if "refuses access" in text or "credentials" in text:
        return "aws sts get-caller-identity" if uri.startswith("s3://") else "gcloud auth list"
    return otherwise


def _manifest(raw: bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(raw)
        if content["version"] != VERSION:
            raise ValueError(f"it is of version {content['version']!r}")
        for split in content["splits"].values():
            [int(entry["size_bytes"]) for entry in (*split["shards"], split["lengths"])]
        str(content["tokenizer"]["digest"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{where}: expected a data manifest of version {VERSION} ({error!r}); prepare it again"
        ) from None
    return content


def _shards(content: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for split, entry in content["splits"].items():
        for file in (*entry["shards"], entry["lengths"]):
            yield f"{split}/{file['file']}", file["size_bytes"]


def _at_home(place: str) -> str:
    return str(Path(place).expanduser())


def _prepared(context: Context, content: dict[str, Any], where: str) -> Answer:
    counts = {
        split: sum(shard["documents"] for shard in entry["shards"])
        for split, entry in content["splits"].items()
    }
    if not any(counts.values()):
        return checks.failed(f"{where}: prepared, and no document is in it", _prepare_line(where))
    cap = context.run.data.max_examples_per_document
    made_with = content.get("settings", {}).get("max_examples_per_document")
    trained = [place for key, place in context.source_paths().items() if key[:10] == "data.train"]
    if cap is not None and made_with != cap and where in (*trained, *map(_at_home, trained)):
        return checks.failed(
            f"{where}: prepared with max_examples_per_document {made_with}, the run's is {cap}",
            f"{_prepare_line(where)} --max-examples-per-document {cap}",
        )
    shown = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    return checks.ok(f"{where}: prepared, {shown}")


def _tokenizer(context: Context) -> Answer:
    name = context.run.data.tokenizer
    weights = context.run.model.weights
    unseen = weights if name == "auto" else name
    if unseen and is_elsewhere(context, unseen):
        return checks.skipped(checks.ON_HOST)
    try:
        tokenizer = context.tokenizer
    except (ValueError, OSError) as error:
        return checks.failed(checks.sentence(error), context.command("data.tokenizer=MODEL"))
    decoder = context.decoder
    if decoder is not None and tokenizer.vocab_size > decoder.vocab_size:
        return checks.failed(
            f"{tokenizer.name} has {tokenizer.vocab_size} tokens, the model {decoder.vocab_size}",
            context.command("data.tokenizer=auto"),
        )
    return checks.ok(f"{tokenizer.name}: {tokenizer.vocab_size:,} tokens")


def is_elsewhere(context: Context, text: str) -> bool:
    """Tell whether a path of the config is the host's alone, and this is not the host."""
    named = text in local_paths(context).values()
    return named and not context.on_host and not is_here(context, text)


def _data_tokenizer(context: Context) -> Answer:
    """Compare what prepared folders were tokenized by with the model's tokenizer."""
    made_by = dict(_tokenizers_of_data(context))
    if not made_by:
        return checks.ok("no prepared folder is named: documents are tokenized for this model")
    tokenizer = context.tokenizer
    for where, (name, digest) in made_by.items():
        if digest != tokenizer.digest:
            return checks.failed(
                f"{where} was prepared by {name!r}, and the model's tokenizer is "
                f"{tokenizer.name!r}",
                f"./run prepare DOCUMENTS {checks.word(f'{where}-2')} --tokenizer "
                f"{checks.word(context.run.model.weights or context.run.data.tokenizer)}",
            )
    return checks.ok(f"{len(made_by)} prepared folder(s) by {tokenizer.name}")


def _tokenizers_of_data(context: Context) -> Iterator[tuple[str, tuple[str, str]]]:
    for place in context.source_paths().values():
        where = f"{place.rstrip('/')}/{MANIFEST}"
        if not checks.is_bucket(place):
            path = Path(place).expanduser() / MANIFEST
            raw = path.read_bytes() if path.is_file() else None
        else:
            raw = storage.read_bytes(where) if storage.exists(where) else None
        if raw is not None:
            made_by = _manifest(raw, where)["tokenizer"]
            yield place, (str(made_by.get("name")), str(made_by["digest"]))


CHECKS = (
    Check("files of the config", _files),
    Check("training data", _train_data),
    Check("held-out data", _eval_data),
    Check("tokenizer", _tokenizer),
    Check("tokenizer of the data", _data_tokenizer),
)
