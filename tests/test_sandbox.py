"""The sandbox runs programs and holds them; tests/faults/test_sandbox.py holds the attacks.

Without bubblewrap these tests fail: `apt-get install bubblewrap`.
"""

import re
import struct
from pathlib import Path

import pytest

from mistral_jax import sandbox
from mistral_jax.sandbox import bubblewrap
from mistral_jax.sandbox import system_calls

LIMITS = sandbox.Limits(
    wall_s=5.0, cpu_s=1, memory_bytes=128 << 20, num_processes=4, output_bytes=4096
)


@pytest.fixture(scope="module")
def outcomes():
    """Run all the programs of this file in one sandbox."""
    cases = {
        "works": sandbox.Case(
            "import sys\nfrom part import half\n"
            "print(half(84), sys.stdin.read())\nprint('è', file=sys.stderr)\nsys.exit(3)",
            files={"part.py": b"def half(x): return x / 2", "a/b.txt": b"x"},
            stdin=b"said",
        ),
        "clean": sandbox.Case("import os\nprint(os.listdir('/box'))"),
        "threads and exit functions": sandbox.Case(
            "import atexit, threading\natexit.register(print, 'last')\n"
            "threading.Thread(target=lambda: print('first')).start()"
        ),
        "raises": sandbox.Case("1 / 0"),
        "host": sandbox.Case(f"open({__file__!r})"),
        "network": sandbox.Case("import socket\nsocket.create_connection(('1.1.1.1', 53), 2)"),
        "memory": sandbox.Case("bytearray(1 << 30)"),
        "loop": sandbox.Case("while True: pass", cpu_s=0.3),
        "output": sandbox.Case("print('x' * 100_000)"),
        "program": sandbox.Case([str(bubblewrap.interpreter()), "-c", "print(1 + 1)"]),
        "lives on": sandbox.Case("print(6 * 7)"),
    }
    return dict(zip(cases, sandbox.run_many(cases.values(), limits=LIMITS)))


def test_a_program_reads_and_writes_and_the_next_finds_a_clean_place(outcomes):
    done = outcomes["works"]
    assert (done.status, done.exit_code, done.stdout) == ("failed", 3, "42.0 said\n")
    assert done.stderr == "è\n" and 0 < done.cpu_s < done.wall_s + 1
    assert outcomes["clean"].stdout == "['main.py']\n"
    assert outcomes["threads and exit functions"].stdout == "first\nlast\n"
    assert outcomes["program"].stdout == "2\n" and outcomes["program"].status == "ok"
    assert outcomes["lives on"].stdout == "42\n"


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("raises", "failed", "ZeroDivisionError"),
        ("host", "failed", "FileNotFoundError"),
        ("network", "failed", "unreachable"),
        ("memory", "failed", "MemoryError"),
        ("loop", "timeout", ""),
        ("output", "output_limit", ""),
    ],
)
def test_what_goes_wrong_is_told(outcomes, name, status, says):
    done = outcomes[name]
    assert done.status == status and says in done.stderr, done
    assert len(done.stdout) <= LIMITS.output_bytes


def test_a_file_name_that_leads_out_is_refused():
    for name in ("../x", "/etc/x", "a/../../x", "", "x\0y"):
        with pytest.raises(ValueError, match="relative name"):
            sandbox.run("", files={name: b""})
    with pytest.raises(ValueError, match="absolute path"):
        sandbox.run(["sh"])


def test_without_bubblewrap_it_refuses_and_names_the_package(monkeypatch):
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda *_, **__: None)
    works, why = sandbox.available()
    assert not works and "apt-get install bubblewrap" in why
    with pytest.raises(sandbox.SandboxMissing) as caught:
        sandbox.run("")
    assert caught.value.exit_code == 3


def test_a_bubblewrap_that_does_not_work_is_named(tmp_path, monkeypatch):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho no namespaces for you >&2\nexit 1\n")
    broken.chmod(0o755)
    which = bubblewrap.shutil.which
    monkeypatch.setattr(
        bubblewrap.shutil,
        "which",
        lambda name, **rest: str(broken) if name == "bwrap" else which(name, **rest),
    )
    works, why = sandbox.available()
    assert not works and "no namespaces for you" in why


def test_the_filter_has_this_kernels_numbers():
    """The table against the C headers, where they are installed; and the filter's own shape."""
    for path, column, pattern in (
        ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0, r"__NR_(\w+)\s+(\d+)"),
        ("/usr/include/asm-generic/unistd.h", 1, r"__NR(?:3264)?_(\w+)\s+(\d+)"),
    ):
        if Path(path).exists():
            there = dict(re.findall(pattern, Path(path).read_text()))
            for name, row in system_calls.REFUSED.items():
                assert name not in there or int(there[name]) == row[column], (path, name)
    for machine in system_calls.MACHINES:
        code = system_calls.build_filter(machine)
        lines = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
        assert lines[-1][0] == system_calls.RETURN and lines[-1][3] == system_calls.ALLOW
        assert len(lines) < 4096
    with pytest.raises(ValueError, match="not of riscv64"):
        system_calls.build_filter("riscv64")
