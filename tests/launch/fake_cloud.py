"""Clouds and clusters in a temporary folder: their programs on PATH, their hosts as homes.

What runs on a host is real (tar, ./run, host.sh, detach, supervise) up to `mistral-jax`, which
here writes down how it was called, prints a line, and ends as told.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from launch import commands
from launch import plan
from launch import target as target_lib
from launch.commands import Request
from mistral_jax.config import load

PROGRAMS = (
    "gcloud", "kubectl", "xpk", "docker", "sbatch", "srun", "scontrol", "squeue", "scancel", "sky",
    "rsync", "aws",
)  # fmt: skip
LOCKS = ("core", "tpu", "cuda13", "data")
# Ends by the n-th line of BASE/codes, 0 where there is none.
TRAIN = """#!/bin/sh
base={base}
printf '%s|%s|%s|%s|%s|%s\\n' "$1" "$*" "${{MISTRAL_JAX_DISTRIBUTED-}}" \\
    "${{MISTRAL_JAX_COORDINATOR-}}" "${{MISTRAL_JAX_NUM_PROCESSES-}}" \\
    "${{MISTRAL_JAX_PROCESS_ID-}}" >>"$base/trains"
echo "mistral-jax $1 here"
[ "$1" = train ] || exit 0
[ ! -f "$base/train.sh" ] || . "$base/train.sh"
exit 0
"""


class FakeCloud:
    """Programs, homes, and what was called.

    Attributes:
        base: the folder of all; homes are host-0, host-1, ... in it.
    """

    def __init__(self, base: Path, hosts: int = 1, project: str = "mistral_jax") -> None:
        self.base = base
        binaries = base / "bin"
        binaries.mkdir(parents=True)
        programs = Path(__file__).with_name("fake_programs.py")
        for name in PROGRAMS:
            self.program(name, f'exec {sys.executable} {programs} {base} {name} "$@"\n')
        self.store("hosts.json", hosts)
        (binaries / "python3.12").symlink_to(sys.executable)
        venv = base / "venv" / "bin"
        venv.mkdir(parents=True)
        (venv / "python").symlink_to(sys.executable)
        self.write(venv / "mistral-jax", TRAIN.format(base=base))
        marks = []
        for index in range(hosts):
            (base / f"host-{index}").mkdir()
            marks += self.marks(base / f"host-{index}" / project)
        marks += self.marks(commands.ROOT)
        (base / "venv" / ".installed").write_text("".join(marks), encoding="utf-8")
        self.environment = {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "MISTRAL_JAX_VENV": str(base / "venv"),
        }
        self.store("environment.json", self.environment)

    @staticmethod
    def marks(root: Path) -> list[str]:
        """Return what ./run leaves of locks that are installed for a project's folder."""
        found = []
        for lock in LOCKS:
            files = ["setup.cfg", f"requirements/{lock}.lock"]
            content = b"".join((commands.ROOT / file).read_bytes() for file in files)
            done = subprocess.run(["cksum"], input=content, capture_output=True, check=True)
            found.append(f"{lock} {done.stdout.decode().strip()} {root}\n")
        return found

    def program(self, name: str, text: str) -> None:
        """Put a program on PATH."""
        self.write(self.base / "bin" / name, f"#!/bin/sh\n{text}")

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Write an executable text."""
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def store(self, name: str, value: object) -> None:
        """Tell the programs something, by a JSON file."""
        (self.base / name).write_text(json.dumps(value), encoding="utf-8")

    def calls(self, program: str | None = None) -> list[list[str]]:
        """Return what was called, as argument lists."""
        file = self.base / "calls.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        found = [json.loads(line) for line in lines]
        return [argv for argv in found if program in (None, argv[0])]

    def runs(self, verb: str = "train") -> list[list[str]]:
        """Return each call of mistral-jax with a verb: words, then the four variables."""
        file = self.base / "trains"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [line.split("|")[1:] for line in lines if line.startswith(f"{verb}|")]


# On a host: `mounts` of its home holds "SHARE FOLDER" a line; BASE/no_nfs lets every mount fail.
MOUNTED = 'grep " $2\\$" "$HOME/mounts" 2>/dev/null'
SUDO = """[ "$1" != -n ] || shift
echo "$@" >>"$HOME/sudo"
case $1 in
    mkdir | chmod) exec "$@" ;;
    mount) [ ! -e {base}/no_nfs ] || {{ echo 'mount.nfs: Connection timed out' >&2; exit 32; }}
        echo "$4 $5" >>"$HOME/mounts" ;;
esac
"""


def fake_mounts(cloud: FakeCloud) -> None:
    """Put programs on PATH that mount nothing, and know for each host what they were asked for."""
    cloud.program("sudo", SUDO.format(base=cloud.base))
    cloud.program("mountpoint", f"{MOUNTED} >/dev/null\n")
    found = 'grep " $5\\$" "$HOME/mounts" | cut -d " " -f 1'
    cloud.program("findmnt", f"{found}\n")


@contextlib.contextmanager
def launched(request: Request) -> Iterator[Path]:
    """Yield the run's folder in the project's runs/, and remove what a test leaves there."""
    folder = commands.ROOT / request.folder.parent
    assert not folder.exists()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def request(config: str, target: str, run=(), machine=()) -> Request:
    """Return a request as the verb makes it."""
    resolved = load.load_run(commands.ROOT / config, list(run))
    found = target_lib.load_target(target, list(machine))
    folder = commands.launch_folder(resolved)
    made = plan.resolve(resolved, found)
    return Request(resolved, commands.ROOT / config, tuple(run), found, made, folder)
