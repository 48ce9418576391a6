"""A run's decoder shape without loading weights: from the config, or from the weights' header."""

from mistral_jax.config import load
from mistral_jax.config import run as run_config
from mistral_jax.config.model import DecoderConfig
from mistral_jax.formats import detect
from mistral_jax.formats import locate


def decoder_of_run(run: run_config.RunConfig) -> DecoderConfig:
    """Return the decoder's shape; for `kind: checkpoint` read the header of its weights.

    Raises:
        ValueError: the weights are missing or of an unknown kind; the message names them.
    """
    known = run_config.decoder_of(run.model)
    if known is not None:
        return known
    weights = str(run.model.weights)
    fields = detect.open_weights(locate.headers_path(weights)).decoder_config()
    return load.validate(fields, DecoderConfig, where=weights)
