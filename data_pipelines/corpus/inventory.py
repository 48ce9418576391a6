"""What a corpus is made from: the files of its sources, their digests, and the tasks over them."""

import dataclasses
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines import catalog
from data_pipelines import readers
from data_pipelines import synthesis
from data_pipelines.corpus import companions
from data_pipelines.corpus import fetching
from data_pipelines.corpus import places
from data_pipelines.corpus.companions import Found
from data_pipelines.corpus.job import Maker
from mistral_jax import sandbox
from mistral_jax import storage
from mistral_jax.config.corpus import CorpusConfig
from mistral_jax.config.corpus_sources import CorpusSource
from mistral_jax.config.generators import DocumentQuestions
from mistral_jax.config.processors import Expert
from mistral_jax.storage import upload

NEEDS_SANDBOX = frozenset({"code_tasks", "preference_pairs"})
GENERATED_LICENCE = "generated"
TASK_FILES = 512


def makers(config: CorpusConfig) -> tuple[Maker, ...]:
    """Return the sources and then the generators of a corpus.

    Raises:
        ValueError: two have one name, a source's type is unknown, or one that is named is not
            there.
    """
    made = []
    for source in config.sources:
        kind = catalog.type_of(source.type)
        made.append(
            Maker(
                source.name,
                source.type,
                source.expert or kind.expert,
                source.licence or kind.licence,
                is_generator=False,
            )
        )
    for generator in config.generators:
        made.append(
            Maker(
                generator.name,
                generator.kind,
                generator.expert or getattr(synthesis.build(generator), "expert", ""),
                GENERATED_LICENCE,
                is_generator=True,
            )
        )
    names = [each.name for each in made]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"expected different names of sources and generators, got {twice[0]} twice"
        )
    _check_named(config)
    if not made:
        raise ValueError("expected a source or a generator at least, got none; see docs/data.md")
    return tuple(made)


def _check_named(config: CorpusConfig) -> None:
    """Check that paths say something, and that sources which are named elsewhere are there.

    Raises:
        ValueError: they are not, and rows would be missing in silence.
    """
    known = [source.name for source in config.sources]
    wanted = [
        (f"generator {each.name!r}: sources", name, known)
        for each in config.generators
        if isinstance(each, DocumentQuestions)
        for name in each.sources
    ]
    steps = (*config.processors.text, *config.processors.code, *config.processors.math)
    for step in (*steps, *config.processors.media):
        if isinstance(step, Expert):
            made = [generator.name for generator in config.generators]
            wanted += [("processor expert: only", name, [*known, *made]) for name in step.only]
    for where, name, allowed in wanted:
        if name not in allowed:
            shown = ", ".join(allowed) or "none"
            raise ValueError(f"{where}: expected names of sources ({shown}), got {name!r}")
    for source in config.sources:
        paths = (source.path,) if isinstance(source.path, str) else source.path
        if not paths or not all(paths):
            raise ValueError(f"source {source.name!r}: expected a path, got an empty one")


def made_by(config: CorpusConfig) -> list[str]:
    """Return what makes the rows of each generator, with its version."""
    built = (synthesis.build(each, seed=config.seed) for each in config.generators)
    return [str(getattr(each, "made_by", each.name)) for each in built]


def check_means(config: CorpusConfig) -> None:
    """Check, before anything is done, that rows can be verified which will have to be.

    Raises:
        sandbox.SandboxMissing: a generator makes code, and there is no sandbox to run it in.
    """
    if any(generator.kind in NEEDS_SANDBOX for generator in config.generators):
        is_there, why_not = sandbox.available()
        if not is_there:
            raise sandbox.SandboxMissing(why_not)


def tasks(config: CorpusConfig, *, exclude: tuple[Path, ...]) -> list[dict[str, Any]]:
    """Return the tasks of a corpus in their order; job.Job says what is in one.

    Args:
        config: what is to be made.
        exclude: local folders to leave out: the output.

    Raises:
        ValueError: a source's path is not there, or has no file of its type.
    """
    made: list[dict[str, Any]] = []
    for maker, source in enumerate(config.sources):
        outside = config.output if storage.is_remote(config.output) else ""
        listed = list_files(source, exclude=exclude, outside=outside)
        for files in _grouped(listed, config.task_bytes):
            made.append({"maker": maker, "files": files})
    for maker, generator in enumerate(config.generators, start=len(config.sources)):
        if not isinstance(generator, DocumentQuestions):
            for start in range(0, generator.rows, config.task_rows):
                stop = min(start + config.task_rows, generator.rows)
                made.append({"maker": maker, "start": start, "stop": stop})
    return made


def list_files(
    source: CorpusSource, *, exclude: tuple[Path, ...] = (), outside: str = ""
) -> list[dict[str, Any]]:
    """Return {"uri", "name", "size_bytes", "version", ...} of each file of a source, in order.

    The name is what rows are called by: the source's name, then the path inside the source. The
    version is the content's sha256; of an object in a bucket what the store knows it by, with the
    "digest" that its listing tells. Files that the format looks up from others are told "beside"
    them (companions.py).

    Args:
        source: where to look.
        exclude: local folders to leave out.
        outside: a URI to leave out.
    """
    paths = (source.path,) if isinstance(source.path, str) else source.path
    kind = catalog.type_of(source.type)
    found = []
    for index, path in enumerate(map(places.place_of, paths)):
        inside = f"{source.name}/{index}" if len(paths) > 1 else source.name
        if storage.is_remote(path):
            listed = list(_remote(path, outside, is_optional=source.optional))
        elif source.optional and not Path(path).expanduser().exists():
            continue
        else:
            listed = list(_local(path, exclude, kind, source.patterns))
        others = companions.Companions(kind, source.patterns, listed)
        for file in listed:
            if catalog.takes(kind, file.name, source.patterns):
                name = f"{inside}/{file.name}"
                found.append({**file.entry(), "name": name, **others.of(file)})
    if not found and not source.optional:
        raise ValueError(
            f"source {source.name!r}: no file under {', '.join(paths)} matches the patterns of "
            f"its type {source.type!r} ({', '.join(source.patterns or kind.patterns)}); correct "
            "path, type or patterns"
        )
    return found


def _local(
    path: str, exclude: tuple[Path, ...], kind: catalog.SourceType, patterns: tuple[str, ...]
) -> Iterator[Found]:
    """Yield the files that are read, and those that are looked up from them."""
    root = Path(path).expanduser()
    for file in readers.list_inputs(root, exclude=exclude):
        name = readers.name_of(file, root)
        if catalog.takes(kind, name, patterns) or catalog.fits(name, kind.companions):
            yield Found(name, str(file.absolute()), readers.file_size_bytes(file))


def _remote(uri: str, outside: str, *, is_optional: bool) -> Iterator[Found]:
    """List a prefix, or look at one object; hidden ones are left out.

    Of a folder that was uploaded with a list of its files, those count, with the list's digests.

    Raises:
        StorageError: the upload of such a folder has not ended.
    """
    base, output = uri.rstrip("/"), outside.rstrip("/")
    alone = None if uri.endswith("/") else fetching.patiently(uri, lambda: storage.facts(uri))
    if alone is not None:
        yield Found(base.rpartition("/")[2], uri, alone.size_bytes, alone)
        return
    listed = dict(fetching.patiently(uri, lambda: storage.list_facts(base)))
    lists = {}
    for each in listed:
        folder, _, last = each.rpartition("/")
        if last == upload.LIST_NAME:
            lists[folder] = _whole_list(each)
    for each, facts in listed.items():
        name = each.removeprefix(f"{base}/")
        is_output = bool(output) and each.startswith(f"{output}/")
        if is_output or any(part.startswith(".") for part in name.split("/")):
            continue
        folder = next((f for f in lists if each.startswith(f"{f}/")), None)
        if folder is not None:
            sha256 = lists[folder].get(each.removeprefix(f"{folder}/"))
            if sha256 is None:
                continue
            facts = dataclasses.replace(facts, digest=f"sha256:{sha256}")
        yield Found(name, each, facts.size_bytes, facts)
    if not listed and not is_optional:
        raise storage.StorageError(f"{uri}: there are no files under this prefix; correct the path")


def _whole_list(uri: str) -> Mapping[str, str]:
    """Return the digests of an uploaded folder's files by their names."""
    found = fetching.patiently(uri, lambda: upload.read_list(uri))
    if not found.is_complete:
        raise storage.StorageError(
            f"{uri.rpartition('/')[0]}: the upload to it was interrupted, it is incomplete; run "
            "again what uploads it, which then sends what is missing"
        )
    return found.sha256


def _grouped(files: list[dict[str, Any]], task_bytes: int) -> Iterator[list[dict[str, Any]]]:
    """Yield runs of files of about `task_bytes` together; a large file is a task of its own."""
    group: list[dict[str, Any]] = []
    size = 0
    for file in files:
        if group and (size + file["size_bytes"] > task_bytes or len(group) >= TASK_FILES):
            yield group
            group, size = [], 0
        group.append(file)
        size += file["size_bytes"]
    if group:
        yield group
