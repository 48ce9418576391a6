"""Damaged files by the thousand: refused with our ValueError or read, never a crash or a hang.

Every mutant is opened as a checkpoint and read to its last tensor, a GGUF's vocabulary too. The
seeds are fixed; `pytest -m slow tests/formats/test_fuzz.py` runs the long version.
"""

import dataclasses
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mistral_jax import tokenizers
from mistral_jax.formats import detect
from mistral_jax.formats import gguf_config
from mistral_jax.formats import gguf_file
from mistral_jax.formats import hf_config
from mistral_jax.formats import names
from mistral_jax.formats import safetensors_file
from mistral_jax.formats.tensor_source import TensorSource
from mistral_jax.models import weights
from tests import tiny

DECODER = tiny.decoder(259, num_layers=1)
LIMIT_S = 5.0  # for one mutant; a sound one takes milliseconds, a hang for ever
MAX_MESSAGE = 3000
Numbers = np.random.Generator


def sources(format: str) -> list[TensorSource]:
    numbers = np.random.default_rng(0)
    return [
        TensorSource(
            entry.foreign_name,
            entry.shape,
            np.dtype(np.float32),
            lambda size=entry.shape: numbers.normal(size=size).astype(np.float32),
        )
        for entry in names.entries(DECODER, format)
    ]


def safetensors_seed(folder: Path) -> Path:
    safetensors_file.write_safetensors(folder, sources("hf"))
    config = hf_config.hf_config(DECODER.model_dump(), "float32")
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


def gguf_seed(folder: Path) -> Path:
    metadata = gguf_config.gguf_metadata(DECODER.model_dump(), name="seed", file_type="F32")
    metadata |= tokenizers.load_tokenizer("bytes").gguf_metadata()
    kinds = ("F32", "F16", "BF16", "Q8_0")
    stored = [
        (source, kinds[number % 4] if len(source.shape) > 1 else "F32")
        for number, source in enumerate(sources("gguf"))
        if source.shape[-1] % 32 == 0 or len(source.shape) > 1
    ]
    stored = [(s, kind if s.shape[-1] % 32 == 0 else "F32") for s, kind in stored]
    return gguf_file.write_gguf(folder / "x.gguf", metadata, stored).path


def mutate_bytes(raw: bytes, end: int, numbers: Numbers) -> bytes:
    """Damage a file's first `end` bytes, as a bad disk or writer would, or a clever one."""
    mutant = bytearray(raw)
    for _ in range(numbers.integers(1, 4)):
        place = int(numbers.integers(0, end))
        match numbers.integers(0, 6):
            case 0 | 1:
                mutant[place] = numbers.integers(0, 256)
            case 2:
                mutant[place] ^= 1 << int(numbers.integers(0, 8))
            case 3:
                mutant[place : place + int(numbers.integers(1, 9))] = b""
            case 4:
                mutant[place:place] = numbers.bytes(int(numbers.integers(1, 9)))
            case 5:
                odd = (0, 1, 2**31, 2**32 - 1, 2**40 - 1, 2**63, 2**64 - 1, 10**6)
                value = odd[numbers.integers(0, len(odd))]
                mutant[place : place + 8] = struct.pack("<Q", value)
    if numbers.random() < 0.1:
        del mutant[int(numbers.integers(0, len(mutant))) :]
    return bytes(mutant)


ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 0.5, 1e999, float("nan"), "", "F32", "F4",
    "../../x", "\x00", "\ud800", "x" * 2000, [], [0], [0] * 9, [[0]], [2**62, 2**62], [-1, 4],
    [0, 10**30], {}, {"dtype": "F32"},
)  # fmt: skip


def mutate_header(raw: bytes, numbers: Numbers) -> bytes:
    """Change the header's content and keep it JSON: values, names, offsets, doubled keys."""
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    name = str(numbers.choice([key for key in header if key != "__metadata__"]))
    other = str(numbers.choice([key for key in header if key != "__metadata__"]))
    odd = ODD_VALUES[numbers.integers(0, len(ODD_VALUES))]
    match numbers.integers(0, 8):
        case 0 | 1:
            header[name][str(numbers.choice(["dtype", "shape", "data_offsets"]))] = odd
        case 2:
            header[name] = odd
        case 3:
            header[odd if isinstance(odd, str) else f"{name}.x"] = header.pop(name)
        case 4:
            header[name]["data_offsets"] = header[other]["data_offsets"]
        case 5:
            header[name]["shape"] = header[other]["shape"][::-1]
        case 6:
            header["__metadata__"] = odd
        case 7:
            del header[name]
    text = json.dumps(header).encode()
    if numbers.random() < 0.1:
        text = text.replace(other.encode(), name.encode())  # a doubled name
    if numbers.random() < 0.03:
        text = b'{"a":' * 50_000 + text
    return len(text).to_bytes(8, "little") + text + raw[end:]


def safetensors_mutant(raw: bytes, numbers: Numbers) -> bytes:
    if numbers.random() < 0.5:
        return mutate_header(raw, numbers)
    return mutate_bytes(raw, 8 + int.from_bytes(raw[:8], "little"), numbers)


def read_checkpoint(path: Path) -> None:
    """Do all that an import does with a file, short of writing it again."""
    opened = detect.open_weights(path)
    weights.config_of(opened)
    for entry in opened.entries():
        assert names.from_foreign(opened.tensor(entry.foreign_name), entry).size
    for name in opened.left_out:
        opened.shape(name)
    if path.suffix == ".gguf":
        tokenizers.load_tokenizer(path).encode("a text")


@dataclasses.dataclass
class Tally:
    refused: int = 0
    read: int = 0
    slowest_s: float = 0.0


def fuzz(path: Path, mutant: Callable[[bytes, Numbers], bytes], count: int) -> Tally:
    """Read mutants of a file; the number of the one that is read otherwise stands in the error."""
    raw, tally = path.read_bytes(), Tally()
    for number in range(count):
        made = mutant(raw, np.random.default_rng(number))
        if not made:
            continue
        path.write_bytes(made)
        started = time.monotonic()
        try:
            read_checkpoint(path)
            tally.read += 1
        except ValueError as error:
            message = str(error)
            assert len(message) < MAX_MESSAGE, f"mutant {number}: {message[:200]}"
            assert "\n" not in message.strip(), f"mutant {number}: {message}"
            tally.refused += 1
        except Exception as error:
            raise AssertionError(f"mutant {number} ends in {error!r}") from error
        taken = time.monotonic() - started
        tally.slowest_s = max(tally.slowest_s, taken)
        assert taken < LIMIT_S, f"mutant {number} took {taken:.1f} s"
    return tally


def check(tally: Tally, count: int, least_refused: float) -> None:
    print(f"{count} mutants: {tally}")
    assert tally.refused > least_refused * count, "the mutants are too tame to show anything"
    assert tally.read > 0, "no mutant is read at all: the seed itself may be refused"


@pytest.mark.parametrize(
    "count", [1000, pytest.param(20_000, marks=pytest.mark.slow)]
)  # fmt: skip
def test_mutated_safetensors_headers_are_refused_or_read(tmp_path: Path, count: int) -> None:
    check(fuzz(safetensors_seed(tmp_path), safetensors_mutant, count), count, 0.8)


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_gguf_files_are_refused_or_read(tmp_path: Path, count: int) -> None:
    path = gguf_seed(tmp_path)
    file = gguf_file.GgufFile(path)
    header = min(info.offset for info in file.tensors.values())

    def mutant(raw: bytes, numbers: Numbers) -> bytes:
        end = header if numbers.random() < 0.9 else len(raw)
        return mutate_bytes(raw, end, numbers)

    check(fuzz(path, mutant, count), count, 0.3)


@pytest.mark.parametrize("seed", [safetensors_seed, gguf_seed])
def test_the_seeds_themselves_are_read(tmp_path: Path, seed: Callable[[Path], Path]) -> None:
    read_checkpoint(seed(tmp_path))
