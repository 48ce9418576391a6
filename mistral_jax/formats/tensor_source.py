"""What a streaming writer needs to know about a tensor before it holds the tensor.

A writer lays out its header from name, shape and dtype alone, then calls `load` for one tensor at
a time, so that converting a model costs the host memory of its largest tensor and not of the model.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class TensorSource:
    """One tensor that is still to be produced.

    Attributes:
        name: its name in the file that is written.
        shape: its final shape, outermost axis first.
        dtype: its final dtype (bfloat16 through ml_dtypes).
        load: makes the array; called exactly once, while the tensor is written.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def loaded(self) -> np.ndarray:
        """Return the array in C order, checked against the promised shape and dtype.

        Raises:
            ValueError: `load` gave another shape or dtype; the message holds both.
        """
        array = self.load()
        if tuple(array.shape) != tuple(self.shape) or array.dtype != self.dtype:
            raise ValueError(
                f"tensor {self.name!r}: expected shape {tuple(self.shape)} and dtype {self.dtype}, "
                f"the source gave {tuple(array.shape)} and {array.dtype}"
            )
        return np.ascontiguousarray(array)


@dataclasses.dataclass(frozen=True)
class WrittenFile:
    """A finished file with its digest (sha256, hex)."""

    path: Path
    size_bytes: int
    sha256: str


class AtomicFile:
    """A file that is written under a temporary name and appears complete or not at all.

    Use as a context manager; leaving it normally publishes the file, an exception removes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def __enter__(self) -> "AtomicFile":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._temporary.open("wb")
        return self

    def write(self, raw: bytes | memoryview) -> None:
        self._stream.write(raw)
        self._digest.update(raw)
        self._size_bytes += len(raw)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._stream.flush()
                os.fsync(self._stream.fileno())
            self._stream.close()
            if kind is None:
                self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def written(self) -> WrittenFile:
        return WrittenFile(self.path, self._size_bytes, self._digest.hexdigest())


def write_text(path: Path, text: str) -> WrittenFile:
    """Write a small text file atomically."""
    with AtomicFile(path) as file:
        file.write(text.encode("utf-8"))
    return file.written()


def as_bytes(array: np.ndarray) -> memoryview:
    """Return an array's memory as flat bytes, in C order, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
