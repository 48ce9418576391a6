"""A run on a Cloud TPU slice by queued resources: every host reached by `gcloud ... --worker=all`.

The steps: ask for the slice (or find the one asked for), wait until it is ACTIVE, copy the
project, set it up from the lock, start `train` on every host under a supervisor that outlives the
connection, follow host 0, fetch the results. Launching again goes on wherever it stands. Nothing
here deletes a slice that could still work, unless `launcher.delete_when_done` asks for it:
`stop_hint` says how.

queued_resource.py asks gcloud again where one answer is not enough; its command stands behind
`--`. Syntax after https://cloud.google.com/sdk/gcloud/reference/compute/tpus (2026).
"""

import dataclasses
import re
import sys

from launch import commands
from launch import launcher as launchers
from launch import many_hosts
from launch import shared_mount
from launch.commands import Command
from launch.commands import Request
from launch.commands import Step

RECEIVE = "tpu_host.sh"
POLL_S = 20.0
RESTARTS = 50  # only host 0 sees the run's steps; the others count every restart
# Waits for this run's own supervisors, which may still be ending.
IDLE = """set -eu
cd -- "$1"
for lock in runs/*/launch/lock; do
    [ ! -e "$lock" ] || flock -w 60 "$lock" true || {
        echo "$(uname -n): another run is under way here: $lock" >&2
        exit 3
    }
done
"""
FIXES = (
    ("another run is under way", "wait for it, or give this run a slice of its own with "
     "launcher.name=..."),
    ("PERMISSION_DENIED", "run 'gcloud auth login' and ask the project's owner for the role "
     "roles/tpu.admin"),
    ("Reauthentication", "run 'gcloud auth login' and launch again"),
    ("RESOURCE_EXHAUSTED", "the project has no quota for this many chips: ask for it under IAM, "
     "Quotas (TPU, this zone), or take a smaller target or another launcher.zone"),
    ("Quota", "ask for TPU quota in this zone, or give another launcher.zone"),
    ("were not specified", "give launcher.zone=... and launcher.project=..., or set both with "
     "'gcloud config set'"),
    ("NOT_FOUND", "the slice is gone: launch again, and a new one goes on from the checkpoint"),
    ("PREEMPTED", "the slice was taken away: launch again, and a new one goes on from the "
     "checkpoint"),
    ("cannot access", "mount the shared folder on every host with launcher.shared_mount=SERVER:"
     "/PATH, as docs/tpu-pod.md says, and launch again; or correct launcher.shared_folder"),
    ("No space left", "the hosts' disks are full: give output=gs://BUCKET/PATH"),
)  # fmt: skip


def steps(request: Request) -> list[Step]:
    """Return what a launch on a TPU slice runs, in order.

    Raises:
        ValueError: a name, path or place that no cloud takes, or results that would be lost.
    """
    launcher, hosts = _launcher(request), request.target.num_hosts
    if hosts > 1:
        many_hosts.check_results_survive(request, f"the slice's {hosts} hosts share no disk")
    elif launcher.spot:
        many_hosts.check_results_survive(request, "a spot slice's disk goes with it")
    name, folder = _name(request), _folder(request)
    far_archive = f"{name}.tar.gz"
    archive = str(request.folder / far_archive)
    start = _ssh(request, "all", _start(request), f"start the run on {_hosts(hosts)}")
    create = _helper("request", (), _create(request), f"ask for the slice {name}")
    many_hosts.check_inputs_travel(request)
    own = commands.own_files(request)
    packed = [commands.config_word(request), *(str(file.path) for file in own)]
    every = _hosts(hosts)
    return [
        *own,
        create,
        _helper(
            "wait", ("--poll-s", str(POLL_S)), _queued(request, "describe", "--format=json"),
            "wait for the slice",
        ),
        *_shared(request),
        Command(
            (sys.executable, "-m", "launch.bundle", archive, *dict.fromkeys(packed)),
            f"pack the project into {archive}",
        ),
        _gcloud(
            "scp", *_place(request), "--worker=all", f"launch/{RECEIVE}", archive, f"{name}:",
            purpose=f"copy it to {every}",
        ),
        _ssh(request, "all", _set_up(request, far_archive), f"set up {every} from the lock"),
        _helper(
            "agree", ("--hosts", str(hosts)),
            _ssh(request, "all", _python(folder, "-m", "launch.versions", far_archive), "").argv,
            "compare the hosts' versions",
        ),
        *_preflight(request),
        start,
        _follow(request),
        *_fetch(request),
        *_delete_when_done(request),
    ]  # fmt: skip


def _set_up(request: Request, far_archive: str) -> list[str]:
    folder, log = _folder(request), str(request.folder)
    words = ["sh", RECEIVE, folder, log, far_archive, "setup", *many_hosts.locks(request, "tpu")]
    # One host's doctor would wait for the others' chips.
    return ["env", "JAX_PLATFORMS=cpu", *words] if request.target.num_hosts > 1 else words


def _shared(request: Request) -> list[Step]:
    """Return what mounts and looks for the shared folder on every host, before all set-up."""
    folder, mount = many_hosts.shared_folder(request), shared_mount.words(request)
    if folder is None:
        return []
    every, found = _hosts(request.target.num_hosts), []
    if mount:
        made = _ssh(request, "all", mount, f"mount {mount[-2]} at {folder} on {every}")
        found.append(dataclasses.replace(made, fixes=(*shared_mount.FIXES, *FIXES)))
    look = ["env", "LC_ALL=C", "ls", "-d", folder]
    return [*found, _ssh(request, "all", look, f"look for {folder} on {every}")]


def _python(folder: str, *words: str) -> list[str]:
    return ["sh", f"{folder}/launch/host.sh", "python", *words]


def _preflight(request: Request) -> list[Step]:
    """Return the pre-flight on a slice of one host; on more, no host alone can reach its chips."""
    if request.target.num_hosts > 1:
        return []
    words = commands.verb_words(request, "preflight")
    script = ["sh", f"{_folder(request)}/launch/host.sh", "run", *words, "--on-host"]
    return [_ssh(request, "0", script, "check on the host what can be checked before the run")]


def _start(request: Request) -> list[str]:
    words = ["-m", "launch.detach", "start", "--folder", str(request.folder)]
    if request.target.num_hosts > 1:
        words += ["--restarts", str(RESTARTS)]
    if not many_hosts.is_bucket(request):
        words += ["--progress", str(many_hosts.results_folder(request))]
    words += ["--", "./run", *many_hosts.train_words(request)]
    script = _python(_folder(request), *words)
    variables = many_hosts.shared_environment(request)
    if request.target.num_hosts > 1:
        variables = {many_hosts.AUTO: "auto", **variables}
    settings = [f"{name}={value}" for name, value in variables.items()]
    return ["env", *settings, *script] if settings else script


def _follow(request: Request) -> Step:
    words = ["-m", "launch.detach", "follow", "--folder", str(request.folder)]
    inner = _ssh(request, "0", _python(_folder(request), *words), "").argv
    argv = (sys.executable, "-m", "launch.follow", "--", *inner)
    return Command(argv, "follow host 0 (Ctrl-C leaves the run alone)", fixes=FIXES)


def _delete_when_done(request: Request) -> list[Step]:
    """Return what deletes the slice of a run that has ended; a step that fails keeps it.

    Raises:
        ValueError: it was asked for, and the results would be gone with the slice.
    """
    if not _launcher(request).delete_when_done:
        return []
    idle = ["sh", "-c", IDLE, "idle", _folder(request)]
    return [
        many_hosts.check_finished(request),
        _ssh(request, "all", idle, "see that no other run is on the slice"),
        *stop_steps(request),
    ]


def stop_steps(request: Request) -> list[Step]:
    """Return what deletes the slice and its request; runs and disks on it are gone then."""
    argv = _queued(request, "delete", "--force")
    return [Command(argv, "delete the slice: the bill ends", fixes=FIXES)]


def stop_hint(request: Request) -> str:
    """Return how to stop the bill, with what an hour of it is where the price is known."""
    price = request.target.price_usd_per_hour
    cost = "" if price is None else f" (about {price:,.2f} USD an hour on demand)"
    argv = _queued(request, "delete", "--force")
    own = ", here after the run's end or by hand" if _launcher(request).delete_when_done else ""
    return f"the slice is paid until it is deleted{own}{cost}: {commands.remote(argv)}"


def _launcher(request: Request) -> launchers.TpuQueued:
    launcher = request.target.launcher
    assert isinstance(launcher, launchers.TpuQueued)
    return launcher


def _name(request: Request) -> str:
    given = _launcher(request).name
    if given is None:
        return many_hosts.cloud_name(request)
    return many_hosts.check_cloud_name(given, "launcher.name")


def _folder(request: Request) -> str:
    folder = commands.check_path(_launcher(request).folder, "launcher.folder")
    if not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_./-]*", folder) or ".." in folder.split("/"):
        raise ValueError(  # gcloud's scp gives it to a far shell as it stands
            f"launcher.folder {folder[:100]!r}: expected a folder below the hosts' home, of "
            "letters, digits, '_', '.', '-' and '/', such as mistral_jax"
        )
    return folder


def _place(request: Request) -> tuple[str, ...]:
    """Return the zone and the project as gcloud's options; none where gcloud's own shall hold."""
    launcher = _launcher(request)
    found = ["--quiet"]
    if launcher.zone is not None:
        if not re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-[a-z]", launcher.zone):
            raise ValueError(
                f"launcher.zone {launcher.zone[:100]!r}: expected a zone such as us-central1-a; "
                "'gcloud compute tpus locations list' shows them"
            )
        found.append(f"--zone={launcher.zone}")
    if launcher.project is not None:
        if not re.fullmatch(r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]", launcher.project):
            raise ValueError(
                f"launcher.project {launcher.project[:100]!r}: expected a project's id; "
                "'gcloud projects list' shows them"
            )
        found.append(f"--project={launcher.project}")
    return tuple(found)


def _queued(request: Request, verb: str, *options: str) -> tuple[str, ...]:
    argv = ("gcloud", "compute", "tpus", "queued-resources", verb, _name(request))
    return (*argv, *_place(request), *options)


def _create(request: Request) -> tuple[str, ...]:
    launcher, name = _launcher(request), _name(request)
    version = commands.check_name(launcher.runtime_version, "launcher.runtime_version")
    kind = commands.check_name(request.target.accelerator_type, "accelerator_type")
    options = [
        f"--node-id={name}",
        f"--accelerator-type={kind}",
        f"--runtime-version={version}",
        "--async",
    ]
    return _queued(request, "create", *options, *(["--spot"] if launcher.spot else []))


def _gcloud(verb: str, *words: str, purpose: str, always: bool = False) -> Command:
    argv = ("gcloud", "compute", "tpus", "tpu-vm", verb, *words)
    return Command(argv, purpose, always=always, fixes=FIXES)


def _ssh(request: Request, worker: str, words: list[str], purpose: str) -> Command:
    place = (*_place(request), f"--worker={worker}", f"--command={commands.remote(words)}")
    return _gcloud("ssh", _name(request), *place, purpose=purpose)


def _helper(verb: str, options: tuple[str, ...], argv: tuple[str, ...], purpose: str) -> Command:
    words = (sys.executable, "-m", "launch.queued_resource", verb, *options, "--", *argv)
    return Command(words, purpose, fixes=FIXES)


def _fetch(request: Request) -> list[Step]:
    """Return how the results come here; from an absolute folder of the hosts they do not."""
    if many_hosts.is_bucket(request):
        return many_hosts.fetch_from_bucket(request)
    folder = many_hosts.results_folder(request)
    if folder.is_absolute():
        return []
    parent = str(folder.parent)
    far = f"{_name(request)}:{_folder(request)}/{folder}"
    return [
        Command(("mkdir", "-p", "--", parent), f"make {parent}", always=True),
        _gcloud(
            "scp", *_place(request), "--worker=0", "--recurse", far, parent,
            purpose=f"fetch the results into {folder}", always=True,
        ),
    ]  # fmt: skip


def _hosts(count: int) -> str:
    return "the host" if count == 1 else f"{count} hosts"
