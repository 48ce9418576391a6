"""Union-find over an int64 array: which documents belong together, told pair by pair.

A root only ever gets a smaller parent, so the representative of a cluster is its smallest document
number, whatever the order of the pairs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from jaxtyping import Shaped


class Clusters:
    """A partition of the documents 0 .. num_documents - 1; 8 bytes each."""

    def __init__(self, num_documents: int):
        self._parents = np.arange(num_documents, dtype=np.int64)

    def roots(self, numbers: Shaped[np.ndarray, "M"]) -> Int64[np.ndarray, "M"]:
        """Return the representative of each document's cluster."""
        found = self._parents[numbers]
        while True:
            above = self._parents[found]
            if np.array_equal(above, found):
                self._parents[numbers] = found
                return found
            found = self._parents[above]

    def union(self, first: Shaped[np.ndarray, "M"], second: Shaped[np.ndarray, "M"]) -> None:
        """Join the clusters of each pair."""
        while len(first):
            first, second = self.roots(first), self.roots(second)
            is_apart = first != second
            first, second = first[is_apart], second[is_apart]
            # Several pairs may hang the same root: the smallest new parent wins, and the others
            # are joined in the next round.
            np.minimum.at(self._parents, np.maximum(first, second), np.minimum(first, second))

    def representatives(self) -> Int64[np.ndarray, "N"]:
        """Return the smallest document number of each document's cluster."""
        while True:
            above = self._parents[self._parents]
            if np.array_equal(above, self._parents):
                return self._parents
            self._parents = above


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What the manifest says about the clusters of two or more documents.

    Attributes:
        clusters: how many there are.
        rows: documents in them.
        sizes: clusters by size.
        largest: (size, representative, first members) of the largest, the largest first.
    """

    clusters: int
    rows: int
    sizes: dict[int, int]
    largest: list[tuple[int, int, list[int]]]

    def to_json(self) -> dict[str, Any]:
        """Return the facts for the manifest; documents by their number."""
        return {
            "clusters": self.clusters,
            "rows": self.rows,
            "sizes": {str(size): count for size, count in self.sizes.items()},
            "largest": [
                {"size": size, "kept": first, "members": members}
                for size, first, members in self.largest
            ],
        }


def describe(
    representatives: Int64[np.ndarray, "N"], *, num_largest: int = 10, num_members: int = 10
) -> ClusterFacts:
    """Count the clusters of two or more documents and name the largest."""
    members = np.flatnonzero(representatives != np.arange(len(representatives)))
    roots, num_others = np.unique(representatives[members], return_counts=True)
    sizes, counts = np.unique(num_others + 1, return_counts=True)
    largest = np.lexsort((roots, -num_others))[:num_largest]
    return ClusterFacts(
        clusters=len(roots),
        rows=len(roots) + len(members),
        sizes=dict(zip(sizes.tolist(), counts.tolist(), strict=True)),
        largest=[
            (
                int(num_others[which]) + 1,
                int(roots[which]),
                np.flatnonzero(representatives == roots[which])[:num_members].tolist(),
            )
            for which in largest
        ],
    )
