"""What the tests of a mixture's experts share."""

import sys
import types

import jax
import pytest

from mistral_jax.nn.kernels import experts_grouped


@pytest.fixture
def lax_as_tokamax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put jax's own general ragged product where tokamax's is looked for."""

    def general(left, right, sizes, dimensions, *, implementation, bypass_device_check, **others):
        assert implementation == experts_grouped.kernel_names()
        assert not bypass_device_check
        return jax.lax.ragged_dot_general(left, right, sizes, dimensions, **others)

    module = types.SimpleNamespace(ragged_dot_general=general)
    monkeypatch.setitem(sys.modules, "tokamax", module)
