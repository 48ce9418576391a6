"""Five levels of difficulty for each expert: their names, and the file that says each document's.

`levels.npy` stands beside `lengths.npy` in a split of a prepared folder: one byte a document, 0 to
4, ascending, since documents are ordered by level. Which level a row has is difficulty.py's work.
"""

import hashlib
from pathlib import Path

import numpy as np

FILE = "levels.npy"
NUM_LEVELS = 5
# From easy to hard.
NAMES: dict[str, tuple[str, ...]] = {
    "code": ("syntax_basics", "functions", "algorithms", "systems", "optimization"),
    "math": ("arithmetic", "algebra", "calculus", "proofs", "research"),
    "language": ("words", "sentences", "grammar", "translation", "style"),
    "reasoning": ("one_step", "chains", "constraints", "planning", "open_problems"),
    "multimodal": ("naming", "describing", "locating", "charts", "inference"),
    "scientific": ("facts", "units", "experiments", "models", "frontier"),
    "creative": ("phrases", "scenes", "stories", "forms", "voices"),
    "general": ("short_answers", "explanations", "instructions", "dialogues", "long_tasks"),
}


def name_of(expert: str, level: int) -> str:
    """Return a level's name; "level_3" for an expert that is not one of the eight."""
    names = NAMES.get(expert)
    return names[level] if names else f"level_{level}"


def check(found: np.ndarray, num_documents: int, where: str | Path) -> np.ndarray:
    """Return levels that are one byte for each document, ascending, below NUM_LEVELS.

    Raises:
        ValueError: they are not.
    """
    if found.dtype != np.uint8 or found.shape != (num_documents,):
        raise ValueError(
            f"{where}: expected a level of uint8 for each of {num_documents} documents, got "
            f"{found.dtype} of shape {list(found.shape)}; prepare the source again"
        )
    if num_documents and (found[-1] >= NUM_LEVELS or (np.diff(found.astype(np.int8)) < 0).any()):
        raise ValueError(
            f"{where}: expected levels 0 to {NUM_LEVELS - 1}, ascending, got values up to "
            f"{found.max()}, or out of order; prepare the source again"
        )
    return found


def write(folder: str | Path, found: np.ndarray) -> Path:
    """Write the levels of a split's documents, in their order; return the file.

    Raises:
        ValueError: see `check`.
    """
    path = Path(folder) / FILE
    np.save(path, check(found, len(found), path), allow_pickle=False)
    return path


def read(folder: str | Path, num_documents: int) -> np.ndarray | None:
    """Return the levels of a split's documents; None where it has none.

    Raises:
        ValueError: see `check`; or the file is no array.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); prepare the source again") from None
    return check(found, num_documents, path)


def digest(found: np.ndarray) -> str:
    """Return the sha256 of levels, in hex: they decide the rows of a run with a curriculum."""
    return hashlib.sha256(found.tobytes()).hexdigest()
