"""Launch on a GPU host of EC2: found by the run's tag or started by --create, then as gpu_host.py.

An instance stops by itself: when the run has ended and its results are fetched, after idle
minutes, and after a number of hours (auto_stop.sh, armed by its user data). No instance is started
whose price is above the ceiling or unknown. Needs boto3, of the extra `data`.
"""

import contextlib
import dataclasses
import shlex
import socket
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

from launch import ec2_instance
from launch import gpu_host
from launch.commands import Command
from launch.commands import Request
from launch.commands import Step
from launch.launcher import Ec2
from launch.launcher import Ssh
from launch.target import Target

ALIVE = ("pending", "running", "stopping", "stopped")
SSH_WAIT_S = 600.0
POLL_S = 5.0
STOP = "stop-instances"
PENDING_HOST = "address-of-the-instance"  # stands for it where nothing is started: --dry-run


@dataclasses.dataclass(frozen=True)
class Instance:
    """An instance of a run: id, state, the address for ssh if any, whether it is a spot one."""

    name: str
    state: str
    host: str | None
    is_spot: bool = False


def without_ec2(target: Target) -> Target:
    """Return a target whose host is given as one that ssh reaches: not ours to start or to stop."""
    launcher = target.launcher
    if not isinstance(launcher, Ec2) or launcher.host is None:
        return target
    fields = {name: getattr(launcher, name) for name in Ssh.model_fields if name != "kind"}
    return target.model_copy(update={"launcher": Ssh(**fields)})


def start_instance(request: Request, say: Callable[[str], None] = print) -> Instance:
    """Start the run's instance, or find it, and wait until its sshd answers.

    Raises:
        Ec2Error: no credentials, no right, no quota, no capacity, or too dear.
    """
    launcher = ec2_instance.launcher_of(request)
    with _explained("EC2"):
        service = _client("ec2", launcher)
        found = find(request)
        if found is None:
            arguments = ec2_instance.arguments(request, service, _client("ssm", launcher))
            made = service.run_instances(**arguments)["Instances"][0]
            say(f"launch: EC2 instance {made['InstanceId']} starts ({launcher.instance_type})")
            name = made["InstanceId"]
        else:
            name = found.name
            say(f"launch: found the run's EC2 instance {name} ({found.state})")
            if found.state == "stopping":
                service.get_waiter("instance_stopped").wait(InstanceIds=[name])
            if found.state in ("stopping", "stopped"):
                ec2_instance.check_price(request, service)
                service.start_instances(InstanceIds=[name])
        service.get_waiter("instance_running").wait(InstanceIds=[name])
        instance = _of(service.describe_instances(InstanceIds=[name]))[0]
    if instance.host is None:
        raise ec2_instance.Ec2Error(
            f"EC2 instance {name} has no address: its subnet gives none; set launcher.subnet to "
            f"one that does; the bill runs, stop it: {_stop_line(name, launcher)}"
        )
    _wait_for_ssh(instance, launcher.port or ec2_instance.SSH_PORT, say)
    return instance


def find_all(request: Request) -> list[Instance]:
    """Return the run's instances; two launches at once may have started more than one.

    Raises:
        Ec2Error: EC2 cannot be asked.
    """
    launcher = ec2_instance.launcher_of(request)
    with _explained("describe-instances"):
        answer = _client("ec2", launcher).describe_instances(
            Filters=[
                {"Name": f"tag:{ec2_instance.RUN_TAG}", "Values": [ec2_instance.tag(request)]},
                {"Name": "instance-state-name", "Values": list(ALIVE)},
            ]
        )
    return _of(answer)


def find(request: Request) -> Instance | None:
    """Return the run's instance, None where there is none.

    Raises:
        Ec2Error: there are several, or EC2 cannot be asked.
    """
    found = find_all(request)
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise ec2_instance.Ec2Error(
            f"{len(found)} instances have the tag {ec2_instance.tag(request)}: {names}; "
            "end all but one, or all with --stop"
        )
    return found[0] if found else None


def stop(request: Request, say: Callable[[str], None] = print) -> None:
    """Stop the run's instances, or terminate those that cannot be stopped (spot).

    What it is, EC2 tells: `launcher.market` may be another one than that it was started with.
    """
    found = [each for each in find_all(request) if each.state != "stopped"]
    if not found:
        say(f"launch: no instance of {ec2_instance.tag(request)} runs")
        _tell_others(request, say)
        return
    for each in found:
        _stop(each, ec2_instance.launcher_of(request), say)


def _stop(found: Instance, launcher: Ec2, say: Callable[[str], None]) -> None:
    with _explained("stop-instances"):
        service = _client("ec2", launcher)
        if found.is_spot:
            service.terminate_instances(InstanceIds=[found.name])
            say(f"launch: EC2 instance {found.name} is being terminated; nothing is left to pay")
            return
        service.stop_instances(InstanceIds=[found.name])
    say(
        f"launch: EC2 instance {found.name} is being stopped; its disk costs until you end it: "
        f"{_stop_line(found.name, launcher, 'terminate-instances')}"
    )


def _tell_others(request: Request, say: Callable[[str], None]) -> None:
    """Name the instances of other runs: a changed config is another run, and has another tag."""
    launcher = ec2_instance.launcher_of(request)
    with _explained("describe-instances"):
        answer = _client("ec2", launcher).describe_instances(
            Filters=[
                {"Name": "tag-key", "Values": [ec2_instance.RUN_TAG]},
                {"Name": "instance-state-name", "Values": ["pending", "running"]},
            ]
        )
    for each in _of(answer):
        line = _stop_line(each.name, launcher, "terminate-instances" if each.is_spot else STOP)
        say(f"launch: {each.name} of another run is {each.state} and costs; to stop it: {line}")


def locate(
    request: Request, *, create: bool, is_dry_run: bool, say: Callable[[str], None]
) -> Request:
    """Return the request with the instance's address in it; start the instance where asked.

    Raises:
        Ec2Error: there is no running instance and none was asked for, or see `start_instance`.
    """
    if create:
        ec2_instance.check_hours(request)
        ec2_instance.check_results(request)
    if is_dry_run:
        say(
            ec2_instance.shown(request)
            if create
            else f"# find the EC2 instance by its tag {ec2_instance.tag(request)}\n"
        )
        return with_host(request)
    if create:
        return with_host(request, start_instance(request, say).host)
    found = find(request)
    if found is None or found.state != "running" or found.host is None:
        state = "there is none" if found is None else f"{found.name} is {found.state}"
        raise ec2_instance.Ec2Error(
            f"EC2 instance of {ec2_instance.tag(request)}: {state}; add --create to start it, or "
            "launcher.host= for a host of your own"
        )
    return with_host(request, found.host)


def steps(request: Request) -> list[Step]:
    """Return gpu_host's steps, and the shutdown after the results are here."""
    first, *others = gpu_host.steps(request)
    at = next(i for i, step in enumerate(others) if isinstance(step, Command)) + 1
    keep = gpu_host.far_step(request, ["keep"], "take back a shutdown that was ordered before")
    sent = next(i for i, step in enumerate(others) if step.purpose == "send the project")
    others.insert(max(at, sent + 1), keep)
    words = "shut the instance down: the run has ended and its results are here"
    return [first, *others, gpu_host.far_step(request, ["halt"], words)]


def stop_hint(request: Request) -> str:
    """Return how to stop the bill."""
    launcher = ec2_instance.launcher_of(request)
    price = request.target.price_usd_per_hour
    cost = "" if price is None else f" ({price:.2f} USD an hour at the list price)"
    region = "" if launcher.region is None else f" --region {shlex.quote(launcher.region)}"
    mark = f"Name=tag:{ec2_instance.RUN_TAG},Values={ec2_instance.tag(request)}"
    return (
        f"to stop the bill{cost}: the same command with --stop. By itself the instance stops when "
        f"the run has ended, after {launcher.idle_minutes} idle minutes, and after "
        f"{launcher.max_hours:g} h. To see it: "
        f"aws ec2 describe-instances{region} --filters {mark}"
    )


def with_host(request: Request, host: str | None = None) -> Request:
    """Return the request with an address in it: this one, its own, or a placeholder."""
    launcher = ec2_instance.launcher_of(request)
    host = host or launcher.host or PENDING_HOST
    target = request.target.model_copy(
        update={"launcher": launcher.model_copy(update={"host": host})}
    )
    return dataclasses.replace(request, target=target)


def _client(name: str, launcher: Ec2) -> Any:
    try:
        import boto3
    except ImportError:
        raise ec2_instance.Ec2Error(
            "EC2 is asked through boto3, which is not installed: "
            "MISTRAL_JAX_LOCKS=data ./run doctor installs it"
        ) from None
    return boto3.client(name, region_name=launcher.region)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn boto3's errors into one sentence with its remedy."""
    import botocore.exceptions as errors

    try:
        yield
    except (errors.NoCredentialsError, errors.PartialCredentialsError, errors.ProfileNotFound):
        raise ec2_instance.Ec2Error(
            f"{what}: no AWS credentials: aws configure, or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from None
    except (errors.TokenRetrievalError, errors.UnauthorizedSSOTokenError):
        raise ec2_instance.Ec2Error(f"{what}: the sign-in has expired: aws sso login") from None
    except errors.NoRegionError:
        raise ec2_instance.Ec2Error(
            f"{what}: no region: set launcher.region or AWS_DEFAULT_REGION"
        ) from None
    except errors.ClientError as error:
        told = error.response["Error"]
        remedy = ec2_instance.REMEDIES.get(told["Code"], "correct what it says and launch again")
        raise ec2_instance.Ec2Error(
            f"{what}: {told['Code']}: {told['Message']}; {remedy}"
        ) from None
    except errors.WaiterError as error:
        raise ec2_instance.Ec2Error(
            f"{what}: the instance does not get there: {error}; see the console"
        ) from None
    except errors.BotoCoreError as error:
        raise ec2_instance.Ec2Error(f"{what}: {error}; check network and launcher.region") from None


def _of(answer: dict[str, Any]) -> list[Instance]:
    return [
        Instance(
            each["InstanceId"],
            each["State"]["Name"],
            each.get("PublicDnsName")
            or each.get("PublicIpAddress")
            or each.get("PrivateIpAddress"),
            each.get("InstanceLifecycle") == "spot",
        )
        for reservation in answer["Reservations"]
        for each in reservation["Instances"]
    ]


def _wait_for_ssh(instance: Instance, port: int, say: Callable[[str], None]) -> None:
    assert instance.host is not None
    say(f"launch: waiting for ssh at {instance.host}")
    end = time.monotonic() + SSH_WAIT_S
    while True:
        try:
            socket.create_connection((instance.host, port), timeout=POLL_S).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ec2_instance.Ec2Error(
                    f"EC2 instance {instance.name} at {instance.host} does not answer on port "
                    f"{port} ({error}); does its security group let this address in? The bill "
                    "runs: launch with --stop"
                ) from None
        time.sleep(POLL_S)


def _stop_line(name: str, launcher: Ec2, verb: str = STOP) -> str:
    region = "" if launcher.region is None else f" --region {shlex.quote(launcher.region)}"
    return f"aws ec2 {verb}{region} --instance-ids {name}"
