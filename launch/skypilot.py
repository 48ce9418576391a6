"""A run through SkyPilot: a task YAML that `sky` takes to any of its clouds.

On demand, `sky launch` makes a cluster that stops itself when idle, and the results are fetched;
on spot machines `sky jobs launch` finds a new machine after each preemption, and the run, which
has to write to a bucket, goes on from its checkpoint; a second job of the name is refused
(sky_queue.py). Keys and options are SkyPilot 0.14's.
"""

import re
import shlex
import sys

from launch import commands
from launch import launcher as launchers
from launch import many_hosts
from launch.commands import Command
from launch.commands import Request
from launch.commands import Step
from launch.commands import WriteFile

IDLE_MINUTES = 30
MAX_RESTARTS = 3  # of the machine's job; the supervisor restarts before it
WORKDIR = "~/sky_workdir"  # SkyPilot's own
# Values stand in front of it, quoted: folder, words.
RUN = """
set -eu
if [ "$SKYPILOT_NUM_NODES" -gt 1 ]; then
    first=$(printf '%s\\n' "$SKYPILOT_NODE_IPS" | head -n 1)
    export MISTRAL_JAX_COORDINATOR="$first:$port"
    export MISTRAL_JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"
    export MISTRAL_JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
fi
exec sh launch/host.sh python -m launch.supervise --folder "$folder" "$@"
"""
FIXES = (
    ("No cloud access", "run 'sky check' and follow what it says"),
    ("not enabled", "run 'sky check' and follow what it says"),
    ("Failed to acquire resources", "no machine is free: launch again later, or leave "
     "launcher.region and launcher.cloud open"),
    ("ResourcesUnavailable", "no machine is free: launch again later, or leave launcher.region "
     "and launcher.cloud open"),
    ("Quota", "ask the cloud for quota of this machine, or give another launcher.region"),
)  # fmt: skip


LOOK_FIXES = (
    ("has not ended", "follow that job, or cancel it and launch again"),
    ("No such option", "SkyPilot is too old: pip install --upgrade 'skypilot>=0.14'"),
    *FIXES,
)


def steps(request: Request) -> list[Step]:
    """Return what a launch through SkyPilot runs, in order.

    Raises:
        ValueError: a value that SkyPilot refuses, or results that would be lost.
    """
    launcher, hosts = _launcher(request), request.target.num_hosts
    if launcher.spot:
        many_hosts.check_results_survive(request, "a spot machine's disk goes with it")
    elif hosts > 1:
        many_hosts.check_results_survive(request, f"{hosts} machines share no disk")
    many_hosts.check_inputs_travel(request)
    name, path = many_hosts.cloud_name(request), request.folder / "task.yaml"
    look = []
    if launcher.spot:
        argv = (sys.executable, "-m", "launch.sky_queue", "--name", name)
        look.append(Command(argv, "look for a managed job of an earlier launch", fixes=LOOK_FIXES))
        argv = ("sky", "jobs", "launch", "--yes", f"--name={name}", str(path))
    else:
        idle = f"--idle-minutes-to-autostop={IDLE_MINUTES}"
        argv = ("sky", "launch", "--yes", f"--cluster={name}", idle, str(path))
    content = many_hosts.dump_yaml(task(request))
    return [
        *commands.own_files(request),
        WriteFile(path, content, "the task"),
        *look,
        Command(argv, "start the task and follow it (Ctrl-C leaves it alone)", fixes=FIXES),
        *_fetch(request),
    ]


def stop_steps(request: Request) -> list[Step]:
    """Return what ends the run and deletes its machines."""
    return [Command(_stop(request), "delete the machines: the bill ends")]


def stop_hint(request: Request) -> str:
    """Return how to stop the bill."""
    idle = f"; idle, they stop after {IDLE_MINUTES} minutes and their disks stay"
    kept = "" if _launcher(request).spot else idle
    return f"the machines are paid until they are deleted{kept}: {shlex.join(_stop(request))}"


def task(request: Request) -> dict:
    """Return the task, in SkyPilot's keys."""
    launcher = _launcher(request)
    resources: dict = {"accelerators": _accelerators(request), "use_spot": launcher.spot}
    if launcher.cloud is not None or launcher.region is not None:
        cloud = "*" if launcher.cloud is None else _word(launcher.cloud, "launcher.cloud")
        region = [] if launcher.region is None else [_word(launcher.region, "launcher.region")]
        resources = {"infra": "/".join([cloud, *region]), **resources}
    if launcher.spot:
        resources["job_recovery"] = {"max_restarts_on_errors": MAX_RESTARTS}
    lock = launcher.lock or "auto"
    setup = ["sh", "launch/host.sh", "setup", *many_hosts.locks(request, lock)]
    words = ["--", "./run", *many_hosts.train_words(request)]
    if not many_hosts.is_bucket(request):
        words = ["--progress", str(many_hosts.results_folder(request)), *words]
    shared = many_hosts.shared_environment(request).items()
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in shared)
    values = (
        f"{exports}folder={shlex.quote(str(request.folder))}\n"
        f"port={many_hosts.COORDINATOR_PORT}\n"
        f"set -- {shlex.join(words)}"
    )
    mounts = {f"{WORKDIR}/{file.path}": str(file.path) for file in commands.own_files(request)}
    return {
        "name": many_hosts.cloud_name(request),
        "workdir": str(commands.ROOT),
        "num_nodes": request.target.num_hosts,
        "resources": resources,
        **({"file_mounts": mounts} if mounts else {}),
        "setup": shlex.join(setup) + "\n",
        "run": values + RUN,
    }


def _accelerators(request: Request) -> str:
    text = _launcher(request).accelerators
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9_-]{0,40})(?::([1-9][0-9]?))?", text)
    if not found:
        raise ValueError(
            f"launcher.accelerators {text[:100]!r}: expected SkyPilot's name and count, such as "
            "A10G:1; 'sky gpus list' shows them"
        )
    if int(found[2] or 1) != request.target.chips_per_host:
        raise ValueError(
            f"launcher.accelerators {text}: the target has {request.target.chips_per_host} chips a "
            "host; make both the same"
        )
    return text


def _word(text: str, what: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text):
        return text
    raise ValueError(f"{what} {text[:100]!r}: expected letters, digits, '.', '_' and '-'")


def _fetch(request: Request) -> list[Step]:
    if many_hosts.is_bucket(request):
        return many_hosts.fetch_from_bucket(request)
    folder = many_hosts.results_folder(request)
    if folder.is_absolute():
        return []
    source = f"{many_hosts.cloud_name(request)}:sky_workdir/{folder}/"  # an alias that sky makes
    argv = ("rsync", "-a", "-s", "--exclude=/data/", "--", source, f"{folder}/")
    return [
        Command(("mkdir", "-p", "--", str(folder)), f"make {folder}", always=True),
        Command(argv, f"fetch the results into {folder}", always=True),
    ]


def _launcher(request: Request) -> launchers.SkyPilot:
    launcher = request.target.launcher
    assert isinstance(launcher, launchers.SkyPilot)
    return launcher


def _stop(request: Request) -> tuple[str, ...]:
    name = many_hosts.cloud_name(request)
    if _launcher(request).spot:
        return ("sky", "jobs", "cancel", "--yes", f"--name={name}")
    return ("sky", "down", "--yes", name)
