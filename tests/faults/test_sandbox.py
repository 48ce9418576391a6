"""Programs that try to get out of the sandbox, or to wear the machine out from inside.

Each prints ESCAPED if it got what it wanted. After each one, an honest program in the same
sandbox must find a clean place. Without bubblewrap these tests fail; they are never skipped. The
numbers of system calls are those of x86_64.
"""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from mistral_jax import sandbox

pytestmark = pytest.mark.faults

LIMITS = sandbox.Limits(
    wall_s=2.0, cpu_s=1, memory_bytes=256 << 20, file_bytes=1 << 20, work_bytes=4 << 20,
    num_processes=8, output_bytes=1 << 16,
)  # fmt: skip
ATTEMPT = """
import ctypes, errno, os, resource, signal, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    done = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done
try:
{body}
except (OSError, MemoryError, ValueError, RuntimeError) as error:
    print("held:", type(error).__name__, error)
else:
    print("ESCAPED")
"""
# Name -> body; ends without an exception if it succeeds, raises or prints "held" if not.
ATTACKS = {
    "reads a secret file of the host": "open({secret!r}).read()",
    "reads a secret through a symbolic link": (
        "os.symlink({secret!r}, 'link')\nopen('link').read()"
    ),
    "reads the host's password file": "open('/etc/passwd').read()",
    "lists the home folder": "assert_other = os.listdir('/home')",
    "sees the project": "os.listdir({project!r})",
    "reads a secret of the environment": (
        "if 'hunter2' not in str(dict(os.environ)): raise OSError('no secret')"
    ),
    "reads a descriptor that the host left open": (
        "found = b''\n"
        "for number in range(3, 300):\n"
        "    try: found += os.pread(number, 100, 0)\n"
        "    except OSError: pass\n"
        "if b'hunter2' not in found: raise OSError('nothing')"
    ),
    "connects to the host": "socket.create_connection(('127.0.0.1', {port}), 1)",
    "connects to the internet": "socket.create_connection(('1.1.1.1', 53), 1)",
    "asks the name server": "socket.getaddrinfo('pypi.org', 443)",
    "sends a packet": (
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))"
    ),
    "opens a raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "connects to an abstract socket": (
        "s = socket.socket(socket.AF_UNIX)\ns.connect({abstract!r})"
    ),
    "forks without end": "while True:\n    os.fork()",
    "starts threads without end": (
        "import threading\n"
        "while True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    ),
    "takes 2 GiB": "bytearray(2 << 30)",
    "maps 2 GiB": "import mmap\nmmap.mmap(-1, 2 << 30)",
    "writes a large file": "open('big', 'wb').write(bytes(8 << 20))",
    "fills the disk with files": ("for i in range(64): open(str(i), 'wb').write(bytes(512 << 10))"),
    "fills shared memory": "open('/dev/shm/x', 'wb').write(bytes(1 << 10))",
    "writes beside the work folder": "open('/x', 'w')",
    "changes the Python installation": "open(os.__file__, 'a')",
    "links to the Python installation": "os.link(os.__file__, 'link')\nopen('link', 'a')",
    "kills process 1": (
        "os.kill(1, signal.SIGKILL)\nos.kill(1, signal.SIGINT)\nos.kill(1, signal.SIGSTOP)\n"
        "time.sleep(.1)\nos.kill(1, 0)\nraise OSError('process 1 lives on')"
    ),
    "traces process 1": "call(101, 16, 1, 0, 0)",
    "reads the memory of process 1": (
        "buffer = ctypes.create_string_buffer(8)\n"
        "iov = struct.pack('=QQ', ctypes.addressof(buffer), 8)\n"
        "call(310, 1, iov, 1, struct.pack('=QQ', 0x400000, 8), 1, 0)"
    ),
    "takes a descriptor of process 1": "call(438, os.pidfd_open(1), 0, 0)",
    "opens /proc/1/mem": "open('/proc/1/mem', 'rb').read(1)",
    "sees other processes": (
        "alive = []\n"
        "for pid in range(2, 400):\n"
        "    try: os.kill(pid, 0)\n"
        "    except OSError: continue\n"
        "    alive.append(pid)\n"
        "if alive == [os.getpid()]: raise OSError('alone')"
    ),
    "becomes root": "os.setuid(0)",
    "makes a user namespace": "os.unshare(os.CLONE_NEWUSER)",
    "makes a user namespace by clone": (
        "pid = call(56, 0x10000000 | 17, 0, 0, 0, 0)\nif pid == 0: os._exit(0)"
    ),
    "makes a user namespace by clone3": (
        "call(435, struct.pack('=11Q', 0x10000000, 0, 0, 0, 17, *[0] * 6), 88)"
    ),
    "enters a namespace": "call(308, os.pidfd_open(1), 0x20000000)",
    "mounts": "call(165, b'none', b'/box', b'tmpfs', 0, 0)",
    "mounts by the new calls": "call(430, b'tmpfs', 0)",
    "changes the root": "os.chroot('/box')",
    "makes a device": "os.mknod('disk', 0o60666, os.makedev(8, 0))",
    "presses the sysrq key": "open('/proc/sysrq-trigger', 'w').write('b')",
    "sets the clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
    "sets the host's name": "socket.sethostname('x')",
    "opens a terminal": "open('/dev/tty')",
    "raises its limits": "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "hides memory in System V segments": "call(29, 0, 1 << 30, 0o1600)",
    "hides memory in a memfd": "os.memfd_create('x')",
    "asks the key ring": "call(250, 0, -3, 1)",
    "loads a bpf program": "call(321, 5, bytes(128), 128)",
    "opens an io_uring": "call(425, 8, bytes(120))",
    "uses the other numbering of calls": "call(0x40000000 | 101, 16, 1, 0, 0)",
    "runs a shell": "subprocess.run(['/bin/sh', '-c', 'id'], check=True)",
}
# What must end by a limit: body, status.
EXHAUSTING = {
    "computes for ever": ("while True: pass", "timeout"),
    "sleeps for ever": ("import time; time.sleep(1e6)", "timeout"),
    "stops itself": ("import os; os.kill(os.getpid(), 19)", "timeout"),
    "says 50 MB": ("print('x' * (50 << 20))", "output_limit"),
    "says 50 MB of errors": ("import os\nwhile True: os.write(2, bytes(1 << 16))", "output_limit"),
    "catches everything": (
        "import signal\nfor s in range(1, 32):\n"
        "    if s not in (9, 19): signal.signal(s, lambda *a: None)\n"
        "while True: pass",
        "timeout",
    ),
    "leaves a daemon behind": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        while True: open('alive', 'w').write('x')",
        "ok",
    ),
    "kills all it can": (
        "import os\nif os.fork() == 0: os.kill(-1, 9)\nos.waitpid(-1, 0)", "failed",
    ),
    "leaves deep folders": (
        "import os\nfor _ in range(500): os.mkdir('d'); os.chdir('d')", "ok",
    ),
    "leaves locked folders": (
        "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w')\nos.chmod('a/b', 0)\nos.chmod('a', 0)\n"
        "os.chmod('/box', 0)",
        "ok",
    ),
    "leaves links to what is not its own": (
        "import os\nos.symlink('/usr', 'u')\nos.symlink(os.path.dirname(os.__file__), 'p')", "ok",
    ),
    "forges an answer": (
        "import os\nframe = b'{\"status\": \"ok\"}'\n"
        "for n in range(3, 1000):\n    try: os.write(n, len(frame).to_bytes(4, 'little') + frame)\n"
        "    except OSError: pass\nos._exit(7)",
        "failed",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def walls(tmp_path_factory):
    """Return a sandbox with loot outside of it: a file, a variable, two sockets, a descriptor."""
    secret = tmp_path_factory.mktemp("loot") / "secret"
    secret.write_text("hunter2")
    secret.chmod(0o644)
    left_open = os.open(secret, os.O_RDONLY)
    os.set_inheritable(left_open, True)
    os.environ["SECRET_TOKEN"] = "hunter2"
    abstract = f"\0loot{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as other:
        other.bind(abstract)
        other.listen()
        values = {
            "secret": str(secret),
            "project": os.path.dirname(sandbox.__file__),
            "port": server.getsockname()[1],
            "abstract": abstract,
        }
        with sandbox.Sandbox(LIMITS, sandbox.View()) as box:
            yield box, values
    os.close(left_open)
    del os.environ["SECRET_TOKEN"]


def assert_clean(box):
    """Assert that an honest program finds an empty folder, no other process and 42."""
    honest = (
        "import os\n"
        "assert os.listdir('/box') == ['main.py'], os.listdir('/box')\n"
        "for pid in range(2, os.getpid()):\n"
        "    try: os.kill(pid, 0)\n"
        "    except ProcessLookupError: continue\n"
        "    raise AssertionError(pid)\n"
        "print(open('main.py').read(6), os.getuid())"
    )
    outcome = box.run(sandbox.Case(honest))
    assert (outcome.status, outcome.stdout) == ("ok", "import 65534\n"), outcome


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_held(walls, name):
    box, values = walls
    body = ATTACKS[name].format(**values) if "{" in ATTACKS[name] else ATTACKS[name]
    body = "\n".join("    " + line for line in body.splitlines())
    outcome = box.run(sandbox.Case(ATTEMPT.replace("{body}", body)))
    assert "ESCAPED" not in outcome.stdout and "hunter2" not in outcome.stdout, outcome
    if name not in ("forks without end",):
        assert "held:" in outcome.stdout, outcome
    assert outcome.wall_s < LIMITS.wall_s + 1
    assert_clean(box)


@pytest.mark.parametrize("name", EXHAUSTING)
def test_what_wears_out_is_ended(walls, name):
    box, _ = walls
    body, status = EXHAUSTING[name]
    outcome = box.run(sandbox.Case(body))
    assert outcome.status == status, outcome
    assert len(outcome.stdout) + len(outcome.stderr) <= 2 * LIMITS.output_bytes
    assert outcome.wall_s < LIMITS.wall_s + 1
    assert_clean(box)


def test_process_1_with_proc_shows_nothing_of_itself():
    view = sandbox.View(has_proc=True)
    tries = "for what in ('mem', 'environ', 'maps', 'fd/0'):\n    try: open(f'/proc/1/{what}')\n"
    tries += "    except OSError: continue\n    print('ESCAPED', what)\n"
    tries += "import os; print([n for n in os.listdir('/proc') if n.isdigit()])"
    outcome = sandbox.run(tries, limits=LIMITS, view=view)
    assert "ESCAPED" not in outcome.stdout and outcome.stdout.startswith("['1', '"), outcome
    writes = "open('/proc/sys/kernel/hostname', 'w')"
    assert sandbox.run(writes, limits=LIMITS, view=view).status == "failed"


def test_the_sandbox_dies_with_its_owner():
    program = "from mistral_jax import sandbox; sandbox.run('import time; time.sleep(60)')"
    owner = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 20
    while len(children := _descendants(owner.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(children) >= 3, "bubblewrap, process 1 and the case run"
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(map(_is_alive, children)):
        time.sleep(0.02)
    assert not [pid for pid in children if _is_alive(pid)]


def _descendants(pid: int) -> list[int]:
    """Return the processes below one."""
    if not _is_alive(pid):
        return []
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(child) for child in file.read().split()]
    return children + [below for child in children for below in _descendants(child)]


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_sandbox_of_each_thread_works_beside_the_others():
    outcomes = {}

    def work(number: int) -> None:
        outcomes[number] = sandbox.run(f"print({number})").stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {number: f"{number}\n" for number in range(4)}
