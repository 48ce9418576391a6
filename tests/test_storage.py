"""Files by path and URI: atomic, conditional, digested; errors that say what to do."""

import hashlib
import os

import pytest

from mistral_jax import storage
from mistral_jax.storage.local import umask


def test_what_is_written_is_read_by_path_and_by_uri(tmp_path):
    target = tmp_path / "a/b.bin"
    storage.write_bytes(target, b"one")
    storage.write_bytes(f"file://{target}", b"two")
    assert storage.read_bytes(target) == storage.read_bytes(f"file://{target}") == b"two"
    assert storage.size_bytes(target) == 3
    assert storage.exists(target) and not storage.exists(tmp_path / "a")
    assert storage.digest(target) == hashlib.sha256(b"two").hexdigest()
    with storage.open_read(target) as file:
        assert file.read(1) == b"t"
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask()


def test_a_failed_write_leaves_what_was_there_and_no_litter(tmp_path):
    target = tmp_path / "a.bin"
    storage.write_bytes(target / "inner", b"old")
    with pytest.raises(IsADirectoryError):
        storage.write_bytes(target, b"new")
    assert os.listdir(tmp_path) == ["a.bin"]
    assert (target / "inner").read_bytes() == b"old"


def test_a_conditional_write_is_refused_when_the_file_exists(tmp_path):
    target = tmp_path / "a.bin"
    storage.write_bytes(target, b"first", only_if_absent=True)
    with pytest.raises(storage.AlreadyExists, match=r"a\.bin"):
        storage.write_bytes(target, b"second", only_if_absent=True)
    assert target.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_files_are_listed_sorted_and_deep(tmp_path):
    for name in ("b", "a/z", "a/c/d"):
        storage.write_bytes(tmp_path / name, b"")
    names = [os.path.relpath(path, tmp_path) for path in storage.list_files(tmp_path)]
    assert names == ["a/c/d", "a/z", "b"]


def test_a_missing_file_and_an_unknown_scheme_are_named(tmp_path):
    with pytest.raises(storage.StorageError, match="no such file"):
        storage.read_bytes(tmp_path / "gone")
    with pytest.raises(storage.StorageError, match=r"one of file://, s3://, gs://; got ftp://"):
        storage.read_bytes("ftp://host/x")
    with pytest.raises(storage.StorageError, match="the bucket is missing"):
        storage.split_bucket("s3:///key")


def test_space_is_checked_with_both_numbers(tmp_path):
    storage.require_space(tmp_path / "not/yet/there", 1, what="a test")
    with pytest.raises(storage.DiskSpaceError, match=r"a test needs about 1,099,511,627,776 MiB"):
        storage.require_space(tmp_path, 1 << 60, what="a test")


def test_a_full_disk_is_a_disk_space_error_and_the_old_file_stays(tmp_path):
    with pytest.raises(storage.DiskSpaceError, match="the disk is full"):
        try:
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(b"x")
        except OSError as error:
            storage.raise_if_disk_full(error, tmp_path)
    storage.raise_if_disk_full(OSError(2, "other"), tmp_path)
