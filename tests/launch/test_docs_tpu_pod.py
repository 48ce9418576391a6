"""docs/tpu-pod.md can be followed: every block is run, with fakes behind it.

Lines of ./run go to the program itself, in this process; the others to a real /bin/sh. The
pre-flight of this machine is left out: it would look for accounts that no test has.
"""

import os
import re
import shlex
import shutil
import subprocess

import pytest

from launch import commands
from launch import start
from launch import target as target_lib
from launch import tpu_pod
from mistral_jax import cli
from mistral_jax.config import load
from tests.launch import fake_cloud
from tests.launch.fake_cloud import FakeCloud

PAGE = commands.ROOT / "docs" / "tpu-pod.md"
FENCE = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def lines_of(text):
    """Return each line of each block, in order, continued ones joined."""
    blocks = FENCE.findall(text)
    joined = [block.replace("\\\n", " ") for block in blocks]
    return [line for block in joined for line in block.splitlines() if line.strip()]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    made = FakeCloud(tmp_path / "cloud", hosts=4)
    for index in range(4):
        marks = made.marks(made.base / f"host-{index}" / "sky_workdir")
        with (made.base / "venv" / ".installed").open("a", encoding="utf-8") as file:
            file.write("".join(marks))
    made.program("nvidia-smi", "echo 595.42.01\n")
    fake_cloud.fake_mounts(made)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(commands.ROOT)
    monkeypatch.setattr(tpu_pod, "POLL_S", 0.01)
    monkeypatch.setattr(start, "check_steps", lambda request: [])
    bucket = made.base / "buckets" / "my-bucket" / "runs" / "tiny"
    bucket.mkdir(parents=True)
    (bucket / "report.html").write_text("done")
    finished = {"metadata": {"name": "p", "uid": "p"}, "status": {"phase": "Succeeded"}}
    made.store("sets.json", [None, {"status": {"terminalState": "Completed"}}])
    made.store("pods.json", [{"items": [finished]}])
    return made


def test_every_line_of_the_page_runs(cloud, capfd):
    mount = cloud.base / "mount"  # stands for the page's
    text = PAGE.read_text(encoding="utf-8")
    lines = lines_of(text.replace("/mnt/shared", str(mount)))
    name = f"name=test_docs_{os.getpid()}"  # whoever keeps a run of these configs keeps it
    used = [words[2] for words in map(shlex.split, lines) if words[:2] == ["./run", "launch"]]
    folders = {folder_of(commands.ROOT / config, name) for config in used}
    try:
        for line in lines:
            words = shlex.split(line)
            if words[0] == "./run":
                assert cli.main([*words[1:], name]) == 0, f"{line}\n{capfd.readouterr()}"
            else:
                subprocess.run(["/bin/sh", "-ec", line], check=True)
            if "k8s" in line and "--stop" not in line:
                script = next(folders_with("launch/xpk.sh", folders))
                subprocess.run(["sh", str(script), "my-cluster"], check=True)
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    called = {argv[0] for argv in cloud.calls()}
    assert called >= {
        "gcloud",
        "kubectl",
        "docker",
        "xpk",
        "sbatch",
        "srun",
        "scancel",
        "sky",
        "rsync",
    }
    assert len(cloud.runs()) == 4 + 4 + 4 + 1  # two launches of the slice, SLURM's, SkyPilot's
    for index in range(4):
        done = (cloud.base / f"host-{index}" / "sudo").read_text(encoding="utf-8")
        assert done.count(f"mount -t nfs 10.0.0.2:/shared {mount}\n") == 1  # of two launches
    verbs = [argv[4] for argv in cloud.calls("gcloud") if "queued-resources" in argv]
    assert verbs.count("create") == 1 and verbs.count("delete") == 1 and verbs.count("list") == 2
    shown = capfd.readouterr().out
    assert shown.count("the slice is paid until it is deleted (about 19.20 USD an hour") == 3


def folder_of(config, name):
    return commands.ROOT / commands.launch_folder(load.load_run(config, [name])).parent


def folders_with(name, folders):
    return (folder / name for folder in folders if (folder / name).exists())


def test_the_pages_prices_are_the_targets():
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,.]+) \|$", PAGE.read_text(), re.M
    )
    assert len(rows) == 4
    for name, *numbers in rows:
        machine = target_lib.load_target(name)
        chips, hosts, price = (float(number.replace(",", "")) for number in numbers)
        assert (machine.num_chips, machine.num_hosts) == (chips, hosts)
        assert machine.price_usd_per_hour == pytest.approx(price)
