"""launch/tpu_pod.py: what gcloud is asked, and a whole launch against a gcloud that has homes."""

import dataclasses
import fcntl
import os
import re
import shlex
import shutil
import sys

import pytest

from launch import commands
from launch import shared_mount
from launch import target as target_lib
from launch import tpu_pod
from launch.commands import Command
from launch.commands import CommandFailed
from mistral_jax import cli
from tests.launch import fake_cloud
from tests.launch import hostile
from tests.launch.fake_cloud import FakeCloud
from tests.launch.fake_cloud import request

CONFIG = "configs/tiny/pod.yaml"
OUTPUT = "output=gs://bucket/runs/tiny"
SHARED = "launcher.shared_folder=/usr/share"  # on every fake host, since on this machine
PLACE = ("launcher.zone=us-west4-a", "launcher.project=my-project", SHARED)


@pytest.fixture(scope="module")
def asked():
    return request(CONFIG, "v5e_16", [OUTPUT], PLACE)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Return a cloud with four hosts, and stand in the project with nothing written to it."""
    made = FakeCloud(tmp_path / "cloud", hosts=4)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tpu_pod, "POLL_S", 0.01)
    bucket = made.base / "buckets" / "bucket" / "runs" / "tiny"
    (bucket / "checkpoints").mkdir(parents=True)
    (bucket / "checkpoints" / "heavy").write_text("x")
    (bucket / "report.html").write_text("done")
    return made


def argv_of(steps):
    return [step.argv for step in steps if isinstance(step, Command)]


def test_golden_steps(asked):
    name = "tiny-pod-" + asked.run.science_hash()[:8]
    place = ("--quiet", "--zone=us-west4-a", "--project=my-project")
    queued = ("gcloud", "compute", "tpus", "queued-resources")
    vm = ("gcloud", "compute", "tpus", "tpu-vm")
    helper = (sys.executable, "-m", "launch.queued_resource")
    folder = f"runs/tiny_pod-{asked.run.science_hash()[:8]}/launch"
    host = "sh mistral_jax/launch/host.sh python -m"
    train = f"./run train {CONFIG} --target v5e_16 {OUTPUT}"
    found = argv_of(tpu_pod.steps(asked))
    assert found == [
        (*helper, "request", "--", *queued, "create", name, *place, f"--node-id={name}",
         "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--async"),
        (*helper, "wait", "--poll-s", "20.0", "--", *queued, "describe", name, *place,
         "--format=json"),
        (*vm, "ssh", name, *place, "--worker=all",
         "--command=env LC_ALL=C ls -d /usr/share"),
        (sys.executable, "-m", "launch.bundle", f"{folder}/{name}.tar.gz", CONFIG),
        (*vm, "scp", *place, "--worker=all", "launch/tpu_host.sh", f"{folder}/{name}.tar.gz",
         f"{name}:"),
        (*vm, "ssh", name, *place, "--worker=all", "--command=env JAX_PLATFORMS=cpu sh tpu_host.sh "
         f"mistral_jax {folder} {name}.tar.gz setup tpu data"),
        (*helper, "agree", "--hosts", "4", "--", *vm, "ssh", name, *place, "--worker=all",
         f"--command={host} launch.versions {name}.tar.gz"),
        (*vm, "ssh", name, *place, "--worker=all", "--command=env MISTRAL_JAX_DISTRIBUTED=auto "
         f"MISTRAL_JAX_CACHE=/usr/share/cache {host} launch.detach start --folder {folder} "
         f"--restarts 50 -- {train}"),
        (sys.executable, "-m", "launch.follow", "--", *vm, "ssh", name, *place, "--worker=0",
         f"--command={host} launch.detach follow --folder {folder}"),
        ("mkdir", "-p", "--", folder.removesuffix("/launch")),
        ("gcloud", "storage", "rsync", "--recursive", "--exclude=^(checkpoints|data|export)/.*",
         "gs://bucket/runs/tiny", folder.removesuffix("/launch")),
    ]  # fmt: skip
    stop = (*queued, "delete", name, *place, "--force")
    assert argv_of(tpu_pod.stop_steps(asked)) == [stop]
    assert shlex.join(stop) in tpu_pod.stop_hint(asked)
    assert "19.20 USD an hour" in tpu_pod.stop_hint(asked)


def test_every_slice_names_its_runtime_and_one_host_fetches_its_own_disk():
    versions = {"v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
    for name in target_lib.target_names():
        machine = target_lib.load_target(name)
        if name[:3] in versions:
            assert machine.launcher.kind == "tpu_queued"
            assert machine.launcher.runtime_version == versions[name[:3]]
    single = request(CONFIG, "v6e_8")
    found = argv_of(tpu_pod.steps(single))
    directory = single.run.run_directory()
    assert found[-1][-2:] == (f"tiny-pod-{directory[-8:]}:mistral_jax/{directory}", "runs")
    start = next(argv[-1] for argv in found if "detach start" in argv[-1])
    assert "MISTRAL_JAX_DISTRIBUTED" not in start and f"--progress {directory}" in start
    assert any("run preflight" in argv[-1] and "--on-host" in argv[-1] for argv in found)


def own_request(target="v5e_16", run=(OUTPUT,), machine=PLACE):
    """Return a request whose files in runs/ no other test run touches."""
    return request(CONFIG, target, [f"name=test_pod_{os.getpid()}", *run], machine)


def test_a_launch_on_four_hosts_from_the_queue_to_the_results(cloud):
    mine, said = own_request(), []
    (cloud.base / "train.sh").write_text('echo "$MISTRAL_JAX_CACHE" >>"$base/caches"\n')
    cloud.store("states.json", [{"state": "WAITING_FOR_RESOURCES"}, {"state": "ACTIVE"}])
    with fake_cloud.launched(mine) as results:
        commands.execute(tpu_pod.steps(mine), said.append)
        assert (results / "report.html").read_text() == "done"
        assert not (results / "checkpoints").exists()
    text = "\n".join(said)
    assert "WAITING_FOR_RESOURCES, in the queue; nothing is paid yet" in text
    assert "ACTIVE, the slice is there, and paid from now on" in text
    assert "4 hosts agree: python" in text and "mistral-jax train here" in text
    words = f"train {CONFIG} --target v5e_16 {' '.join(mine.overrides)}"
    assert cloud.runs() == [[words, "auto", "", "", ""]] * 4
    assert (cloud.base / "caches").read_text() == "/usr/share/cache\n" * 4
    assert len(cloud.runs("doctor")) == 4
    for index in range(4):
        project = cloud.base / f"host-{index}" / "mistral_jax"
        assert (project / CONFIG).read_bytes() == (commands.ROOT / CONFIG).read_bytes()
        assert not (project / ".git").exists()
    commands.execute(tpu_pod.stop_steps(mine), said.append)
    assert cloud.calls("gcloud")[-1][4] == "delete"


def test_a_second_launch_attaches_and_another_run_is_refused(cloud):
    """While `train` waits on the hosts, nothing of it is replaced."""
    (cloud.base / "train.sh").write_text(
        'while [ ! -e "$base/go" ]; do sleep 0.1; done\n', encoding="utf-8"
    )
    mine, said = own_request(), []
    other = request(CONFIG, "v5e_16", [f"name=other_pod_{os.getpid()}", OUTPUT], PLACE)
    name = tpu_pod.steps(mine)[0].argv[10]  # the slice of the first run, for the second
    other = with_launcher(other, name=name)
    cloud.store("queued.json", name)
    with fake_cloud.launched(mine) as results, fake_cloud.launched(other):
        first, again = tpu_pod.steps(mine), tpu_pod.steps(mine)
        started = next(i for i, step in enumerate(first) if "start the run" in step.purpose) + 1
        try:
            commands.execute(first[:started], said.append)
            with pytest.raises(CommandFailed, match="wait for it, or give this run a slice") as got:
                commands.execute(tpu_pod.steps(other), said.append)
            assert got.value.exit_code == 3
            said.clear()
            commands.execute(again[:started], said.append)
        finally:
            (cloud.base / "go").touch()
        commands.execute(again[started:], said.append)
        assert (results / "report.html").exists()
    text = "\n".join(said)
    assert "was asked for before: ACTIVE" in text
    assert text.count("the run is under way; nothing is replaced") == 4
    assert text.count("it runs already") == 4
    assert len(cloud.runs()) == 4 and "mistral-jax train here" in text


def test_a_slice_without_its_mount_is_told_before_it_is_set_up(cloud):
    """Nothing is copied or set up; mounted, the same line goes on."""
    mine = own_request(machine=(*PLACE, f"launcher.shared_folder={cloud.base}/mount"))
    steps, said = tpu_pod.steps(mine), []
    look = next(i for i, step in enumerate(steps) if step.purpose.startswith("look for"))
    with fake_cloud.launched(mine):
        with pytest.raises(CommandFailed, match="mount the shared folder on every host"):
            commands.execute(steps, said.append)
        assert cloud.calls("gcloud")[-1][4] == "ssh" and not cloud.runs("doctor")
        (cloud.base / "mount").mkdir()
        commands.execute(steps[: look + 1], said.append)
    assert said.count(f"{cloud.base}/mount") == 4


def mounting(cloud, *machine):
    """Return a request that mounts a share, and its steps up to the look at the folder."""
    folder = f"launcher.shared_folder={cloud.base}/mount"
    mine = own_request(machine=(*PLACE, folder, "launcher.shared_mount=10.0.0.2:/vol1", *machine))
    steps = tpu_pod.steps(mine)
    look = next(i for i, step in enumerate(steps) if step.purpose.startswith("look for"))
    return mine, steps[: look + 1]


def sudo_of(cloud, index):
    file = cloud.base / f"host-{index}" / "sudo"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def test_a_share_is_mounted_on_every_host_once_before_anything_is_copied(cloud):
    fake_cloud.fake_mounts(cloud)
    mine, steps = mounting(cloud)
    folder = f"{cloud.base}/mount"
    assert steps[2].argv[-1] == "--command=" + commands.remote(
        ["env", "LC_ALL=C", "sh", "-c", shared_mount.SCRIPT, "mount", "10.0.0.2:/vol1", folder]
    )
    assert "sudo -n mount -t nfs" in commands.show(steps)
    with fake_cloud.launched(mine):
        commands.execute(steps, print)
        for index in range(4):
            done = sudo_of(cloud, index)
            assert done[-1] == f"mount -t nfs 10.0.0.2:/vol1 {folder}"
            if shutil.which("mount.nfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
                assert any(line.endswith("install nfs-common") for line in done)
        before = [sudo_of(cloud, index) for index in range(4)]
        (cloud.base / "mount" / "cache").mkdir()
        commands.execute(steps, print)  # what is mounted stays, with what is in it
        assert [sudo_of(cloud, index) for index in range(4)] == before
    assert not any("scp" in argv for argv in cloud.calls("gcloud"))


def test_a_share_that_does_not_come_is_told_in_one_sentence(cloud):
    fake_cloud.fake_mounts(cloud)
    (cloud.base / "no_nfs").touch()
    mine, steps = mounting(cloud)
    with fake_cloud.launched(mine):
        with pytest.raises(
            CommandFailed, match=r"correct launcher.shared_mount, or let the sl"
        ) as got:
            commands.execute(steps, print)
        assert f"cannot mount 10.0.0.2:/vol1 at {cloud.base}/mount" in str(got.value)
        (cloud.base / "no_nfs").unlink()
        (cloud.base / "mount" / "other").touch()  # somebody's file, which a mount would hide
        with pytest.raises(CommandFailed, match="a new or an empty folder"):
            commands.execute(steps, print)
        (cloud.base / "mount" / "other").unlink()
        commands.execute(steps, print)
        _, others = mounting(cloud, "launcher.shared_mount=10.0.0.3:/vol1")
        with pytest.raises(CommandFailed, match="unmount the other one on every host") as got:
            commands.execute(others, print)
        assert "another share, 10.0.0.2:/vol1, is mounted" in str(got.value)


DELETES = (*PLACE, "launcher.delete_when_done=true")


def test_a_slice_is_deleted_once_its_ended_run_is_in_the_bucket(cloud):
    mine, said = own_request(machine=DELETES), []
    finished = cloud.base / "buckets/bucket/runs/tiny/measured.json"
    steps = tpu_pod.steps(mine)
    look = next(i for i, step in enumerate(steps) if "ended run in the bucket" in step.purpose)
    with fake_cloud.launched(mine) as results:
        with pytest.raises(CommandFailed, match="shows no ended run, so the slice is kept"):
            commands.execute(steps[look:], said.append)
        finished.write_text("{}")
        commands.execute(steps, said.append)
        assert (results / "report.html").exists()
    verbs = [argv[4] for argv in cloud.calls("gcloud") if "queued-resources" in argv]
    assert verbs.count("create") == 1 and verbs[-1] == "delete" and verbs.count("delete") == 1
    assert cloud.calls("gcloud")[-1][4] == "delete"  # after all else
    assert "here after the run's end or by hand" in tpu_pod.stop_hint(mine)


def test_a_failed_run_keeps_its_slice(cloud):
    mine = own_request(machine=DELETES)
    (cloud.base / "buckets/bucket/runs/tiny/measured.json").write_text("{}")  # of an earlier end
    (cloud.base / "train.sh").write_text("exit 2\n")
    with fake_cloud.launched(mine), pytest.raises(CommandFailed, match="follow host 0"):
        commands.execute(tpu_pod.steps(mine), print)
    assert not any("delete" in argv for argv in cloud.calls("gcloud"))


def test_a_slice_with_another_run_on_it_is_kept(cloud, monkeypatch):
    monkeypatch.setattr(tpu_pod, "IDLE", tpu_pod.IDLE.replace("flock -w 60", "flock -w 0"))
    lock = "mistral_jax/runs/other/launch/lock"
    for index in range(4):
        (cloud.base / f"host-{index}" / lock).parent.mkdir(parents=True)
    idle = next(
        s for s in tpu_pod.steps(own_request(machine=DELETES)) if "see that no" in s.purpose
    )
    with (cloud.base / "host-2" / lock).open("ab") as file:
        commands.execute([idle], print)
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CommandFailed, match="another run is under way here"):
            commands.execute([idle], print)


def test_only_a_run_in_a_plain_bucket_may_delete_its_slice():
    found = argv_of(tpu_pod.steps(request(CONFIG, "v5e_16", ["output=s3://b-k/a/b/"], DELETES)))
    assert found[-3] == ("aws", "s3api", "head-object", "--bucket=b-k", "--key=a/b/measured.json")
    for output in ("/usr/share/x", "gs://bucket/a*", "gs://bucket/a b"):
        with pytest.raises(ValueError, match="or end the slice by hand with --stop"):
            tpu_pod.steps(request(CONFIG, "v5e_16", [f"output={output}"], DELETES))


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_hosts_without_a_shared_folder_are_refused_before_anything_is_created(cloud, words, capfd):
    assert cli.main(["launch", CONFIG, "--target", "v5e_16", *words, OUTPUT, *PLACE[:2]]) == 2
    assert "give launcher.shared_folder=/PATH, where every host" in capfd.readouterr().err
    assert cloud.calls() == []


def test_a_slice_that_was_taken_away_is_replaced(cloud, asked):
    create, wait = tpu_pod.steps(asked)[:2]
    cloud.store("queued.json", create.argv[10])
    cloud.store("states.json", [{"state": "SUSPENDED"}])
    said = []
    commands.execute([create, wait], said.append)
    assert "the request is replaced, and the run goes on later" in "\n".join(said)
    assert [argv[4] for argv in cloud.calls("gcloud")] == [
        "describe", "delete", "create", "describe",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"state": "FAILED", "failedData": {"error": {"message": "no more v5e here"}}},
            "no more v5e here.*delete it with .*--force.*another launcher.zone",
        ),
        ({"state": "SUSPENDED"}, "taken away; launch again: a new slice goes on from the check"),
    ],
)
def test_a_slice_that_will_not_come_ends_the_wait(cloud, asked, state, message, capfd):
    wait = tpu_pod.steps(asked)[1]
    cloud.store("queued.json", wait.argv[12])
    cloud.store("states.json", [{"state": "PROVISIONING"}, state])
    with pytest.raises(CommandFailed) as caught:
        commands.run_command(wait, print)
    assert re.search(message, str(caught.value), re.DOTALL)


@pytest.mark.parametrize(
    ("stderr", "fix"),
    [
        ("PERMISSION_DENIED: tpu.nodes.create", "roles/tpu.admin"),
        ("RESOURCE_EXHAUSTED: Quota limit", "no quota for this many chips"),
        ("Reauthentication required.", "gcloud auth login"),
        ("The required property [zone] were not specified", "give launcher.zone="),
    ],
)
def test_gclouds_refusals_come_with_what_to_do(cloud, asked, stderr, fix):
    cloud.program("gcloud", f"echo {shlex.quote(stderr)} >&2; exit 1\n")
    with pytest.raises(CommandFailed, match=re.escape(fix)):
        commands.execute(tpu_pod.steps(asked)[:1], print)


@pytest.mark.parametrize(
    ("run", "machine", "message"),
    [
        ((), (), "4 hosts share no disk; give output=gs://"),
        (("output=gs://B/x",), (), "expected gs://BUCKET/PATH"),
        ((OUTPUT, "fresh=true"), (), "name a new folder with output="),
        ((OUTPUT, "name=x" + 60 * "y"), (), "at most 40 characters"),
        ((OUTPUT, "data.train=.venv"), (), "lies on this machine alone: put it into a bucket"),
        ((OUTPUT,), ("launcher.shared_folder=null",), "give launcher.shared_folder=/PATH"),
        (("output=/nfs/x",), ("launcher.shared_folder=null",), "the run's 4 hosts work in one"),
        ((OUTPUT,), ("launcher.shared_folder=mnt/x",), "expected the absolute path of a mount"),
        ((OUTPUT,), ("launcher.shared_folder=/mnt/../x",), "expected the absolute path of a mount"),
        ((OUTPUT,), ("launcher.shared_folder=/",), "expected the absolute path of a mount"),
        ((OUTPUT,), ("launcher.shared_mount=x",), "expected SERVER:/PATH of an NFS share"),
        ((OUTPUT,), ("launcher.shared_mount=-o:/x",), "expected SERVER:/PATH of an NFS share"),
        ((OUTPUT,), ("launcher.shared_mount=h:/a/../b",), "expected SERVER:/PATH of an NFS share"),
        ((OUTPUT,), ("launcher.shared_mount=h:/a b",), "expected SERVER:/PATH of an NFS share"),
        ((OUTPUT,), ("launcher.name=-x",), "launcher.name '-x'"),
        ((OUTPUT,), ("launcher.zone=us-west4",), "such as us-central1-a"),
        ((OUTPUT,), ("launcher.project=P",), "gcloud projects list"),
        ((OUTPUT,), ("launcher.folder=../x",), "below the hosts' home"),
        ((OUTPUT,), ("launcher.folder=~/x",), "below the hosts' home"),
        ((OUTPUT,), ("launcher.runtime_version=a b",), "launcher.runtime_version"),
    ],
)
def test_what_no_slice_could_take_is_refused_before_anything_runs(run, machine, message):
    overrides = [text for text in run if not text.startswith("fresh=")]
    made = request(CONFIG, "v5e_16", overrides, (SHARED, *machine))
    made = dataclasses.replace(made, overrides=tuple(run))
    with pytest.raises(ValueError, match=re.escape(message)):
        tpu_pod.steps(made)


def test_a_share_needs_a_folder_to_be_mounted_at():
    with pytest.raises(ValueError, match=r"give launcher\.shared_folder=/mnt"):
        tpu_pod.steps(request(CONFIG, "v6e_8", [OUTPUT], ["launcher.shared_mount=10.0.0.2:/vol1"]))


def test_a_spot_slice_of_one_host_needs_a_bucket_too():
    with pytest.raises(ValueError, match="a spot slice's disk goes with it"):
        tpu_pod.steps(request(CONFIG, "v6e_8", [], ["launcher.spot=true"]))
    made = request(CONFIG, "v6e_8", [OUTPUT], ["launcher.spot=true"])
    assert "--spot" in tpu_pod.steps(made)[0].argv


def with_launcher(made, **fields):
    launcher = made.target.launcher.model_copy(update=fields)
    return dataclasses.replace(made, target=made.target.model_copy(update={"launcher": launcher}))


def hostile_requests(made, fields):
    """Yield the request with each hostile string in each place."""
    for text in hostile.STRINGS:
        for field in fields:
            yield with_launcher(made, **{field: text})
        yield dataclasses.replace(made, run=made.run.model_copy(update={"name": text}))
        yield dataclasses.replace(made, overrides=(f"output=gs://bucket/{text}",))


def test_hostile_strings_arrive_as_they_are_or_are_refused(asked, same_tree):
    """What ssh's far shell gets splits, by a shell's rules, into the very words that were meant."""
    fields = ("name", "zone", "project", "folder", "runtime_version", "shared_folder",
              "shared_mount")  # fmt: skip
    refused, passed = 0, []
    for made in hostile_requests(asked, fields):
        try:
            found = argv_of(tpu_pod.steps(made))
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        for argv in found:
            assert argv[0] in ("gcloud", "mkdir", sys.executable)
            for word in argv:
                if word.startswith("--command="):
                    words = shlex.split(word.removeprefix("--command="))
                    assert not any(hostile.MARKER in part for part in words[:6])
                    if made.overrides != asked.overrides and "train" in words:
                        assert words[-1] == made.overrides[0]
                        passed.append((words, word.removeprefix("--command=")))
    assert refused > 3000 and len(passed) > 300
    assert len(tpu_pod.steps(asked)) == 11


def test_hostile_overrides_reach_the_far_program_through_a_real_shell(cloud, asked):
    """Some hundred of them at once: gcloud's fake gives the command to /bin/sh in a home."""
    texts = [f"output={text}" for text in hostile.STRINGS if hostile.MARKER in text]
    kept = [text for text in texts if not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\ud800]", text)]
    made = dataclasses.replace(asked, overrides=tuple(kept))
    start = next(s for s in tpu_pod.steps(made) if "start the run" in s.purpose)
    for index in range(4):
        folder = cloud.base / f"host-{index}" / "mistral_jax" / "launch"
        folder.mkdir(parents=True)
        (folder / "host.sh").write_text('printf "%s\\n" "$@" >"$0.words"\n', encoding="utf-8")
    commands.run_command(start, print)
    for index in range(4):
        host = cloud.base / f"host-{index}"
        lines = (host / "mistral_jax/launch/host.sh.words").read_text(encoding="utf-8").splitlines()
        assert lines[-len(kept) :] == kept and len(kept) > 250
        assert not list(host.rglob(hostile.MARKER))
