"""Pre-flight of the way to the machine: programs, hostile values, key, ssh, account, the source.

The launcher's own steps are made and not taken: what it would refuse shows here. ssh is asked for
nothing but `true`. Hosts are asked more only with --remote.
"""

import hashlib
import importlib.util
import shutil
import subprocess
from pathlib import Path

from launch import bundle
from launch import checks
from launch import commands
from launch import ec2
from launch import ec2_instance
from launch import gpu_host
from launch import jobset
from launch import launcher as launchers
from launch import local
from launch import skypilot
from launch import slurm
from launch import tpu_pod
from launch.checks import Answer
from launch.checks import Check
from launch.checks import Context
from launch.commands import Command
from launch.commands import Step

LAUNCHERS = {
    "local": local, "ssh": gpu_host, "ec2": ec2, "tpu_queued": tpu_pod, "slurm": slurm,
    "jobset": jobset, "skypilot": skypilot,
}  # fmt: skip
# Program -> how a Debian or a Python installation gets it.
PROGRAMS = {
    "ssh": {"ssh": "sudo apt-get install -y openssh-client",
            "rsync": "sudo apt-get install -y rsync", "git": "sudo apt-get install -y git"},
    "ec2": {"ssh": "sudo apt-get install -y openssh-client",
            "rsync": "sudo apt-get install -y rsync", "git": "sudo apt-get install -y git"},
    "tpu_queued": {"gcloud": "sudo snap install google-cloud-cli --classic",
                   "git": "sudo apt-get install -y git"},
    "slurm": {"sbatch": "module load slurm", "squeue": "module load slurm"},
    "jobset": {"kubectl": "gcloud components install kubectl"},
    "skypilot": {"sky": "uv tool install skypilot", "git": "sudo apt-get install -y git"},
}  # fmt: skip
SSH_TIMEOUT_S = 40.0
CHECK_PURPOSE = "check on the host"  # begins the purpose of the step that runs this on the host
REMOTE_TIMEOUT_S = 300.0
NO_WAY = "the run starts on this machine"


def _programs(context: Context) -> Answer:
    kind = context.target.launcher.kind
    if kind == "local":
        return checks.skipped(NO_WAY)
    missing = {name: fix for name, fix in PROGRAMS[kind].items() if shutil.which(name) is None}
    if missing:
        fix = next(iter(missing.values()))
        return checks.failed(f"{', '.join(missing)} is not on PATH, and {kind} needs it", fix)
    if kind == "ec2" and importlib.util.find_spec("boto3") is None:
        return checks.failed(
            "boto3, which asks EC2, is missing", "MISTRAL_JAX_LOCKS=data ./run doctor"
        )
    return checks.ok(", ".join(PROGRAMS[kind]))


def steps(context: Context) -> list[Step]:
    """Return what a launch would do; see the launcher's own `steps`.

    Raises:
        ValueError: the launcher refuses it.
    """
    request = context.request
    launcher = LAUNCHERS[context.target.launcher.kind]
    return launcher.steps(ec2.with_host(request) if launcher is ec2 else request)


def _values(context: Context) -> Answer:
    if context.plan is None:
        return checks.skipped("there is no plan")
    launcher = context.target.launcher
    try:
        made = steps(context)
    except ValueError as error:
        return checks.failed(checks.sentence(error), context.command(*_given(context, str(error))))
    lock = getattr(launcher, "lock", None)
    locks = [lock] if lock else []
    locks += ["data"] * any(store in context.run.model_dump_json() for store in gpu_host.STORES)
    missing = [n for n in locks if not (commands.ROOT / "requirements" / f"{n}.lock").is_file()]
    if missing:
        return checks.failed(f"requirements/{missing[0]}.lock is not here", "make locks")
    return checks.ok(f"{len(made)} steps by {launcher.kind}, every value can be passed on")


def _given(context: Context, text: str) -> list[str]:
    """Return the override that a launcher's refusal asks for."""
    if "no host is given" in text or text.startswith("host "):
        return ["launcher.host=ADDRESS"]
    if "launcher.key" in text:
        return ["launcher.key=~/.ssh/id_ed25519"]
    if "output" in text:
        return [f"output=gs://BUCKET/models/{context.run.name}"]
    if "image" in text:
        return ["launcher.image=REGISTRY/IMAGE:TAG"]
    if "fresh=true" in text:
        return ["output=NEW_FOLDER"]
    return []


def _key(context: Context) -> Answer:
    launcher = context.target.launcher
    if not isinstance(launcher, launchers.Ssh):
        return checks.skipped(_no_ssh(context))
    if launcher.key is None:
        return checks.ok("none is named: ssh chooses")
    path = Path(launcher.key).expanduser()
    if not path.is_file():
        return checks.failed(f"{launcher.key}: no such key", "ls -l ~/.ssh")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return checks.failed(
            f"{launcher.key}: others may read it (mode {mode:03o}), so ssh will not use it",
            f"chmod 600 {checks.word(launcher.key)}",
        )
    try:
        first = path.read_bytes()[:64].partition(b"\n")[0]
    except OSError as error:
        return checks.failed(
            f"{launcher.key}: {error.strerror}", f"ls -l {checks.word(launcher.key)}"
        )
    if b"PRIVATE KEY" not in first:
        return checks.failed(
            f"{launcher.key}: not a private key", f"ssh-keygen -y -f {checks.word(launcher.key)}"
        )
    return checks.ok(f"{launcher.key}, readable by its owner alone")


def _no_ssh(context: Context) -> str:
    kind = context.target.launcher.kind
    return NO_WAY if kind == "local" else f"{kind} needs no ssh of yours"


def _ssh(context: Context) -> Answer:
    launcher = context.target.launcher
    if not isinstance(launcher, launchers.Ssh):
        return checks.skipped(_no_ssh(context))
    if launcher.host is None:
        if isinstance(launcher, launchers.Ec2):
            return checks.skipped("launch --create starts the host")
        return checks.skipped("no host is given")
    if context.plan is None:
        return checks.skipped("there is no plan")
    try:
        reach = next(s for s in steps(context) if isinstance(s, Command) and s.argv[0] == "ssh")
    except ValueError as error:
        return checks.failed(checks.sentence(error), context.command("launcher.host=ADDRESS"))
    argv = (*reach.argv[:-1], "true")
    code, output, complaint = checks.ask(argv, timeout_s=SSH_TIMEOUT_S)
    if code:
        said = complaint or output
        told = next((fix for part, fix in reach.fixes if part in said), "")
        return checks.failed(
            f"{launcher.host}: {checks.last_line(said)}{f' ({told})' if told else ''}",
            commands.remote(["ssh", "-v", *argv[1:]]),
        )
    return checks.ok(f"{launcher.host} answers")


def _account(context: Context) -> Answer:
    """Ask the cloud or the cluster who we are there."""
    kind, launcher = context.target.launcher.kind, context.target.launcher
    if isinstance(launcher, launchers.Ec2):
        if launcher.host is not None:
            return checks.ok("the host is given; EC2 is not asked")
        if context.plan is None:
            return checks.skipped("there is no plan")
        return _ec2_account(context)
    if isinstance(launcher, launchers.TpuQueued):
        given = {"project": launcher.project, "zone": launcher.zone}
        keys = {"project": "core/project", "zone": "compute/zone"}
        told = {name: _gcloud(keys[name]) for name, value in given.items() if value is None}
        if unknown := [name for name, value in told.items() if value is None]:
            return checks.warning(
                f"gcloud does not tell its {' and '.join(unknown)}", "gcloud config list"
            )
        if unset := [name for name, value in told.items() if not value]:
            return checks.failed(
                f"gcloud has no {' and no '.join(unset)}",
                f"gcloud config set {keys[unset[0]].replace('core/', '')} VALUE",
            )
        return checks.ok("project and zone are set")
    ask = {"jobset": ["kubectl", "config", "current-context"], "slurm": ["sinfo", "--version"]}
    if kind not in ask:
        return checks.skipped(NO_WAY if kind == "local" else f"{kind} asks for itself")
    code, output, complaint = checks.ask(ask[kind])
    if code == commands.EXIT_NOT_FOUND:
        return checks.skipped(f"{ask[kind][0]} is not here")
    if code:
        fix = "kubectl config get-contexts" if kind == "jobset" else "module load slurm"
        return checks.failed(checks.last_line(complaint or output), fix)
    return checks.ok(checks.last_line(output))


def _ec2_account(context: Context) -> Answer:
    try:
        found = ec2.find(context.request)
    except ec2_instance.Ec2Error as error:
        text = checks.sentence(error)
        fix = "aws sts get-caller-identity"
        for part, mend in (("expired", "aws sso login"), ("no region", "aws configure"),
                           ("no AWS credentials", "aws configure"),
                           ("not installed", "MISTRAL_JAX_LOCKS=data ./run doctor")):  # fmt: skip
            fix = mend if part in text else fix
        return checks.failed(text, fix)
    state = "none of this run yet" if found is None else f"{found.name} is {found.state}"
    return checks.ok(f"EC2 answers; {state}")


def _gcloud(key: str) -> str | None:
    """Return what gcloud has set, empty where nothing, None where it does not tell."""
    code, output, _ = checks.ask(["gcloud", "config", "get-value", key])
    return None if code else output.strip().removeprefix("(unset)")


def _source(context: Context) -> Answer:
    """Tell which source would run: a commit, or a commit and changes."""
    code, revision, _ = checks.ask(["git", "-C", str(commands.ROOT), "rev-parse", "HEAD"])
    if code:
        return checks.warning(
            "not a git checkout, or without a commit: the manifest will name no revision",
            commands.remote(["git", "-C", str(commands.ROOT), "log", "-1"]),
        )
    status = ["git", "-C", str(commands.ROOT), "status", "--porcelain"]
    code, changed, complaint = checks.ask(status)
    if code:
        return checks.warning(checks.last_line(complaint), commands.remote(status))
    short, root = revision.strip()[:12], checks.word(str(commands.ROOT))
    if not changed.strip():
        return checks.ok(f"commit {short}, nothing changed")
    argv = ["git", "-C", str(commands.ROOT), "diff", "HEAD"]
    diff = subprocess.run(argv, capture_output=True, check=False, stdin=subprocess.DEVNULL).stdout
    digest = hashlib.sha256(diff + changed.encode()).hexdigest()[:12]
    count = len(changed.splitlines())
    return checks.warning(
        f"commit {short} and {count} changed file(s), digest {digest}: the manifest will say so",
        f"git -C {root} add -A && git -C {root} commit -m 'as trained'",
    )


def _config_travels(context: Context) -> Answer:
    """Check that the config inside the project is among the files that are sent."""
    if context.target.launcher.kind in ("local", "slurm"):
        return checks.skipped("the config is read where it is")
    whole = context.config.expanduser().absolute()
    if not whole.is_relative_to(commands.ROOT):
        return checks.ok("outside the project: the resolved config is sent")
    inside = whole.relative_to(commands.ROOT)
    if inside not in bundle.project_files(commands.ROOT):
        return checks.failed(
            f"{inside} is ignored by git, so it is not sent with the project",
            commands.remote(["git", "-C", str(commands.ROOT), "add", "-f", str(inside)]),
        )
    return checks.ok(f"{inside} is sent with the project")


def _versions(context: Context) -> Answer:
    """Check that several hosts have the same versions."""
    target, kind = context.target, context.target.launcher.kind
    if target.num_hosts == 1:
        return checks.ok("one host")
    if kind != "tpu_queued":
        where = {"slurm": "one file system", "jobset": "one image"}.get(kind, "one setup")
        return checks.ok(f"{target.num_hosts} hosts run from {where}")
    if not context.remote:
        return checks.skipped("launch compares them after set-up; with --remote they are asked")
    agree = next((s for s in steps(context) if isinstance(s, Command) and "agree" in s.argv), None)
    if agree is None:
        return checks.skipped("the launcher compares none")
    code, output, complaint = checks.ask(agree.argv, timeout_s=REMOTE_TIMEOUT_S)
    said = checks.last_line(complaint or output)
    if code:
        return checks.failed(said, context.command(verb="launch"))
    return checks.ok(said)


def remote_command(context: Context) -> tuple[str, ...] | None:
    """Return what runs this pre-flight on the host and prints JSON; None where nothing can.

    Raises:
        ValueError: the launcher refuses the request.
    """
    launcher = context.target.launcher
    if isinstance(launcher, launchers.Ssh) and launcher.host is None:
        return None
    for step in steps(context):
        if isinstance(step, Command) and step.purpose.startswith(CHECK_PURPOSE):
            return (*step.argv[:-1], f"{step.argv[-1]} --json")
    return None


CHECKS = (
    Check("programs", _programs, "launcher"),
    Check("launch values", _values, "launcher"),
    Check("ssh key", _key, "launcher"),
    Check("ssh", _ssh, "launcher"),
    Check("account", _account, "launcher"),
    Check("source", _source, "launcher"),
    Check("config is sent", _config_travels, "launcher"),
    Check("hosts' versions", _versions, "launcher"),
)
