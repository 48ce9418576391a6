"""What the launchers of several hosts share: names, the training command, where results survive.

It starts nothing. How processes find each other is told to `train` by the environment: either
MISTRAL_JAX_DISTRIBUTED=auto, where the platform knows (TPU slices), or the three variables of
`COORDINATOR`, `NUM_PROCESSES` and `PROCESS_ID`.
"""

import re
from pathlib import Path
from pathlib import PurePosixPath

import yaml

from launch import bundle
from launch import commands
from launch import gpu_host
from launch import launcher as launchers
from launch.commands import Command
from launch.commands import Request
from launch.commands import Step
from mistral_jax.config import load
from mistral_jax.storage import remote_folder

AUTO = "MISTRAL_JAX_DISTRIBUTED"
COORDINATOR = "MISTRAL_JAX_COORDINATOR"
NUM_PROCESSES = "MISTRAL_JAX_NUM_PROCESSES"
PROCESS_ID = "MISTRAL_JAX_PROCESS_ID"
LOCKS = "MISTRAL_JAX_LOCKS"
CACHE = "MISTRAL_JAX_CACHE"  # holds the local folder of a run whose output is a bucket
COORDINATOR_PORT = 8476  # above the system's, below Linux's ephemeral ones; nothing well known
# A new machine meets the mark of the process that was killed, see storage/owner.py.
OWNER_WAIT, OWNER_WAIT_S = "MISTRAL_JAX_OWNER_WAIT_S", 180
EXIT_OK, EXIT_INPUT, EXIT_GATE = 0, 2, 3
MAX_NAME = 40  # leaves room for what JobSet and SkyPilot append, in a label of 63

_CLOUD_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?")
_SHARED = re.compile(r"(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
_PLAIN_URI = re.compile(r"(?:gs|s3)://[A-Za-z0-9_./=-]+")
_BUCKET_URI = re.compile(r"(?:gs|s3)://[a-z0-9][a-z0-9._-]{1,220}(?:/.*)?")


def run_id(request: Request) -> str:
    """Return <run name>-<first 8 of the science hash>: one experiment, whatever is re-launched."""
    return commands.launch_folder(request.run).parent.name


def cloud_name(request: Request) -> str:
    """Return the run's id as clouds and Kubernetes spell names: lower case and hyphens.

    Raises:
        ValueError: it is too long for them.
    """
    name = re.sub(r"[^a-z0-9]+", "-", run_id(request).lower()).strip("-")
    return check_cloud_name(name if name[:1].isalpha() else f"run-{name}", "name")


def check_cloud_name(text: str, what: str) -> str:
    """Return a cloud's name of something unchanged.

    Raises:
        ValueError: it holds more than lower-case letters, digits and hyphens, or is too long.
    """
    if _CLOUD_NAME.fullmatch(text):
        return text
    raise ValueError(
        f"{what} {text[:100]!r}: expected a lower-case letter, then lower-case letters, digits and "
        f"hyphens, at most {MAX_NAME} characters; shorten or rename the run"
    )


def train_words(request: Request) -> list[str]:
    """Return `train CONFIG --target T key=value ...`, which a supervisor may start again.

    Raises:
        ValueError: `fresh=true` would begin another run directory at every restart.
    """
    _, is_fresh = load.split_fresh(request.overrides)
    if is_fresh:
        raise ValueError(
            "fresh=true: a supervised run starts again after a crash and would begin anew each "
            "time; name a new folder with output=... instead"
        )
    return commands.verb_words(request, "train")


def is_bucket(request: Request) -> bool:
    """Tell whether the run writes to s3:// or gs://.

    Raises:
        ValueError: it says so and is no URI of a bucket.
    """
    directory = commands.check_path(request.run.run_directory(), "output")
    if "://" not in directory:
        return False
    if not _BUCKET_URI.fullmatch(directory):
        raise ValueError(
            f"output {directory[:200]!r}: expected gs://BUCKET/PATH or s3://BUCKET/PATH, "
            "the bucket's name of 3 or more lower-case letters, digits, '.', '_' and '-'"
        )
    return True


def results_folder(request: Request) -> Path:
    """Return where the run's files lie, relative to the project or absolute, free of options.

    Raises:
        ValueError: it would begin with `-` where a program takes it.
    """
    folder = gpu_host.results_folder(request)
    commands.check_path(str(folder.parent), "output")
    return Path(commands.check_path(str(folder), "output"))


def check_results_survive(request: Request, why: str) -> None:
    """Refuse a run that writes only to disks that are not shared or do not stay.

    Raises:
        ValueError: `output` is neither a bucket nor an absolute path, or several hosts share no
            folder.
    """
    directory = request.run.run_directory()
    if not is_bucket(request) and not PurePosixPath(directory).is_absolute():
        raise ValueError(
            f"output {directory!r} is a folder on a host's own disk, but {why}; give "
            "output=gs://BUCKET/PATH (or s3://), or the absolute path of a file system that every "
            "host mounts"
        )
    hosts = request.target.num_hosts
    if hosts > 1 and shared_folder(request) is None:
        raise ValueError(
            f"launcher.shared_folder: the run's {hosts} hosts work in one local folder, also when "
            "the output is a bucket, and none was given; give launcher.shared_folder=/PATH, where "
            "every host mounts the same file system (docs/tpu-pod.md)"
        )


def shared_folder(request: Request) -> str | None:
    """Return the folder that every host sees, None where the launcher was given none.

    Raises:
        ValueError: it is no absolute path, or holds what a mount's path better does not.
    """
    launcher = request.target.launcher
    assert isinstance(launcher, launchers.TpuQueued | launchers.Jobset | launchers.SkyPilot)
    if launcher.shared_folder is None:
        return None
    folder = commands.check_path(launcher.shared_folder, "launcher.shared_folder")
    if _SHARED.fullmatch(folder):
        return folder
    raise ValueError(
        f"launcher.shared_folder {folder[:100]!r}: expected the absolute path of a mount that "
        "every host sees, of letters, digits, '_', '.', '-' and '/', such as /mnt/shared"
    )


def shared_environment(request: Request) -> dict[str, str]:
    """Return what puts the local folder of the run below the shared one; empty without one."""
    folder = shared_folder(request)
    return {} if folder is None else {CACHE: f"{folder}/cache"}


class _Blocks(yaml.SafeDumper):
    """YAML with texts of several lines as blocks, as people write them."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Blocks.add_representer(str, _text)


def dump_yaml(*documents: dict) -> str:
    """Return documents as YAML for other programs, readable."""
    return yaml.dump_all(documents, Dumper=_Blocks, sort_keys=False, allow_unicode=True)


def resolved_files(request: Request) -> dict[str, str]:
    """Return config and target whole, by file name: what the far side needs beside the project."""
    target = dump_yaml(request.target.model_dump(mode="json"))
    return {"config.yaml": load.dump_yaml(request.run), "target.yaml": target}


def resolved_words(request: Request, verb: str, folder: str) -> list[str]:
    """Return `VERB CONFIG --target T` for the files of `resolved_files` in a folder."""
    train_words(request)  # refuses what a restart could not keep
    return [verb, f"{folder}/config.yaml", "--target", f"{folder}/target.yaml"]


def check_inputs_travel(request: Request) -> None:
    """Refuse inputs that lie on this machine and that no project file or bucket brings along.

    Raises:
        ValueError: one of them; the message names it.
    """
    for text in gpu_host.input_paths(request.run):
        commands.check_path(text, "a path of the config")
        path = Path(text).expanduser()
        if (path.is_absolute() and not text.startswith("~")) or not path.exists():
            continue  # the hosts' own, a preset's name: their pre-flight tells
        listed = bundle.project_files(commands.ROOT)
        if not any(file.is_relative_to(path) for file in listed):
            raise ValueError(
                f"{text!r} of the config lies on this machine alone: put it into a bucket and give "
                "its gs:// or s3:// address, or add it to the project"
            )


def locks(request: Request, lock: str) -> list[str]:
    """Return the sets of requirements/ that a host needs: the lock, and `data` for buckets."""
    resolved = request.run.model_dump_json()
    return [lock, *(["data"] if any(store in resolved for store in gpu_host.STORES) else [])]


def check_finished(request: Request) -> Command:
    """Return what fails unless the bucket holds all of a run that has ended.

    The file that it asks for is sent after all others.

    Raises:
        ValueError: `output` is no bucket, or its name could stand for others too.
    """
    directory = request.run.run_directory().rstrip("/")
    if not is_bucket(request) or not _PLAIN_URI.fullmatch(directory):
        raise ValueError(
            f"launcher.delete_when_done: what the slice holds is lost with it, and output "
            f"{directory[:200]!r} is no gs://BUCKET/PATH (or s3://) of letters, digits, '_', '.', "
            "'-', '=' and '/'; give such a one, or end the slice by hand with --stop"
        )
    if directory.startswith("gs://"):
        uri = f"{directory}/{remote_folder.FINISHED}"
        argv = ("gcloud", "storage", "objects", "describe", uri, "--format=value(name)")
    else:
        bucket, _, key = directory.removeprefix("s3://").partition("/")
        key = "/".join(part for part in (key, remote_folder.FINISHED) if part)
        argv = ("aws", "s3api", "head-object", f"--bucket={bucket}", f"--key={key}")
    kept = "it shows no ended run, so the slice is kept, and paid: launch again to go on, or --stop"
    return Command(argv, "look for the ended run in the bucket", fixes=(("", kept),))


def fetch_from_bucket(request: Request) -> list[Step]:
    """Return how to get what people read of a run out of its bucket: all but checkpoints and data.

    Empty for a run that writes elsewhere.
    """
    if not is_bucket(request):
        return []
    source = request.run.run_directory().rstrip("/")
    local = str(Path("runs") / run_id(request))
    heavy = ("checkpoints", "data", "export")
    purpose = f"fetch metrics, samples and report into {local}; checkpoints stay in the bucket"
    make = Command(("mkdir", "-p", "--", local), f"make {local}", always=True)
    if source.startswith("gs://"):
        skipped = f"^({'|'.join(heavy)})/.*"
        copy = ("gcloud", "storage", "rsync", "--recursive", f"--exclude={skipped}", source, local)
    else:
        skips = [word for each in heavy for word in ("--exclude", f"{each}/*")]
        copy = ("aws", "s3", "sync", "--no-progress", *skips, source, local)
    return [make, Command(copy, purpose, always=True)]
