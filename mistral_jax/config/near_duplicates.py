"""How near-duplicates are found: signatures, bands, and the check of candidate pairs.

MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4):
documents of Jaccard similarity J share one of `bands` bands of `rows` values with probability
1 - (1 - J^rows)^bands, and the share of equal values among all bands * rows estimates J.
"""

import math
from typing import Annotated
from typing import Any
from typing import Literal

from pydantic import Field
from pydantic import model_validator

from mistral_jax.config.base import Count
from mistral_jax.config.base import Node
from mistral_jax.config.base import Seed

MIN_RECALL = 0.98
UNRELATED = 0.5  # pairs below it are to stay
MAX_FALSE = 0.01

Similarity = Annotated[float, Field(gt=0, lt=1)]


class NearDuplicates(Node):
    """Near-duplicates of a corpus: at least `threshold` of the word n-grams in common.

    The defaults, 20 bands of 6 values: two documents of similarity exactly .8 become a pair with
    probability 1 - (1 - .8^6)^20 = .9977, and their 120 values then reach the estimate of .7 with
    .9968, so that at least .994 of such pairs are found (at .9: all but 1e-7). Two documents of
    similarity .5 reach it with 7e-6, those of .6 with .015, whatever the bands say. What lies
    between .6 and .8 may go either way. A config that finds fewer than .98 at its threshold, or
    takes more than .01 of the pairs of similarity .5, is refused.

    Attributes:
        threshold: word n-gram Jaccard similarity from which two documents are the same.
        ngram_words: words that make one n-gram; a shorter document is one n-gram.
        bands, rows: see above; a signature has bands * rows values of 4 bytes.
        min_estimate: share of equal values in two signatures from which a pair counts.
        seed: of the hash functions. Runs of another seed cannot be joined.
        key_ranges: pieces of equal key range into which each file of band keys is cut, so that
            the join can read a range of all files.
        join_keys: band keys that one query of the join takes; bounds its memory, some 150 bytes
            each.
        bucket_neighbours: in a bucket of equal keys, each document is compared with as many of
            those before it, then with the one 2, 4, 8, ... times as far.
        runner: who runs the join: this machine, or a Ray cluster.
        ray_address: of the cluster; Ray's own default without one.
    """

    threshold: Similarity = 0.8
    ngram_words: Count = 5
    bands: Count = 20
    rows: Count = 6
    min_estimate: Similarity = 0.7
    seed: Seed = 0
    key_ranges: Annotated[int, Field(ge=1, le=4096)] = 64
    join_keys: Annotated[int, Field(ge=1000)] = 2_000_000
    bucket_neighbours: Count = 8
    runner: Literal["native", "ray"] = "native"
    ray_address: str | None = None

    @property
    def permutations(self) -> int:
        """Values of a signature."""
        return self.bands * self.rows

    def found_share(self, similarity: float) -> float:
        """Return a lower bound of the share of pairs that are found, of pairs so similar."""
        is_candidate = 1 - (1 - similarity**self.rows) ** self.bands
        return is_candidate + self.reach_share(similarity) - 1

    def reach_share(self, similarity: float) -> float:
        """Return the share of pairs so similar whose signatures reach `min_estimate`."""
        num = self.permutations
        least = math.ceil(self.min_estimate * num - 1e-9)
        return sum(
            math.comb(num, equal) * similarity**equal * (1 - similarity) ** (num - equal)
            for equal in range(least, num + 1)
        )

    def signature_facts(self) -> dict[str, Any]:
        """Return what decides the bytes of signatures and band keys."""
        return self.model_dump(include={"ngram_words", "bands", "rows", "seed"})

    @model_validator(mode="after")
    def _check_recall(self) -> "NearDuplicates":
        if self.permutations > 1024:
            raise ValueError(
                f"bands * rows may be 1024 at most, not {self.permutations}; 120 values suffice "
                "for a threshold of 0.8"
            )
        found = self.found_share(self.threshold)
        if found < MIN_RECALL:
            raise ValueError(
                f"bands {self.bands}, rows {self.rows}, min_estimate {self.min_estimate} find "
                f"{max(found, 0.0):.3f} of the pairs at threshold {self.threshold}, expected "
                f">= {MIN_RECALL}; take more bands, fewer rows or a lower min_estimate"
            )
        false = self.reach_share(UNRELATED)
        if self.threshold > UNRELATED and false > MAX_FALSE:
            raise ValueError(
                f"min_estimate {self.min_estimate} of {self.permutations} values takes "
                f"{false:.3f} of the pairs of similarity {UNRELATED}, expected <= {MAX_FALSE}; "
                "raise min_estimate or the number of values"
            )
        return self
