"""launch/Dockerfile: what it copies is there and enough, and the locks it names exist.

No image is built here: that needs a builder and its registry.
"""

import configparser
import re
import shutil
import subprocess
import sys
import typing

import pytest

from launch import commands
from launch import launcher as launchers

TEXT = (commands.ROOT / "launch" / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n\s*", "", TEXT).splitlines()
COPIES = [line.split()[1:] for line in LINES if line.startswith("COPY ")]
SOURCES = [source for *sources, _ in COPIES for source in sources]


def test_what_is_copied_exists_and_is_sent_to_the_builder():
    ignored = (commands.ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignored if line.startswith("!")]
    assert len(SOURCES) >= 9 and all((commands.ROOT / source).exists() for source in SOURCES)
    assert sorted(sent) == sorted(SOURCES) and "*" in ignored
    setup = configparser.ConfigParser()
    setup.read(commands.ROOT / "setup.cfg")
    packages = setup["options.packages.find"]["include"].replace("*", "").split()
    assert set(packages) <= set(SOURCES)


def test_the_locks_it_names_exist():
    named = re.search(r"LOCK is (.*), a set of requirements/", TEXT)[1]
    locks = re.split(r", | or ", named)
    assert set(locks) == {*typing.get_args(launchers.Lock), "core"}
    always = re.search(r"for set in (.*);", TEXT)[1].replace('"$LOCK"', "").split()
    assert f"ARG LOCK={locks[0]}" in LINES and always == ["core", "data"]
    for lock in (*locks, *always):
        assert "--hash=sha256:" in (commands.ROOT / "requirements" / f"{lock}.lock").read_text()
    page = (commands.ROOT / "docs" / "tpu-pod.md").read_text(encoding="utf-8")
    assert re.search(r"--build-arg LOCK=(\w+)", page)[1] in locks


def test_its_commands_are_shell_and_hold_packages_to_their_hashes():
    runs = [line.removeprefix("RUN ") for line in LINES if line.startswith("RUN ")]
    assert len(runs) == 2 and "--require-hashes" in runs[0]
    for line in runs:
        subprocess.run(["sh", "-n", "-c", line], check=True)
    assert LINES[-1] == "USER $RUN_AS" and "ARG RUN_AS=0" in LINES


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Return a folder with what the image's would have, but the environment."""
    folder = tmp_path_factory.mktemp("image")
    skipped = shutil.ignore_patterns("__pycache__")
    for *sources, goal in COPIES:
        for source in sources:
            place = folder / goal / (source if goal.endswith("/") else "")
            if (commands.ROOT / source).is_dir():
                shutil.copytree(commands.ROOT / source, place, ignore=skipped)
            else:
                shutil.copy(commands.ROOT / source, place)
    return folder


def test_what_is_copied_is_enough_to_plan_a_run(image):
    code = "import mistral_jax.cli as c, sys; print(c.__file__); sys.exit(c.main(sys.argv[1:]))"
    words = ["plan", "configs/tiny/pod.yaml", "--target", "k8s_v5e_16"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=image, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(image)) and "v5e" in done.stdout
    assert (image / "run").stat().st_mode & 0o111
