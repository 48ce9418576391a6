"""Target: one machine or slice as data: chips, memory, speed, price, and the mesh it intends.

A target names no experiment. Speeds are the vendor's peaks; what share of them a run reaches is
`assumed_utilization`, an assumption until a run has measured it.
"""

import difflib
import math
import os
import subprocess
from pathlib import Path
from typing import Annotated
from typing import Literal

import psutil
from pydantic import Field
from pydantic import model_validator

from launch import launcher as launchers
from mistral_jax.config import load
from mistral_jax.config.base import Count
from mistral_jax.config.base import Fraction
from mistral_jax.config.base import Node
from mistral_jax.config.base import NonNegative
from mistral_jax.config.base import Positive

TARGETS = Path(__file__).parent / "targets"
GIB = 1 << 30

AxisSize = Annotated[int, Field(ge=-1)]
AttentionChoice = Literal["auto", "reference", "banded", "cudnn", "splash"]
RematChoice = Literal["auto", "none", "dots", "full", "offload"]


class MeshIntent(Node):
    """Sizes of the mesh axes; -1 on at most one axis takes the devices that the others leave.

    `expert` is for mixtures: a dense model has 1, whatever stands here. `expert: auto` takes the
    most whole groups that divide the devices, `context: auto` splits rows where a batch has fewer
    of them than there are devices; plan.py chooses, and both are 1 until it has.
    """

    data: AxisSize = 1
    fsdp: AxisSize = -1
    expert: AxisSize | Literal["auto"] = 1
    tensor: AxisSize = 1
    context: AxisSize | Literal["auto"] = 1

    @model_validator(mode="after")
    def _check_sizes(self) -> "MeshIntent":
        sizes = self.model_dump()
        zero = [axis for axis, size in sizes.items() if size == 0]
        if zero:
            raise ValueError(f"mesh.{zero[0]} must be at least 1, or -1 for the rest, got 0")
        rest = [axis for axis, size in sizes.items() if size == -1]
        if len(rest) > 1:
            raise ValueError(f"only one mesh axis may be -1, got {' and '.join(rest)}")
        return self

    def sizes(self, num_devices: int) -> dict[str, int]:
        """Return every axis' size on this many devices.

        Raises:
            ValueError: the fixed axes do not multiply out to the number of devices.
        """
        sizes = {axis: 1 if size == "auto" else size for axis, size in self.model_dump().items()}
        fixed = math.prod(size for size in sizes.values() if size != -1)
        rest = [axis for axis, size in sizes.items() if size == -1]
        if num_devices % fixed or (not rest and fixed != num_devices):
            raise ValueError(
                f"mesh: the fixed axes multiply to {fixed}, which does not fit {num_devices} "
                f"devices; change the mesh sizes or set one axis to -1"
            )
        return {axis: num_devices // fixed if size == -1 else size for axis, size in sizes.items()}


class PeakTflops(Node):
    """The vendor's dense peak of one chip (of one core, on a CPU) by number format."""

    bfloat16: Positive
    float32: Positive


class Target(Node):
    """One machine or slice.

    `hbm_gib` is the memory of one chip that a program can use; null on a CPU, where the chip's
    memory is the host's. `ici_gb_per_s` is one direction of one link between chips.
    `context_form` is how devices that share rows exchange keys: all at once, or one device's share
    after the other, in less memory.
    `remat: offload` keeps layer inputs in the host's memory, `offload: optimizer` the optimizer's
    state; of itself a plan does the first only on a GPU that has no room otherwise.
    `host_memory_gib` null and `host_cores` null mean: ask this machine; on a GPU `hbm_gib` null
    means: ask its nvidia-smi.
    """

    name: str
    platform: Literal["cpu", "gpu", "tpu"]
    accelerator_type: str
    topology: tuple[Count, ...] = (1,)
    num_chips: Count
    num_hosts: Count = 1
    chips_per_host: Count
    hbm_gib: Positive | None = None
    hbm_gb_per_s: Positive
    ici_gb_per_s: Positive | None = None
    peak_tflops: PeakTflops
    assumed_utilization: Fraction
    host_memory_gib: Positive | None = None
    host_cores: Count | None = None
    mesh: MeshIntent = MeshIntent()
    attention: AttentionChoice = "auto"
    remat: RematChoice = "auto"
    offload: Literal["none", "optimizer"] = "none"
    context_form: Literal["all_gather", "ring"] = "all_gather"
    micro_batch_sequences: Literal["auto"] | Count = "auto"
    price_usd_per_hour: NonNegative | None = None
    launcher: launchers.Launcher = launchers.Local()

    @model_validator(mode="after")
    def _check_counts(self) -> "Target":
        if self.num_hosts * self.chips_per_host != self.num_chips:
            raise ValueError(
                f"num_hosts ({self.num_hosts}) times chips_per_host ({self.chips_per_host}) "
                f"must be num_chips ({self.num_chips})"
            )
        if math.prod(self.topology) != self.num_chips:
            shown = "x".join(map(str, self.topology))
            raise ValueError(f"topology {shown} must multiply to num_chips ({self.num_chips})")
        if self.hbm_gib is None and self.platform == "tpu":
            raise ValueError(f"hbm_gib is required on a {self.platform}")
        return self

    @property
    def chip_memory_bytes(self) -> int:
        """Memory of one chip; on a CPU the host's memory."""
        if self.hbm_gib is None and self.platform == "gpu":
            raise ValueError(
                f"target {self.name}: nvidia-smi tells no GPU memory on this machine; install "
                "NVIDIA's driver, take --target local_cpu, or set hbm_gib"
            )
        gib = self.host_memory_gib if self.hbm_gib is None else self.hbm_gib
        if gib is None:
            raise ValueError(f"target {self.name}: host_memory_gib is unknown; use load_target()")
        return int(gib * GIB)

    def chip_flops_per_s(self, number_format: Literal["bfloat16", "float32"]) -> float:
        """Return the peak FLOP/s of one chip (of all its cores, on a CPU)."""
        peak = getattr(self.peak_tflops, number_format) * 1e12
        return peak * (self.host_cores or 1) if self.platform == "cpu" else peak


def target_names() -> list[str]:
    """Return the names of the targets that come with the package."""
    return sorted(path.stem for path in TARGETS.glob("*.yaml"))


def load_target(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Target:
    """Read a target by name (`v5e_16`) or by path (`my/host.yaml`); ask this machine for the rest.

    Raises:
        mistral_jax.config.load.ConfigError: unknown name, or a mistake in the file.
    """
    path = Path(name) if name.endswith(".yaml") else TARGETS / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, target_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise load.ConfigError(
            f"no target {name!r}{hint} known: {', '.join(target_names())}; or give a .yaml file"
        )
    tree = load.merge_trees(load.read_tree(path), load.parse_overrides(list(overrides)))
    target = load.validate(tree, Target, where=str(path))
    measured: dict[str, object] = {}
    shares = 1
    if target.platform == "cpu" and target.launcher.kind == "local":
        # Each process is a device of its own, with its part of this machine.
        shares = target.launcher.processes
        if shares > 1 and target.num_chips == 1:
            measured |= {"num_chips": shares, "chips_per_host": shares, "topology": (shares,)}
    if target.host_memory_gib is None:
        measured["host_memory_gib"] = memory_limit_bytes() / GIB / shares
    if target.host_cores is None:
        measured["host_cores"] = max(1, usable_cores() // shares)
    if target.hbm_gib is None and target.platform == "gpu":
        measured["hbm_gib"] = gpu_memory_gib()
    return target.model_copy(update=measured)


def usable_cores() -> int:
    """Return how many cores this process may use, a container's quota included."""
    # macOS has no affinity.
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def memory_limit_bytes() -> int:
    """Return this machine's memory, or the container's limit where that is less."""
    total = psutil.virtual_memory().total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))


def gpu_memory_gib() -> float | None:
    """Return the memory of this machine's smallest NVIDIA GPU; None where nvidia-smi tells none."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
        return min(float(line) for line in told.stdout.split("\n") if line.strip()) / 1024
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
