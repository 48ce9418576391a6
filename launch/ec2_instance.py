"""What an EC2 instance of a run is asked for with, and what is checked before it is.

Price against its ceiling, key pair, a security group that lets ssh in; then the arguments of
run_instances, whose user data arms the auto-stop. It gets its clients from ec2.py and imports no
boto3 itself.
"""

import hashlib
import json
import time
from datetime import UTC
from datetime import datetime
from typing import Any

from launch import commands
from launch import many_hosts
from launch import target as target_lib
from launch.commands import Request
from launch.launcher import Ec2

RUN_TAG = "mistral-jax-run"
SSH_PORT = 22
TOKEN_S = 600  # creates of one run within them start one instance; EC2 tells of it much sooner
SYSTEMD = "/etc/systemd/system/mistral-jax-auto-stop"
SCRIPT = "/usr/local/sbin/mistral-jax-auto-stop"

# What the user does about an error code of the service.
REMEDIES = {
    "ExpiredToken": "the credentials have expired: aws sso login, or set new ones",
    "ExpiredTokenException": "the credentials have expired: aws sso login, or set new ones",
    "RequestExpired": "the credentials have expired, or this machine's clock is wrong",
    "AuthFailure": "the credentials are not valid: check them with aws sts get-caller-identity",
    "InvalidClientTokenId": "the credentials are not valid: aws sts get-caller-identity tells",
    "UnrecognizedClientException": "the credentials are not valid: aws sts get-caller-identity",
    "UnauthorizedOperation": "the account's user lacks this right: ask for it in IAM",
    "AccessDenied": "the account's user lacks this right: ask for it in IAM",
    "AccessDeniedException": "the account's user lacks this right: ask for it in IAM",
    "VcpuLimitExceeded": "the account's vCPU quota for this kind of instance is used up: ask for "
    "more under Service Quotas (EC2, Running On-Demand G and VT instances), or take another region",
    "MaxSpotInstanceCountExceeded": "the account's spot quota is used up: ask for more under "
    "Service Quotas, or set launcher.market=on_demand",
    "InsufficientInstanceCapacity": "EC2 has none to give now: try again later, another "
    "launcher.region, or the other launcher.market",
    "SpotMaxPriceTooLow": "the spot price is above launcher.max_usd_per_hour: raise it or wait",
    "InvalidKeyPair.NotFound": "there is no such key pair in this region: "
    "aws ec2 describe-key-pairs lists them; set launcher.key_name",
    "InvalidGroup.NotFound": "there is no such security group: correct launcher.security_group",
    "InvalidGroupId.Malformed": "that is no security group: correct launcher.security_group",
    "InvalidSubnetID.NotFound": "there is no such subnet: correct launcher.subnet",
    "InvalidAMIID.NotFound": "there is no such image in this region: correct launcher.image",
    "InvalidAMIID.Malformed": "that is no image: correct launcher.image",
    "ParameterNotFound": "there is no such image parameter in this region: set launcher.image",
    "NoSuchEntity": "there is no such instance profile: correct launcher.instance_profile",
    "Unsupported": "this region has no such instance: take another launcher.region",
    "IdempotentParameterMismatch": "another --create of this run is under way: launch again "
    "without --create in a minute",
    "InvalidInstanceType": "EC2 knows no such instance type: correct launcher.instance_type",
}  # fmt: skip


class Ec2Error(ValueError):
    """EC2 refused, or cannot be asked; the message tells what to do."""

    exit_code = 3


def launcher_of(request: Request) -> Ec2:
    """Return the target's launcher, which is EC2's."""
    launcher = request.target.launcher
    assert isinstance(launcher, Ec2)
    return launcher


def check_hours(request: Request) -> None:
    """Refuse a run that is predicted to outlast its instance.

    Raises:
        Ec2Error: it is.
    """
    launcher, hours = launcher_of(request), request.plan.train_hours
    if hours is not None and hours > launcher.max_hours:  # None: the data decides it
        raise Ec2Error(
            f"the run is predicted to take {hours:.1f} h, and the instance stops after "
            f"launcher.max_hours {launcher.max_hours:g}; raise it, or shorten the run"
        )


def check_results(request: Request) -> None:
    """Refuse a spot instance whose end would take the results with it.

    Raises:
        Ec2Error: `output` is no bucket.
    """
    if launcher_of(request).market == "spot" and not many_hosts.is_bucket(request):
        raise Ec2Error(
            f"output {request.run.run_directory()!r} is on the instance's own disk, and a spot "
            "instance is terminated with its disk when the run has ended or EC2 takes it; give "
            "output=s3://BUCKET/PATH, or launcher.market=on_demand"
        )


def tag(request: Request) -> str:
    """Return the value of the tag that tells whose instance it is."""
    return request.folder.parent.name


def user_data(launcher: Ec2) -> str:
    """Return the script that the instance runs as root at its first start: it arms the stop."""
    script = (commands.ROOT / "launch" / "auto_stop.sh").read_text(encoding="utf-8")
    minutes = max(1, round(launcher.max_hours * 60))
    return f"""#!/bin/sh
cat >{SCRIPT} <<'END_OF_SCRIPT'
{script}END_OF_SCRIPT
chmod 755 {SCRIPT}
cat >{SYSTEMD}.service <<'END_OF_UNIT'
[Service]
Type=oneshot
ExecStart={SCRIPT} {launcher.idle_minutes} {minutes}
END_OF_UNIT
cat >{SYSTEMD}.timer <<'END_OF_UNIT'
[Timer]
OnBootSec=1min
OnUnitActiveSec=1min
[Install]
WantedBy=timers.target
END_OF_UNIT
systemctl daemon-reload
systemctl enable --now mistral-jax-auto-stop.timer
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -y -q rsync python3-venv
"""


def arguments(request: Request, service: Any, parameters: Any) -> dict[str, Any]:
    """Check all, ask what is not given, and return the arguments of run_instances.

    Args:
        request: the run and its target.
        service, parameters: boto3's clients of ec2 and ssm.

    Raises:
        Ec2Error: too dear, no key pair, or no way in for ssh.
    """
    launcher = launcher_of(request)
    check_price(request, service)
    _check_key(launcher, service)
    _check_group(launcher, service)
    image = launcher.image
    if image is None:
        name = launcher.image_parameter
        image = parameters.get_parameter(Name=name)["Parameter"]["Value"]
    root = service.describe_images(ImageIds=[image])["Images"][0]["RootDeviceName"]
    arguments = _instance(request, image, root)
    earlier = service.describe_instances(
        Filters=[{"Name": f"tag:{RUN_TAG}", "Values": [tag(request)]}]
    )["Reservations"]
    names = [each["InstanceId"] for one in earlier for each in one["Instances"]]
    return {**arguments, "ClientToken": _token(arguments, names, time.time())}


def _token(arguments: dict[str, Any], earlier: list[str], now_s: float) -> str:
    """Return what lets EC2 see that two requests at once are one.

    A token whose instance was ended is refused for longer than EC2 tells of that instance: hence
    the time beside the ids of those that it tells of.
    """
    parts = [arguments, sorted(earlier), int(now_s // TOKEN_S)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _instance(request: Request, image: str, root: str) -> dict[str, Any]:
    """Return the arguments of run_instances."""
    launcher = launcher_of(request)
    is_spot = launcher.market == "spot"
    tags = {**launcher.tags, RUN_TAG: tag(request), "Name": f"mistral-jax {request.run.name}"}
    pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
    arguments: dict[str, Any] = {
        "ImageId": image,
        "InstanceType": launcher.instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "KeyName": launcher.key_name,
        # A spot instance of one request cannot be stopped, only ended.
        "InstanceInitiatedShutdownBehavior": "terminate" if is_spot else "stop",
        "BlockDeviceMappings": [
            {
                "DeviceName": root,
                "Ebs": {
                    "VolumeSize": launcher.disk_gib,
                    "VolumeType": "gp3",
                    "DeleteOnTermination": True,
                },
            }
        ],
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": pairs} for kind in ("instance", "volume")
        ],
        "MetadataOptions": {"HttpTokens": "required"},
        "UserData": user_data(launcher),
    }
    if launcher.security_group is not None:
        arguments["SecurityGroupIds"] = [launcher.security_group]
    if launcher.subnet is not None:
        arguments["SubnetId"] = launcher.subnet
    if launcher.instance_profile is not None:
        arguments["IamInstanceProfile"] = {"Name": launcher.instance_profile}
    if is_spot:
        options = {"SpotInstanceType": "one-time", "MaxPrice": f"{launcher.max_usd_per_hour:.4f}"}
        arguments["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
    return arguments


def check_price(request: Request, service: Any) -> None:
    """Refuse what costs more than the ceiling, or nobody knows how much."""
    launcher, price = launcher_of(request), request.target.price_usd_per_hour
    what, is_told = f"{launcher.instance_type} on demand", False
    if launcher.market == "spot":
        history = service.describe_spot_price_history(
            InstanceTypes=[launcher.instance_type],
            ProductDescriptions=["Linux/UNIX"],
            StartTime=datetime.now(UTC),
        )["SpotPriceHistory"]
        price = min((float(each["SpotPrice"]) for each in history), default=price)
        is_told = bool(history)
        what = f"{launcher.instance_type} spot"
    if price is None:
        raise Ec2Error(f"{what}: its price is not known; give it with price_usd_per_hour=")
    if not is_told and not _is_price_of_instance(request.target, launcher):
        raise Ec2Error(
            f"{price:.3f} USD an hour is the price of the target's "
            f"{request.target.accelerator_type}, not of launcher.instance_type "
            f"{launcher.instance_type}; give its own with price_usd_per_hour=, or take its target"
        )
    if price > launcher.max_usd_per_hour:
        raise Ec2Error(
            f"{what} costs {price:.3f} USD an hour, above launcher.max_usd_per_hour "
            f"{launcher.max_usd_per_hour:g}; raise that, or take another target or market"
        )


def _is_price_of_instance(target: target_lib.Target, launcher: Ec2) -> bool:
    """Tell whether the target's price is the instance's: of the same type, or overridden."""
    if launcher.instance_type == target.accelerator_type:
        return True
    if target.name not in target_lib.target_names():
        return False
    return target.price_usd_per_hour != target_lib.load_target(target.name).price_usd_per_hour


def _check_key(launcher: Ec2, service: Any) -> None:
    if launcher.key_name is None:
        raise Ec2Error(
            "no key pair is given: set launcher.key_name to EC2's name of it and launcher.key to "
            "its private file; aws ec2 describe-key-pairs lists them"
        )
    service.describe_key_pairs(KeyNames=[launcher.key_name])


def _check_group(launcher: Ec2, service: Any) -> None:
    """Refuse a security group through which ssh cannot come."""
    wanted = {"Filters": [{"Name": "group-name", "Values": ["default"]}]}
    if launcher.security_group is not None:
        wanted = {"GroupIds": [launcher.security_group]}
    groups = service.describe_security_groups(**wanted)["SecurityGroups"]
    port = launcher.port or SSH_PORT
    for group in groups:
        for rule in group["IpPermissions"]:
            low, high = rule.get("FromPort", 0), rule.get("ToPort", 65535)
            sources = rule.get("IpRanges", []) + rule.get("Ipv6Ranges", [])
            sources += rule.get("PrefixListIds", [])
            if rule["IpProtocol"] in ("tcp", "6", "-1") and low <= port <= high and sources:
                return
    shown = groups[0]["GroupId"] if groups else "(none)"
    raise Ec2Error(
        f"security group {shown} lets no ssh in: aws ec2 authorize-security-group-ingress "
        f"--group-id {shown} --protocol tcp --port {port} --cidr YOUR_ADDRESS/32, or set "
        "launcher.security_group to one that does"
    )


def shown(request: Request) -> str:
    """Return the request to EC2 as --dry-run prints it."""
    launcher = launcher_of(request)
    image = launcher.image or f"(newest of {launcher.image_parameter})"
    arguments = _instance(request, image, "(the image's root device)")
    script = arguments.pop("UserData")
    lines = ["# unless an instance has the run's tag: EC2 run_instances"]
    lines += json.dumps(arguments, indent=2).splitlines()
    lines += ["# with user data", *(f"    {line}" for line in script.splitlines())]
    return "\n".join(lines) + "\n"
