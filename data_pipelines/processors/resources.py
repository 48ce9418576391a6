"""What steps need beside their config: files that are made once, before the workers start."""

from dataclasses import dataclass
from dataclasses import field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Resources:
    """A folder of files, so that it can be handed to worker processes.

    Attributes:
        folder: where they are; None where no step needs any.
        digests: of what is in each, by its name: they belong into the fingerprint of the work.
    """

    folder: Path | None = None
    digests: dict[str, str] = field(default_factory=dict)
