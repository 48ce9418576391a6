"""What the sharded tests share: one tiny model, its batches, and five steps on any mesh."""

import importlib.util
from pathlib import Path
from types import ModuleType

import jax
import pytest

_PATH = Path(__file__).parent / "tiny_training.py"
_SPEC = importlib.util.spec_from_file_location("tiny_training", _PATH)
assert _SPEC and _SPEC.loader
tiny_training = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny_training)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Return tests/sharded/tiny_training.py; its results on one device are kept for all tests."""
    assert len(jax.devices()) == 8, "run these by `-m sharded`, which makes 8 virtual devices"
    return tiny_training
