"""Sends cases into the sandbox and reads their outcomes; the clock and the last word are here."""

import base64
import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from pathlib import PurePosixPath

from mistral_jax.sandbox import bubblewrap
from mistral_jax.sandbox import system_calls
from mistral_jax.sandbox.bubblewrap import SandboxMissing
from mistral_jax.sandbox.bubblewrap import View

START_S = 120.0  # for the start of the sandbox, with what a view imports first
PYTHON_ONLY = View()
GRACE_S = 5.0  # beyond a case's own wall time: killing and emptying
MAX_STDERR_SHOWN = 400


@dataclass(frozen=True, slots=True)
class Limits:
    """What one case may use.

    Attributes:
        wall_s: time by the clock, then everything is killed.
        cpu_s: CPU time of one process, at least 1 s.
        memory_bytes: address space of one process.
        file_bytes: size of one file.
        work_bytes: size of the work folder; it is one for all cases of a sandbox.
        num_processes: processes and threads, the program itself included.
        num_files: open files.
        output_bytes: kept of stdout and of stderr; a program that says more is killed.
    """

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_bytes: int = 512 << 20
    file_bytes: int = 8 << 20
    work_bytes: int = 32 << 20
    num_processes: int = 16
    num_files: int = 64
    output_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """One program.

    Attributes:
        program: Python source, which runs as /box/main.py; or an argv with an absolute program.
        files: name below the work folder -> content.
        stdin: what it reads.
        cpu_s: its own CPU time, in place of the batch's where it is less; of its first process.
    """

    program: str | Sequence[str]
    files: Mapping[str, bytes] = field(default_factory=dict)
    stdin: bytes = b""
    cpu_s: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended.

    Attributes:
        status: "ok" (exit code 0), "failed", "timeout" (wall or CPU), "output_limit", or "lost":
            the sandbox itself broke down under the case.
        exit_code: minus the signal's number if a signal ended it.
        stdout, stderr: as UTF-8, with replacement marks; cut at the limit.
        wall_s: from its start to its end.
        cpu_s: of all its processes.
    """

    status: str
    exit_code: int
    stdout: str
    stderr: str
    wall_s: float
    cpu_s: float


def run(
    program: str | Sequence[str],
    *,
    files: Mapping[str, bytes] | None = None,
    stdin: bytes = b"",
    limits: Limits = Limits(),
    view: View = PYTHON_ONLY,
) -> Outcome:
    """Run one program in a sandbox of its own.

    Raises:
        SandboxMissing: there is no working bubblewrap.
        ValueError: a file's name leads out of the work folder.
    """
    return next(run_many([Case(program, files or {}, stdin)], limits=limits, view=view))


def run_many(
    cases: Iterable[Case],
    *,
    limits: Limits = Limits(),
    view: View = PYTHON_ONLY,
) -> Iterator[Outcome]:
    """Yield the outcome of each case, in order; they share a sandbox, one after the other.

    The sandbox starts with the first case and ends with the iterator. Iterate in one thread: the
    sandbox dies with the thread that started it.

    Raises:
        SandboxMissing, ValueError: as `run`.
    """
    with Sandbox(limits, view) as sandbox:
        for case in cases:
            yield sandbox.run(case)


def available() -> tuple[bool, str]:
    """Return whether the sandbox works here, and why not."""
    try:
        outcome = run("print(6 * 7)")
    except SandboxMissing as error:
        return False, str(error)
    if outcome.stdout != "42\n":
        return False, f"a program that prints 42 ended so in the sandbox: {outcome}"
    return True, ""


class Sandbox:
    """A running sandbox; use it as a context manager, in one thread."""

    def __init__(self, limits: Limits, view: View) -> None:
        self._limits = limits
        self._view = view
        self._process: subprocess.Popen | None = None
        self._errors = None

    def __enter__(self) -> "Sandbox":
        """Return itself; the sandbox starts with the first case."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the sandbox and all in it."""
        self.close()

    def close(self) -> None:
        """Kill the sandbox, if one runs, with all in it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None, "started with pipes"
            pipe.close()
        assert self._errors is not None, "made with the process"
        self._errors.close()

    def run(self, case: Case) -> Outcome:
        """Run one case; a new sandbox is started when the last case broke the one before."""
        wall_s = self._limits.wall_s
        frame = _frame(_request(case, asdict(self._limits) | {"own_cpu_s": case.cpu_s or 0.0}))
        if self._process is None:
            self._start()
        start = time.monotonic()
        deadline = start + wall_s + GRACE_S
        # Both streams in base64, and the rest of the answer.
        max_bytes = self._limits.output_bytes * 2 * 4 // 3 + 4096
        try:
            self._write(frame, deadline)
            answer = self._read(max_bytes, deadline)
            stdout, stderr = (
                base64.b64decode(answer[name]).decode(errors="replace")
                for name in ("stdout", "stderr")
            )
            numbers = answer["exit_code"], stdout, stderr, answer["wall_s"], answer["cpu_s"]
            outcome = Outcome(answer["status"], *numbers)
            is_clean = answer["is_clean"]
        except TimeoutError:
            outcome, is_clean = _lost("timeout", start), False
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            outcome, is_clean = _lost("lost", start), False
        if not is_clean:
            self.close()
        return outcome

    def _start(self) -> None:
        """Start the sandbox and wait until it is ready."""
        try:
            code = system_calls.build_filter()
        except ValueError as error:
            raise SandboxMissing(str(error)) from error
        view = self._view
        setup = {
            "limits": asdict(self._limits),
            "python_paths": view.python_paths,
            "preload": view.preload,
            "has_proc": view.has_proc,
        }
        work_bytes = self._limits.work_bytes
        with tempfile.TemporaryFile() as seccomp:
            seccomp.write(code)
            seccomp.flush()
            seccomp.seek(0)
            number = seccomp.fileno()
            argv = bubblewrap.command(
                view, work_bytes=work_bytes, seccomp=number, setup=json.dumps(setup)
            )
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  close() closes it
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                cwd="/",
                env={},
                pass_fds=(number,),
                start_new_session=True,
            )
        self._await_ready()

    def _await_ready(self) -> None:
        try:
            answer = self._read(1 << 20, time.monotonic() + START_S)
        except (OSError, EOFError, ValueError) as error:
            why = self._said() or f"nothing came ({type(error).__name__})"
        else:
            if isinstance(answer, dict) and "ready" in answer:
                return
            why = str(answer.get("error", answer))
        self.close()
        raise SandboxMissing(
            f"untrusted programs run only in a sandbox, and bubblewrap does not work here: {why}; "
            "it needs `apt-get install bubblewrap`, and user namespaces (in a container: root "
            "with CAP_SYS_ADMIN, or an ordinary user who may make them)"
        )

    def _said(self) -> str:
        assert self._errors is not None, "made with the process"
        size = os.fstat(self._errors.fileno()).st_size
        data = os.pread(self._errors.fileno(), MAX_STDERR_SHOWN, max(0, size - MAX_STDERR_SHOWN))
        return data.decode(errors="replace").strip()

    def _write(self, frame: bytes, deadline: float) -> None:
        assert self._process is not None and self._process.stdin is not None, "started with pipes"
        descriptor = self._process.stdin.fileno()
        os.set_blocking(descriptor, False)
        left = memoryview(frame)
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_WRITE)
            while left:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                left = left[os.write(descriptor, left) :]

    def _read(self, max_bytes: int, deadline: float) -> dict:
        """Read one answer; what lies about its length or shape is a ValueError or EOFError."""
        size = int.from_bytes(self._read_exactly(4, deadline), "little")
        if size > max_bytes:
            raise ValueError(f"an answer of {size} bytes")
        return json.loads(self._read_exactly(size, deadline))

    def _read_exactly(self, count: int, deadline: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None, "started with pipes"
        descriptor = self._process.stdout.fileno()
        parts = []
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while count:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(descriptor, min(count, 1 << 20))
                if not chunk:
                    raise EOFError
                parts.append(chunk)
                count -= len(chunk)
        return b"".join(parts)


def _request(case: Case, limits: dict) -> dict:
    """Return the case as inside.py reads it, its names checked."""
    is_source = isinstance(case.program, str)
    files = dict(case.files)
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name:
            raise ValueError(
                f"a file of a sandboxed program needs a relative name without `..`, not {name!r}"
            )
    if is_source:
        files["main.py"] = str(case.program).encode()
    elif not case.program or not case.program[0].startswith("/"):
        raise ValueError(f"a sandboxed program needs an absolute path, not {case.program!r}")
    return {
        "argv": [] if is_source else list(case.program),
        "files": {name: base64.b64encode(data).decode() for name, data in files.items()},
        "stdin": base64.b64encode(case.stdin).decode(),
        "limits": limits,
    }


def _frame(request: dict) -> bytes:
    data = json.dumps(request).encode()
    return len(data).to_bytes(4, "little") + data


def _lost(status: str, start: float) -> Outcome:
    return Outcome(status, -9, "", "", time.monotonic() - start, 0.0)
