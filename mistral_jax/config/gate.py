"""The quality gate: what a batch of rows must reach to go on, and how it is measured."""

from mistral_jax.config.base import Count
from mistral_jax.config.base import Fraction
from mistral_jax.config.base import Node


class Gate(Node):
    """Limits on a batch; a batch that fails one is set aside with its scores.

    Attributes:
        batch_rows: rows of a batch; a task's last batch may be smaller.
        min_rows: a batch with fewer rows is not judged by its diversity.
        min_diversity: 1 - mean Jaccard of the rows' word 5-grams over all pairs, estimated.
        min_complexity: mean over rows of compressibility, vocabulary and length of sentences.
        min_accuracy: share that verifies of the rows that can be verified.
        max_toxicity: mean probability of abuse; 1 does not ask the model for it.
        toxicity_floor: probabilities below it count as 0. The model gives 0.04 to a text of which
            it knows no word, and up to 0.15 to short harmless ones; the mean over thousands of
            exercises in one wording must not rest on that.
        signature_permutations: hash functions behind the diversity; its standard error for one
            pair is at most 0.5 / sqrt of it, far less for the mean over a batch.
        sample_words: words of a row that are looked at, from its beginning.
        vendi_rows: rows of a batch that the Vendi score is taken over (cubic cost).
        seed: of the hash functions.
    """

    batch_rows: Count = 512
    min_rows: Count = 8
    min_diversity: Fraction = 0.7
    min_complexity: Fraction = 0.15
    min_accuracy: Fraction = 0.95
    max_toxicity: Fraction = 0.1
    toxicity_floor: Fraction = 0.15
    signature_permutations: Count = 64
    sample_words: Count = 1000
    vendi_rows: Count = 128
    seed: int = 0
