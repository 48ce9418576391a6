"""Where a source's path leads: itself, or a folder of an installed package."""

import importlib.util
import sysconfig
from pathlib import Path

ROOTS = {"stdlib": "stdlib", "site": "purelib"}


def place_of(path: str) -> str:
    """Return a path; `python:NAME/PATH` lies in an installed package.

    python:stdlib is the standard library, python:site where packages are installed.

    Raises:
        ValueError: there is no such package.
    """
    scheme, found, inside = path.partition("python:")
    if scheme or not found:
        return path
    name, _, rest = inside.partition("/")
    if name in ROOTS:
        root = Path(sysconfig.get_path(ROOTS[name]))
    else:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"{path}: there is no installed package {name!r}; correct the path")
        root = Path(next(iter(spec.submodule_search_locations)))
    return str(root / rest) if rest else str(root)
