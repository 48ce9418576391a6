"""Safetensors files and sharded folders: a bounded reader of our own and a streaming writer.

The reader trusts nothing in the header (names, duplicates, dtypes, shapes, offsets are checked
against the file's size) and gives lazy, memory-mapped, read-only numpy views. It does not detect
flipped payload bits: the format has no checksum, so digests live in our own manifests.
Format: https://github.com/huggingface/safetensors (8-byte little-endian header size, JSON, data).
"""

import json
import math
import mmap
import reprlib
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mistral_jax.formats.tensor_source import AtomicFile
from mistral_jax.formats.tensor_source import TensorSource
from mistral_jax.formats.tensor_source import WrittenFile
from mistral_jax.formats.tensor_source import as_bytes
from mistral_jax.formats.tensor_source import write_text

# The reference implementation's own limit.
MAX_HEADER_BYTES = 100_000_000
MAX_AXIS = 2**63 - 1  # numpy's; an axis beside one of length 0 is bounded by nothing else
INDEX_NAME = "model.safetensors.index.json"
# Of Mistral's own layout, where it comes in shards.
CONSOLIDATED_INDEX_NAME = "consolidated.safetensors.index.json"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsError(ValueError):
    """A safetensors file or index that is damaged, truncated or not to be trusted."""


class TensorInfo(NamedTuple):
    """Where a tensor lies: dtype, shape and its byte range behind the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def _reject_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise SafetensorsError(
                f"the key {reprlib.repr(key)} occurs twice in one JSON object; write the file anew"
            )
        found[key] = value
    return found


def name_problem(name: str) -> str | None:
    """Say what is wrong with a tensor's name that no exporter writes, or that could be a path."""
    if not name or len(name) > 1024 or any(ord(char) < 32 or ord(char) == 127 for char in name):
        return f"tensor name {reprlib.repr(name)} is empty, too long or not printable"
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        return f"tensor name {reprlib.repr(name)} looks like a file path; refused"
    return None


def check_name(name: str, path: Path) -> None:
    """Raise SafetensorsError where `name_problem` finds one."""
    if problem := name_problem(name):
        raise SafetensorsError(f"{path}: {problem}")


def _parse_entry(name: str, entry: object, path: Path) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise SafetensorsError(
            f"{path}: tensor {name!r} needs exactly dtype, shape and data_offsets, found "
            f"{reprlib.repr(entry)}"
        )
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        raise SafetensorsError(
            f"{path}: tensor {name!r} has dtype {reprlib.repr(dtype_name)}; supported: "
            f"{', '.join(DTYPES)}"
        )
    for label, value in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(value, list) or not all(type(v) is int and v >= 0 for v in value):
            raise SafetensorsError(
                f"{path}: tensor {name!r} has {label} {reprlib.repr(value)}, not counts"
            )
    if len(shape) > 8 or len(offsets) != 2 or any(axis > MAX_AXIS for axis in shape):
        raise SafetensorsError(
            f"{path}: tensor {name!r} has shape {reprlib.repr(shape)}, offsets "
            f"{reprlib.repr(offsets)}"
        )
    dtype = DTYPES[dtype_name]
    expected = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != expected:
        raise SafetensorsError(
            f"{path}: tensor {name!r} of shape {reprlib.repr(shape)} and dtype {dtype_name} needs "
            f"{reprlib.repr(expected)} bytes, its offsets {reprlib.repr(offsets)} give "
            f"{reprlib.repr(offsets[1] - offsets[0])}"
        )
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


class SafetensorsFile:
    """One memory-mapped safetensors file.

    Raises:
        SafetensorsError: missing, truncated, or a header that breaks the format's rules.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise SafetensorsError(f"{self.path}: no such safetensors file")
        with self.path.open("rb") as stream:
            size = stream.seek(0, 2)
            if size < 8:
                raise SafetensorsError(
                    f"{self.path}: truncated; expected at least 8 bytes, found {size}"
                )
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        header_bytes = int.from_bytes(self._map[:8], "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise SafetensorsError(
                f"{self.path}: the header claims {header_bytes} bytes, more than "
                f"{MAX_HEADER_BYTES}; this is not a safetensors file"
            )
        if 8 + header_bytes > size:
            raise SafetensorsError(
                f"{self.path}: truncated; the header needs {8 + header_bytes} bytes, found {size}"
            )
        self._data_start = 8 + header_bytes
        self.metadata: dict[str, str] = {}
        self.tensors = self._parse_header(self._map[8 : self._data_start])
        self._check_layout(size)

    def _parse_header(self, raw: bytes) -> dict[str, TensorInfo]:
        try:
            header = json.loads(raw, object_pairs_hook=_reject_duplicates)
        except SafetensorsError as error:
            raise SafetensorsError(f"{self.path}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise SafetensorsError(f"{self.path}: the header is not valid JSON: {error}") from error
        if not isinstance(header, dict):
            raise SafetensorsError(f"{self.path}: the header is a {type(header).__name__}")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise SafetensorsError(f"{self.path}: __metadata__ must map text to text")
        self.metadata = metadata
        for name in header:
            check_name(name, self.path)
        return {name: _parse_entry(name, entry, self.path) for name, entry in header.items()}

    def _check_layout(self, size: int) -> None:
        position, ordered = 0, sorted(self.tensors.items(), key=lambda item: item[1][2:])
        for name, info in ordered:
            if info.begin != position:
                raise SafetensorsError(
                    f"{self.path}: tensor {name!r} begins at byte {reprlib.repr(info.begin)} of "
                    f"the data where {position} was expected (a hole or an overlap)"
                )
            position = info.end
        wanted = self._data_start + position
        if wanted > size:
            cut = next(name for name, info in ordered if self._data_start + info.end > size)
            raise SafetensorsError(
                f"{self.path}: expected {reprlib.repr(wanted)} bytes, found {size}: the file is "
                f"truncated and tensor {cut!r} is cut off; fetch it again"
            )
        if wanted < size:
            raise SafetensorsError(
                f"{self.path}: expected {wanted} bytes, found {size}: extra bytes after the last "
                f"tensor; fetch it again"
            )

    def names(self) -> list[str]:
        return list(self.tensors)

    def tensor(self, name: str) -> np.ndarray:
        """Return a read-only view into the mapped file; no bytes are read until they are used."""
        info = self.tensors[name]
        start = self._data_start + info.begin
        raw = np.frombuffer(self._map, np.uint8, count=info.end - info.begin, offset=start)
        return raw.view(info.dtype).reshape(info.shape)


class SafetensorsReader:
    """Tensors by name out of a single file, or a folder with one file or an index of shards."""

    def __init__(self, path: Path | str, *, index_name: str = INDEX_NAME) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            self._files, self._file_of = self._open_folder(index_name)
        else:
            file = SafetensorsFile(self.path)
            self._files = {self.path.name: file}
            self._file_of = dict.fromkeys(file.names(), self.path.name)

    def _open_folder(self, index_name: str) -> tuple[dict[str, SafetensorsFile], dict[str, str]]:
        index = self.path / index_name
        if not index.exists():
            single = self.path / "model.safetensors"
            if not single.exists():
                raise SafetensorsError(
                    f"{self.path}: expected model.safetensors or {INDEX_NAME}, found neither"
                )
            file = SafetensorsFile(single)
            return {single.name: file}, dict.fromkeys(file.names(), single.name)
        file_of = _read_index(index)
        for tensor, name in file_of.items():
            if not (self.path / name).is_file():
                raise SafetensorsError(
                    f"{self.path / name}: no such file, but {index.name} says that it holds tensor "
                    f"{tensor!r}; fetch the shard"
                )
        files = {name: SafetensorsFile(self.path / name) for name in sorted(set(file_of.values()))}
        for tensor, name in file_of.items():
            if tensor not in files[name].tensors:
                raise SafetensorsError(f"{index}: tensor {tensor!r} is not in {name} as it says")
        seen: dict[str, str] = {}
        for name, file in files.items():
            for tensor in file.tensors:
                if tensor in seen:
                    raise SafetensorsError(
                        f"{self.path / name}: tensor {tensor!r} is in {seen[tensor]} too; one of "
                        f"the shards is another checkpoint's: fetch both again"
                    )
                seen[tensor] = name
        return files, file_of

    def names(self) -> list[str]:
        return list(self._file_of)

    def info(self, name: str) -> TensorInfo:
        """Return dtype, shape and byte range.

        Raises:
            SafetensorsError: no such tensor; the message names it and the file.
        """
        if name not in self._file_of:
            raise SafetensorsError(f"{self.path}: tensor {name!r} is missing")
        return self._files[self._file_of[name]].tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.info(name).shape

    def tensor(self, name: str) -> np.ndarray:
        self.info(name)
        return self._files[self._file_of[name]].tensor(name)

    @property
    def metadata(self) -> dict[str, str]:
        return next(iter(self._files.values())).metadata if self._files else {}


def _read_index(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_bytes(), object_pairs_hook=_reject_duplicates)
        weight_map = content["weight_map"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise SafetensorsError(
            f"{index}: expected JSON with a weight_map, found {reprlib.repr(error)}"
        ) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise SafetensorsError(f"{index}: weight_map must map tensor names to file names")
    for tensor, name in weight_map.items():
        check_name(tensor, index)
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise SafetensorsError(
                f"{index}: tensor {tensor!r} points to {reprlib.repr(name)}; expected a file "
                f"beside the index"
            )
    return weight_map


def write_safetensors(
    folder: Path | str,
    sources: Iterable[TensorSource],
    *,
    max_shard_bytes: int = 5 * 2**30,
    metadata: Mapping[str, str] | None = None,
) -> list[WrittenFile]:
    """Write model.safetensors, or numbered shards and their index, one tensor at a time.

    Args:
        folder: made if absent; files of the same names are replaced atomically.
        sources: the tensors in file order; each is loaded once, written, and released.
        max_shard_bytes: a shard is closed before it would pass this; a larger tensor gets its own.
        metadata: text to text; {"format": "pt"} by default, which transformers asks for.

    Returns:
        The weight files with sizes and sha256, in order (the index is not listed).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(list(sources), max_shard_bytes)
    if len(shards) == 1:
        return [write_safetensors_file(folder / "model.safetensors", shards[0], metadata=metadata)]
    written: list[WrittenFile] = []
    weight_map, total = {}, 0
    try:
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            written.append(write_safetensors_file(folder / name, shard, metadata=metadata))
            weight_map |= {source.name: name for source in shard}
            total += sum(source.size_bytes for source in shard)
        # The index comes last: until it exists the folder is visibly unfinished.
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(folder / INDEX_NAME, json.dumps(content, indent=2) + "\n")
    except BaseException:  # shards without their index would stand in the way of the next try
        for file in written:
            file.path.unlink(missing_ok=True)
        raise
    return written


def _split(sources: list[TensorSource], max_shard_bytes: int) -> list[list[TensorSource]]:
    shards: list[list[TensorSource]] = [[]]
    size = 0
    for source in sources:
        if shards[-1] and size + source.size_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(source)
        size += source.size_bytes
    return shards


def write_safetensors_file(
    path: Path | str,
    sources: Iterable[TensorSource],
    *,
    metadata: Mapping[str, str] | None = None,
) -> WrittenFile:
    """Write one safetensors file under a temporary name and rename it when it is complete."""
    path, sources = Path(path), list(sources)
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    position = 0
    for source in sources:
        check_name(source.name, path)
        if source.name in header:
            raise SafetensorsError(f"{path}: tensor {source.name!r} is given twice")
        if source.dtype not in DTYPE_NAMES:
            raise SafetensorsError(f"{path}: tensor {source.name!r} has dtype {source.dtype}")
        end = position + source.size_bytes
        header[source.name] = {
            "dtype": DTYPE_NAMES[source.dtype],
            "shape": list(source.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data then starts on an 8-byte border
    with AtomicFile(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for source in sources:
            file.write(as_bytes(source.loaded()))
    return file.written()
