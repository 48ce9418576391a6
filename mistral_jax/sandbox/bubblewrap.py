"""The command line that builds the sandbox: what is seen, and which walls stand.

An ordinary user gets one layer of bubblewrap with a user namespace. Root gets two: the outer one,
still root, lays out the view (which an ordinary user could not read below /root) and the inner
one is started as uid 65534, because the kernel exempts root from RLIMIT_NPROC even inside a user
namespace.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from pathlib import PurePosixPath

INSIDE = Path(__file__).with_name("inside.py")
NOBODY = "65534"
SYSTEM_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/lib32")
LOADER_CACHE = "/etc/ld.so.cache"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/box",
    "TMPDIR": "/box",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class SandboxMissing(ValueError):
    """There is no sandbox on this machine, and nothing runs without one."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class View:
    """What the programs see beside the Python installation.

    Attributes:
        paths: files and folders of this machine, read-only at their own place.
        python_paths: folders that Python imports from; they are seen, too.
        preload: modules that are imported once, before the first case.
        has_proc: /proc of the sandbox's own processes; some compilers look for themselves there.
    """

    paths: tuple[str, ...] = ()
    python_paths: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    has_proc: bool = False


def interpreter() -> Path:
    """Return the interpreter itself, not that of a virtual environment."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    inside_prefix = Path(sys.base_prefix) / "bin" / name
    return (inside_prefix if inside_prefix.exists() else Path(sys.executable)).resolve()


def command(view: View, *, work_bytes: int, seccomp: int, setup: str) -> list[str]:
    """Return the argv that starts inside.py in the sandbox.

    Args:
        view: what is seen.
        work_bytes: size of the work folder.
        seccomp: descriptor of the filter.
        setup: the argument of inside.py.

    Raises:
        SandboxMissing: a program is missing.
    """
    bwrap = tool("bwrap", "bubblewrap")
    shown = seen(view)
    inner = [
        bwrap,
        *("--unshare-all", "--unshare-user", "--uid", NOBODY, "--gid", NOBODY),
        *("--disable-userns", "--die-with-parent", "--new-session", "--as-pid-1"),
        *("--cap-drop", "ALL", "--hostname", "sandbox", "--seccomp", str(seccomp)),
        *shown,
        *("--dev", "/dev", "--remount-ro", "/dev"),
        *(("--proc", "/proc") if view.has_proc else ()),
        *("--size", str(work_bytes), "--perms", "0700", "--tmpfs", "/box"),
        *("--remount-ro", "/", "--chdir", "/box", "--clearenv"),
        *(part for item in ENVIRONMENT.items() for part in ("--setenv", *item)),
        *("--", str(interpreter()), "-ISB", "-X", "utf8", "-c", INSIDE.read_text(), setup),
    ]
    if os.geteuid() != 0:
        return inner
    return [
        bwrap,
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *("--die-with-parent", "--clearenv"),
        *shown,
        *bound([path for path in ("/usr/bin", "/bin", bwrap) if os.path.exists(path)]),
        *("--perms", "0755", "--dir", "/tmp"),  # where bubblewrap builds the inner root
        *("--bind", "/proc", "/proc", "--dev-bind", "/dev", "/dev"),
        "--",
        *(tool("setpriv", "util-linux"), "--reuid", NOBODY, "--regid", NOBODY),
        *("--clear-groups", "--"),
        *inner,
    ]


def tool(name: str, package: str) -> str:
    """Return a program's path.

    Raises:
        SandboxMissing: it is not installed.
    """
    path = shutil.which(name, path="/usr/bin:/bin:/usr/local/bin")
    if path is None:
        raise SandboxMissing(
            f"untrusted programs run only in a sandbox, and {name} is not installed; "
            f"`apt-get install {package}` brings it"
        )
    return path


def seen(view: View) -> list[str]:
    """Return the arguments that show the Python installation and the view's own paths."""
    wanted = [os.path.realpath(sys.base_prefix), *view.paths, *view.python_paths]
    if not interpreter().is_relative_to(wanted[0]):
        wanted.append(str(interpreter()))
    wanted += [path for path in (*SYSTEM_FOLDERS, LOADER_CACHE) if os.path.exists(path)]
    return bound(wanted)


def bound(paths: list[str]) -> list[str]:
    """Return the arguments that bind paths read-only, parents first, folders above them open."""
    arguments: list[str] = []
    done: list[PurePosixPath] = []
    made = {PurePosixPath("/")}
    for path in sorted(set(map(PurePosixPath, paths))):
        if any(path.is_relative_to(other) for other in done):
            continue
        for above in reversed(path.parents):
            if above not in made:
                # Without this bubblewrap makes some of them 0700, and root's are closed to others.
                arguments += ["--perms", "0755", "--dir", str(above)]
                made.add(above)
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), str(path)]
        else:
            arguments += ["--ro-bind", str(path), str(path)]
        done.append(path)
    return arguments
