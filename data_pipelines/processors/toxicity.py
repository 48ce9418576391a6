"""The step `toxicity`: how likely a text is abuse, by the linear model in alt-profanity-check.

A weak first gate: it knows words, not what is said with them; quality/calibration.py has its error
rates. The model's weights are read from its package and applied here, which gives its own
probabilities at a fraction of the cost for one text.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from data_pipelines.corpus.row import Row
from data_pipelines.documents import Reject
from data_pipelines.processors.resources import Resources
from mistral_jax.config import processors

WORD = re.compile(r"\b\w\w+\b")


@dataclass(frozen=True, slots=True)
class Model:
    """Words to their places, and per word and fold: inverse frequency x weight."""

    places: dict[str, int]
    frequency: Float[np.ndarray, " words"]
    weights: Float[np.ndarray, "words folds"]
    bias: Float[np.ndarray, " folds"]
    slope: Float[np.ndarray, " folds"]
    offset: Float[np.ndarray, " folds"]

    def probability(self, words: list[str]) -> float:
        """Return how likely these words, in lower case, are abuse."""
        places = self.places
        known = [place for word in words if (place := places.get(word)) is not None]
        decision = self.bias
        if known:
            at, counts = np.unique(np.array(known), return_counts=True)
            vector = counts * self.frequency[at]
            decision = decision + (vector / np.sqrt(vector @ vector)) @ self.weights[at]
        return float(np.mean(1 / (1 + np.exp(self.slope * decision + self.offset))))


def build(config: processors.Toxicity, resources: Resources) -> Callable[[Row], Row | Reject]:
    """Return the step."""
    del resources
    return partial(run, config=config)


def run(row: Row, *, config: processors.Toxicity) -> Row | Reject:
    """Return the row with its toxicity, or a reject where that is too much."""
    found = windows(row.text, config.window_words, config.max_windows)
    mean, highest = (sum(found) / len(found), max(found)) if found else (0.0, 0.0)
    if mean > config.max_mean:
        return Reject(
            row.id, "toxicity", f"probability {mean:.2f} of abuse; at most {config.max_mean:g}"
        )
    if config.max_window is not None and highest > config.max_window:
        return Reject(
            row.id,
            "toxic_passage",
            f"a passage of probability {highest:.2f}; at most {config.max_window:g}",
        )
    return row.with_facts(toxicity=round(mean, 4), toxicity_max=round(highest, 4))


def windows(text: str, window_words: int, max_windows: int) -> list[float]:
    """Return the probabilities of up to `max_windows` stretches, evenly spread over a text."""
    # A window is cut from the text by characters first, so that a book costs no more than a page.
    size = window_words * 6
    count = -(-len(text) // size)
    if count <= 1:
        return [probability(text)] if text and not text.isspace() else []
    chosen = range(count) if count <= max_windows else _spread(count, max_windows)
    return [probability(text[at * size : (at + 1) * size]) for at in chosen]


def probability(text: str) -> float:
    """Return how likely one short text is abuse."""
    return load().probability(WORD.findall(text.lower()))


def _spread(count: int, wanted: int) -> list[int]:
    return [at * count // wanted for at in range(wanted)]


@functools.cache
def load() -> Model:
    """Return the model, read from its package.

    Raises:
        ImportError: alt-profanity-check is not installed.
    """
    try:
        from profanity_check import profanity_check
    except ImportError as error:
        raise ImportError(
            "the step `toxicity` needs alt-profanity-check: set up with MISTRAL_JAX_LOCKS=data"
        ) from error
    vectorizer, folds = profanity_check.vectorizer, profanity_check.model.calibrated_classifiers_
    stop = vectorizer.get_stop_words() or frozenset()
    vocabulary = {word: int(at) for word, at in vectorizer.vocabulary_.items() if word not in stop}
    return Model(
        places=vocabulary,
        frequency=np.asarray(vectorizer.idf_, np.float64),
        weights=np.stack([fold.estimator.coef_[0] for fold in folds], axis=1),
        bias=np.array([fold.estimator.intercept_[0] for fold in folds]),
        slope=np.array([fold.calibrators[0].a_ for fold in folds]),
        offset=np.array([fold.calibrators[0].b_ for fold in folds]),
    )
