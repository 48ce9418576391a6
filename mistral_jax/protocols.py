"""The types that rooms hand to each other. NumPy only: no jax, no files, no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import Protocol
from typing import runtime_checkable

import numpy as np
from jaxtyping import Float
from jaxtyping import Int


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenized document.

    Attributes:
        tokens: token ids, int32, length >= 1.
        loss_mask: 1 where the token is a target that counts, int8; same length.
        document: where it came from, as the manifest spells it.
    """

    tokens: Int[np.ndarray, " n"]
    loss_mask: Int[np.ndarray, " n"]
    document: str


@dataclass(frozen=True, slots=True)
class Batch:
    """One global batch of packed rows; every array is [B, T].

    `targets[b, t]` is the token after `tokens[b, t]` in the same document; its weight is 0 where
    there is none. Segment ids start at 1; 0 is padding. Positions count from 0 in each segment.
    `domain` is the index of the row's source, per token.
    """

    tokens: Int[np.ndarray, "B T"]
    targets: Int[np.ndarray, "B T"]
    loss_weights: Float[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]
    segment_ids: Int[np.ndarray, "B T"]
    domain: Int[np.ndarray, "B T"]


@runtime_checkable
class DataSource(Protocol):
    """Random access to tokenized documents."""

    name: str

    def __len__(self) -> int:
        """Return the number of documents."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Return one document."""
        ...

    @property
    def digest(self) -> str:
        """Return a sha256, in hex, that changes when any document changes."""
        ...


@dataclass(frozen=True, slots=True)
class Completion:
    """What a generator made of one prompt."""

    text: str
    tokens: list[int]
    log_probs: list[float]
    stop_reason: str


@runtime_checkable
class Generator(Protocol):
    """Prompts to completions."""

    def generate(self, prompts: list[str], *, max_tokens: int, seed: int) -> list[Completion]:
        """Return one completion for each prompt, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Score:
    """What a Scorer says of one text.

    Attributes:
        value: 0 (bad, or wrong) to 1 (good, or verified).
        detail: why, as JSON.
    """

    value: float
    detail: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Scorer(Protocol):
    """Judges texts: a quality filter, a verifier, a reward, a benchmark's metric."""

    def score(self, texts: Sequence[str]) -> list[Score]:
        """Return one score for each text, in order."""
        ...
