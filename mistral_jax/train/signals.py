"""Ctrl-C and SIGTERM as a request: the loop ends its step, saves, and says how to go on."""

import signal
import threading
import types

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
