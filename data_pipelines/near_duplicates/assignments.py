"""What earlier runs decided about documents, by content digest: kept on disk, never forgotten.

`split_assignments.json` is the header: version, counts, and the name and sha256 of the array,
`split_assignments-<digest>.npy`: uint8 [N, 17], sorted, 16 bytes of a content digest and its mark.
The header is written last, so that a killed run leaves the earlier assignments as they were.
A mark is a set of bits: TRAIN, EVAL (the side of the document's cluster; both for a bridge), KEPT.
Beside the digest of a document stands that of its text as it was read, without KEPT.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from jaxtyping import Int64
from jaxtyping import UInt8

from mistral_jax import storage

DIGEST_BYTES = 16
TRAIN, EVAL, KEPT = 1, 2, 4
BRIDGE = TRAIN | EVAL
VERSION = 1
STEM = "split_assignments"
HEADER = f"{STEM}.json"


class DamagedAssignments(ValueError):
    """The recorded assignments are changed, cut short or of another version."""


@dataclass(frozen=True, slots=True)
class Assignments:
    """Digests and marks of all documents that earlier runs decided about, sorted by digest."""

    digests: UInt8[np.ndarray, "N 16"]
    marks: UInt8[np.ndarray, "N"]

    def __len__(self) -> int:
        """Return how many documents are recorded."""
        return len(self.marks)


def nothing() -> Assignments:
    """Return what is recorded before the first run."""
    return Assignments(np.zeros((0, DIGEST_BYTES), np.uint8), np.zeros(0, np.uint8))


def merge(
    earlier: Assignments, digests: UInt8[np.ndarray, "N D"], marks: UInt8[np.ndarray, "N"]
) -> Assignments:
    """Return the earlier assignments and new ones; a side that was recorded before stays.

    A near-duplicate that is kept later, since what it was a copy of has gone, becomes KEPT.

    Args:
        earlier: what is recorded.
        digests: of documents; their first 16 bytes count.
        marks: theirs; 0 records nothing.
    """
    is_new = marks > 0
    both = np.concatenate((earlier.digests, digests[is_new, :DIGEST_BYTES]))
    order = order_of(both)
    is_first = is_first_of(both, order)
    all_marks = np.concatenate((earlier.marks, marks[is_new]))[order]
    starts = np.flatnonzero(is_first)
    are_kept = np.bitwise_or.reduceat(all_marks & KEPT, starts) if len(starts) else all_marks
    return Assignments(both[order[starts]], (all_marks[starts] | are_kept).astype(np.uint8))


def order_of(digests: UInt8[np.ndarray, "N 16"]) -> Int64[np.ndarray, "N"]:
    """Return the order of digests; equal ones stay as they come."""
    return np.argsort(_strings(digests), kind="stable")


def is_first_of(
    digests: UInt8[np.ndarray, "N 16"], order: Int64[np.ndarray, "N"]
) -> Bool[np.ndarray, "N"]:
    """Tell which places of the order hold a digest that no place before them holds."""
    is_first = np.ones(len(order), np.bool_)
    ordered = _strings(digests)[order]
    is_first[1:] = ordered[1:] != ordered[:-1]
    return is_first


def _strings(digests: UInt8[np.ndarray, "N 16"]) -> np.ndarray:
    """Return digests as byte strings, which NumPy can order."""
    return np.ascontiguousarray(digests).view(f"S{DIGEST_BYTES}").ravel()


def read(folder: str | Path) -> Assignments:
    """Read the assignments of a folder; nothing where there are none.

    Raises:
        DamagedAssignments: the files do not fit each other.
    """
    folder = Path(folder)
    path = folder / HEADER
    if not path.is_file():
        return nothing()
    try:
        header = json.loads(path.read_bytes())
        if header["version"] != VERSION:
            raise _damaged(path, f"version {header['version']}, this release reads {VERSION}")
        data = (folder / Path(header["file"]).name).read_bytes()
        if hashlib.sha256(data).hexdigest() != header["sha256"]:
            raise _damaged(path, f"{header['file']} does not have the sha256 of the header")
        table = np.load(io.BytesIO(data), allow_pickle=False)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, OSError) as error:
        raise _damaged(path, str(error)) from error
    return Assignments(table[:, :DIGEST_BYTES], table[:, DIGEST_BYTES])


def write(folder: str | Path, assignments: Assignments) -> dict[str, Any]:
    """Write the assignments, whole or not at all; return the header."""
    folder = Path(folder)
    table = np.concatenate((assignments.digests, assignments.marks[:, None]), axis=1)
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    marks = assignments.marks
    header = {
        "version": VERSION,
        "file": f"{STEM}-{digest[:16]}.npy",
        "sha256": digest,
        "documents": len(assignments),
        "kept_train": int((marks == TRAIN | KEPT).sum()),
        "kept_eval": int((marks == EVAL | KEPT).sum()),
        "bridges": int((marks == BRIDGE).sum()),
    }
    storage.write_bytes(folder / header["file"], buffer.getvalue())
    text = json.dumps(header, indent=1, sort_keys=True) + "\n"
    storage.write_bytes(folder / HEADER, text.encode())
    for old in sorted(folder.glob(f"{STEM}-*.npy")):
        if old.name != header["file"]:
            old.unlink()
    return header


def _damaged(path: Path, found: str) -> DamagedAssignments:
    return DamagedAssignments(
        f"{path}: expected the recorded split assignments, found damage: {found}; put back a copy, "
        "or remove the file to assign all documents anew"
    )
