"""Several inputs of `prepare` as one folder of links: local paths and URIs, in the order given.

The names inside do not depend on where the inputs lie on this machine, so that the same documents
make the same data everywhere. Nothing is copied; what lies in a bucket is in the cache.
"""

import contextlib
import tempfile
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path

from data_pipelines import readers
from mistral_jax import storage
from mistral_jax.storage import objects


@contextlib.contextmanager
def gathered(
    given: str | Path | Sequence[str | Path], *, exclude: Collection[Path] = ()
) -> Iterator[tuple[Path, list[Path]]]:
    """Give a root and the files in it; the root of one input is that input itself.

    Args:
        given: one input, or several.
        exclude: folders to leave out.

    Raises:
        readers.NoDocuments, ValueError: an input is empty, or is not there.
    """
    inputs = [given] if isinstance(given, str | Path) else list(given)
    if not inputs:
        raise ValueError("expected one input at least, got none")
    paths = [objects.local_path(each) for each in inputs]
    if len(paths) == 1:
        yield paths[0], readers.list_inputs(paths[0], exclude=exclude)
        return
    with tempfile.TemporaryDirectory(prefix="inputs-") as folder:
        root = Path(folder) / "inputs"
        for label, path in zip(_labels(inputs), paths, strict=True):
            for file in readers.list_inputs(path, exclude=exclude):
                link = root / label
                link = link if file == path else link / file.relative_to(path)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.absolute())
        yield root, readers.list_inputs(root)


def shown(given: str | Path | Sequence[str | Path]) -> str:
    """Return inputs as the user has named them."""
    inputs = [given] if isinstance(given, str | Path) else given
    return ", ".join(map(str, inputs))


def name_of(given: str | Path | Sequence[str | Path], root: Path) -> str:
    """Return what an input is called where the user says nothing: its last part."""
    if isinstance(given, str) and storage.is_remote(given):
        return given.rstrip("/").rpartition("/")[2]
    return root.resolve().name


def _labels(inputs: Sequence[str | Path]) -> list[str]:
    """Return a name for each input: its own last part, numbered in front to keep the order."""
    width = len(str(len(inputs)))
    names = [str(each).rstrip("/").rpartition("/")[2] for each in inputs]
    return [f"{number:0{width}d}-{name}" for number, name in enumerate(names, start=1)]
