"""`./run` up to the first package: which Python it takes, and what it says when it cannot go on.

Nothing is downloaded. Real interpreters and a real pip are used; only PATH, HOME and the package
index are arranged, and the index is a closed port of this machine.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = (".py", ".yaml", ".json", ".jsonl", ".html", ".css", ".js", ".jinja", ".sh")
TOOLS = "sh dirname df sed cat cksum grep mkdir rm".split()  # noqa: SIM905
CLOSED_INDEX = "http://127.0.0.1:9/simple"


@pytest.fixture
def clone(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return a copy of what `run` reads, in a folder with a space in its name."""
    folder = tmp_path / "a clone"
    folder.mkdir()
    shutil.copy(ROOT / "run", folder)
    shutil.copy(ROOT / "setup.cfg", folder)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    return folder


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return a PATH of one folder: the tools that `run` calls, and no Python at all."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool))
    return folder


def put(folder: pathlib.Path, name: str, script: str) -> None:
    """Write an executable shell script."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def run(clone: pathlib.Path, path: pathlib.Path, *verb: str, **environment: str):
    """Run the clone's `run` from another folder; return the finished process."""
    env = {"PATH": str(path), "HOME": str(clone.parent), "PIP_CONFIG_FILE": os.devnull}
    env |= {"PIP_INDEX_URL": CLOSED_INDEX, "LC_ALL": "C.UTF-8"} | environment
    command = [str(clone / "run"), *verb]
    return subprocess.run(
        command, env=env, cwd=clone.parent, capture_output=True, text=True, check=False, timeout=60
    )


def sentences(text: str) -> list[str]:
    """Return the lines that `run` said, without the one that announces the set-up."""
    return [line for line in text.splitlines() if "setting up /" not in line]


def test_run_is_posix_sh():
    for shell in ("sh", "dash", "bash"):
        if shutil.which(shell):
            done = subprocess.run([shell, "-n", ROOT / "run"], capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
    assert os.access(ROOT / "run", os.X_OK)
    text = (ROOT / "run").read_text(encoding="utf-8")
    assert not re.search(r"\[\[|\blocal\b|\bfunction\b|<<<|\bpipefail\b|\bsource\b", text)


def test_no_python_at_all_is_one_sentence(clone, path):
    done = run(clone, path, "doctor")
    assert done.returncode == 2
    assert len(sentences(done.stderr)) == 1 and done.stdout == ""
    assert "found no Python 3.12 3.13 that runs" in done.stderr
    assert "pyenv install 3.12" in done.stderr


def test_an_interpreter_that_does_not_run_or_is_too_old_is_passed_over(clone, path):
    put(path, "python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    put(path, "python3.13", "echo 3.11")
    put(path, "python3", "echo 2.7")
    done = run(clone, path, "doctor")
    assert done.returncode == 2
    assert len(sentences(done.stderr)) == 1 and "command not found" not in done.stderr


def test_a_python_under_pyenv_is_found_and_a_closed_index_is_one_sentence(clone, path):
    put(path, "python3.12", "exit 127")
    version = f"3.{sys.version_info.minor}.9"
    folder = clone.parent / "pyenv root" / "versions" / version / "bin"
    folder.mkdir(parents=True)
    put(folder, "python", f'exec "{sys.executable}" "$@"')
    done = run(clone, path, "doctor", PYENV_ROOT=str(clone.parent / "pyenv root"))
    assert (clone / ".venv" / "bin" / "python").exists(), done.stderr
    assert done.returncode == 1
    assert len(sentences(done.stderr)) == 1, done.stderr
    assert "cannot reach the package index for core.lock: check the network" in done.stderr
    log = clone / ".venv" / "setup.log"
    assert f"log: {log}" in done.stderr and "127.0.0.1" in log.read_text(encoding="utf-8")


def test_too_little_disk_is_said_before_anything_is_made(clone, path):
    put(path, "python3.12", f'exec "{sys.executable}" "$@"')
    (path / "df").unlink()
    put(path, "df", "echo Filesystem 1024-blocks Used Available Capacity Mounted on\n"
                    "echo 'my disk 9999999 8999999 1000000 90% /a mount'")  # fmt: skip
    done = run(clone, path, "doctor")
    assert done.returncode == 3
    assert len(sentences(done.stderr)) == 1
    assert "needs 2048 MiB" in done.stderr and "has 976 MiB left" in done.stderr
    assert not (clone / ".venv").exists()


def test_help_needs_nothing_installed(clone, path):
    done = run(clone, path, "--help")
    assert done.returncode == 0 and "./run test" in done.stdout and done.stderr == ""
    assert not (clone / ".venv").exists()


def test_an_unknown_set_of_requirements_is_named(clone, path):
    done = run(clone, path, "doctor", MISTRAL_JAX_LOCKS="cuda99")
    assert done.returncode == 2
    assert "requirements/cuda99.lock" in done.stderr and len(sentences(done.stderr)) == 1


def mark_installed(clone: pathlib.Path) -> None:
    """Make a .venv that counts as installed, by `run`'s own stamp."""
    program = clone / ".venv" / "bin" / "mistral-jax"
    program.parent.mkdir(parents=True)
    (program.parent / "python").symlink_to(sys.executable)
    put(program.parent, "mistral-jax", 'printf "[%s]" "$PWD" "$@"; exit 7')
    files = [clone / "setup.cfg", clone / "requirements" / "core.lock"]
    joined = b"".join(file.read_bytes() for file in files)
    summed = subprocess.run(["cksum"], input=joined, capture_output=True, check=True)
    mark = f"core {summed.stdout.decode().strip()} {clone}\n"
    (clone / ".venv" / ".installed").write_text(mark, encoding="utf-8")


def test_an_installed_clone_hands_arguments_and_exit_code_through_at_once(clone, path):
    mark_installed(clone)
    done = run(clone, path, "train", "my config.yaml", "a.b=c d", "--debug")
    assert done.returncode == 7 and done.stderr == ""
    assert done.stdout == f"[{clone.parent}][train][my config.yaml][a.b=c d][--debug]"


# No Python is on PATH in these two, so that trying to set up again shows at once.
@pytest.mark.parametrize("changed", ["setup.cfg", "requirements/core.lock"])
def test_a_changed_lock_or_setup_is_installed_again(clone, path, changed):
    mark_installed(clone)
    with (clone / changed).open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    assert "found no Python" in run(clone, path, "train").stderr


def test_a_moved_clone_is_set_up_again(clone, path):
    mark_installed(clone)
    moved = clone.rename(clone.parent / "moved")
    assert "found no Python" in run(moved, path, "train").stderr


def test_every_lock_pins_hashes_and_holds_the_cores_versions():
    locks = {
        file.stem: file.read_text(encoding="utf-8") for file in ROOT.glob("requirements/*.lock")
    }
    assert {"core", "test", "data", "demo", "cuda12", "cuda13", "tpu", "peers"} <= set(locks)
    pins = {
        name: dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.M)) for name, text in locks.items()
    }
    for name, text in locks.items():
        assert text.count("==") and "://" not in text
        stanzas = re.split(r"\n(?=[a-z0-9])", text)[1:]
        assert all("--hash=sha256:" in stanza for stanza in stanzas), name
        if name not in ("demo", "peers", "core-jax0112"):
            assert pins["core"].items() <= pins[name].items(), name
    assert pins["core-jax0112"]["jax"] == "0.11.2"
    assert not [
        pin for pin in pins["peers"] if pin.startswith(("torch", "nvidia", "triton", "cuda"))
    ]


def test_a_wheel_carries_packages_configs_and_targets(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    folders = [
        f for f in ("mistral_jax", "launch", "data_pipelines", "configs") if (ROOT / f).is_dir()
    ]
    for folder in folders:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta; build_meta.build_wheel('out')"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    (wheel,) = (tree / "out").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        file.relative_to(tree).as_posix()
        for folder in folders
        for file in (tree / folder).rglob("*")
        if file.suffix
        in (".py", ".yaml", ".json", ".jsonl", ".html", ".css", ".js", ".jinja", ".sh")
    }
    assert packed == expected
    # Its plan, from its own folder, with none of the clone in sight.
    unpack = [sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "site")]
    subprocess.run(unpack, check=True)
    shutil.copytree(tree / "configs" / "mistral_7b", tmp_path / "elsewhere")
    code = "import launch; from mistral_jax import cli; print(launch.__path__[0]); exit(cli.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", "lora.yaml", "--target", "g5_2xlarge", "--json"],
        cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    where, _, report = done.stdout.partition("\n")
    assert where == str(tmp_path / "site" / "launch")
    assert json.loads(report)["target"] == "g5_2xlarge"
