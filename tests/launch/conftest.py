"""What tests of many launches share."""

import functools

import pytest

from launch import bundle
from launch import target as target_lib


@pytest.fixture
def same_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the project's files and its targets once: thousands of launches find the same."""
    for module, name in ((target_lib, "load_target"), (bundle, "project_files")):
        monkeypatch.setattr(module, name, functools.cache(getattr(module, name)))
