"""Daft, told to be silent: no telemetry, no progress bar. The only module that imports it.

Daft reports each import and each start of a runner over the network unless its environment says
otherwise; so the environment is set before it is imported. The workers of a Ray cluster get the
same environment with the job; a caller who starts Ray himself hands SILENT to its runtime_env.
"""

import functools
import os
from types import ModuleType
from typing import Any

SILENT = {
    "DAFT_ANALYTICS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "SCARF_NO_ANALYTICS": "1",
    "DAFT_PROGRESS_BAR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@functools.cache
def start(runner: str = "native", ray_address: str | None = None) -> ModuleType:
    """Return Daft, on the wanted runner. A process has one runner for good: Daft refuses another.

    Args:
        runner: "native" (this machine) or "ray".
        ray_address: of a running Ray cluster; Ray's own default without one.

    Raises:
        ImportError: Daft, or Ray where it is asked for, is not installed.
    """
    os.environ.update(SILENT)
    try:
        import daft
    except ImportError as error:
        raise ImportError(
            "the near-duplicate join needs the package daft; install the extra with "
            "MISTRAL_JAX_LOCKS=data"
        ) from error
    if runner == "ray":
        _set_ray(daft, ray_address)
    else:
        daft.set_runner_native()
    return daft


def _set_ray(daft: Any, address: str | None) -> None:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "runner: ray needs the package ray; install it with pip install 'mistral_jax[ray]', "
            "or take runner: native"
        ) from error
    if not ray.is_initialized():
        ray.init(
            address=address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            runtime_env={"env_vars": SILENT},
        )
    daft.set_runner_ray(address, noop_if_initialized=True)
