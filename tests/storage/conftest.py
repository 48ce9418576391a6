"""The store of these tests; test_staging.py has one with smaller pieces of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import buckets
from tests import fake_s3


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_s3.Store]:
    """Return an S3 on loopback."""
    pytest.importorskip("boto3")
    with buckets.fake(tmp_path, monkeypatch) as served:
        yield served
