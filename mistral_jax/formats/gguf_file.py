"""GGUF files: a bounded, memory-mapped reader of our own and a streaming writer.

Every count, length, offset and type in the header is checked against the file before it is used;
whatever is wrong surfaces as `GgufError`, never as another exception. Tensors come back as float32
in row-major order (outermost axis first, where GGUF lists the innermost first).
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).
"""

import math
import mmap
import reprlib
import struct
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mistral_jax.formats.gguf_blocks import BLOCKS
from mistral_jax.formats.gguf_blocks import BLOCKS_BY_NAME
from mistral_jax.formats.gguf_blocks import UNSUPPORTED
from mistral_jax.formats.gguf_blocks import BlockType
from mistral_jax.formats.gguf_blocks import quantize_q8_0
from mistral_jax.formats.safetensors_file import name_problem
from mistral_jax.formats.tensor_source import AtomicFile
from mistral_jax.formats.tensor_source import TensorSource
from mistral_jax.formats.tensor_source import WrittenFile
from mistral_jax.formats.tensor_source import as_bytes

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_TENSORS = 200_000
MAX_METADATA = 100_000
MAX_NAME_BYTES = 65_535  # the specification's limit for metadata keys
STRING_TYPE, ARRAY_TYPE, BOOL_TYPE = 8, 9, 7
SCALARS = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    BOOL_TYPE: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
SCALAR_NUMBERS = {dtype: number for number, dtype in SCALARS.items()}

MetadataValue = str | int | float | bool | list[str] | np.ndarray


class GgufError(ValueError):
    """A GGUF file that is damaged, truncated, unsupported or not a GGUF file."""


class GgufTensor(NamedTuple):
    """Where a tensor lies in the file and how its bytes are to be read."""

    shape: tuple[int, ...]
    block: BlockType
    offset: int
    size_bytes: int


class _Cursor:
    """Reads the header front to back and refuses to pass the end of the file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.position = data, path, 0

    def take(self, size: int, what: str) -> bytes:
        if size > len(self.data) - self.position:
            raise GgufError(
                f"{self.path}: truncated or damaged; {what} needs {size} bytes at "
                f"{self.position}, the file ends at {len(self.data)}"
            )
        self.position += size
        return self.data[self.position - size : self.position]

    def count(self, what: str, limit: int, size_bytes: int = 8) -> int:
        value = int.from_bytes(self.take(size_bytes, what), "little")
        if value > limit:
            raise GgufError(f"{self.path}: {what} is {value}, more than the possible {limit}")
        return value

    def remaining(self) -> int:
        return len(self.data) - self.position

    def string(self, what: str, limit: int | None = None) -> str:
        size = self.count(f"the length of {what}", self.remaining() if limit is None else limit)
        raw = self.take(size, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise GgufError(f"{self.path}: {what} is not UTF-8: {error}") from error

    def value(self, key: str) -> MetadataValue:
        kind = self.count(f"the type of {key!r}", 12, 4)
        if kind == STRING_TYPE:
            return self.string(f"the value of {key!r}")
        if kind == ARRAY_TYPE:
            return self._array(key)
        return np.frombuffer(self.take(SCALARS[kind].itemsize, key), SCALARS[kind])[0].item()

    def _array(self, key: str) -> list[str] | np.ndarray:
        kind = self.count(f"the element type of {key!r}", 12, 4)
        if kind == ARRAY_TYPE:
            raise GgufError(f"{self.path}: {key!r} is an array of arrays, which is not supported")
        item_bytes = 8 if kind == STRING_TYPE else SCALARS[kind].itemsize
        count = self.count(f"the length of {key!r}", self.remaining() // item_bytes)
        if kind == STRING_TYPE:
            return self._strings(key, count)
        return np.frombuffer(self.take(count * item_bytes, key), SCALARS[kind]).copy()

    def _strings(self, key: str, count: int) -> list[str]:
        """Read many strings in one loop: vocabularies hold hundreds of thousands."""
        data, end, position, found = self.data, len(self.data), self.position, []
        for _ in range(count):
            start = position + 8
            position = start + int.from_bytes(data[position:start], "little")
            if start > end or position > end:
                raise GgufError(f"{self.path}: truncated or damaged in the strings of {key!r}")
            try:
                found.append(data[start:position].decode("utf-8"))
            except UnicodeDecodeError as error:
                raise GgufError(f"{self.path}: {key!r} is not UTF-8: {error}") from error
        self.position = position
        return found


class GgufFile:
    """One memory-mapped GGUF file: `metadata` (key to value) and `tensors` (name to place).

    Raises:
        GgufError: missing, truncated, unsupported, or a header that breaks the format's rules.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise GgufError(f"{self.path}: no such GGUF file")
        with self.path.open("rb") as stream:
            if stream.seek(0, 2) < 24:
                raise GgufError(f"{self.path}: truncated; shorter than a GGUF header (24 bytes)")
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(self._map, self.path)
        if (magic := cursor.take(4, "the magic")) != MAGIC:
            raise GgufError(f"{self.path}: expected the magic {MAGIC!r}, found {magic!r}")
        version = int.from_bytes(cursor.take(4, "the version"), "little")
        if version not in (2, 3):
            raise GgufError(
                f"{self.path}: GGUF version {version} is not supported (2 and 3 are, "
                f"little-endian); convert the file with a current llama.cpp"
            )
        num_tensors = cursor.count("the number of tensors", MAX_TENSORS)
        num_metadata = cursor.count("the number of metadata entries", MAX_METADATA)
        self.metadata: dict[str, MetadataValue] = {}
        for _ in range(num_metadata):
            key = cursor.string("a metadata key", MAX_NAME_BYTES)
            if key in self.metadata:
                raise GgufError(f"{self.path}: the metadata key {reprlib.repr(key)} occurs twice")
            self.metadata[key] = cursor.value(key)
        self.tensors = self._read_tensors(cursor, num_tensors)

    def _read_tensors(self, cursor: _Cursor, count: int) -> dict[str, GgufTensor]:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= 2**20 or alignment.bit_count() != 1:
            raise GgufError(f"{self.path}: general.alignment is {alignment!r}, no power of two")
        found: dict[str, tuple[tuple[int, ...], BlockType, int]] = {}
        for _ in range(count):
            name = cursor.string("a tensor name", MAX_NAME_BYTES)
            if problem := name_problem(name):
                raise GgufError(f"{self.path}: {problem}")
            if name in found:
                raise GgufError(f"{self.path}: tensor {name!r} occurs twice; write the file anew")
            found[name] = self._read_info(cursor, name, alignment)
        start = cursor.position + -cursor.position % alignment
        tensors, used = {}, 0
        for name, (shape, block, offset) in sorted(found.items(), key=lambda item: item[1][2]):
            size = math.prod(shape) // block.weights * block.size_bytes
            if offset < used:
                raise GgufError(f"{self.path}: tensor {name!r} overlaps the one before it")
            used = offset + size
            if start + used > len(self._map):
                raise GgufError(
                    f"{self.path}: truncated; tensor {name!r} ends at byte {start + used}, the "
                    f"file at {len(self._map)}: fetch it again"
                )
            tensors[name] = GgufTensor(shape, block, start + offset, size)
        return {name: tensors[name] for name in found}

    def _read_info(
        self, cursor: _Cursor, name: str, alignment: int
    ) -> tuple[tuple[int, ...], BlockType, int]:
        num_axes = cursor.count(f"the number of axes of {name!r}", 4, 4)
        axes = [cursor.count(f"an axis of {name!r}", 2**40) for _ in range(num_axes)]
        number = int.from_bytes(cursor.take(4, f"the type of {name!r}"), "little")
        if number not in BLOCKS:
            kind = UNSUPPORTED.get(number, f"number {number}")
            raise GgufError(
                f"{self.path}: tensor {name!r} has type {kind}; supported: "
                f"{', '.join(BLOCKS_BY_NAME)}; convert the checkpoint to one of these"
            )
        offset = int.from_bytes(cursor.take(8, f"the offset of {name!r}"), "little")
        if offset % alignment:
            raise GgufError(f"{self.path}: tensor {name!r} is not aligned to {alignment} bytes")
        block = BLOCKS[number]
        if math.prod(axes) > 2**48 or (axes and axes[0] % block.weights):
            raise GgufError(f"{self.path}: tensor {name!r} has axes {axes} for type {block.name}")
        if not axes and block.weights > 1:
            raise GgufError(f"{self.path}: tensor {name!r} is a scalar of type {block.name}")
        return tuple(reversed(axes)), block, offset

    def names(self) -> list[str]:
        return list(self.tensors)

    def info(self, name: str) -> GgufTensor:
        if name not in self.tensors:
            raise GgufError(f"{self.path}: tensor {name!r} is missing")
        return self.tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.info(name).shape

    def tensor(self, name: str) -> np.ndarray:
        """Return the tensor as float32, read and dequantised now; nothing is kept."""
        info = self.info(name)
        raw = np.frombuffer(self._map, np.uint8, count=info.size_bytes, offset=info.offset)
        with np.errstate(invalid="ignore", over="ignore"):  # damaged scales may be inf or nan
            values = info.block.dequantize(raw.reshape(-1, info.block.size_bytes))
        return values.reshape(info.shape)


def write_gguf(
    path: Path | str,
    metadata: Mapping[str, MetadataValue],
    sources: Iterable[tuple[TensorSource, str]],
) -> WrittenFile:
    """Write a GGUF version 3 file, one tensor at a time, atomically.

    Args:
        path: the file to make or replace.
        metadata: values by key. Python ints become uint32 (int32 if negative, 64 bits where
            needed), floats float32, lists of text string arrays, numpy arrays keep their type.
        sources: tensors with the type each is stored as: F32, F16, BF16 or Q8_0 (the last needs
            an innermost axis divisible by 32).

    Raises:
        ValueError: a type that cannot be written, or a shape that does not fit its type.
    """
    path, sources = Path(path), list(sources)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int)
    header = [MAGIC, struct.pack("<IQQ", 3, len(sources), len(metadata))]
    for key, value in metadata.items():
        header += [_string(key), _encode_value(key, value)]
    sizes, offset = [], 0
    for source, kind in sources:
        block = _writable_block(source, kind)
        size = math.prod(source.shape) // block.weights * block.size_bytes
        axes = tuple(reversed(source.shape))
        header.append(_string(source.name))
        header.append(struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, block.number, offset))
        sizes.append(size)
        offset += size + -size % alignment
    text = b"".join(header)
    text += bytes(-len(text) % alignment)
    with AtomicFile(path) as file:
        file.write(text)
        for (source, kind), size in zip(sources, sizes, strict=True):
            file.write(_stored_bytes(source.loaded(), kind))
            file.write(bytes(-size % alignment))
    return file.written()


def _writable_block(source: TensorSource, kind: str) -> BlockType:
    if kind not in ("F32", "F16", "BF16", "Q8_0"):
        raise GgufError(f"tensor {source.name!r}: cannot write type {kind!r}; F32, F16, BF16, Q8_0")
    block = BLOCKS_BY_NAME[kind]
    if not source.shape or source.shape[-1] % block.weights:
        raise GgufError(
            f"tensor {source.name!r} of shape {source.shape} cannot be stored as {kind}: the last "
            f"axis must divide by {block.weights}; use F16"
        )
    return block


def _stored_bytes(array: np.ndarray, kind: str) -> memoryview:
    if kind == "Q8_0":
        return as_bytes(quantize_q8_0(array.reshape(-1, 32)))
    target = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    return as_bytes(array.astype(target, copy=False))


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _encode_value(key: str, value: MetadataValue) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING_TYPE) + _string(value)
    if isinstance(value, list):
        if not all(isinstance(item, str) for item in value):
            raise GgufError(f"metadata {key!r}: a list must hold text; use numpy for numbers")
        head = struct.pack("<IIQ", ARRAY_TYPE, STRING_TYPE, len(value))
        return head + b"".join(map(_string, value))
    if isinstance(value, np.ndarray):
        number = SCALAR_NUMBERS.get(value.dtype)
        if number is None or value.ndim != 1:
            raise GgufError(f"metadata {key!r}: cannot write {value.dtype} of shape {value.shape}")
        return struct.pack("<IIQ", ARRAY_TYPE, number, value.size) + value.tobytes()
    if isinstance(value, bool):
        dtype = SCALARS[BOOL_TYPE]
    elif isinstance(value, float):
        dtype = SCALARS[6]
    else:
        wide = value.bit_length() > 31
        dtype = SCALARS[(11 if wide else 5) if value < 0 else (10 if wide else 4)]
    return struct.pack("<I", SCALAR_NUMBERS[dtype]) + np.array(value, dtype).tobytes()
