"""What comes out of archives, counted while it is inflated: sizes in headers may lie.

Knows streams and caps only; archives.py knows zip and tar.
"""

import io
from collections.abc import Callable
from typing import Any
from typing import BinaryIO

from data_pipelines.documents import Limits

SLACK_BYTES = 1 << 20  # below this no ratio is asked: a short log may well shrink a thousandfold


class ArchiveError(ValueError):
    """A cap was reached; `kind` names it."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Budget:
    """What one outermost archive has spent."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self.inflated_bytes = 0
        self.members = 0

    def spend_bytes(self, count: int) -> None:
        """Count inflated bytes.

        Raises:
            ArchiveError: more than `total_bytes`.
        """
        self.inflated_bytes += count
        if self.inflated_bytes > self._limits.total_bytes:
            raise ArchiveError(
                "too_large", f"inflates to more than {self._limits.total_bytes} bytes"
            )

    def spend_member(self) -> None:
        """Count a member.

        Raises:
            ArchiveError: more than `max_members`.
        """
        self.members += 1
        if self.members > self._limits.max_members:
            raise ArchiveError(
                "too_many_members", f"has more than {self._limits.max_members} members"
            )


class CountingReader(io.RawIOBase):
    """Passes bytes on and counts them."""

    def __init__(self, stream: BinaryIO):
        super().__init__()
        self._stream = stream
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


class CappedReader(io.RawIOBase):
    """Passes inflated bytes on until a cap is reached."""

    def __init__(
        self,
        stream: Any,
        compressed_bytes: Callable[[], int],
        limits: Limits,
        budget: Budget,
    ):
        super().__init__()
        self._stream = stream
        self._compressed_bytes = compressed_bytes
        self._limits = limits
        self._budget = budget
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(min(len(buffer), 1 << 16))
        buffer[: len(data)] = data
        self._count += len(data)
        self._budget.spend_bytes(len(data))
        allowed = SLACK_BYTES + self._limits.max_ratio * self._compressed_bytes()
        if self._count > allowed:
            raise ArchiveError(
                "bomb", f"inflates more than {self._limits.max_ratio}-fold; it was not read further"
            )
        return len(data)
