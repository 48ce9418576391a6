"""Test-wide JAX settings, made before JAX starts a backend.

Tests run on the CPU, except where the markers gpu or tpu are asked for. The sharded suite gets
eight virtual CPU devices; every other suite one, as a user has. Most of the tests' time is LLVM's,
for programs that run once: the default and the sharded suite do without its optimisations, peers
and faults have them, as users do.
"""

import gc
import os

import pytest

# At its own threshold, a tenth of the time would go into looking at every object of every module.
ALLOCATIONS_PER_COLLECTION = 50_000


def pytest_configure(config: pytest.Config) -> None:
    """Set the JAX platform and the number of virtual devices from the chosen markers."""
    wanted = config.option.markexpr.replace("not ", "not_").split()
    if "gpu" not in wanted and "tpu" not in wanted:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if "sharded" in wanted:
        _add_flag("xla_force_host_platform_device_count", 8)
    if not {"peers", "faults", "gpu", "tpu"} & set(wanted):
        _add_flag("xla_backend_optimization_level", 0)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what lives as long as the process."""
    gc.freeze()
    gc.set_threshold(ALLOCATIONS_PER_COLLECTION)


def _add_flag(name: str, value: int) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()
