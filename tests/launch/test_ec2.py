"""launch/ec2.py against moto's server: real HTTP, real boto3; and the auto-stop script for real."""

import base64
import dataclasses
import functools
import os
import socket
import subprocess
import threading
import urllib.request
from pathlib import Path

import pytest

from launch import commands
from launch import ec2
from launch import ec2_instance
from launch import plan as plan_lib
from launch import start
from launch import target as target_lib
from launch.commands import Request
from mistral_jax.config import load
from tests.launch import fake_host

boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")

CONFIG = commands.ROOT / "configs" / "tiny" / "dense.yaml"
REGION = "us-east-1"


@pytest.fixture(scope="module")
def server():
    made = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    yield f"http://{host}:{port}"
    made.stop()


@pytest.fixture
def account(server, monkeypatch):
    """Return a client of an empty account that has a key pair and lets ssh in."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    reset = urllib.request.Request(f"{server}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()
    client = boto3.client("ec2")
    client.create_key_pair(KeyName="mine")
    return client


@pytest.fixture
def open_account(account):
    """Return the same with a security group that lets ssh in, in place of its own words."""
    (group,) = account.describe_security_groups(
        Filters=[{"Name": "group-name", "Values": ["default"]}]
    )["SecurityGroups"]
    account.authorize_security_group_ingress(
        GroupId=group["GroupId"], IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0"
    )
    return account


@functools.cache
def resolved():
    run = load.load_run(CONFIG)
    machine = target_lib.load_target("g5_2xlarge")
    return run, machine, plan_lib.resolve(run, machine)


@functools.cache
def image():
    """Return an image that moto always has, so that its root device can be asked."""
    return boto3.client("ec2").describe_images()["Images"][0]["ImageId"]


def request(*, price=1.212, **launcher):
    run, machine, plan = resolved()
    fields = {**machine.launcher.model_dump(mode="json"), "key_name": "mine", **launcher}
    if "image" not in launcher:
        fields["image"] = image()
    tree = {**machine.model_dump(mode="json"), "launcher": fields, "price_usd_per_hour": price}
    machine = load.validate(tree, target_lib.Target, where="test")
    return Request(run, CONFIG, (), machine, plan, commands.launch_folder(run))


@pytest.fixture
def quick(monkeypatch):
    """Answer for the instance's sshd: moto's instances have addresses that nobody listens at."""
    asked = []
    monkeypatch.setattr(ec2, "_wait_for_ssh", lambda instance, port, say: asked.append(instance))
    return asked


def test_an_instance_is_started_tagged_and_stops_itself(open_account, quick):
    said = []
    made = request(tags={"team": "x"}, disk_gib=333, idle_minutes=7, max_hours=1.5)
    found = ec2.locate(made, create=True, is_dry_run=False, say=said.append)
    (instance,) = open_account.describe_instances()["Reservations"][0]["Instances"]
    assert found.target.launcher.host == instance["PublicDnsName"] == quick[0].host
    assert instance["InstanceType"] == "g5.2xlarge" and instance["KeyName"] == "mine"
    tags = {each["Key"]: each["Value"] for each in instance["Tags"]}
    assert tags["team"] == "x" and tags[ec2_instance.RUN_TAG] == ec2_instance.tag(made)
    volume = open_account.describe_volumes()["Volumes"][0]
    assert volume["Size"] == 333 and {"Key": "team", "Value": "x"} in volume["Tags"]

    def attribute(name):
        return open_account.describe_instance_attribute(
            InstanceId=instance["InstanceId"], Attribute=name
        )

    behaviour = attribute("instanceInitiatedShutdownBehavior")
    assert behaviour["InstanceInitiatedShutdownBehavior"]["Value"] == "stop"
    script = base64.b64decode(attribute("userData")["UserData"]["Value"]).decode()
    assert "mistral-jax-auto-stop 7 90\n" in script
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0


def test_a_second_create_finds_the_first_and_wakes_it(open_account, quick):
    made, said = request(), []
    first = ec2.start_instance(made, said.append)
    assert ec2.start_instance(made, said.append).name == first.name
    ec2.stop(made, said.append)
    assert ec2.find(made).state == "stopped"
    assert "its disk costs until" in said[-1]
    again = ec2.start_instance(made, said.append)
    assert (again.name, again.state) == (first.name, "running")
    assert len(open_account.describe_instances()["Reservations"]) == 1
    assert ec2.locate(made, create=False, is_dry_run=False, say=said.append)
    other = load.load_run(CONFIG, ["seed=5"])
    elsewhere = dataclasses.replace(made, run=other, folder=commands.launch_folder(other))
    assert ec2.find(elsewhere) is None


def test_the_image_of_the_parameter_is_taken(open_account, quick):
    wanted = image()
    name = "/mine/image"  # AWS's own cannot be written
    boto3.client("ssm").put_parameter(Name=name, Value=wanted, Type="String")
    ec2.start_instance(request(image=None, image_parameter=name), print)
    (instance,) = open_account.describe_instances()["Reservations"][0]["Instances"]
    assert instance["ImageId"] == wanted


def test_a_spot_instance_is_ended_and_not_stopped(open_account, quick):
    made = request(market="spot", max_usd_per_hour=1e6)
    arguments = ec2_instance.arguments(made, open_account, None)
    assert arguments["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert arguments["InstanceMarketOptions"]["MarketType"] == "spot"
    ec2.start_instance(made, print)
    ec2.stop(made, print)
    assert ec2.find(made) is None


def test_what_is_stopped_and_what_is_ended_ec2_tells_and_not_the_config(open_account, quick):
    """`--stop` may be typed without launcher.market=spot, or with it for another instance."""
    on_demand, spot = request(), request(market="spot", max_usd_per_hour=1e6)
    ec2.start_instance(on_demand, print)
    ec2.stop(spot, print)
    assert ec2.find(on_demand).state == "stopped"  # its disk holds the run
    open_account.terminate_instances(InstanceIds=[ec2.find(on_demand).name])
    ec2.start_instance(spot, print)
    ec2.stop(on_demand, print)
    assert ec2.find(spot) is None  # one that cannot be stopped


def test_a_stop_that_finds_nothing_names_what_other_runs_have_running(open_account, quick):
    """With an override less, or a config that was edited since, it is another run."""
    made, said = request(), []
    name = ec2.start_instance(made, print).name
    run = load.load_run(CONFIG, ["seed=5"])
    other = dataclasses.replace(made, run=run, folder=commands.launch_folder(run))
    ec2.stop(other, said.append)
    assert "no instance of" in said[0]
    assert f"{name} of another run is running" in said[1]
    assert said[1].endswith(f"aws ec2 stop-instances --instance-ids {name}")
    assert ec2.find(made).state == "running"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"price": 1.6}, "costs 1.600 USD an hour, above launcher.max_usd_per_hour 1.5"),
        ({"price": None}, "price is not known; give it with price_usd_per_hour="),
        (
            {"instance_type": "p4d.24xlarge"},
            "1.212 USD an hour is the price of the target's g5.2xlarge, not of .*p4d.24xlarge",
        ),
        ({"instance_type": "p4d.24xlarge", "price": 21.9}, "p4d.24xlarge on demand costs 21.9"),
        ({"key_name": "other"}, "InvalidKeyPair.NotFound: .* set launcher.key_name"),
        ({"key_name": None}, "no key pair is given"),
        ({"image": None, "image_parameter": "/no"}, "ParameterNotFound: .* set launcher.image"),
        ({"image": "ami-00000000"}, "correct launcher.image"),
        ({"security_group": "sg-12345678"}, "InvalidGroup.NotFound: .*security_group"),
        ({"subnet": "subnet-12345678"}, "InvalidSubnetID.NotFound"),
    ],
)
def test_what_is_wrong_is_told_with_its_remedy_before_anything_starts(
    open_account, quick, changes, told
):
    with pytest.raises(ec2_instance.Ec2Error, match=told) as caught:
        ec2.start_instance(request(**changes), print)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    assert open_account.describe_instances()["Reservations"] == []


def test_a_spot_instance_that_would_take_its_results_along_is_refused(open_account, quick):
    made = request(market="spot", max_usd_per_hour=1e6)
    with pytest.raises(ec2_instance.Ec2Error, match="terminated with its disk") as caught:
        ec2.locate(made, create=True, is_dry_run=False, say=print)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    assert open_account.describe_instances()["Reservations"] == []
    run = load.load_run(CONFIG, ["output=s3://bucket/out"])
    kept = dataclasses.replace(made, run=run)
    assert ec2.locate(kept, create=True, is_dry_run=False, say=print).target.launcher.host


def test_two_creates_at_once_are_one_and_a_later_one_is_another(open_account, monkeypatch):
    """EC2 answers two requests of one token with one instance; moto does not."""
    now = [1e9]
    monkeypatch.setattr(ec2_instance.time, "time", lambda: now[0])

    def token(made):
        return ec2_instance.arguments(made, open_account, None)["ClientToken"]

    made, seen = request(), []
    run = load.load_run(CONFIG, ["seed=5"])
    other = dataclasses.replace(made, run=run, folder=commands.launch_folder(run))
    seen.append(token(made))
    assert token(made) == seen[0] and len(seen[0]) <= 64
    seen.append(token(other))
    answer = open_account.run_instances(**ec2_instance.arguments(made, open_account, None))
    open_account.terminate_instances(InstanceIds=[answer["Instances"][0]["InstanceId"]])
    seen.append(token(made))
    now[0] += 3600  # EC2 tells no more of the one that was ended
    seen.append(token(other))
    assert len(set(seen)) == 4


def test_stop_stops_all_instances_of_the_run_and_names_each(open_account, quick):
    made, said = request(), []
    for _ in range(2):
        open_account.run_instances(**ec2_instance.arguments(made, open_account, None))
    names = {each.name for each in ec2.find_all(made)}
    with pytest.raises(ec2_instance.Ec2Error, match="or all with --stop"):
        ec2.find(made)
    ec2.stop(made, said.append)
    assert {each.state for each in ec2.find_all(made)} == {"stopped"}
    assert len(said) == 2 and all(any(name in line for line in said) for name in names)


def test_a_group_that_lets_no_ssh_in_is_told_with_the_command(account, quick):
    with pytest.raises(ec2_instance.Ec2Error, match=r"authorize-security-group-ingress .*port 22"):
        ec2.start_instance(request(), print)


def test_no_credentials_no_region_and_no_network_are_told(open_account, monkeypatch):
    made = request()
    with monkeypatch.context() as change:
        change.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        change.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(ec2_instance.Ec2Error, match="check network"):
            ec2.find(made)
    with monkeypatch.context() as change:
        change.delenv("AWS_DEFAULT_REGION")
        with pytest.raises(ec2_instance.Ec2Error, match=r"set launcher\.region"):
            ec2.find(made)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    boto3.DEFAULT_SESSION = None
    with pytest.raises(ec2_instance.Ec2Error, match="no AWS credentials: aws configure"):
        ec2.find(made)


def answering(code, status):
    """Serve one EC2 error to every request, as the service spells it."""
    body = (
        f"<Response><Errors><Error><Code>{code}</Code><Message>said so</Message></Error></Errors>"
        "<RequestID>1</RequestID></Response>"
    ).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.recv(65536)
                peer.sendall(head.encode() + body)

    threading.Thread(target=serve, daemon=True).start()
    return listener


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("ExpiredToken", "have expired: aws sso login"),
        ("RequestExpired", "this machine's clock"),
        ("VcpuLimitExceeded", "Service Quotas"),
        ("InsufficientInstanceCapacity", "try again later"),
        ("SpotMaxPriceTooLow", "raise it or wait"),
        ("UnauthorizedOperation", "ask for it in IAM"),
        ("SomethingNew", "said so; correct what it says"),
    ],
)
def test_the_services_refusals_become_sentences(open_account, monkeypatch, code, told):
    made = request()
    with answering(code, 400) as listener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(ec2_instance.Ec2Error, match=told):
            ec2.start_instance(made, print)


def test_without_create_a_missing_instance_is_told(open_account):
    with pytest.raises(ec2_instance.Ec2Error, match="add --create to start it"):
        ec2.locate(request(), create=False, is_dry_run=False, say=print)


def test_a_run_longer_than_its_instance_is_refused(open_account):
    made = request(max_hours=0.001)
    long = made.plan.model_copy(update={"train_hours": 9.0})
    with pytest.raises(ec2_instance.Ec2Error, match=r"stops after launcher\.max_hours 0\.001"):
        ec2.locate(dataclasses.replace(made, plan=long), create=True, is_dry_run=True, say=print)


def test_dry_run_shows_the_request_and_asks_nobody(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    said, made = [], request(image="ami-1")
    code = start.launch(
        made.run, CONFIG, (), made.target, is_dry_run=True, create=True, say=said.append
    )
    text = "\n".join(said)
    assert code == 0
    for part in (
        "EC2 run_instances", '"InstanceType": "g5.2xlarge"', "mistral-jax-auto-stop 20 1440",
        f"ubuntu -- {ec2.PENDING_HOST} ", "host.sh halt", "--on-end", "to stop the bill (1.21 USD",
    ):  # fmt: skip
        assert part in text, part


def auto_stop(tmp_path, *, up_minutes, found, minutes=1):
    """Run auto_stop.sh for some minutes; return whether it shut the machine down."""
    tools, shut = tmp_path / "bin", tmp_path / "shutdown called"
    fake_host.FakeHost.add_program(
        tools / "pgrep", f'#!/bin/sh\ncase "$2" in *{found}*) exit 0 ;; esac\nexit 1\n'
    )
    fake_host.FakeHost.add_program(tools / "shutdown", f'#!/bin/sh\necho "$*" >"{shut}"\n')
    (tmp_path / "uptime").write_text(f"{up_minutes * 60}.5 1.0\n")
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "AUTO_STOP_COUNTER": str(tmp_path / "counter"),
        "AUTO_STOP_UPTIME": str(tmp_path / "uptime"),
    }
    script = Path(commands.ROOT, "launch", "auto_stop.sh")
    for _ in range(minutes):
        subprocess.run(["sh", str(script), "3", "60"], env=environment, check=True)
    return shut.exists() and shut.read_text() == "-h now\n"


def test_the_machine_stops_after_idle_minutes_and_after_its_hours_only(tmp_path):
    assert not auto_stop(tmp_path, up_minutes=5, found="nothing", minutes=2)
    assert auto_stop(tmp_path, up_minutes=5, found="nothing")  # the third
    (tmp_path / "shutdown called").unlink()
    assert not auto_stop(tmp_path, up_minutes=5, found="supervise", minutes=4)
    assert not auto_stop(tmp_path, up_minutes=5, found="sshd", minutes=4)
    assert not auto_stop(tmp_path, up_minutes=5, found="nothing", minutes=2)  # counted anew
    assert not auto_stop(tmp_path, up_minutes=59, found="supervise")
    assert auto_stop(tmp_path, up_minutes=60, found="supervise")
