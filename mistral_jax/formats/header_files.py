"""Weights' headers without the weights: files of the true size whose tensors are holes.

`inspect` and `plan` ask a far store for the first bytes of each file only; every reader of ours
opens what comes of it, as long as it asks for no tensor. The folder is never given out as weights.
"""

from collections.abc import Callable
from pathlib import Path

from mistral_jax.formats.gguf_file import GgufError
from mistral_jax.formats.gguf_file import GgufFile
from mistral_jax.formats.safetensors_file import MAX_HEADER_BYTES
from mistral_jax.formats.safetensors_file import SafetensorsError

# Headers of published shards are below 100 kB; GGUF's hold the vocabulary and its merges.
FIRST_READ_BYTES = 128 << 10
FIRST_GGUF_BYTES = 4 << 20
MAX_GGUF_BYTES = 256 << 20

ReadRange = Callable[[int, int], bytes]


def write_header(path: Path, size_bytes: int, read: ReadRange) -> None:
    """Write the header of a weights file, and a hole for the rest of it.

    Args:
        path: where; its suffix tells the format.
        size_bytes: the size of the whole file.
        read: returns bytes of it, given start and size.

    Raises:
        SafetensorsError, GgufError: it is not such a file; the message says what came.
    """
    partial = path.with_name(f".{path.name}.partial")
    if path.suffix == ".gguf":
        _write_gguf(partial, size_bytes, read)
    else:
        _write_holes(partial, _safetensors_header(path.name, size_bytes, read), size_bytes)
    partial.replace(path)


def _safetensors_header(name: str, size_bytes: int, read: ReadRange) -> bytes:
    raw = read(0, min(FIRST_READ_BYTES, size_bytes))
    end = 8 + int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or end > min(size_bytes, 8 + MAX_HEADER_BYTES):
        raise SafetensorsError(
            f"{name}: not a safetensors file, or truncated: {size_bytes} bytes, of which the "
            f"header claims {end}"
        )
    return raw[:end] if end <= len(raw) else raw + read(len(raw), end - len(raw))


def _write_gguf(path: Path, size_bytes: int, read: ReadRange) -> None:
    """Read more of the file until its header can be read."""
    raw, wanted = b"", FIRST_GGUF_BYTES
    while True:
        wanted = min(wanted, size_bytes)
        raw += read(len(raw), wanted - len(raw))
        _write_holes(path, raw, size_bytes)
        try:
            found = GgufFile(path)
            if min((i.offset for i in found.tensors.values()), default=wanted) <= wanted:
                return
        except GgufError:
            if wanted >= min(size_bytes, MAX_GGUF_BYTES) or raw[:4] != b"GGUF":
                raise
        wanted *= 2


def _write_holes(path: Path, raw: bytes, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(size_bytes)
