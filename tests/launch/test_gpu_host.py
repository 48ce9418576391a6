"""launch/gpu_host.py, start.py, host.sh: a whole launch over fake ssh and rsync; what they get."""

import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch import bundle
from launch import commands
from launch import gpu_host
from launch import plan as plan_lib
from launch import supervise
from launch import target as target_lib
from launch.commands import Command
from launch.commands import Request
from mistral_jax import remote_run
from mistral_jax.config import load
from tests.launch import fake_host
from tests.launch import hostile

CONFIG = commands.ROOT / "configs" / "tiny" / "dense.yaml"
SENT = ("mistral_jax", "launch", "data_pipelines", "configs", "requirements", "run", "setup.cfg")
TINY = (
    "model.num_layers=1", "model.width=32", "model.ffn.width=32", "data.sequence_length=64",
    "model.head_width=8", "data.global_batch_sequences=2", "optimizer.max_steps=6",
    "optimizer.warmup_steps=1", "checkpoint.every_steps=3", "evaluate.every_steps=6",
    "evaluate.max_rows=4", "data.train=texts",
)  # fmt: skip


@functools.cache
def resolved(config=str(CONFIG)):
    run = load.load_run(config)
    machine = target_lib.load_target("local_cpu")
    return run, machine, plan_lib.resolve(run, machine)


def request(*, overrides=(), config=CONFIG, run=None, **launcher):
    base, machine, plan = resolved()
    run = run or base
    fields = {"kind": "ssh", "host": "gpu1", **launcher}
    machine = load.validate(
        {**machine.model_dump(mode="json"), "launcher": fields}, target_lib.Target, where="test"
    )
    folder = commands.launch_folder(run)
    return Request(run, Path(config), tuple(overrides), machine, plan, folder)


def argvs(steps):
    return [step.argv for step in steps if isinstance(step, Command)]


@pytest.fixture
def few_files(monkeypatch):
    monkeypatch.setattr(bundle, "project_files", lambda root: [Path("run")])


def far_words(argv):
    """Return what the far shell makes of the last word of an ssh call, the follower's aside."""
    assert argv[-3] == "--"
    return shlex.split(argv[-1])


def test_every_ssh_and_rsync_gets_user_port_and_key_as_arguments(few_files):
    made = argvs(gpu_host.steps(request(user="me", port=2222, key="/keys/my key", lock="cuda12")))
    options = ["-p", "2222", "-i", "/keys/my key", "-l", "me"]
    for argv in made:
        words = list(argv)
        if words[0] == "rsync":
            words = shlex.split(words[words.index("-e") + 1])
        assert any(words[i : i + 6] == options for i in range(len(words))), argv
    assert far_words(made[3]) == ["sh", "mistral_jax/launch/host.sh", "setup", "cuda12"]


def test_the_lock_is_none_on_a_cpu_and_the_drivers_choice_on_a_gpu(few_files):
    assert "none" in far_words(argvs(gpu_host.steps(request()))[3])
    gpu = target_lib.load_target("g5_2xlarge").model_dump(mode="json")
    gpu["launcher"] = {"kind": "ssh", "host": "gpu1"}
    machine = load.validate(gpu, target_lib.Target, where="test")
    run, _, plan = resolved()
    made = gpu_host.steps(Request(run, CONFIG, (), machine, plan, Path("runs/x/launch")))
    assert far_words(argvs(made)[3])[-2:] == ["setup", "auto"]


def test_a_store_in_the_config_brings_its_clients(few_files, monkeypatch):
    for name in ("MISTRAL_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    run = load.load_run(CONFIG, ["data.train=s3://bucket/train.jsonl", "output=s3://bucket/out"])
    made = argvs(gpu_host.steps(request(run=run)))
    setup = next(argv for argv in made if "setup" in argv[-1])
    assert far_words(setup)[-3:] == ["setup", "none", "data"]
    assert not any("send s3" in step.purpose for step in gpu_host.steps(request(run=run)))
    # The supervisor counts crashes anew after each step, which it sees where the run works.
    start = next(far_words(argv) for argv in made if "launch.detach start" in argv[-1])
    options, _ = supervise.parser().parse_known_args(start[start.index("--folder") :])
    assert options.progress == remote_run.local_folder("s3://bucket/out")
    # The bucket has the results; what launch itself wrote is fetched.
    assert made[-1][-2].endswith(f":mistral_jax/{commands.launch_folder(run).parent}/")


def test_fetched_results_that_git_does_not_ignore_are_not_sent_back(monkeypatch):
    """They are older than what the run on the host has written since."""
    names = ("run", "models/x/metrics.jsonl", "models/x/checkpoints/2/a", "models/xy.yaml")
    monkeypatch.setattr(bundle, "project_files", lambda root: [Path(name) for name in names])
    made = request(run=load.load_run(CONFIG, ["output=models/x/"]), overrides=["output=models/x/"])
    listing = gpu_host.steps(made)[0]
    assert listing.content.splitlines() == ["run", "models/xy.yaml"]
    here = request(run=load.load_run(CONFIG, ["output=."]), overrides=["output=."])
    assert gpu_host.steps(here)[0].content.splitlines() == list(names)


def test_inputs_go_to_the_same_place_below_home_or_project(few_files, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("my documents", "more"):
        (tmp_path / name).mkdir()
    run = load.load_run(CONFIG, ["data.train=~/my documents", "data.eval=more"])
    sent = [argv for argv in argvs(gpu_host.steps(request(run=run))) if "-R" in argv]
    assert [argv[-2:] for argv in sent] == [
        (f"{tmp_path}/./my documents", "gpu1:./"),
        (f"{tmp_path}/./more", "gpu1:mistral_jax/"),
    ]
    with pytest.raises(ValueError, match="cannot be sent"):
        gpu_host.steps(request(run=load.load_run(CONFIG, ["data.train=more/../more"])))


def test_a_config_outside_and_a_changed_target_travel_as_files(few_files, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {CONFIG}\nseed: 3\n", encoding="utf-8")
    made = request(config=path, run=load.load_run(path, ["seed=4"]), overrides=["seed=4"])
    words = commands.verb_words(made, "train")
    folder = str(made.folder)
    assert words == ["train", f"{folder}/config.yaml", "--target", "local_cpu"]
    (file,) = commands.own_files(made)
    written = tmp_path / "again.yaml"
    written.write_text(file.content, encoding="utf-8")
    assert load.load_run(written) == made.run


FIELDS = ("host", "user", "key", "folder")


@pytest.mark.parametrize("field", FIELDS)
def test_hostile_launcher_values_are_refused_or_stay_one_argument(field, same_tree, few_files):
    """Before any program runs: every argument list is what a harmless value would give."""
    plain = argvs(gpu_host.steps(request(**{field: "harmless"})))
    passed = 0
    for text in hostile.STRINGS:
        try:
            made = argvs(gpu_host.steps(request(**{field: text})))
        except ValueError:
            continue
        passed += 1
        for argv, like in zip(made, plain, strict=True):
            assert len(argv) == len(like)
            if argv[0] == "rsync":
                spoken = fake_split(argv[argv.index("-e") + 1])
                assert len(spoken) == len(fake_split(like[like.index("-e") + 1]))
            else:
                assert len(far_words(argv)) == len(far_words(like))
                assert not any(word.startswith("-oProxyCommand") for word in argv)
    assert passed  # "a", "x." and their like
    assert passed < len(hostile.STRINGS) * (0.1 if field in ("host", "user") else 0.9)


def fake_split(text):
    """Split as rsync does: spaces part, quotes of either kind keep together, no escapes."""
    found, now, quote = [], None, None
    for sign in text:
        if quote is not None:
            quote, now = (None, now) if sign == quote else (quote, now + sign)
        elif sign in "'\"":
            quote, now = sign, now or ""
        elif sign == " ":
            found, now = (found, None) if now is None else ([*found, now], None)
        else:
            now = (now or "") + sign
    return found if now is None else [*found, now]


def test_hostile_run_names_configs_and_overrides_are_refused_or_stay_one_argument(
    same_tree, few_files
):
    base = resolved()[0]
    counts = {"name": 0, "config": 0, "override": 0}
    for text in hostile.STRINGS:
        for what in counts:
            try:
                if what == "name":
                    made = request(run=base.model_copy(update={"name": text}))
                elif what == "config":
                    made = request(config=commands.ROOT / f"configs/{text}")
                else:
                    made = request(overrides=[f"data.train={text}"])
                steps = gpu_host.steps(made)
            except ValueError:
                continue
            counts[what] += 1
            start = next(argv for argv in argvs(steps) if "launch.detach start" in argv[-1])
            words = far_words(start)
            assert len(words) == 16 + (what == "override")
            if what == "override":
                assert words[-1] == f"data.train={text}"
            if what == "config":
                assert Path(words[-3]).name == Path(f"configs/{text}").name or "config" in words[-3]
    assert 0 < counts["name"] < 60
    assert counts["override"] > 300 and counts["config"] > 300


def launch(project, host, *words, **environment):
    """Run the verb as a user does, in a copy of the project, with the fakes on PATH."""
    return subprocess.run(
        [sys.executable, "-m", "mistral_jax.cli", "launch", *words],
        cwd=project,
        env={**os.environ, "PATH": host.path, "HOME": str(project.parent), **environment},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Return a clone of the project as it stands, small documents beside it."""
    root = tmp_path_factory.mktemp("here") / "project"
    for path in bundle.project_files(commands.ROOT):
        if path.parts[0] in SENT:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(commands.ROOT / path, root / path)
    (root / "texts").mkdir()
    (root / "texts" / "a.md").write_text("One line of text for the model.\n" * 200)
    (root / ".gitignore").write_text("/runs/\n/texts/\n__pycache__/\n")
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    return root


def environment_of(folder, far_root):
    """Make an environment that ./run takes for set up, with this one's packages in it."""
    for name, words in (("python", ""), ("mistral-jax", " -m mistral_jax.cli")):
        text = f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{words} "$@"\n'
        fake_host.FakeHost.add_program(folder / "bin" / name, text)
    files = ["setup.cfg", "requirements/core.lock"]
    content = b"".join((commands.ROOT / name).read_bytes() for name in files)
    done = subprocess.run(["cksum"], input=content, capture_output=True, check=True)
    (folder / ".installed").write_text(f"core {done.stdout.decode().strip()} {far_root}\n")


@pytest.fixture
def host(tmp_path):
    venv = tmp_path / "venv"
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    made = fake_host.FakeHost(
        tmp_path / "host",
        {"MISTRAL_JAX_VENV": str(venv), "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu"},
    )
    environment_of(venv, made.home / "mistral_jax")
    return made


SSH = ("--target", "local_cpu", "launcher.kind=ssh", "launcher.host=gpu1")


@pytest.mark.slow
def test_a_run_goes_to_the_host_trains_there_and_its_results_come_back(project, host):
    (host.base / "cut_after_s").write_text("1.5")
    done = launch(project, host, "configs/tiny/dense.yaml", *SSH, *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    run = load.load_run(project / "configs/tiny/dense.yaml", TINY)
    results = project / run.run_directory()
    lines = (results / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line).get("step", 0) for line in lines) == 6
    assert (results / "report.html").is_file() and (results / "checkpoints").is_dir()
    assert (results / "launch" / "log").is_file()
    assert (host.home / "mistral_jax" / "texts" / "a.md").is_file()
    # The connection broke once, and nothing of the log came twice or was lost.
    assert done.stdout.count("connection lost") == 1
    (line,) = [line for line in done.stdout.splitlines() if "parameters:" in line]
    assert line in (results / "launch" / "log").read_text()
    assert "to stop the run: the same command with --stop" in done.stdout
    again = launch(project, host, "configs/tiny/dense.yaml", *SSH, *TINY)
    assert again.returncode == 0 and "this run is finished at step 6" in again.stdout


def test_dry_run_shows_what_would_run_and_runs_nothing(project, host):
    done = launch(project, host, "configs/tiny/dense.yaml", *SSH, "--dry-run", "seed=9")
    assert done.returncode == 0, done.stderr
    assert host.calls() == []
    run = load.load_run(CONFIG, ["seed=9"])
    assert not (project / run.run_directory()).exists()
    for part in ("rsync -a", "host.sh setup none", "launch.detach start", "--stop"):
        assert part in done.stdout


@pytest.mark.parametrize("name", ["-oProxyCommand=touch x", "a'b", "$(touch x)"])
def test_a_hostile_host_is_refused_before_any_program_runs(project, host, name):
    done = launch(
        project, host, "configs/tiny/dense.yaml", *SSH[:3], f"launcher.host={json.dumps(name)}"
    )
    assert done.returncode == 2 and "correct launcher.host" in done.stderr
    assert host.calls() == [] and not (project / "x").exists()


@pytest.mark.parametrize(
    ("code", "text", "told"),
    [
        (255, "ssh: connect to host gpu1 port 22: Connection timed out", "does not answer"),
        (255, "ssh: Could not resolve hostname gpu1: Name", "correct launcher.host"),
        (255, "Permissions 0644 for 'k' are too open. UNPROTECTED PRIVATE KEY FILE!", "chmod 600"),
        (255, "me@gpu1: Permission denied (publickey).", "correct launcher.user"),
    ],
)
def test_what_ssh_says_becomes_a_sentence(host, few_files, monkeypatch, code, text, told):
    monkeypatch.setenv("PATH", host.path)
    (host.base / "ssh_fails").write_text(f"{code} {text}")
    reach = next(step for step in gpu_host.steps(request()) if isinstance(step, Command))
    with pytest.raises(commands.CommandFailed, match=told) as caught:
        commands.execute([reach], lambda line: None)
    assert text in str(caught.value) and caught.value.exit_code == 1


def test_a_run_under_way_is_only_followed_and_another_one_is_refused(host, few_files, monkeypatch):
    monkeypatch.setenv("PATH", host.path)
    made = request()
    other = request(run=load.load_run(CONFIG, ["seed=5"]), overrides=["seed=5"])
    root, go, said = host.home / "mistral_jax", host.base / "go", []
    shutil.copytree(commands.ROOT / "launch", root / "launch")
    begin = [sys.executable, "-m", "launch.detach", "start", "--folder", str(made.folder), "--"]
    waiting = f"while [ ! -e {shlex.quote(str(go))} ]; do sleep 0.1; done; echo it went on"
    subprocess.run([*begin, "sh", "-c", waiting], cwd=root, check=True)

    def say(line):
        said.append(line)
        if "follow the run" in line:
            go.touch()

    def run_on_host(it):  # neither the files of this side nor the fetching
        steps = [step for step in gpu_host.steps(it) if isinstance(step, Command)]
        commands.execute(steps[:-1], say)

    try:
        with pytest.raises(commands.CommandFailed, match="wait for it, or stop it") as caught:
            run_on_host(other)
        assert caught.value.exit_code == 3
        run_on_host(made)
    finally:
        go.touch()
    assert "it went on" in said and gpu_host.UNDER_WAY in said
    far = [argv[-1] for argv in host.calls("ssh")]
    assert [("sh -s" in text, "detach follow" in text) for text in far] == [
        (True, False), (True, False), (False, True),
    ]  # fmt: skip
    assert host.calls("rsync") == []


def test_the_set_up_waits_for_the_first_boot_and_not_for_ever(host):
    log = host.base / "waits"
    host.add_program(host.base / "bin" / "cloud-init", f'#!/bin/sh\necho "$*" >>"{log}"\nexit 2\n')
    done = far_setup(host, "580.10")
    assert log.read_text() == "status --wait\n" and done.stdout.endswith("cuda13 data|doctor")
    shutil.rmtree(host.home / "p")
    host.add_program(
        host.base / "bin" / "timeout", '#!/bin/sh\n[ "$1" = 600 ] && exit 124\nexit 1\n'
    )
    done = far_setup(host, "580.10")
    assert "has not ended after 10 minutes" in done.stdout and done.returncode == 0


def far_setup(host, driver):
    host.add_driver(driver)
    folder = host.home / "p"
    (folder / "launch").mkdir(parents=True)
    shutil.copy2(commands.ROOT / "launch" / "host.sh", folder / "launch")
    host.add_program(folder / "run", '#!/bin/sh\nprintf "%s|%s" "$MISTRAL_JAX_LOCKS" "$*"\n')
    return subprocess.run(
        ["sh", "p/launch/host.sh", "setup", "auto", "data"],
        cwd=host.home, env={**os.environ, "PATH": host.path}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("driver", "code", "told"),
    [
        ("595.42.01", 0, "cuda13 data|doctor"),
        ("580.10", 0, "cuda13 data|doctor"),
        ("579.99", 0, "cuda12 data|doctor"),
        ("525.60.13", 0, "cuda12 data|doctor"),
        ("470.1", 3, "driver 470.1 is too old: install 580"),
        ("NVIDIA-SMI has failed", 3, "tells no driver version"),
    ],
)
def test_the_driver_decides_the_lock(host, driver, code, told):
    done = far_setup(host, driver)
    assert done.returncode == code and told in done.stdout + done.stderr


def test_stop_ends_a_run_that_is_going_on(project, host):
    words = ("configs/tiny/dense.yaml", *SSH, *TINY, "optimizer.max_steps=100000")
    run = load.load_run(CONFIG, [*TINY, "optimizer.max_steps=100000"])
    folder = host.home / "mistral_jax" / commands.launch_folder(run)
    folder.parent.mkdir(parents=True)
    for name in ("launch", "mistral_jax"):
        shutil.copytree(project / name, host.home / "mistral_jax" / name)
    begin = [sys.executable, "-m", "launch.detach", "start", "--folder", str(folder), "--"]
    subprocess.run([*begin, "sleep", "1000"], cwd=host.home / "mistral_jax", check=True)
    done = launch(project, host, *words, "--stop")
    assert done.returncode == 0 and "has stopped" in done.stdout, done.stderr
