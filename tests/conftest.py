"""Test-wide JAX settings, made before JAX starts a backend.

Tests run on the CPU, except where the markers gpu or tpu are asked for. The sharded suite gets
eight virtual CPU devices; every other suite one, as a user has.
"""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Set the JAX platform and the number of virtual devices from the chosen markers."""
    wanted = config.option.markexpr.replace("not ", "not_").split()
    if "gpu" not in wanted and "tpu" not in wanted:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if "sharded" in wanted:
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_force_host_platform_device_count" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
