"""Ctrl-C and SIGTERM as a request: the loop ends its step, saves, and says how to go on.

Of several processes one may be asked; all of them stop, after the same step.
"""

import signal
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Int

from mistral_jax import distributed
from mistral_jax import sharding

WATCHED = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context in which the first signal is remembered and the second one acts as usual.

    Outside the main thread, where Python allows no handlers, signals act as usual throughout.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._old: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        is_main = threading.current_thread() is threading.main_thread()
        for number in WATCHED if is_main else ():
            self._old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _remember(self, number: int, _: types.FrameType | None) -> None:
        self.received = signal.Signals(number)
        for watched, handler in self._old.items():
            signal.signal(watched, handler)  # pyright: ignore[reportArgumentType]


class SharedStop:
    """The requests of all processes, known to all at the same step.

    Each step starts one tiny reduction (4 bytes a device) and reads that of the step before, so
    that no device waits for it.
    """

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self._pending: Int[Array, ""] | None = None
        if distributed.is_shared():
            mesh = sharding.make_mesh({"data": jax.device_count()})
            self._sharding = sharding.named(("batch",), (jax.device_count(),), mesh)
            self._reduce = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))

    def poll(self) -> signal.Signals | None:
        """Return the signal that some process got, if any; all processes call at every step."""
        if not distributed.is_shared():
            return self._request.received
        previous, self._pending = self._pending, self._start()
        number = 0 if previous is None else int(previous)
        return signal.Signals(number) if number else None

    def _start(self) -> Int[Array, ""]:
        mine = np.array([self._request.received or 0], np.int32)
        shape = (jax.device_count(),)
        return self._reduce(jax.make_array_from_callback(shape, self._sharding, lambda _: mine))
