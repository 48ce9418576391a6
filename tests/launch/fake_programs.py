"""What gcloud, kubectl, docker, SLURM's programs, sky, xpk, aws, rsync do in launchers' tests.

Run as `python fake_programs.py BASE NAME ARGUMENT...` by small scripts on PATH (fake_cloud.py).
Each call is written down, as a JSON list, in BASE/calls.jsonl. What would reach a host does reach
a folder below BASE: commands go through a real /bin/sh there, copies are real copies.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

BASE = Path(sys.argv[1])


def load(name, default):
    path = BASE / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def store(name, value):
    (BASE / name).write_text(json.dumps(value), encoding="utf-8")


def option(words, name, default=""):
    found = [word.partition("=")[2] for word in words if word.startswith(f"--{name}=")]
    return found[-1] if found else default


def fail(text, code=1):
    print(text, file=sys.stderr, flush=True)
    sys.exit(code)


def on_host(index, command, **more):
    """Run a command as sshd does: in the host's home, by its login shell."""
    home = BASE / f"host-{index}"
    environment = {**os.environ, **load("environment.json", {}), "HOME": str(home)}
    environment.update({name: text.format(index=index) for name, text in more.items()})
    return subprocess.run(["/bin/sh", "-c", command], cwd=home, env=environment).returncode


PREPARATION = (
    ("auth", "login"), ("config", "set"), ("services", "enable"), ("storage", "buckets"),
    ("storage", "ls"), ("queued-resources", "list"),
    ("filestore", "instances"),
)  # fmt: skip


def gcloud(words):
    area, verb = words[2:4] if words[0] == "compute" else words[:2]
    if (area, verb) in PREPARATION:
        return 0
    if (area, verb) == ("storage", "objects"):
        return object_of(words[3])
    if (area, verb) == ("storage", "rsync"):
        source, goal = words[-2:]
        return copy_bucket(source, goal, skipped=("checkpoints", "data", "export"))
    if area == "queued-resources":
        return queued_resource(verb, words[4])
    hosts = range(load("hosts.json", 1))
    if option(words, "worker") != "all":
        hosts = [int(option(words, "worker"))]
    if verb == "scp":
        return tpu_scp([word for word in words[4:] if not word.startswith("--")], hosts)
    return max(on_host(index, option(words, "command")) for index in hosts)


def queued_resource(verb, name):
    """Answer as gcloud does; the states to go through are in states.json."""
    known = load("queued.json", None)
    if verb == "create":
        if known is not None:
            fail(f"ERROR: ALREADY_EXISTS: {name}")
        store("queued.json", name)
        return 0
    if known != name:
        fail(f"ERROR: (gcloud.compute.tpus.queued-resources.{verb}) NOT_FOUND: Resource {name}")
    if verb == "delete":
        (BASE / "queued.json").unlink()
        store("states.json", [{"state": "ACTIVE"}])
        return 0
    states = load("states.json", [{"state": "ACTIVE"}])
    print(json.dumps({"name": name, "state": states[0]}))
    store("states.json", states[1:] or states)
    return 0


def tpu_scp(places, hosts):
    *sources, goal = places
    if ":" in sources[0].partition("/")[0]:
        source = BASE / f"host-{hosts[0]}" / sources[0].partition(":")[2]
        shutil.copytree(source, Path(goal) / source.name, dirs_exist_ok=True)
        return 0
    for index in hosts:
        for source in sources:
            shutil.copy(source, BASE / f"host-{index}" / (goal.partition(":")[2] or "."))
    return 0


def object_of(uri):
    if not (BASE / "buckets" / uri.partition("://")[2]).is_file():
        fail(f"ERROR: (gcloud.storage.objects.describe) NOT_FOUND: {uri}")
    print(uri.rpartition("/")[2])
    return 0


def copy_bucket(source, goal, skipped):
    folder = BASE / "buckets" / source.partition("://")[2]
    if not folder.is_dir():
        fail(f"ERROR: {source} matched no objects")
    assert Path(goal).is_dir(), "rsync makes no folder"
    shutil.copytree(folder, goal, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*skipped))
    return 0


def kubectl(words):
    """Keep what is applied; then pods and sets as pods.json and sets.json tell, one a call.

    null stands for a set that is not there. After a delete, sets are as sets_after.json tells.
    """
    verb = next(word for word in words if not word.startswith("--"))
    if verb == "apply":
        shutil.copy(option(words, "filename"), BASE / "applied.yaml")
        print("jobset.jobset.x-k8s.io/x created")
    elif verb == "get":
        kind = "sets.json" if "jobset" in words else "pods.json"
        answers = load(kind, [])
        store(kind, answers[1:] or answers)
        if not answers or answers[0] is None:
            fail("Error from server (NotFound): not found")
        print(json.dumps(answers[0]))
    elif verb == "delete":
        store("sets.json", load("sets_after.json", load("sets.json", [])))
    elif verb != "logs":
        fail(f"error: unknown command {verb}")
    elif verb == "logs":
        print(f"log of {words[-1]}")
    return 0


def sbatch(words):
    """Start the script as the batch host would, in the background."""
    number = load("job.json", 100) + 1
    store("job.json", number)
    nodes = load("hosts.json", 1)
    environment = {
        **os.environ, **load("environment.json", {}), "HOME": str(BASE / "host-0"),
        "SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": f"node[0-{nodes - 1}]",
    }  # fmt: skip
    script = Path(words[-1])
    log = (script.parent / f"job-{number}.log").open("ab")
    process = subprocess.Popen(
        ["/bin/bash", script], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    (BASE / "batch.pid").write_text(str(process.pid))
    print(f"{number};cluster")
    return 0


def srun(words):
    """Run the command once for each node, side by side, with the rank in the environment."""
    command = words[next(i for i, word in enumerate(words) if not word.startswith("-")) :]
    nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    ranks = [
        subprocess.Popen(
            command, env={**os.environ, "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(nodes)}
        )
        for rank in range(nodes)
    ]
    (BASE / "steps.json").write_text(json.dumps([each.pid for each in ranks]))
    return max(each.wait() for each in ranks)


def scontrol(words):
    if words[:2] == ["show", "hostnames"]:
        count = int(words[2].rpartition("-")[2].rstrip("]")) + 1
        print("\n".join(load("nodes.json", [f"node{index}" for index in range(count)])))
    return 0


def squeue(words):
    pid = BASE / "batch.pid"
    if not pid.exists():
        fail("slurm_load_jobs error: Invalid job id specified")
    try:
        os.kill(int(pid.read_text()), 0)
    except ProcessLookupError:
        fail("slurm_load_jobs error: Invalid job id specified")
    print("RUNNING|None")
    return 0


def scancel(words):
    """Signal the steps, as scancel --signal does."""
    for pid in load("steps.json", []):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 15)
    return 0


def sky(words):
    """Do what `sky launch` does on the machine: workdir, setup, run."""
    if words[:2] == ["jobs", "queue"]:
        print(
            load("sky_says.json", "") + json.dumps(load("sky_jobs.json", []), indent=2)
        )  # as sky prints it
    elif words[:2] == ["jobs", "launch"]:
        told = {"job_id": 7, "job_name": option(words, "name"), "status": "STARTING"}
        store("sky_jobs.json", [*load("sky_jobs.json", []), told])
    elif words[:2] == ["jobs", "cancel"]:
        jobs = load("sky_jobs.json", [])
        store("sky_jobs.json", [job for job in jobs if job["job_name"] != option(words, "name")])
    if words[0] in ("down", "jobs"):
        return 0
    import yaml

    task = yaml.safe_load(Path(words[-1]).read_text(encoding="utf-8"))
    host = BASE / "host-0" / "sky_workdir"
    shutil.copytree(task["workdir"], host, ignore=shutil.ignore_patterns(".*", "runs"))
    for far, near in task.get("file_mounts", {}).items():
        goal = BASE / "host-0" / far.removeprefix("~/")
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(near, goal)
    shared = {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_IPS": "10.0.0.1", "SKYPILOT_NODE_RANK": "0"}
    for part in ("setup", "run"):
        if code := on_host(0, f"cd sky_workdir\n{task[part]}", **shared):
            return code
    return 0


def rsync(words):
    source, goal = words[-2:]
    folder = BASE / "host-0" / source.partition(":")[2]
    shutil.copytree(folder, goal, dirs_exist_ok=True, ignore=shutil.ignore_patterns("data"))
    return 0


def aws(words):
    return copy_bucket(*words[-2:], skipped=("checkpoints", "data", "export"))


def docker(words):
    return 0


def xpk(words):
    return 0


if __name__ == "__main__":
    name, arguments = sys.argv[2], sys.argv[3:]
    with (BASE / "calls.jsonl").open("a", encoding="utf-8") as calls:
        calls.write(json.dumps([name, *arguments]) + "\n")
    sys.exit(globals()[name](arguments))
