"""Safetensors: against the reference library in both directions, odd headers, mutants, shards."""

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from mistral_jax.formats import safetensors_file
from mistral_jax.formats.safetensors_file import SafetensorsError
from mistral_jax.formats.tensor_source import TensorSource


def sources_of(arrays: dict[str, np.ndarray]) -> list[TensorSource]:
    return [TensorSource(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()]


def raw_file(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def example_arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "a.weight": generator.normal(size=(3, 5)).astype(np.float32),
        "b.weight": generator.normal(size=(7,)).astype(ml_dtypes.bfloat16),
        "c": np.arange(6, dtype=np.int64).reshape(2, 3),
        "empty": np.zeros((0, 4), np.float16),
        "scalar": np.array(3.5, np.float64),
    }


def test_the_reference_library_reads_what_we_write(tmp_path: Path) -> None:
    arrays = example_arrays()
    written = safetensors_file.write_safetensors_file(
        tmp_path / "x.safetensors", sources_of(arrays)
    )
    theirs = safetensors.numpy.load_file(written.path)
    assert set(theirs) == set(arrays)
    for name, array in arrays.items():
        assert theirs[name].dtype == array.dtype
        assert theirs[name].tobytes() == array.tobytes()
    assert written.size_bytes == written.path.stat().st_size
    assert written.sha256 == hashlib.sha256(written.path.read_bytes()).hexdigest()


def test_we_read_what_the_reference_library_writes(tmp_path: Path) -> None:
    arrays = example_arrays()
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    reader = safetensors_file.SafetensorsReader(path)
    assert sorted(reader.names()) == sorted(arrays)
    assert reader.metadata == {"format": "pt"}
    for name, array in arrays.items():
        assert reader.shape(name) == array.shape
        assert reader.tensor(name).tobytes() == array.tobytes()
        assert not reader.tensor(name).flags.writeable


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shapes=strategies.lists(
        strategies.lists(strategies.integers(0, 5), max_size=3), min_size=1, max_size=6
    ),
    limit=strategies.integers(1, 400),
    seed=strategies.integers(0, 2**31),
)
def test_shards_round_trip_bfloat16_byte_for_byte(
    tmp_path: Path, shapes: list[list[int]], limit: int, seed: int
) -> None:
    folder = tmp_path / f"{seed}-{limit}-{len(shapes)}"
    bits = np.random.default_rng(seed).integers
    arrays = {
        f"t{i}": np.asarray(bits(0, 2**16, shape, dtype=np.uint16)).view(ml_dtypes.bfloat16)
        for i, shape in enumerate(shapes)
    }
    written = safetensors_file.write_safetensors(folder, sources_of(arrays), max_shard_bytes=limit)
    reader = safetensors_file.SafetensorsReader(folder)
    assert sorted(reader.names()) == sorted(arrays)
    for name, array in arrays.items():
        assert reader.tensor(name).tobytes() == array.tobytes()
    assert (folder / safetensors_file.INDEX_NAME).exists() == (len(written) > 1)
    # Undo, as examples share the folder's parent and may repeat.
    for file in folder.iterdir():
        file.unlink()


def test_writing_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    def load(number: int) -> np.ndarray:
        alive.append(number)
        assert list(tmp_path.glob(".*.partial")), "a tensor was loaded before the file was opened"
        return np.full((4,), number, np.float32)

    shards = [
        TensorSource(f"t{i}", (4,), np.dtype(np.float32), lambda i=i: load(i)) for i in range(4)
    ]
    safetensors_file.write_safetensors(tmp_path, iter(shards), max_shard_bytes=32)
    assert alive == [0, 1, 2, 3]
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("max_shard_bytes", [1, 1 << 20])
def test_a_failing_source_leaves_nothing_behind(tmp_path: Path, max_shard_bytes: int) -> None:
    good = TensorSource("v", (1,), np.dtype(np.float32), lambda: np.zeros(1, np.float32))
    wrong = TensorSource("w", (2, 2), np.dtype(np.float32), lambda: np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"'w'.*\(2, 2\).*\(2, 3\)"):
        safetensors_file.write_safetensors(tmp_path, [good, wrong], max_shard_bytes=max_shard_bytes)
    assert not list(tmp_path.iterdir())


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"": entry()}, "empty"),
        ({"a\0b": entry()}, "not printable"),
        ({"../../x": entry()}, "file path"),
        ({"/etc/x": entry()}, "file path"),
        ({"a": entry(dtype="F17")}, "F17"),
        ({"a": entry(shape=(2,))}, "needs 8"),
        ({"a": entry(shape=(-1,))}, "shape"),
        ({"a": entry(shape=(True,))}, "shape"),
        ({"a": entry(shape=(0, 2**62))}, "offsets"),
        ({"a": entry(shape=(0, 10**30), offsets=(0, 0))}, r"x\.safetensors: tensor 'a'.*shape"),
        ({"a": entry(offsets=(4, 0))}, "offsets"),
        ({"a": entry(offsets=(1, 5))}, "begins at byte 1"),
        ({"a": entry(), "b": entry()}, "overlap"),
        ({"a": {"dtype": "F32"}}, "exactly"),
        ({"a": [1]}, "exactly"),
        ({"__metadata__": {"a": 1}, "a": entry()}, "text to text"),
        ([1], "list"),
    ],
)
def test_odd_headers_are_refused(tmp_path: Path, header: object, message: str) -> None:
    path = raw_file(tmp_path / "x.safetensors", json.dumps(header).encode(), bytes(4))
    with pytest.raises(SafetensorsError, match=message):
        safetensors_file.SafetensorsFile(path)


def test_duplicate_keys_are_refused(tmp_path: Path) -> None:
    one = json.dumps(entry())
    path = raw_file(tmp_path / "x.safetensors", f'{{"a":{one},"a":{one}}}'.encode(), bytes(4))
    with pytest.raises(SafetensorsError, match="'a' occurs twice"):
        safetensors_file.SafetensorsFile(path)


@pytest.mark.parametrize("header", [b"[" * 100_000, b"{", b"\xff\xfe", b"9" * 5000])
def test_headers_that_are_no_json_are_refused(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(SafetensorsError):
        safetensors_file.SafetensorsFile(raw_file(tmp_path / "x.safetensors", header))


def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path) -> None:
    arrays = {"a": np.zeros((100,), np.float32)}
    written = safetensors_file.write_safetensors_file(
        tmp_path / "x.safetensors", sources_of(arrays)
    )
    raw = written.path.read_bytes()
    written.path.write_bytes(raw[:-10])
    with pytest.raises(SafetensorsError, match=f"x.safetensors.*{len(raw)} bytes.*{len(raw) - 10}"):
        safetensors_file.SafetensorsFile(written.path)
    written.path.write_bytes(raw[:5])
    with pytest.raises(SafetensorsError, match="at least 8 bytes, found 5"):
        safetensors_file.SafetensorsFile(written.path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../x.safetensors"}}, "beside the index"),
        ({"weight_map": {"a": "/x.safetensors"}}, "beside the index"),
        ({"weight_map": {"a": ""}}, "beside the index"),
        ({"weight_map": {"missing": "x.safetensors"}}, "'missing' is not in x.safetensors"),
        ({"weight_map": {"a": "absent.safetensors"}}, "no such"),
        ({"weight_map": []}, "weight_map"),
        ({}, "weight_map"),
    ],
)
def test_bad_indexes_are_refused(tmp_path: Path, index: object, message: str) -> None:
    safetensors_file.write_safetensors_file(
        tmp_path / "x.safetensors", sources_of({"a": np.zeros(1, np.float32)})
    )
    (tmp_path / safetensors_file.INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(SafetensorsError, match=message):
        safetensors_file.SafetensorsReader(tmp_path)


def test_header_mutants_are_refused_or_read_never_worse(tmp_path: Path) -> None:
    written = safetensors_file.write_safetensors_file(
        tmp_path / "x.safetensors", sources_of(example_arrays())
    )
    raw = written.path.read_bytes()
    header_end = 8 + int.from_bytes(raw[:8], "little")
    generator, refused = np.random.default_rng(0), 0
    for _ in range(1000):
        mutant = bytearray(raw)
        for position in generator.integers(0, header_end, generator.integers(1, 4)):
            mutant[position] = generator.integers(0, 256)
        written.path.write_bytes(mutant)
        try:
            file = safetensors_file.SafetensorsFile(written.path)
            assert all(file.tensor(name).size >= 0 for name in file.names())
        except SafetensorsError:
            refused += 1
    assert refused > 900
