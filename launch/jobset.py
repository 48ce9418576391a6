"""A run on Kubernetes: one JobSet, one pod for each host, as GKE and xpk run slices and GPU nodes.

Config and target travel in a ConfigMap, so that the image needs the project alone. A crash of one
pod restarts the set, up to `max_restarts`; what a user or a gate must correct (exit codes 2 and
3) ends it. The pods find each other by the set's headless service. Launching again follows a set
that lives, and creates one that failed anew (clear_jobset.py). xpk.sh, written beside it, is the
same through xpk, which builds the image itself.

Source: JobSet v1alpha2 (https://jobset.sigs.k8s.io), TPUs in GKE
(https://cloud.google.com/kubernetes-engine/docs/concepts/tpus), xpk 1.16.
"""

import hashlib
import json
import re
import shlex
import sys
from typing import Any

from launch import clear_jobset
from launch import commands
from launch import launcher as launchers
from launch import many_hosts
from launch.commands import Command
from launch.commands import Request
from launch.commands import Step
from launch.commands import WriteFile

HOSTS = "hosts"  # the replicated job
CONTAINER = "train"
MOUNT = "/launch"
GRACE_S = 120  # the run saves after SIGTERM
# How GKE names the slices of an accelerator type: v5litepod-16, v5p-8, v6e-8.
GKE_TPUS = {
    "v5litepod": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
FIXES = {
    "no matches for kind": "the cluster has no JobSet controller: install it "
    "(https://jobset.sigs.k8s.io/docs/installation) and launch again",
    "doesn't have a resource type": "the cluster has no JobSet controller: install it "
    "(https://jobset.sigs.k8s.io/docs/installation) and launch again",
    "field is immutable": "a set of this name with other contents is there: delete it as the last "
    "line says, then launch again; the run goes on from its checkpoint",
    "Forbidden": "ask the cluster's owner for the right to create JobSets in this namespace",
    "forbidden": "ask the cluster's owner for the right to create JobSets in this namespace",
    "connection to the server": "kubectl reaches no cluster: choose one with 'gcloud container "
    "clusters get-credentials' or 'kubectl config use-context'",
    "ImagePullBackOff": "the nodes cannot read launcher.image: correct it, or give them the right",
}


def steps(request: Request) -> list[Step]:
    """Return what a launch on Kubernetes runs, in order.

    Raises:
        ValueError: no image, a name that Kubernetes refuses, or results that would be lost.
    """
    many_hosts.check_results_survive(request, "a pod's disk goes with the pod")
    _volume(request)
    many_hosts.check_inputs_travel(request)
    name, namespace = many_hosts.cloud_name(request), _namespace(request)
    path = request.folder / "jobset.yaml"
    content = many_hosts.dump_yaml(config_map(request), job_set(request))
    return [
        WriteFile(path, content, "the JobSet"),
        *_xpk(request),
        Command(
            (
                sys.executable, "-m", "launch.clear_jobset", "--namespace", namespace,
                "--name", name, "--contents", _contents(request),
            ),
            "look for a JobSet of an earlier launch", fixes=tuple(FIXES.items()),
            attach_line=clear_jobset.STAYS,
        ),
        Command(
            ("kubectl", "apply", f"--namespace={namespace}", f"--filename={path}"),
            "start the JobSet", fixes=tuple(FIXES.items()), prepares=True,
        ),
        Command(
            (
                sys.executable, "-m", "launch.follow_jobset",
                "--namespace", namespace, "--name", name,
            ),
            "wait for the pods, follow the first (Ctrl-C leaves the run alone)",
            fixes=tuple(FIXES.items()),
        ),
        *many_hosts.fetch_from_bucket(request),
    ]  # fmt: skip


def stop_steps(request: Request) -> list[Step]:
    """Return what ends the run and frees its nodes; the run directory stays in its bucket."""
    return [Command(_delete(request), "delete the JobSet: its nodes are free")]


def stop_hint(request: Request) -> str:
    """Return how to stop the bill."""
    return (
        "the nodes are used until the set is done or deleted, and paid for as long as their pool "
        f"keeps them: {shlex.join(_delete(request))}"
    )


def config_map(request: Request) -> dict[str, Any]:
    """Return the resolved config and the target as a ConfigMap."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": many_hosts.cloud_name(request), "namespace": _namespace(request)},
        "data": many_hosts.resolved_files(request),
    }


def job_set(request: Request) -> dict[str, Any]:
    """Return the JobSet, with what it holds in an annotation: see clear_jobset.py."""
    made = _job_set(request)
    annotations = made["metadata"].setdefault("annotations", {})
    annotations[clear_jobset.CONTENTS] = _contents(request)
    return made


def _contents(request: Request) -> str:
    whole = [each.model_dump(mode="json") for each in (request.run, request.target)]
    text = json.dumps([*whole, _job_set(request)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _job_set(request: Request) -> dict[str, Any]:
    launcher, hosts = _launcher(request), request.target.num_hosts
    labels = {} if launcher.queue is None else {"kueue.x-k8s.io/queue-name": _queue(launcher.queue)}
    metadata: dict[str, Any] = {
        "name": many_hosts.cloud_name(request),
        "namespace": _namespace(request),
        "labels": {"app.kubernetes.io/name": "mistral-jax", **labels},
    }
    if request.target.platform == "tpu":
        # One slice is one node pool: all pods of a job go into the same one.
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "In",
                        "values": [many_hosts.EXIT_INPUT, many_hosts.EXIT_GATE],
                    },
                }
            ]
        },
        "template": {"spec": _pod(request)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": launcher.max_restarts,
                "rules": [
                    {
                        "name": "wrongInputOrGate",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": HOSTS, "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(request: Request) -> dict[str, Any]:
    launcher, target = _launcher(request), request.target
    resource = "google.com/tpu" if target.platform == "tpu" else "nvidia.com/gpu"
    amount = {resource: target.chips_per_host}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": _image(launcher.image),
        "command": [_literal(word) for word in _words(request, MOUNT)],
        "env": _environment(request),
        "volumeMounts": [{"name": "launch", "mountPath": MOUNT, "readOnly": True}],
    }
    if target.platform != "cpu":
        container["resources"] = {"requests": dict(amount), "limits": dict(amount)}
    volumes: list[dict[str, Any]] = [
        {"name": "launch", "configMap": {"name": many_hosts.cloud_name(request)}}
    ]
    if volume := _volume(request):
        claim, folder = volume
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": claim}})
        container["volumeMounts"].append({"name": "shared", "mountPath": folder})
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "containers": [container],
        "volumes": volumes,
    }
    if selector := _selector(request):
        pod["nodeSelector"] = selector
    return pod


def _environment(request: Request) -> list[dict[str, Any]]:
    hosts = request.target.num_hosts
    wait = {"name": many_hosts.OWNER_WAIT, "value": str(many_hosts.OWNER_WAIT_S)}
    shared = many_hosts.shared_environment(request).items()
    common: list[dict[str, Any]] = [wait] if many_hosts.is_bucket(request) else []
    common += [{"name": name, "value": value} for name, value in shared]
    if hosts == 1:
        return common
    if request.target.platform == "tpu":  # GKE tells every pod of a slice its place
        return [*common, {"name": many_hosts.AUTO, "value": "auto"}]
    name = many_hosts.cloud_name(request)
    first = f"{name}-{HOSTS}-0-0.{name}:{many_hosts.COORDINATOR_PORT}"
    return [
        *common,
        {"name": many_hosts.COORDINATOR, "value": first},
        {"name": many_hosts.NUM_PROCESSES, "value": str(hosts)},
        {"name": many_hosts.PROCESS_ID, "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
    ]


def _volume(request: Request) -> tuple[str, str] | None:
    """Return the claim of the shared folder and where it is mounted; None without both."""
    claim, folder = _launcher(request).claim, many_hosts.shared_folder(request)
    if claim is None and folder is None:
        return None
    if claim is None or folder is None or f"{folder}/".startswith(f"{MOUNT}/"):
        raise ValueError(
            f"launcher.claim {claim!r} and launcher.shared_folder {folder!r}: expected both, a "
            f"PersistentVolumeClaim and where the pods mount it (not {MOUNT}); give both or none"
        )
    return _queue(claim, "launcher.claim"), folder


def _selector(request: Request) -> dict[str, str]:
    """Return the nodes' labels: the slice's kind and shape on TPUs, and what the user adds."""
    labels = {}
    if request.target.platform == "tpu":
        generation = request.target.accelerator_type.partition("-")[0]
        if generation not in GKE_TPUS:
            raise ValueError(
                f"accelerator_type {request.target.accelerator_type!r}: GKE's name of it is not "
                f"known here; known: {', '.join(GKE_TPUS)}"
            )
        labels["cloud.google.com/gke-tpu-accelerator"] = GKE_TPUS[generation]
        labels["cloud.google.com/gke-tpu-topology"] = "x".join(map(str, request.target.topology))
    for key, value in _launcher(request).node_selector.items():
        if not re.fullmatch(r"(?:[a-z0-9.-]{1,253}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,62}", key):
            raise ValueError(f"launcher.node_selector: {key[:100]!r} is no label of Kubernetes")
        labels[key] = value if value == "" else commands.check_name(value, f"node_selector {key}")
    return labels


def _xpk(request: Request) -> list[Step]:
    """Return what gives the same run to xpk, by hand; none for GPU nodes, which it names anew."""
    if request.target.platform != "tpu":
        return []
    files = many_hosts.resolved_files(request).items()
    script = request.folder / "xpk.sh"
    return [
        *(WriteFile(request.folder / name, text, "read by xpk.sh") for name, text in files),
        WriteFile(script, xpk_script(request), f"should you prefer xpk: sh {script} CLUSTER"),
    ]


def xpk_script(request: Request) -> str:
    """Return a script that gives the same run to xpk; its one argument is the cluster's name."""
    target, launcher = request.target, _launcher(request)
    words = [
        f"--workload={many_hosts.cloud_name(request)}",
        f"--tpu-type={commands.check_name(target.accelerator_type, 'accelerator_type')}",
        f"--base-docker-image={_image(launcher.image)}",
        "--script-dir=.",
        f"--max-restarts={launcher.max_restarts}",
        "--restart-on-exit-codes=1",
        f"--termination-grace-period-seconds={GRACE_S}",
        *([f"--env={many_hosts.AUTO}=auto"] if target.num_hosts > 1 else []),
        *(
            f"--env={name}={value}"
            for name, value in many_hosts.shared_environment(request).items()
        ),
        f"--command={shlex.join(_words(request, str(request.folder)))}",
    ]
    call = " \\\n    ".join(shlex.quote(word) for word in words)
    return (
        "#!/bin/sh\n# From the project's root: sh xpk.sh CLUSTER\nset -eu\n"
        'exec xpk workload create --cluster="${1:?name the cluster}" \\\n'
        f"    {call}\n"
    )


def _words(request: Request, folder: str) -> list[str]:
    return ["./run", *many_hosts.resolved_words(request, "train", folder)]


def _literal(word: str) -> str:
    """Return a word that Kubernetes' own $(VARIABLE) expansion turns into the word."""
    return word.replace("$", "$$")


def _launcher(request: Request) -> launchers.Jobset:
    launcher = request.target.launcher
    assert isinstance(launcher, launchers.Jobset)
    return launcher


def _namespace(request: Request) -> str:
    return _queue(_launcher(request).namespace, "launcher.namespace")


def _queue(text: str, what: str = "launcher.queue") -> str:
    if re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", text):
        return text
    raise ValueError(
        f"{what} {text[:100]!r}: expected lower-case letters, digits and hyphens, at most 63"
    )


def _image(text: str | None) -> str:
    if text is None:
        raise ValueError(
            "launcher.image: expected a container image that holds this project and starts in its "
            "folder, got none; build one (docs/tpu-pod.md) and give launcher.image=..."
        )
    if re.fullmatch(r"[a-z0-9][A-Za-z0-9._/:@-]{0,500}", text):
        return text
    raise ValueError(f"launcher.image {text[:100]!r}: expected REGISTRY/NAME:TAG or NAME@DIGEST")


def _delete(request: Request) -> tuple[str, ...]:
    name = many_hosts.cloud_name(request)
    return ("kubectl", "delete", f"--namespace={_namespace(request)}", "jobset", name)
