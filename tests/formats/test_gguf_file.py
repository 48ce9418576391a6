"""GGUF: against the gguf package in both directions, every block type, damaged headers."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from mistral_jax.formats import gguf_blocks
from mistral_jax.formats import gguf_file
from mistral_jax.formats.gguf_file import GgufError
from mistral_jax.formats.tensor_source import TensorSource

QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", *QUANTISED])
def test_random_blocks_dequantise_as_the_gguf_package_does(name: str) -> None:
    block = gguf_blocks.BLOCKS_BY_NAME[name]
    raw = np.random.default_rng(0).integers(0, 256, (64, block.size_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        ours = block.dequantize(raw)
        theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType[name])
    assert ours.dtype == np.float32
    assert ours.shape == (64, block.weights)
    np.testing.assert_array_equal(ours, theirs.reshape(ours.shape))


def test_q8_0_quantises_to_the_same_bytes_as_the_gguf_package() -> None:
    values = np.random.default_rng(0).normal(size=(200, 32)).astype(np.float32)
    values[3] = 0
    values[4] = np.linspace(-127, 127, 32) + 0.5
    theirs = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(gguf_blocks.quantize_q8_0(values), theirs)


def write_by_package(path: Path) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_int32("x.negative", -5)
    writer.add_float32("x.float", 0.25)
    writer.add_float64("x.double", 0.1)
    writer.add_bool("x.flag", True)
    writer.add_uint64("x.long", 2**40)
    writer.add_string("x.text", "é▁")
    writer.add_array("x.words", ["a", "", "日本"])
    writer.add_array("x.numbers", [1, -2, 3])
    arrays = {}
    for kind in ("F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        values = generator.normal(size=(4, 64)).astype(np.float32)
        number = gguf.GGMLQuantizationType[kind]
        raw = gguf.quantize(values, number)
        writer.add_tensor(f"t.{kind}", raw, raw_dtype=number)
        arrays[f"t.{kind}"] = gguf.dequantize(raw, number).reshape(4, 64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


def test_we_read_what_the_gguf_package_writes(tmp_path: Path) -> None:
    arrays = write_by_package(tmp_path / "x.gguf")
    file = gguf_file.GgufFile(tmp_path / "x.gguf")
    metadata = dict(file.metadata)
    np.testing.assert_array_equal(metadata.pop("x.numbers"), [1, -2, 3])
    assert metadata == {
        "general.architecture": "llama",
        "llama.block_count": 3,
        "x.negative": -5,
        "x.float": 0.25,
        "x.double": 0.1,
        "x.flag": True,
        "x.long": 2**40,
        "x.text": "é▁",
        "x.words": ["a", "", "日本"],
    }
    assert set(file.names()) == set(arrays)
    for name, array in arrays.items():
        assert file.shape(name) == (4, 64)
        np.testing.assert_array_equal(file.tensor(name), array)


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=(3, 64)).astype(np.float32)
    kinds = ("F32", "F16", "BF16", "Q8_0")
    sources = [
        (TensorSource(kind, (3, 64), np.dtype(np.float32), lambda: values), kind) for kind in kinds
    ]
    metadata: dict[str, gguf_file.MetadataValue] = {
        "general.architecture": "llama",
        "n": 7,
        "negative": -7,
        "long": 2**40,
        "f": 0.5,
        "yes": True,
        "words": ["a", "日本"],
        "scores": np.array([0.5, -1.0], np.float32),
    }
    written = gguf_file.write_gguf(tmp_path / "x.gguf", metadata, sources)
    assert written.size_bytes == written.path.stat().st_size
    reader = gguf.GGUFReader(written.path)
    for key, value in metadata.items():
        found = reader.fields[key].contents()
        expected = value.tolist() if isinstance(value, np.ndarray) else value
        assert found == expected, key
    for tensor in reader.tensors:
        number = gguf.GGMLQuantizationType[tensor.name]
        assert tensor.tensor_type == number
        assert tensor.shape.tolist() == [64, 3]
        expected = gguf.dequantize(gguf.quantize(values, number), number)
        np.testing.assert_array_equal(
            gguf.dequantize(tensor.data, number).reshape(3, 64), expected.reshape(3, 64)
        )
    ours = gguf_file.GgufFile(written.path)
    np.testing.assert_array_equal(ours.tensor("F32"), values)


@pytest.mark.parametrize(
    ("kind", "shape"), [("Q8_0", (2, 33)), ("Q4_1", (2, 32)), ("F32", ()), ("nonsense", (2,))]
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, kind: str, shape: tuple) -> None:
    source = TensorSource("t", shape, np.dtype(np.float32), lambda: np.zeros(shape, np.float32))
    with pytest.raises(GgufError, match="'t'"):
        gguf_file.write_gguf(tmp_path / "x.gguf", {}, [(source, kind)])
    assert not list(tmp_path.iterdir())


def header(version: int = 3, tensors: int = 0, metadata: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, metadata) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "truncated"),
        (b"PK\3\4" + bytes(40), "magic"),
        (header(version=1), "version 1"),
        (header(version=0x03000000), "version"),
        (header(tensors=2**60), "number of tensors"),
        (header(metadata=2**60), "number of metadata"),
        (header(metadata=1, rest=text(b"a")), "truncated"),
        (header(metadata=1, rest=text(b"\xff") + bytes(8)), "UTF-8"),
        (header(metadata=1, rest=struct.pack("<Q", 2**63)), "metadata key"),
        (header(metadata=1, rest=text(b"a") + struct.pack("<I", 99)), "type of 'a'"),
        (header(metadata=1, rest=text(b"a") + struct.pack("<IIQ", 9, 4, 2**62)), "length of 'a'"),
        (header(metadata=1, rest=text(b"a") + struct.pack("<IIQ", 9, 9, 1)), "array of arrays"),
        (header(metadata=2, rest=(text(b"a") + struct.pack("<IB", 7, 1)) * 2), "twice"),
        (header(tensors=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 8, 999, 0)), "999"),
        (header(tensors=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 8, 0, 1)), "aligned"),
        (header(tensors=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 8, 2, 0)), "axes"),
        (header(tensors=1, rest=text(b"t") + struct.pack("<IQIQ", 1, 8, 0, 0)), "truncated"),
        (header(tensors=1, rest=text(b"t") + struct.pack("<I", 9)), "number of axes"),
        (header(tensors=1, rest=text(b"") + struct.pack("<IQIQ", 1, 8, 0, 0)), "empty"),
    ],
)
def test_odd_headers_are_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(raw)
    with pytest.raises(GgufError, match=message):
        gguf_file.GgufFile(tmp_path / "x.gguf")


def test_header_mutants_are_refused_or_read_never_worse(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_by_package(path)
    raw = path.read_bytes()
    data_bytes = sum(info.size_bytes for info in gguf_file.GgufFile(path).tensors.values())
    generator, refused = np.random.default_rng(0), 0
    for _ in range(2000):
        mutant = bytearray(raw)
        for position in generator.integers(0, len(raw) - data_bytes, generator.integers(1, 4)):
            mutant[position] = generator.integers(0, 256)
        if generator.random() < 0.1:
            mutant = mutant[: generator.integers(0, len(raw))]
        path.write_bytes(mutant)
        try:
            file = gguf_file.GgufFile(path)
            assert all(file.tensor(name).size >= 0 for name in file.names())
        except GgufError:
            refused += 1
    assert 200 < refused < 2000
