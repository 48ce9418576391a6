"""The run directory that the report's tests share."""

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("fake_run", Path(__file__).parent / "fake_run.py")
assert _SPEC and _SPEC.loader
fake_run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fake_run)


@pytest.fixture
def run_directory(tmp_path):
    return fake_run.make_run(tmp_path / "demo_finetune-00000000")
