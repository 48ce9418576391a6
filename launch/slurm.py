"""A run under SLURM: an sbatch script, one supervised process for each node.

For clusters whose nodes share the file system that the project lies on; nodes are taken whole.
The first node of the allocation coordinates. Two minutes before the time limit the run is told to
save, and the job puts itself back into the queue; a preempted job SLURM puts back itself. A job
that its user cancels saves, and stays cancelled: hence USR1 for the limit, not the TERM of both.
"""

import re
import shlex
import sys
from pathlib import Path

from launch import commands
from launch import launcher as launchers
from launch import many_hosts
from launch.commands import Command
from launch.commands import Request
from launch.commands import Step
from launch.commands import WriteFile

SAVE_S = 120
SCRIPT = "job.sh"
# Values stand in front of it, quoted: project, log, locks, ranks' options, words.
BODY = r"""
cd -- "$project" || exit 1
sh launch/host.sh setup "${locks[@]}" || exit
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || exit
first=${hosts%%$'\n'*}
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    export MISTRAL_JAX_COORDINATOR="$first:$port"
    export MISTRAL_JAX_NUM_PROCESSES="$SLURM_JOB_NUM_NODES"
    export MISTRAL_JAX_CACHE="$project/runs/.cache" # a home need not be shared, the project is
fi

told=
tell() { # signals go to the steps; the batch shell itself gets none of them
    told=$1
    scancel --quiet --signal=TERM "$SLURM_JOB_ID"
}
trap 'tell limit' USR1
trap 'tell cancel' TERM

ended=$log/step-$SLURM_JOB_ID
rm -f -- "$ended"
{
    srun --ntasks-per-node=1 --cpu-bind=none bash -c '
        [ "$SLURM_NTASKS" = 1 ] || export MISTRAL_JAX_PROCESS_ID="$SLURM_PROCID"
        folder=$1
        shift
        exec sh launch/host.sh python -m launch.supervise \
            --folder "$folder/host-$SLURM_PROCID" "$@"
    ' bash "$log" "${words[@]}"
    echo $? >"$ended"
} &
while [ -n "$(jobs -r)" ]; do wait; done # a signal ends one wait, not the step
code=137
[ ! -s "$ended" ] || read -r code <"$ended"
rm -f -- "$ended"
if [ "$told" = limit ] && [ "$code" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    echo "launch: saved at the time limit; the job goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    exit
fi
echo "$code" >"$log/exit-$SLURM_JOB_ID"
exit "$code"
"""
FIXES = (
    ("invalid partition", "give launcher.partition=...; 'sinfo' lists them"),
    ("Invalid account", "give launcher.account=...; 'sacctmgr show associations' lists yours"),
    ("Requested time limit is invalid", "give a shorter launcher.time_limit=HH:MM:SS"),
    ("time limit exceeds", "give a shorter launcher.time_limit=HH:MM:SS"),
    ("Requested node configuration", "the partition has no such nodes: take a target whose "
     "chips_per_host they have, or another launcher.partition"),
)  # fmt: skip


def steps(request: Request) -> list[Step]:
    """Return what a launch under SLURM runs, in order.

    Raises:
        ValueError: a value that could not stand in the script.
    """
    folder = _here(request)
    files = many_hosts.resolved_files(request)
    follow = (sys.executable, "-m", "launch.follow_slurm")
    where = ("--folder", str(folder))
    return [
        *(WriteFile(folder / name, text, "for the job") for name, text in files.items()),
        WriteFile(folder / SCRIPT, script(request), "the batch script"),
        Command(
            (*follow, "submit", *where, "--", "sbatch", "--parsable", str(folder / SCRIPT)),
            "submit the job, unless it is there", fixes=FIXES,
        ),
        Command(
            (*follow, "follow", *where),
            "follow the job (Ctrl-C leaves it alone)",
        ),
    ]  # fmt: skip


def stop_steps(request: Request) -> list[Step]:
    """Return what cancels the job; it saves first, and can go on later."""
    return [Command(_cancel(request), "cancel the job")]


def stop_hint(request: Request) -> str:
    """Return how to free the nodes."""
    return f"the job holds {request.target.num_hosts} nodes until: {shlex.join(_cancel(request))}"


def script(request: Request) -> str:
    """Return the sbatch script, every value of the user's checked and quoted.

    Raises:
        ValueError: a value that SLURM or the script could not take as it is.
    """
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{option}" for option in _options(request)]
    folder = str(_here(request))
    lock = _launcher(request).lock or ("none" if request.target.platform == "cpu" else "auto")
    progress = str(many_hosts.results_folder(request))
    words = [
        *([] if many_hosts.is_bucket(request) else ["--progress", progress]),
        "--", "./run", *many_hosts.resolved_words(request, "train", folder),
    ]  # fmt: skip
    lines += [
        f"project={shlex.quote(_project(request))}",
        f"log={shlex.quote(folder)}",
        f"port={many_hosts.COORDINATOR_PORT}",
        f"locks=({shlex.join(many_hosts.locks(request, lock))})",
        f"words=({shlex.join(words)})",
    ]
    return "\n".join(lines) + BODY


def _options(request: Request) -> list[str]:
    launcher, target = _launcher(request), request.target
    log = str(_here(request) / "job-%j.log")
    _check_directive(log)
    if not re.fullmatch(r"(?:\d{1,3}-)?\d{1,3}:[0-5]\d:[0-5]\d", launcher.time_limit):
        raise ValueError(
            f"launcher.time_limit {launcher.time_limit[:100]!r}: expected HH:MM:SS or D-HH:MM:SS"
        )
    chosen = {
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
    }
    return [
        f"job-name={_job_name(request)}",
        f"nodes={target.num_hosts}",
        "ntasks-per-node=1",
        *([f"gpus-per-node={target.chips_per_host}"] if target.platform == "gpu" else []),
        "exclusive",
        "mem=0",
        f"time={launcher.time_limit}",
        f"signal=B:USR1@{SAVE_S}",
        "requeue",
        "open-mode=append",
        f"output={log}",
        *(
            f"{key}={commands.check_name(value, f'launcher.{key}')}"
            for key, value in chosen.items()
            if value is not None
        ),
    ]


def _check_directive(path: str) -> None:
    """Refuse what sbatch would read differently in a directive: it has its own quoting and %."""
    if not re.fullmatch(r"[A-Za-z0-9_./@+=,-]+", path.replace("%j", "")):
        raise ValueError(
            f"{path[:200]!r}: SLURM takes no spaces or other signs in a log's path; launch from a "
            "folder named with letters, digits, '_', '.' and '-'"
        )


def _here(request: Request) -> Path:
    """Return the launch folder as every node of the cluster finds it."""
    return commands.ROOT / request.folder


def _project(request: Request) -> str:
    folder = _launcher(request).folder
    if folder is None:
        return str(commands.ROOT)
    if not Path(commands.check_path(folder, "launcher.folder")).is_absolute():
        raise ValueError(
            f"launcher.folder {folder[:200]!r}: expected the absolute path of the project on the "
            "shared file system, or null for where launch runs"
        )
    return folder


def _launcher(request: Request) -> launchers.Slurm:
    launcher = request.target.launcher
    assert isinstance(launcher, launchers.Slurm)
    return launcher


def _job_name(request: Request) -> str:
    return commands.check_name(many_hosts.run_id(request), "run name")


def _cancel(request: Request) -> tuple[str, ...]:
    return ("scancel", "--me", f"--name={_job_name(request)}")
