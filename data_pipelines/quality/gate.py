"""The quality gate: a batch of rows goes on if it reaches the limits, or is set aside whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.corpus.row import Row
from data_pipelines.processors import toxicity
from data_pipelines.quality import metrics
from mistral_jax.config.gate import Gate
from mistral_jax.protocols import Score

UNVERIFIED = "unverified"  # the verdict of a check whose means are missing: it counts for nothing
TOXICITY_CHARACTERS = 1200  # of a row that did not go through the step `toxicity`


@dataclass(frozen=True, slots=True)
class BatchScores:
    """What a batch reached, and which limits it failed.

    Attributes:
        scores: by metric (quality/metrics.py); `accuracy` is None where no row can be verified.
        failed: names of the metrics outside their limits.
    """

    scores: dict[str, float | None]
    failed: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the scores, rounded, and what failed, as they stand in batches.jsonl."""
        rounded = {
            name: None if value is None else round(value, 4) for name, value in self.scores.items()
        }
        return {**rounded, "failed": self.failed}


def judge(
    rows: Sequence[Row], config: Gate, verdicts: Sequence[Score | None] | None = None
) -> BatchScores:
    """Return the scores of a batch.

    Args:
        rows: one or more.
        config: the limits.
        verdicts: what the verifier said of each row, None where there was nothing to verify.
    """
    texts = [row.text for row in rows]
    words = metrics.word_arrays(texts, config.sample_words)
    signed = metrics.signatures(words, config.signature_permutations, config.seed)
    checked = [each for each in verdicts or () if each is not None and not _is_open(each)]
    scores: dict[str, float | None] = {
        "diversity": metrics.diversity(signed),
        "distinct_2": metrics.distinct_2(words),
        "vendi": metrics.vendi(signed[: config.vendi_rows]),
        "complexity": metrics.mean(
            [
                metrics.complexity(text, is_prose=row.kind in ("text", "media"))
                for text, row in zip(texts, rows, strict=True)
            ]
        ),
        "accuracy": metrics.mean([_passed(each) for each in checked]) if checked else None,
        "toxicity": _mean_toxicity(rows, texts, config),
    }
    return BatchScores(scores, _failed(scores, len(rows), config))


def _failed(scores: dict[str, float | None], num_rows: int, config: Gate) -> list[str]:
    lowest = {
        "diversity": config.min_diversity if num_rows >= config.min_rows else 0.0,
        "complexity": config.min_complexity,
        "accuracy": config.min_accuracy,
    }
    failed = [
        name
        for name, limit in lowest.items()
        if (value := scores[name]) is not None and value < limit
    ]
    found = scores["toxicity"]
    return failed + (["toxicity"] if found is not None and found > config.max_toxicity else [])


def _is_open(verdict: Score) -> bool:
    return verdict.detail.get("verdict") == UNVERIFIED


def _passed(verdict: Score) -> float:
    named = verdict.detail.get("verdict")
    return float(verdict.value >= 1 if named is None else named == "passed")


def _mean_toxicity(rows: Sequence[Row], texts: Sequence[str], config: Gate) -> float | None:
    """Return the mean probability; None where any would pass, and the model is not asked."""
    if config.max_toxicity >= 1:
        return None
    found = [_toxicity(row, text) for row, text in zip(rows, texts, strict=True)]
    return metrics.mean([each if each >= config.toxicity_floor else 0.0 for each in found])


def _toxicity(row: Row, text: str) -> float:
    """Return the probability that the step `toxicity` found, or that of the text's beginning."""
    found = row.facts.get("toxicity")
    return float(found) if found is not None else toxicity.probability(text[:TOXICITY_CHARACTERS])
