"""launch/jobset.py: a JobSet that the API takes, the words in it, and following one to its end."""

import dataclasses
import json
import os
import re
import shlex
import subprocess

import jsonschema
import pytest
import yaml

from launch import clear_jobset
from launch import commands
from launch import follow_jobset
from launch import jobset
from launch import launcher as launchers
from launch import target as target_lib
from launch.commands import Command
from launch.commands import WriteFile
from mistral_jax.config import load
from tests.launch import fake_cloud
from tests.launch import hostile
from tests.launch.fake_cloud import FakeCloud
from tests.launch.fake_cloud import request

CONFIG = "configs/tiny/pod.yaml"
OUTPUT = "output=gs://bucket/runs/tiny"
IMAGE = "launcher.image=europe-docker.pkg.dev/p/r/mistral-jax:1"
SHARED = ["launcher.claim=team-disk", "launcher.shared_folder=/mnt/shared"]
NAME = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}
COUNT = {"type": "integer", "minimum": 1}


def node(required, **optional):
    """Return the schema of an object without other keys."""
    return {
        "type": "object", "additionalProperties": False, "required": list(required),
        "properties": {**required, **optional},
    }  # fmt: skip


def listed(items):
    return {"type": "array", "minItems": 1, "items": items}


def const(value):
    return {"const": value}


LABELS = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}}
AMOUNT = {"type": "object", "minProperties": 1, "additionalProperties": COUNT}
TEXT = {"type": "string", "minLength": 1}
ENV = {
    "oneOf": [
        node({"name": TEXT, "value": TEXT}),
        node({"name": TEXT, "valueFrom": node({"fieldRef": node({"fieldPath": TEXT})})}),
    ]
}
# Of JobSet's CRD (v1alpha2) and of batch/v1: the keys that a launch uses, and what they require.
CONTAINER = node(
    {"name": NAME, "image": TEXT, "command": listed(TEXT)},
    env={"type": "array", "items": ENV},
    volumeMounts=listed(node({"name": NAME, "mountPath": TEXT}, readOnly={"type": "boolean"})),
    resources=node({"requests": AMOUNT, "limits": AMOUNT}),
)
POD = node(
    {"restartPolicy": const("Never"), "containers": listed(CONTAINER)},
    terminationGracePeriodSeconds=COUNT,
    nodeSelector=LABELS,
    volumes=listed(
        node(
            {"name": NAME},
            configMap=node({"name": NAME}),
            persistentVolumeClaim=node({"claimName": NAME}),
        )
    ),
)
RULE = node(
    {
        "action": const("FailJob"),
        "onExitCodes": node(
            {"operator": const("In"), "values": listed({"type": "integer"})}, containerName=NAME
        ),
    }
)
JOB = node(
    {"parallelism": COUNT, "completions": COUNT, "template": node({"spec": POD})},
    completionMode=const("Indexed"),
    backoffLimit=const(0),
    podFailurePolicy=node({"rules": listed(RULE)}),
)
FAILURE = node(
    {"maxRestarts": {"type": "integer", "minimum": 0}},
    rules=listed(
        node(
            {"name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
             "action": const("FailJobSet")},
            onJobFailureReasons=listed({"enum": ["PodFailurePolicy"]}),
        )
    ),
)  # fmt: skip
SCHEMA = node(
    {
        "apiVersion": const("jobset.x-k8s.io/v1alpha2"),
        "kind": const("JobSet"),
        "metadata": node({"name": NAME}, namespace=NAME, labels=LABELS, annotations=LABELS),
        "spec": node(
            {
                "replicatedJobs": listed(
                    node({"name": NAME, "template": node({"spec": JOB})}, replicas=COUNT)
                )
            },
            network=node(
                {},
                enableDNSHostnames={"type": "boolean"},
                publishNotReadyAddresses={"type": "boolean"},
            ),
            failurePolicy=FAILURE,
        ),
    }
)


@pytest.fixture(scope="module")
def asked():
    return request(CONFIG, "k8s_v5e_16", [OUTPUT], [IMAGE, "launcher.queue=team", *SHARED])


@pytest.fixture(scope="module")
def on_gpus():
    made = request(CONFIG, "slurm_h100", [OUTPUT])
    launcher = launchers.Jobset(
        image="image:1", node_selector={"pool": "h100"}, claim="disk", shared_folder="/mnt"
    )
    return dataclasses.replace(made, target=made.target.model_copy(update={"launcher": launcher}))


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    made = FakeCloud(tmp_path / "cloud")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    folder = made.base / "buckets" / "bucket" / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("done")
    return made


def with_launcher(made, **fields):
    launcher = made.target.launcher.model_copy(update=fields)
    return dataclasses.replace(made, target=made.target.model_copy(update={"launcher": launcher}))


def documents(made):
    first = jobset.steps(made)[0]
    assert isinstance(first, WriteFile) and first.path.name == "jobset.yaml"
    return list(yaml.safe_load_all(first.content))


def job_of(document):
    return document["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_the_yaml_is_what_the_api_requires_and_no_more(asked, on_gpus):
    for made in (asked, on_gpus):
        config_map, document = documents(made)
        jsonschema.validate(document, SCHEMA)
        assert config_map["kind"] == "ConfigMap" and config_map["apiVersion"] == "v1"
        assert config_map["metadata"]["name"] == document["metadata"]["name"]
        job = job_of(document)
        assert job["parallelism"] == job["completions"] == made.target.num_hosts
        # The longest name that is derived: NAME-hosts-0-0, a pod's hostname.
        assert len(document["metadata"]["name"] + "-hosts-0-9999") <= 63
        document["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 1
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, SCHEMA)


def test_a_slice_gets_its_nodes_chips_and_place(asked):
    document = documents(asked)[1]
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    pod = job_of(document)["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    container = pod["containers"][0]
    assert container["resources"] == {
        "requests": {"google.com/tpu": 4}, "limits": {"google.com/tpu": 4},
    }  # fmt: skip
    assert container["env"] == [
        {"name": "MISTRAL_JAX_OWNER_WAIT_S", "value": "180"},  # longer than a dead owner counts
        {"name": "MISTRAL_JAX_CACHE", "value": "/mnt/shared/cache"},
        {"name": "MISTRAL_JAX_DISTRIBUTED", "value": "auto"},
    ]
    assert container["volumeMounts"][1] == {"name": "shared", "mountPath": "/mnt/shared"}
    assert pod["volumes"][1] == {
        "name": "shared", "persistentVolumeClaim": {"claimName": "team-disk"},
    }  # fmt: skip
    assert container["command"] == [
        "./run", "train", "/launch/config.yaml", "--target", "/launch/target.yaml",
    ]  # fmt: skip


@pytest.mark.parametrize("name", target_lib.target_names())
def test_every_slice_multiplies_out_on_its_nodes(name, asked):
    machine = target_lib.load_target(name)
    if machine.platform != "tpu":
        return
    launcher = launchers.Jobset(image="image:1")
    made = dataclasses.replace(asked, target=machine.model_copy(update={"launcher": launcher}))
    pod = job_of(jobset.job_set(made))["template"]["spec"]
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert chips * job_of(jobset.job_set(made))["parallelism"] == machine.num_chips
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert tuple(map(int, sides)) == machine.topology


def test_gpu_nodes_find_each_other_by_the_headless_service(on_gpus):
    document = documents(on_gpus)[1]
    name = document["metadata"]["name"]
    pod = job_of(document)["template"]["spec"]
    assert document["spec"]["network"]["enableDNSHostnames"] is True
    environment = {each["name"]: each for each in pod["containers"][0]["env"]}
    assert environment["MISTRAL_JAX_CACHE"]["value"] == "/mnt/cache"
    assert environment["MISTRAL_JAX_COORDINATOR"]["value"] == f"{name}-hosts-0-0.{name}:8476"
    assert environment["MISTRAL_JAX_NUM_PROCESSES"]["value"] == "2"
    field = environment["MISTRAL_JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {"pool": "h100"}
    assert set(document["metadata"]["annotations"]) == {clear_jobset.CONTENTS}
    assert [step.path.name for step in jobset.steps(on_gpus) if isinstance(step, WriteFile)] == [
        "jobset.yaml"
    ]


def test_the_config_map_brings_the_same_experiment(asked, tmp_path):
    data = documents(asked)[0]["data"]
    for name, text in data.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    run = load.load_run(tmp_path / "config.yaml")
    assert run == asked.run and run.science_hash() == asked.run.science_hash()
    assert target_lib.load_target(str(tmp_path / "target.yaml")) == asked.target


def test_a_set_is_applied_followed_over_a_restart_and_fetched(cloud):
    mine = request(CONFIG, "k8s_v5e_16", [f"name=test_set_{os.getpid()}", OUTPUT], [IMAGE, *SHARED])
    running, ended = {"restarts": 1}, {"terminalState": "Completed", "restarts": 1}
    cloud.store(
        "sets.json", [None, {}, {}, *({"status": each} for each in (running, running, ended))]
    )
    pending = {"phase": "Pending", "conditions": [{"status": "False", "message": "0/4 nodes"}]}
    cloud.store("pods.json", [
        {"items": []}, {"items": [pod("a", pending)]}, {"items": [pod("a", {"phase": "Failed"})]},
        {"items": [pod("b", {"phase": "Running"})]},
    ])  # fmt: skip
    steps, said = jobset.steps(mine), []
    follow = next(i for i, step in enumerate(steps) if "follow_jobset" in str(step))
    steps[follow] = dataclasses.replace(steps[follow], argv=(*steps[follow].argv, "--poll-s", "0"))
    with fake_cloud.launched(mine) as results:
        commands.execute(steps, said.append)
        assert (results / "report.html").read_text() == "done"
        applied = list(yaml.safe_load_all((cloud.base / "applied.yaml").read_text()))
        assert applied == [jobset.config_map(mine), jobset.job_set(mine)]
        stop = list(jobset.stop_steps(mine)[0].argv)
        script = results / "launch" / "xpk.sh"
        subprocess.run(["sh", str(script), "my-cluster"], cwd=commands.ROOT, check=True)
        assert subprocess.run(["sh", str(script)], capture_output=True).returncode
    text = "\n".join(said)
    for part in ("no pod yet", "pod 0 is Pending (0/4 nodes)", "log of a", "restarts: 1",
                 "log of b", "Completed"):  # fmt: skip
        assert part in text
    assert shlex.join(stop) in jobset.stop_hint(mine) and "delete" in stop
    (called,) = cloud.calls("xpk")
    name = jobset.job_set(mine)["metadata"]["name"]
    folder = mine.folder
    assert called[1:] == [
        "workload", "create", "--cluster=my-cluster", f"--workload={name}",
        "--tpu-type=v5litepod-16", f"--base-docker-image={IMAGE.partition('=')[2]}",
        "--script-dir=.", "--max-restarts=10", "--restart-on-exit-codes=1",
        "--termination-grace-period-seconds=120", "--env=MISTRAL_JAX_DISTRIBUTED=auto",
        "--env=MISTRAL_JAX_CACHE=/mnt/shared/cache",
        f"--command=./run train {folder}/config.yaml --target {folder}/target.yaml",
    ]  # fmt: skip


def pod(name, status):
    return {"metadata": {"name": name, "uid": name, "creationTimestamp": name}, "status": status}


def relaunch(cloud, before, *, after=None):
    """Launch over a set that is there; return what was said and kubectl's verbs, up to following.

    `after` is what the set is like once it was deleted, or left.
    """
    name = f"name=test_again_{os.getpid()}"
    mine, said = request(CONFIG, "k8s_v5e_16", [name, OUTPUT], [IMAGE, *SHARED]), []
    contents = jobset.job_set(mine)["metadata"]["annotations"]
    if before.pop("is_same", True):
        before = {**before, "metadata": {"annotations": contents, **before.get("metadata", {})}}
    cloud.store("sets.json", [before])
    cloud.store("sets_after.json", [{"status": {"terminalState": "Completed"}}])
    cloud.store("pods.json", [{"items": [pod("a", {"phase": "Succeeded"})]}])
    steps = jobset.steps(mine)
    until = next(i for i, step in enumerate(steps) if "follow_jobset" in str(step))
    with fake_cloud.launched(mine) as results:
        if before.get("status", {}).get("terminalState"):
            commands.execute(steps, said.append)
            assert (results / "report.html").exists()
        else:
            commands.execute(steps[:until], said.append)
    words = [[word for word in argv if word[:2] != "--"] for argv in cloud.calls("kubectl")]
    changing = [argv[1:] for argv in words if argv[1] in ("apply", "delete")]
    return "\n".join(said), changing, mine


@pytest.mark.parametrize(
    "before",
    [
        {"status": {"terminalState": "Failed"}},
        {"status": {"terminalState": "Completed"}, "is_same": False, "metadata": {}},
        {"metadata": {"deletionTimestamp": "2026-11-21T00:00:00Z"}},
    ],
)
def test_a_set_that_failed_is_created_anew(cloud, before):
    said, changing, mine = relaunch(cloud, before)
    name = jobset.job_set(mine)["metadata"]["name"]
    assert changing == [["delete", "jobset", name], ["apply"]]
    assert "it is deleted and created anew; the run goes on from its checkpoint" in said
    (delete,) = [argv for argv in cloud.calls("kubectl") if "delete" in argv]
    assert {"--cascade=foreground", "--wait=true", "--ignore-not-found"} < set(delete)


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ({"status": {"terminalState": "Completed"}}, "has completed; to run it again: kubectl"),
        ({"status": {"restarts": 1}}, "nothing of it is replaced"),
        ({"metadata": {}, "is_same": False}, "differs from what is launched now; to replace it"),
    ],
)
def test_a_set_that_lives_or_has_completed_stays(cloud, before, told):
    said, changing, mine = relaunch(cloud, before)
    assert changing == [] and told in said
    if "to r" in told:
        assert shlex.join(jobset.stop_steps(mine)[0].argv) in said


def test_the_contents_tell_another_image_and_another_config(asked):
    def contents(made):
        return jobset.job_set(made)["metadata"]["annotations"][clear_jobset.CONTENTS]

    assert contents(asked) == contents(asked)
    assert contents(asked) != contents(with_launcher(asked, image="image:2"))
    other = asked.run.model_copy(update={"output": "gs://bucket/other"})
    assert contents(asked) != contents(dataclasses.replace(asked, run=other))


def test_a_failed_set_fails_and_a_silent_cluster_is_told(cloud, capfd):
    arguments = ["--namespace", "n", "--name", "x", "--poll-s", "0"]
    cloud.store("sets.json", [{"status": {"terminalState": "Failed"}}])
    cloud.store("pods.json", [{"items": [pod("a", {"phase": "Failed"})]}])
    assert follow_jobset.main(arguments) == 1
    assert "log of a" in capfd.readouterr().out
    cloud.store("sets.json", [])
    assert follow_jobset.main(arguments) == 1
    assert "NotFound" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("stderr", "fix"),
    [
        ('no matches for kind "JobSet" in version', "has no JobSet controller"),
        ("The connection to the server localhost:8080 was refused", "use-context"),
        ('error: the server doesn\'t have a resource type "jobset"', "has no JobSet controller"),
        ("spec.network: Invalid value: field is immutable", "delete it"),
    ],
)
def test_kubectls_refusals_come_with_what_to_do(cloud, asked, stderr, fix):
    cloud.program("kubectl", f"echo {shlex.quote(stderr)} >&2; exit 1\n")
    look, apply, *_ = (s for s in jobset.steps(asked) if isinstance(s, Command))
    assert apply.argv[1] == "apply"
    for step in (look, apply):
        with pytest.raises(commands.CommandFailed, match=fix):
            commands.run_command(step, print)


@pytest.mark.parametrize(
    ("run", "machine", "message"),
    [
        ([], [IMAGE], "a pod's disk goes with the pod"),
        ([OUTPUT], [IMAGE], "give launcher.shared_folder=/PATH"),
        ([OUTPUT], [IMAGE, SHARED[0]], "give launcher.shared_folder=/PATH"),
        ([OUTPUT], [IMAGE, SHARED[1]], "launcher.claim None and launcher.shared_folder"),
        ([OUTPUT], [IMAGE, SHARED[0], "launcher.shared_folder=/launch/x"], "(not /launch)"),
        ([OUTPUT], [IMAGE, *SHARED, "launcher.claim=A"], "launcher.claim 'A'"),
        ([OUTPUT], SHARED, "expected a container image"),
        ([OUTPUT], [*SHARED, "launcher.image=a b"], "REGISTRY/NAME:TAG"),
        ([OUTPUT], [IMAGE, *SHARED, "launcher.namespace=A"], "launcher.namespace 'A'"),
        ([OUTPUT], [IMAGE, *SHARED, "launcher.queue=-x"], "launcher.queue '-x'"),
        ([OUTPUT], [IMAGE, *SHARED, "launcher.node_selector={'a b': c}"], "no label of Kubernetes"),
        ([OUTPUT], [IMAGE, *SHARED, "launcher.node_selector={a: 'b c'}"], "node_selector a"),
    ],
)
def test_what_kubernetes_could_not_take_is_refused(run, machine, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jobset.steps(request(CONFIG, "k8s_v5e_16", run, machine))


def test_hostile_strings_stay_texts_of_the_yaml_or_are_refused(asked, same_tree):
    validator = jsonschema.Draft202012Validator(SCHEMA)
    different: set[str] = set()
    kept, refused = 0, 0
    for text in hostile.STRINGS:
        places = [
            with_launcher(asked, **{field: text})
            for field in ("image", "namespace", "queue", "claim", "shared_folder")
        ]
        places.append(with_launcher(asked, node_selector={text: "x"}))
        places.append(with_launcher(asked, node_selector={"x": text}))
        places.append(
            dataclasses.replace(asked, run=asked.run.model_copy(update={"output": f"/m/{text}"}))
        )
        for made in places:
            try:
                found = jobset.job_set(made)
                commands.check_path(made.run.run_directory())
            except ValueError:
                refused += 1
                continue
            different.add(json.dumps(found))
            container = job_of(found)["template"]["spec"]["containers"][0]
            assert container["command"] == [
                "./run", "train", "/launch/config.yaml", "--target", "/launch/target.yaml",
            ]  # fmt: skip
            assert shlex.split(jobset.xpk_script(made).partition("exec ")[2])[:3] == [
                "xpk", "workload", "create",
            ]  # fmt: skip
            kept += 1
    for text in different:
        validator.validate(json.loads(text))
    assert kept > 500 and refused > 2000 and len(different) > 50


def test_kubernetes_own_variables_are_not_expanded():
    assert jobset._literal("$(HOME) $x") == "$$(HOME) $$x"
