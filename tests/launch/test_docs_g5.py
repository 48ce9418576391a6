"""docs/finetune-g5.md, followed line by line: its blocks run in a real shell.

Behind them: moto's server for AWS, fake ssh and rsync for the way to the host (fake_host.py), and
on the host a `run` that notes its verb in place of training a 7B model. `launch`, `plan`, host.sh,
the supervisor and boto3 are the real ones; pre-flight has tests of its own.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request

import pytest

from launch import bundle
from launch import commands
from tests.launch import fake_host

boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")

PAGE = commands.ROOT / "docs" / "finetune-g5.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
SENT = ("mistral_jax", "launch", "data_pipelines", "configs", "setup.cfg")

# The project's `run`: here the real verbs of this page, there (and for what needs a model) a note.
RUN = """#!/bin/sh
case $1 in
    launch | plan) exec {python} driver.py "$@" ;;
    train) echo "step 1: loss 2.0" ;;
esac
printf '%s\\n' "$MISTRAL_JAX_LOCKS|$*" >>"$NOTES"
"""
DRIVER = """
import sys
from launch import ec2, start, target
from mistral_jax import cli
load = target.load_target
def load_with_image(name, overrides=()):  # the image parameter of AWS is not in moto
    return load(name, [*overrides, "launcher.image=" + IMAGE])
target.load_target = load_with_image
ec2._wait_for_ssh = lambda instance, port, say: say("sshd answers")  # nobody listens there
start.check_steps = lambda request: []
sys.exit(cli.main(sys.argv[1:]))
"""
# What of the aws program the page uses, through boto3.
AWS = """#!{python}
import sys, boto3, json
service, verb, *words = sys.argv[1:]
given = dict(zip(words[::2], words[1::2]))
query = given.pop("--query", None); given.pop("--output", None)
if "--filters" in given:
    name, values = given.pop("--filters").split(",")
    filters = [{{"Name": name.split("=")[1], "Values": [values.split("=")[1]]}}]
    answer = boto3.client(service).describe_instances(Filters=filters)
else:
    given = {{"".join(p.title() for p in key[2:].split("-")): v for key, v in given.items()}}
    names = {{"Protocol": "IpProtocol", "Cidr": "CidrIp"}}
    given = {{names.get(key, key): value for key, value in given.items()}}
    if "Port" in given: given["FromPort"] = given["ToPort"] = int(given.pop("Port"))
    answer = getattr(boto3.client(service), verb.replace("-", "_"))(**given)
print(answer[query] if query else json.dumps(answer, default=str))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a user's machine: project, home, PATH, an AWS account; and the host behind it."""
    base = tmp_path_factory.mktemp("g5")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address, port = server.get_host_and_port()
    urllib.request.urlopen(
        urllib.request.Request(f"http://{address}:{port}/moto-api/reset", method="POST")
    ).close()
    aws = {
        "AWS_ENDPOINT_URL": f"http://{address}:{port}", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }  # fmt: skip
    notes = base / "notes"
    far = {"NOTES": str(notes), "MISTRAL_JAX_VENV": str(base / "venv")}
    host = fake_host.FakeHost(base / "host", far)
    host.add_driver("595.42.01")
    python = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'
    host.add_program(base / "venv" / "bin" / "python", python)
    host.add_program(host.base / "bin" / "aws", AWS.format(python=sys.executable))
    project = make_project(base / "home" / "project", aws)
    (base / "home" / ".ssh").mkdir()
    (base / "home" / "Mistral-7B-v0.3").mkdir()
    (base / "home" / "Mistral-7B-v0.3" / "params.json").write_text("{}")
    (base / "home" / "my_docs").mkdir()
    environment = {**os.environ, **aws, **far, "PATH": host.path, "HOME": str(base / "home")}
    yield host, project, environment
    server.stop()


def make_project(root, aws):
    for path in bundle.project_files(commands.ROOT):
        if path.parts[0] in SENT:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(commands.ROOT / path, root / path)
    account = boto3.Session("testing", "testing", region_name="us-east-1")
    client, rights = (
        account.client(name, endpoint_url=aws["AWS_ENDPOINT_URL"]) for name in ("ec2", "iam")
    )
    rights.create_instance_profile(InstanceProfileName="my-training")
    image = client.describe_images()["Images"][0]["ImageId"]
    (root / "driver.py").write_text(f"IMAGE = {image!r}\n{DRIVER}")
    fake_host.FakeHost.add_program(root / "run", RUN.format(python=shlex.quote(sys.executable)))
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    return root


def follow_block(number, place):
    _, project, environment = place
    done = subprocess.run(
        ["/bin/sh", "-e"], input=BLOCKS[number], cwd=project, env=environment,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def noted(place):
    path = place[0].base.parent / "notes"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split("|")[0].split() + ["|", *line.split("|")[1].split()] for line in lines]


def test_the_page_holds_the_blocks_that_are_followed_here():
    assert len(BLOCKS) == 6
    assert "Memory predicted, not measured" in PAGE.read_text("utf-8")


def test_the_page_from_key_pair_to_stopped_instance(place):
    host, project, _ = place
    follow_block(0, place)
    key = project.parent / ".ssh" / "g5.pem"
    assert "PRIVATE KEY" in key.read_text() and key.stat().st_mode & 0o077 == 0

    shown = follow_block(1, place)
    assert "GiB of 20.6 GiB" in shown and "EC2 run_instances" in shown
    assert '"Name": "my-training"' in shown and "to stop the bill" in shown
    assert host.calls() == []

    said = follow_block(2, place)
    assert "driver 595.42.01 takes cuda13" in said
    assert "step 1: loss 2.0" in said
    verbs = noted(place)
    assert [line[line.index("|") + 1] for line in verbs] == ["doctor", "preflight", "train"]
    assert verbs[0][:2] == ["cuda13", "data"]
    assert "output=s3://my-bucket/models/x" in verbs[2]
    (run,) = (project / "runs").iterdir()
    assert "step 1: loss 2.0" in (run / "launch" / "log").read_text()
    halts = [argv for argv in host.calls("sudo") if "-h" in argv]
    assert halts[-1] == ["sudo", "-n", "shutdown", "-h", "+1"]  # the results were fetched first
    assert all("-i" in argv for argv in host.calls("ssh"))

    orders = len(host.calls("sudo"))
    follow_block(3, place)
    assert len(host.calls("sudo")) == orders  # a host of one's own is never shut down
    assert (host.home / "Mistral-7B-v0.3" / "params.json").is_file()
    assert (host.home / "my_docs").is_dir()
    assert host.calls("ssh")[-1][-2] == "gpu1.example.com"

    said = follow_block(4, place)
    assert "is being stopped; its disk costs until you end it" in said
    left = json.loads(said[said.index("{") :])["Reservations"]
    assert [each["State"]["Name"] for each in left[0]["Instances"]] == ["stopped"]

    follow_block(5, place)
    assert [line[line.index("|") + 1] for line in noted(place)[-2:]] == ["chat", "export"]
