"""The program inside the sandbox: process 1 of its namespace, one forked child for each case.

Runs as a script and imports nothing of ours and little of the standard library: its start is paid
for by every batch. Frames are 4 bytes of length, little endian, then JSON. After each case it
kills all that is left in the namespace and empties the work folder; when it cannot, it ends, and
the next case gets a new sandbox. As process 1 it is out of reach of its children's signals.
"""

import atexit
import base64
import contextlib
import errno
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from importlib.machinery import SourceFileLoader

WORK = "/box"
MAIN = "main.py"
MAX_DEPTH = 64  # of folders that a case leaves behind
PR_SET_DUMPABLE = 4  # linux/prctl.h
Answer = dict[str, str | int | float]


def main() -> None:
    """Answer cases until stdin ends."""
    setup = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would let a child stop us
    sys.path.extend(setup["python_paths"])
    try:
        if setup["has_proc"]:
            hide_memory()
        for name in setup["preload"]:
            importlib.import_module(name)
        if not processes_are_limited():
            raise OSError("the limit on the number of processes does not bind")
    except (OSError, ImportError) as error:
        send({"error": f"{type(error).__name__}: {error}"})
        return
    empty_work()  # some libraries leave caches where they may
    send({"ready": 1})
    while (request := receive()) is not None:
        answer = run_case(request, setup["limits"])
        is_clean = empty_work()
        send(answer | {"is_clean": is_clean})
        if not is_clean:
            return


def receive() -> dict | None:
    """Return the next request, None at the end."""
    size = read_exactly(4)
    return json.loads(read_exactly(int.from_bytes(size, "little"))) if size else None


def read_exactly(count: int) -> bytes:
    """Read from stdin; what is cut off counts as the end."""
    parts = []
    while count:
        chunk = os.read(0, min(count, 1 << 20))
        if not chunk:
            return b""
        parts.append(chunk)
        count -= len(chunk)
    return b"".join(parts)


def send(answer: dict) -> None:
    """Write one frame to stdout."""
    frame = json.dumps(answer).encode()
    left = memoryview(len(frame).to_bytes(4, "little") + frame)
    while left:
        left = left[os.write(1, left) :]


def hide_memory() -> None:
    """Make /proc/1/mem and /proc/1/fd unreadable for the cases, which have our user id."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def processes_are_limited() -> bool:
    """Tell whether RLIMIT_NPROC binds here; the kernel exempts the host's root."""
    hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard[1]))
    try:
        pid = os.fork()
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, hard)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return False


def run_case(request: dict, limits: dict) -> Answer:
    """Run one program under the limits and say how it ended."""
    limits = limits | request["limits"]
    try:
        stdin = write_files(request)
    except OSError as error:
        return ended("failed", 1, [b"", f"cannot write the case's files: {error}".encode()], 0, 0)
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        become_case(request, (stdin, out_write, err_write), limits)
    for descriptor in (stdin, out_write, err_write):
        os.close(descriptor)
    kept = {out_read: bytearray(), err_read: bytearray()}
    status = watch(pid, kept, start + limits["wall_s"], limits["output_bytes"])
    wall_s = time.monotonic() - start
    code, cpu_s = end_all(pid)
    for descriptor, data in kept.items():
        if not read_rest(descriptor, data, limits["output_bytes"]):
            status = status or "output_limit"
        os.close(descriptor)
    if not status:
        # The kernel's clock and the usage that it tells may differ by a tick.
        is_over_cpu = code in (-signal.SIGXCPU, -signal.SIGPROF)
        is_over_cpu |= code == -signal.SIGKILL and cpu_s >= limits["cpu_s"]
        status = "timeout" if is_over_cpu else "failed" if code else "ok"
    return ended(status, code, list(kept.values()), wall_s, cpu_s)


def ended(status: str, code: int, output: list, wall_s: float, cpu_s: float) -> Answer:
    """Return the answer's fields."""
    stdout, stderr = (base64.b64encode(data).decode() for data in output)
    return {
        "status": status,
        "exit_code": code,
        "stdout": stdout,
        "stderr": stderr,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
    }


def write_files(request: dict) -> int:
    """Write the case's files; return a descriptor of its stdin."""
    for name, data in request["files"].items():
        path = os.path.join(WORK, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))
    path = os.path.join(WORK, ".stdin")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.unlink(path)
    left = memoryview(base64.b64decode(request["stdin"]))
    while left:
        left = left[os.write(descriptor, left) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def become_case(request: dict, descriptors: tuple[int, int, int], limits: dict) -> None:
    """Turn this forked child into the case's program; never returns."""
    code = 1
    try:
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.closerange(3, 4096)
        os.chdir(WORK)
        set_limits(limits)
        if request["argv"]:
            os.execv(request["argv"][0], request["argv"])
        sys.argv = [MAIN]
        sys.path.insert(0, WORK)
        code = run_main()
    except BaseException:  # noqa: BLE001  the border of a process: all becomes its exit code
        traceback.print_exc()
    finally:
        os._exit(code)


def run_main() -> int:
    """Run main.py as the interpreter would, with threads and exit functions; return the code."""
    code = 0
    try:
        module = type(sys)("__main__")
        module.__file__ = MAIN
        sys.modules["__main__"] = module
        SourceFileLoader("__main__", os.path.join(WORK, MAIN)).exec_module(module)
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
        code = 0 if stop.code is None else stop.code & 255 if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001  as the interpreter does
        traceback.print_exc()
        code = 1
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def set_limits(limits: dict) -> None:
    """Limit this process and what it starts."""
    cpu_s = limits["cpu_s"]
    for what, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["num_files"], limits["num_files"]),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        # Process 1 and the case itself count, too.
        (resource.RLIMIT_NPROC, limits["num_processes"] + 1, limits["num_processes"] + 1),
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
    ):
        resource.setrlimit(what, (soft, hard))
    if limits["own_cpu_s"]:  # finer than RLIMIT_CPU, which still holds for who ignores the signal
        signal.setitimer(signal.ITIMER_PROF, limits["own_cpu_s"])


def watch(pid: int, kept: dict[int, bytearray], deadline: float, output_bytes: int) -> str:
    """Collect output until the process ends (""), is late or says too much."""
    poller = select.poll()
    process = os.pidfd_open(pid)
    try:
        for descriptor in (process, *kept):
            poller.register(descriptor, select.POLLIN)
        while (left_s := deadline - time.monotonic()) > 0:
            ready = [descriptor for descriptor, _ in poller.poll(left_s * 1000)]
            for descriptor in (descriptor for descriptor in ready if descriptor in kept):
                data = os.read(descriptor, 1 << 16)
                if not data:
                    poller.unregister(descriptor)
                room = output_bytes - len(kept[descriptor])
                kept[descriptor] += data[:room]
                if len(data) > room:
                    return "output_limit"
            if process in ready:
                return ""
    finally:
        os.close(process)
    return "timeout"


def end_all(pid: int) -> tuple[int, float]:
    """Kill everything else in the namespace; return the process's exit code and all CPU time."""
    code, cpu_s = 0, 0.0
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    while True:
        try:
            ended_pid, status, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return code, cpu_s
        cpu_s += usage.ru_utime + usage.ru_stime
        if ended_pid == pid:
            code = os.waitstatus_to_exitcode(status)


def read_rest(descriptor: int, data: bytearray, output_bytes: int) -> bool:
    """Read what the dead left in a pipe; return whether there was room for all of it."""
    while chunk := os.read(descriptor, 1 << 16):
        room = output_bytes - len(data)
        data += chunk[:room]
        if len(chunk) > room:
            return False
    return True


def empty_work() -> bool:
    """Remove what the case left; return whether the folder is empty."""
    try:
        os.chmod(WORK, 0o700)
        remove_below(WORK, MAX_DEPTH)
    except OSError:
        return False
    return not os.listdir(WORK)


def remove_below(folder: str, depth: int) -> None:
    """Remove everything in a folder, links as links."""
    if not depth:
        raise OSError(errno.ELOOP, "too deep", folder)
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            os.chmod(entry.path, 0o700)
            remove_below(entry.path, depth - 1)
            os.rmdir(entry.path)
        else:
            os.unlink(entry.path)


if __name__ == "__main__":
    main()
