"""How a run starts on a target: one configuration class for each way, told apart by `kind`.

Data only: what a user writes under `launcher:` of a target, or overrides on the command line. The
programs that do it are named after the kinds: gpu_host.py, ec2.py, tpu_pod.py, slurm.py,
jobset.py, skypilot.py.
"""

from typing import Annotated
from typing import Literal

from pydantic import Field

from mistral_jax.config.base import Count
from mistral_jax.config.base import Node
from mistral_jax.config.base import Positive

Lock = Literal["cuda12", "cuda13", "tpu"]


class Local(Node):
    """This machine: one process that sees every device."""

    kind: Literal["local"] = "local"
    processes: Count = 1


class Ssh(Node):
    """A GPU host that runs already, reached with the user's own ssh and rsync.

    Attributes:
        host: name, address or an alias of ~/.ssh/config; null must be given on the command line.
        user, port, key: as ssh takes them; null leaves them to ~/.ssh/config.
        folder: the project's folder on the host, below the user's home.
        lock: which set of requirements/; null lets the host's driver decide.
    """

    kind: Literal["ssh"] = "ssh"
    host: str | None = None
    user: str | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    key: str | None = None
    folder: str = "mistral_jax"
    lock: Lock | None = None


class Ec2(Ssh):
    """A GPU host that `launch --create` starts through EC2, and that stops by itself.

    Attributes:
        instance_type: EC2's name, such as g5.2xlarge.
        region: of the instance; null takes the one of the user's AWS configuration.
        image: AMI; null asks for the newest image of `image_parameter`.
        image_parameter: public SSM parameter of an image with driver and CUDA.
        key_name: EC2's name of the key pair whose private half is `key`.
        security_group, subnet, instance_profile: as the account has them; null takes the default.
        market: spot, or on demand.
        max_usd_per_hour: no instance above it is started.
        disk_gib: of the root volume.
        idle_minutes: without a running command for so long, the host stops itself.
        max_hours: the host stops itself after them, whatever runs.
        tags: put on the instance and its volume.
    """

    kind: Literal["ec2"] = "ec2"  # pyright: ignore[reportIncompatibleVariableOverride]
    user: str | None = "ubuntu"
    instance_type: str
    region: str | None = None
    image: str | None = None
    image_parameter: str = (
        "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
    )
    key_name: str | None = None
    security_group: str | None = None
    subnet: str | None = None
    instance_profile: str | None = None
    market: Literal["spot", "on_demand"] = "on_demand"
    max_usd_per_hour: Positive
    disk_gib: Count = 200
    idle_minutes: Count = 20
    max_hours: Positive = 24.0
    tags: dict[str, str] = Field(default_factory=dict)


class TpuQueued(Node):
    """A TPU slice by queued resources, every host reached by `gcloud ... ssh --worker=all`.

    Attributes:
        project, zone: Google Cloud's; null takes gcloud's configuration.
        name: of the slice and its request; null takes the run's name.
        runtime_version: TPU software version.
        spot: whether the slice may be taken away.
        folder: the project's folder on each host.
        shared_folder: absolute, a mount that every host sees (Filestore, NFS): a run of several
            hosts works there, also when its output is a bucket.
        shared_mount: SERVER:/PATH of the NFS share that set-up mounts there; null where the hosts
            have it mounted.
        delete_when_done: delete the slice once an attached launch has seen the run end and its
            bucket hold all of it.
    """

    kind: Literal["tpu_queued"] = "tpu_queued"
    project: str | None = None
    zone: str | None = None
    name: str | None = None
    runtime_version: str
    spot: bool = False
    folder: str = "mistral_jax"
    shared_folder: str | None = None
    shared_mount: str | None = None
    delete_when_done: bool = False


class Jobset(Node):
    """Kubernetes: a JobSet, as GKE and xpk run TPU slices and GPU nodes.

    Attributes:
        namespace, queue: Kubernetes' namespace and Kueue's local queue.
        image: container image that holds the project; null must be given.
        node_selector: labels of the nodes.
        max_restarts: of the whole set.
        claim: PersistentVolumeClaim (ReadWriteMany) that is mounted at `shared_folder`.
        shared_folder: absolute, where every pod sees it: a run of several hosts works there.
    """

    kind: Literal["jobset"] = "jobset"
    namespace: str = "default"
    queue: str | None = None
    image: str | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    max_restarts: Annotated[int, Field(ge=0)] = 10
    claim: str | None = None
    shared_folder: str | None = None


class Slurm(Node):
    """SLURM: an sbatch script, one task for each host.

    Attributes:
        partition, account, qos: as the cluster has them.
        time_limit: HH:MM:SS or D-HH:MM:SS.
        folder: the project on the shared file system; null is where `launch` runs.
        lock: which set of requirements/.
    """

    kind: Literal["slurm"] = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_limit: str = "24:00:00"
    folder: str | None = None
    lock: Lock | None = None


class SkyPilot(Node):
    """SkyPilot: a task YAML that `sky launch` takes to any of its clouds.

    Attributes:
        cloud, region: null lets SkyPilot choose the cheapest.
        accelerators: SkyPilot's name and count, such as A10G:1.
        spot: whether the machine may be taken away.
        lock: which set of requirements/.
        shared_folder: absolute, a mount that every node sees: a run of several nodes works there.
    """

    kind: Literal["skypilot"] = "skypilot"
    cloud: str | None = None
    region: str | None = None
    accelerators: str
    spot: bool = False
    lock: Lock | None = None
    shared_folder: str | None = None


Launcher = Annotated[
    Local | Ssh | Ec2 | TpuQueued | Jobset | Slurm | SkyPilot, Field(discriminator="kind")
]
