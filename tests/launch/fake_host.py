"""Stands in for the network between here and a GPU host: `ssh`, `rsync`, `sudo`, `nvidia-smi`.

The fakes are programs on PATH that write their arguments down, one JSON list a line. `ssh` hands
its command to a real /bin/sh in the host's home, as sshd does, so that quoting is proven by the
shell itself; `rsync` copies for real, between this machine and that home. What is not real is the
connection.
"""

import json
import os
import stat
import sys
from pathlib import Path

COMMON = """#!{python}
import json, os, pathlib, shutil, subprocess, sys
base = pathlib.Path({base!r})
def note(argv):
    with open(base / "calls.jsonl", "a") as file:
        file.write(json.dumps(argv) + "\\n")
note([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
home = base / "home"
environment = {{**os.environ, "HOME": str(home)}}
environment.update(json.loads((base / "environment.json").read_text()))
def ssh_arguments(words):
    # As getopt: an option of ssh with its value, then --, the host, the command.
    while words and words[0].startswith("-") and words[0] != "--":
        words = words[1:] if len(words[0]) > 2 else words[2:]
    return words[1:] if words[:1] == ["--"] else words
"""
SSH = """
host, *command = ssh_arguments(sys.argv[1:])
planned = base / "ssh_fails"
if planned.exists():
    code, text = planned.read_text().split(" ", 1)
    print(text, file=sys.stderr)
    sys.exit(int(code))
# sshd joins what it gets by spaces and gives it to the login shell.
process = subprocess.Popen(["/bin/sh", "-c", " ".join(command)], cwd=home, env=environment)
cut = base / "cut_after_s"
if cut.exists() and "follow" in command[-1]:
    try:
        process.wait(float(cut.read_text()))
    except subprocess.TimeoutExpired:
        cut.unlink()
        process.kill()
        sys.exit(255)
sys.exit(process.wait())
"""
RSYNC = """
words, plain, files, relative, exclude = sys.argv[1:], [], None, False, []
transport = None
while words:
    word = words.pop(0)
    if word == "--":
        plain += words
        break
    if word == "-e":
        transport = words.pop(0)
    elif word.startswith("--files-from="):
        files = word.split("=", 1)[1]
    elif word.startswith("--exclude="):
        exclude.append(word.split("=", 1)[1].strip("/"))
    elif word == "-R":
        relative = True
def split(text):  # rsync's own rule for -e: spaces part, quotes of both kinds keep together
    found, now, quote = [], None, None
    for sign in text:
        if quote:
            if sign == quote: quote = None
            else: now += sign
        elif sign in "'\\"": quote, now = sign, now or ""
        elif sign == " ":
            if now is not None: found.append(now); now = None
        else: now = (now or "") + sign
    return found + ([now] if now is not None else [])
note(["rsync-transport", *split(transport)])
def place(text):  # a colon before the first slash names a host
    head, colon, tail = text.partition(":")
    return (home / tail, True) if colon and "/" not in head else (pathlib.Path(text), False)
source, goal = place(plain[0]), place(plain[1])
if files is not None:
    pairs = [(source[0] / name, goal[0] / name) for name in open(files).read().splitlines()]
elif relative:
    base_folder, _, tail = plain[0].partition("/./")
    pairs = [(pathlib.Path(base_folder) / tail, goal[0] / tail)]
else:
    if not source[0].is_dir():
        print("rsync: change_dir failed: No such file or directory (2)", file=sys.stderr)
        sys.exit(23)
    pairs = [(each, goal[0] / each.name) for each in source[0].iterdir()]
def excluded(folder, names):
    return [n for n in names if str(pathlib.Path(folder, n).relative_to(source[0])) in exclude]
for a, b in pairs:
    if a.is_dir():
        if a.name not in exclude:
            ignore = excluded if exclude else None
            shutil.copytree(a, b, dirs_exist_ok=True, ignore=ignore, symlinks=True)
    elif a.name not in exclude:
        b.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(a, b, follow_symlinks=False)
"""
NVIDIA = """
print((base / "driver").read_text().strip())
"""
PROGRAMS = {"ssh": SSH, "rsync": RSYNC, "sudo": ""}


class FakeHost:
    """A host's home and the fakes that lead there.

    Attributes:
        base: a temporary folder; the home is `home` in it, the fakes stand in `bin`.
    """

    def __init__(self, base: Path, environment: dict[str, str] | None = None) -> None:
        self.base, self.home = base, base / "home"
        self.home.mkdir(parents=True)
        (base / "bin").mkdir()
        content = {"PATH": f"{base / 'bin'}:{os.environ['PATH']}", **(environment or {})}
        (base / "environment.json").write_text(json.dumps(content), encoding="utf-8")
        for name, text in PROGRAMS.items():
            self.add_program(base / "bin" / name, self._head() + text)

    def add_driver(self, version: str) -> None:
        """Let nvidia-smi tell a driver's version."""
        (self.base / "driver").write_text(version, encoding="utf-8")
        self.add_program(self.base / "bin" / "nvidia-smi", self._head() + NVIDIA)

    def _head(self) -> str:
        return COMMON.format(python=sys.executable, base=str(self.base))

    @staticmethod
    def add_program(path: Path, text: str) -> None:
        """Write an executable text."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    @property
    def path(self) -> str:
        """PATH with the fakes before all."""
        return f"{self.base / 'bin'}:{os.environ['PATH']}"

    def calls(self, program: str | None = None) -> list[list[str]]:
        """Return what was called, as argument lists."""
        file = self.base / "calls.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        found = [json.loads(line) for line in lines]
        return [argv for argv in found if program in (None, argv[0])]
