"""What an export is measured by: logits and perplexity of the reload, numbers that are none.

Both run the model layer by layer in float32 (models/streamed.py), whatever the file holds.
"""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Shaped

from mistral_jax import tokenizers
from mistral_jax.config import model as model_config
from mistral_jax.models import readers
from mistral_jax.models import streamed

PERPLEXITY_TOKENS = 128
# Our own plain sentences: every tokenizer has its usual share of common and rare words in them.
TEXT = (
    "The harbour lies on the north side of the island, where the water is deep enough for the "
    "ferry. Every morning at six the first boat leaves with the post, two crates of bread and "
    "whoever has to be in town before the shops open. In winter the crossing takes an hour; when "
    "the wind comes from the west it may take three, and then the captain reads the weather "
    "report twice and asks the passengers whether they would rather wait. Most of them stay. "
    "They know that the price of a ticket, 4.50, includes a cup of coffee, and that the story of "
    "the storm of 1987 is told again to anybody who listens."
)
# Bits of the exponent: all set in what is infinite or no number.
_EXPONENTS = {
    "bfloat16": (np.uint16, 0x7F80),
    "float16": (np.uint16, 0x7C00),
    "float32": (np.uint32, 0x7F800000),
}
_CHUNK = 1 << 20


def count_nonfinite(array: Shaped[np.ndarray, "..."]) -> int:
    """Return how many numbers of an array are NaN or infinite, without a copy of it."""
    flat = np.ascontiguousarray(array).reshape(-1)
    parts = (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))
    if flat.dtype.name not in _EXPONENTS:
        return sum(int(part.size - np.count_nonzero(np.isfinite(part))) for part in parts)
    bits, mask = _EXPONENTS[flat.dtype.name]
    found = 0
    for part in parts:
        masked = part.view(bits) & bits(mask)
        if masked.max(initial=0) == mask:
            found += int(np.count_nonzero(masked == mask))
    return found


class NonfiniteWeights:
    """Counts, tensor by tensor, the weights that are no numbers."""

    def __init__(self) -> None:
        self._by_tensor: dict[str, int] = {}

    def count(self, name: str, array: Shaped[np.ndarray, "..."]) -> int:
        """Count those of a tensor."""
        found = count_nonfinite(array)
        if found:
            self._by_tensor[name] = found
        return found

    def warn(self, path: Path) -> int:
        """Return how many there are in all; warn where there are any."""
        total = sum(self._by_tensor.values())
        if total:
            warnings.warn(
                f"{path}: {total} weights are NaN or infinite, in {len(self._by_tensor)} tensors, "
                f"such as {next(iter(self._by_tensor))!r}; they are kept as they are",
                stacklevel=3,
            )
        return total


def largest_difference(
    expected: Float[np.ndarray, "T V"], found: Float[np.ndarray, "T V"]
) -> float:
    """Return the largest difference of two sets of logits; what is NaN in both is no difference."""
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    with np.errstate(invalid="ignore"):
        return float(np.max(np.where(same, 0, np.abs(expected - found))))


def perplexity_tokens(
    tokenizer: tokenizers.Tokenizer | None, config: model_config.DecoderConfig
) -> Int[np.ndarray, "T"]:
    """Return the fixed text as tokens; random ones for a model without a tokenizer."""
    length = min(PERPLEXITY_TOKENS, config.max_positions)
    if tokenizer is None:
        return np.random.default_rng(1).integers(0, config.vocab_size, length, np.int32)
    return np.asarray(tokenizer.encode(TEXT, bos=tokenizer.add_bos)[:length], np.int32)


def perplexity(reader: readers.ParamReader, tokens: Int[np.ndarray, "T"]) -> float:
    """Return the perplexity of tokens after the first, computed in float32."""
    logits = streamed.logits(reader, reader.config, tokens[None])[0, :-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(logits, tokens[1:, None], axis=1)[:, 0]
    losses = np.log(np.exp(logits).sum(axis=1)) - chosen
    with np.errstate(over="ignore"):
        return float(np.exp(losses.mean()))
