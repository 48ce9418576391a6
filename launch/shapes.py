"""A run's decoder shape without loading weights: from the config, or from the weights' header."""

from typing import TYPE_CHECKING

from mistral_jax.config import load
from mistral_jax.config import run as run_config
from mistral_jax.config.model import DecoderConfig

if TYPE_CHECKING:
    from mistral_jax.formats import detect

PACKAGE_PREFIX = "package:"  # of formats/locate.py, which is not imported before it is needed


def decoder_of_run(run: run_config.RunConfig) -> DecoderConfig:
    """Return the decoder's shape; for `kind: checkpoint` read the header of its weights.

    Raises:
        ValueError: the weights are missing or of an unknown kind; the message names them.
    """
    known = run_config.decoder_of(run.model)
    if known is not None:
        return known
    weights = str(run.model.weights)
    fields = open_headers(weights).decoder_config()
    return load.validate(fields, DecoderConfig, where=weights)


def open_headers(weights: str) -> "detect.WeightsFile":
    """Open a checkpoint for its names, shapes and dtypes; its tensors may be holes.

    Raises:
        ValueError: it is not there or of an unknown kind.
    """
    # Not at the top: numpy and the readers are half of plan's second, and shapes that a config
    # gives need neither.
    from mistral_jax.formats import detect
    from mistral_jax.formats import locate

    return detect.open_weights(locate.headers_path(weights))
