"""What a map task leaves for the join: its signatures, and a sorted run of its band keys.

`NNNNN.signatures`: rows of little-endian uint32, one per document of the task, in order.
`NNNNN.bands.parquet`: `key` int64, `place` int64 (task << ROW_BITS | row), sorted by both, one row
group per piece of the key range, so that a query over a range of keys reads that range only. The
schema's metadata says how the signatures were made. Equal documents give equal bytes; a run exists
when both files do, and both appear whole.
"""

import itertools
import json
import os
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from jaxtyping import UInt32

from data_pipelines.near_duplicates import signatures
from mistral_jax import storage
from mistral_jax.config.near_duplicates import NearDuplicates

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError as error:
    raise ImportError(
        "near-duplicates need the package pyarrow; install the extra with MISTRAL_JAX_LOCKS=data"
    ) from error

ROW_BITS = 32
METADATA = b"near_duplicates"
VALUE_BYTES = 4
READ_BYTES = 1 << 20


class DamagedRun(ValueError):
    """A run is missing, cut short, or was made in another way."""


@dataclass(frozen=True, slots=True)
class Run:
    """The two files of one task."""

    folder: Path
    task: int

    @property
    def signatures_path(self) -> Path:
        """The signatures, in the order of the task's documents."""
        return self.folder / f"{self.task:05d}.signatures"

    @property
    def bands_path(self) -> Path:
        """The band keys, sorted."""
        return self.folder / f"{self.task:05d}.bands.parquet"

    def num_documents(self, config: NearDuplicates) -> int:
        """Return how many documents the task has.

        Raises:
            DamagedRun: a file is missing or cut short, or other settings made it.
        """
        for path in (self.signatures_path, self.bands_path):
            if not path.is_file():
                raise DamagedRun(f"{path}: expected a run of near-duplicates, but it is not there")
        size = self.signatures_path.stat().st_size
        wanted = signatures.facts(config)
        try:
            made = json.loads((parquet.read_schema(self.bands_path).metadata or {})[METADATA])
        except (pa.ArrowInvalid, KeyError, json.JSONDecodeError) as error:
            raise DamagedRun(
                f"{self.bands_path}: expected a run of band keys, but it cannot be read "
                f"({error}); remove the task's files to make them again"
            ) from error
        if made["signatures"] != wanted:
            raise DamagedRun(
                f"{self.bands_path}: expected signatures made with {wanted}, found "
                f"{made['signatures']}; remove the work folder to make them again"
            )
        if size != made["documents"] * config.permutations * VALUE_BYTES:
            raise DamagedRun(
                f"{self.signatures_path}: expected {made['documents']} signatures of "
                f"{config.permutations} values, found {size} bytes; remove the task's files"
            )
        return made["documents"]

    def open_signatures(self, config: NearDuplicates) -> UInt32[np.ndarray, "N P"]:
        """Map the signatures into memory."""
        shape = (-1, config.permutations)
        if not self.signatures_path.stat().st_size:
            return np.zeros((0, config.permutations), np.uint32)
        return np.memmap(self.signatures_path, "<u4", "r").reshape(shape)


class RunWriter:
    """Writes the run of one task; memory: 16 bytes per band and document, at the end."""

    def __init__(self, run: Run, config: NearDuplicates):
        run.folder.mkdir(parents=True, exist_ok=True)
        self.run = run
        self.num_documents = 0
        self._config = config
        self._signer = signatures.Signer(config)
        self._keys: list[np.ndarray] = []
        self._places: list[np.ndarray] = []
        self._path = run.signatures_path.with_suffix(".signatures.part")
        self._file = self._path.open("wb")

    def add(self, texts: Sequence[str]) -> None:
        """Append the documents of these texts; best some megabytes at a time."""
        self.add_signatures(self._signer.sign(texts))

    def add_all(self, texts: Iterable[str]) -> None:
        """Append a stream of texts."""
        for signed in self._signer.sign_all(texts):
            self.add_signatures(signed)

    def add_signatures(self, signed: UInt32[np.ndarray, "N P"]) -> None:
        """Append documents by their signatures."""
        self._file.write(np.ascontiguousarray(signed, "<u4").tobytes())
        rows = np.flatnonzero(signatures.has_words(signed))
        if len(rows):
            keys = signatures.band_keys(signed[rows], self._config)
            places = self.run.task << ROW_BITS | (rows + self.num_documents)
            self._keys.append(keys.ravel())
            self._places.append(np.repeat(places, self._config.bands))
        self.num_documents += len(signed)

    def leave(self) -> None:
        """Close the file, whatever is in it."""
        self._file.close()

    def close(self) -> dict[str, dict[str, Any]]:
        """Finish both files; return size and sha256 of each by its name."""
        self._file.close()
        os.replace(self._path, self.run.signatures_path)
        keys = np.concatenate([np.zeros(0, np.int64), *self._keys])
        places = np.concatenate([np.zeros(0, np.int64), *self._places])
        self._keys, self._places = [], []
        order = np.lexsort((places, keys))
        part = self.run.bands_path.with_suffix(".part")
        _write_bands(part, keys[order], places[order], self._config, self.num_documents)
        os.replace(part, self.run.bands_path)
        return {
            path.name: {"size_bytes": path.stat().st_size, "sha256": storage.digest(path)}
            for path in (self.run.signatures_path, self.run.bands_path)
        }


def range_edges(num_ranges: int) -> list[int]:
    """Return the borders of equal ranges of keys: num_ranges + 1 of them, the last one open."""
    span = 1 << signatures.KEY_BITS
    return [span * number // num_ranges for number in range(num_ranges + 1)]


def _write_bands(
    path: Path,
    keys: Int64[np.ndarray, "M"],
    places: Int64[np.ndarray, "M"],
    config: NearDuplicates,
    num_documents: int,
) -> None:
    made = {"documents": num_documents, "signatures": signatures.facts(config)}
    schema = pa.schema(
        [pa.field("key", pa.int64(), False), pa.field("place", pa.int64(), False)],
        metadata={METADATA: json.dumps(made, sort_keys=True).encode()},
    )
    inner = np.searchsorted(keys, np.array(range_edges(config.key_ranges)[1:-1], np.int64))
    edges = [0, *inner.tolist(), len(keys)]
    with parquet.ParquetWriter(
        path,
        schema,
        compression="none",  # hashes do not compress
        use_dictionary=False,
    ) as writer:
        for begin, end in itertools.pairwise(edges):
            if end > begin:
                columns = [pa.array(keys[begin:end]), pa.array(places[begin:end])]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), end - begin)
