"""A process with limits on memory and time that decodes what strangers have made: PDFs, media.

It is kept for many inputs; one that crashes it or takes too long costs that input alone, and the
next one gets a new process. Knows frames and limits; what is decoded is the decoder file's work.
"""

import json
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from data_pipelines import decode_worker


class LimitedProcess:
    """Hands inputs to a decoder one by one; use it as a context manager."""

    def __init__(self, decoder: str | Path, *, timeout_s: float, memory_bytes: int):
        """Remember what to run; the process starts with the first input.

        Args:
            decoder: a Python file with `decode(hint: str, data: bytes) -> dict`, which imports
                nothing of ours.
            timeout_s: wall time for one input.
            memory_bytes: address space of the process.
        """
        self._command = [str(memory_bytes), str(decoder)]
        self._timeout_s = timeout_s
        self._process: subprocess.Popen | None = None
        self.over_limits = f"the reader ended or took over {timeout_s:g} s or "
        self.over_limits += f"{memory_bytes >> 20} MiB"

    def __enter__(self) -> "LimitedProcess":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process, if one runs."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:  # the dead process had not read all of the input
                    continue

    def ask(self, data: bytes, hint: str = "") -> dict | None:
        """Return the decoder's answer; None if it crashed, lied or was late (`over_limits`)."""
        answer = self._answer(data, hint)
        if answer is None:
            self.close()
        return answer

    def _answer(self, data: bytes, hint: str) -> dict | None:
        process = self._start()
        assert process.stdin is not None and process.stdout is not None, "started with pipes"
        name = hint.encode()
        try:
            sizes = len(name).to_bytes(8, "little") + len(data).to_bytes(8, "little")
            frame = memoryview(sizes + name + data)
            deadline = time.monotonic() + self._timeout_s
            while frame:  # a raw pipe may take less than all
                frame = frame[process.stdin.write(frame) :]
            size = _read_exactly(process.stdout, 8, deadline)
            count = int.from_bytes(size, "little")
            if count > decode_worker.MAX_ANSWER_BYTES:
                return None
            answer = json.loads(_read_exactly(process.stdout, count, deadline))
            return answer if isinstance(answer, dict) else None
        except (OSError, TimeoutError, EOFError, ValueError):
            return None

    def _start(self) -> subprocess.Popen:
        if self._process is None or self._process.poll() is not None:
            self.close()
            # -P keeps this package's folder off the path, where its names could hide others.
            command = [sys.executable, "-P", str(Path(decode_worker.__file__)), *self._command]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        return self._process


def _read_exactly(pipe, count: int, deadline: float) -> bytes:
    """Read bytes from an unbuffered pipe until the deadline.

    Raises:
        TimeoutError: the deadline passed.
        EOFError: the other end closed.
    """
    parts = []
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while count:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not selector.select(left_s):
                raise TimeoutError
            chunk = pipe.read(min(count, 1 << 20))
            if not chunk:
                raise EOFError
            parts.append(chunk)
            count -= len(chunk)
    return b"".join(parts)


class Reader:
    """What reads by a limited process; use it as a context manager."""

    def __init__(self, decoder: Path, *, timeout_s: float, memory_bytes: int):
        """Set the limits, as LimitedProcess does; the process starts with the first input."""
        self._process = LimitedProcess(decoder, timeout_s=timeout_s, memory_bytes=memory_bytes)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process, if one runs."""
        self._process.close()
