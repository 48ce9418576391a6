"""What the sharded tests share: one tiny model, its batches, and five steps on any mesh."""

from types import ModuleType

import jax
import pytest

from tests.sharded import tiny_training


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """Return tests/sharded/tiny_training.py; its results on one device are kept for all tests."""
    assert len(jax.devices()) == 8, "run these by `-m sharded`, which makes 8 virtual devices"
    return tiny_training
