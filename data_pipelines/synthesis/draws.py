"""Random choices that depend on a key alone: the same on every machine and every Python.

splitmix64 (Steele, Lea and Flood 2014), started from a hash of the key. Python's own `random`
promises that only for `random()`.
"""

import hashlib
from collections.abc import Sequence

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Draws:
    """A stream of choices, fixed by its key."""

    __slots__ = ("_state",)

    def __init__(self, *key: str | int) -> None:
        """Start from a key, such as (generator, seed, index)."""
        text = "\x1f".join(map(str, key))
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        self._state = int.from_bytes(digest, "little")

    def bits(self) -> int:
        """Return the next 64 bits."""
        self._state = state = (self._state + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        return state ^ (state >> 31)

    def below(self, bound: int) -> int:
        """Return a whole number in [0, bound); its bias is below bound / 2**64."""
        return (self.bits() * bound) >> 64

    def between(self, first: int, last: int) -> int:
        """Return a whole number from first to last, both included."""
        return first + self.below(last - first + 1)

    def nonzero(self, first: int, last: int) -> int:
        """Return a whole number from first to last that is not 0."""
        while not (drawn := self.between(first, last)):
            pass
        return drawn

    def chance(self, share: float) -> bool:
        """Return true with the given probability."""
        return self.bits() < share * (1 << 64)

    def pick[T](self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.below(len(options))]

    def sample[T](self, options: Sequence[T], count: int) -> list[T]:
        """Return `count` different places of the options, in drawn order."""
        places = list(range(len(options)))
        for at in range(count):
            other = at + self.below(len(places) - at)
            places[at], places[other] = places[other], places[at]
        return [options[place] for place in places[:count]]

    def shuffled[T](self, options: Sequence[T]) -> list[T]:
        """Return the options in drawn order."""
        return self.sample(options, len(options))

    def weighted(self, weights: Sequence[float]) -> int:
        """Return a place, drawn by its weight."""
        left = self.bits() / (1 << 64) * sum(weights)
        for place, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return place
        return max(place for place, weight in enumerate(weights) if weight)
