"""launch/target.py: every target multiplies out and says what its vendor says."""

import math
import os

import pytest

from launch import predict
from launch import target
from mistral_jax.config import load

# Vendor facts, written down apart from the YAML files.
FACTS = {
    "local_cpu": ("cpu", "cpu", (1,), 1, 1, 1),
    "local_gpu": ("gpu", "gpu", (1,), 1, 1, 1),
    "g5_2xlarge": ("gpu", "g5.2xlarge", (1,), 1, 1, 1),
    "g5_12xlarge": ("gpu", "g5.12xlarge", (4,), 4, 1, 4),
    "p5_48xlarge": ("gpu", "p5.48xlarge", (8,), 8, 1, 8),
    "v5e_16": ("tpu", "v5litepod-16", (4, 4), 16, 4, 4),
    "v5e_64": ("tpu", "v5litepod-64", (8, 8), 64, 16, 4),
    "v5e_256": ("tpu", "v5litepod-256", (16, 16), 256, 64, 4),
    "v5p_8": ("tpu", "v5p-8", (2, 2, 1), 4, 1, 4),
    "v5p_128": ("tpu", "v5p-128", (4, 4, 4), 64, 16, 4),
    "v5p_256": ("tpu", "v5p-256", (4, 4, 8), 128, 32, 4),
    "v5p_512": ("tpu", "v5p-512", (4, 8, 8), 256, 64, 4),
    "v5p_1024": ("tpu", "v5p-1024", (8, 8, 8), 512, 128, 4),
    "v5p_2048": ("tpu", "v5p-2048", (8, 8, 16), 1024, 256, 4),
    "v5p_4096": ("tpu", "v5p-4096", (8, 16, 16), 2048, 512, 4),
    "v5p_8192": ("tpu", "v5p-8192", (16, 16, 16), 4096, 1024, 4),
    "v5p_12288": ("tpu", "v5p-12288", (16, 16, 24), 6144, 1536, 4),
    "v6e_8": ("tpu", "v6e-8", (2, 4), 8, 1, 8),
    "v6e_64": ("tpu", "v6e-64", (8, 8), 64, 16, 4),
    "v6e_256": ("tpu", "v6e-256", (16, 16), 256, 64, 4),
    "k8s_v5e_16": ("tpu", "v5litepod-16", (4, 4), 16, 4, 4),
    "slurm_h100": ("gpu", "H100-SXM-80GB", (2, 8), 16, 2, 8),
    "skypilot_a10g": ("gpu", "A10G", (1,), 1, 1, 1),
}
# Of one chip: bfloat16 TFLOP/s, HBM GB/s, one direction of one link, links, USD an hour.
CHIPS = {
    "v5litepod": (197, 819, 50, 4, 1.2),
    "v5p": (459, 2765, 100, 6, 4.2),
    "v6e": (918, 1600, 100, 4, None),
}
# Of a GPU host: GPUs, GPU memory GB, vCPU, memory GiB; bfloat16 TFLOP/s and GB/s of one GPU.
GPU_HOSTS = {
    "g5_2xlarge": (1, 24, 8, 32, 70, 600),
    "g5_12xlarge": (4, 24, 48, 192, 70, 600),
    "p5_48xlarge": (8, 80, 192, 2048, 989, 3350),
}
# The vendor's interconnect of one chip, all links, both directions.
ICI_GB_PER_S = {"v5litepod": 400, "v5p": 1200, "v6e": 800}


def test_every_target_file_has_its_facts_here():
    assert target.target_names() == sorted(FACTS)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put an nvidia-smi on PATH that tells two GPUs, the smaller an A10G."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '24576\\n23028\\n'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.parametrize("name", sorted(FACTS))
def test_target_multiplies_out(name, nvidia_smi):
    machine = target.load_target(name)
    assert machine.name == name
    assert (
        machine.platform, machine.accelerator_type, machine.topology,
        machine.num_chips, machine.num_hosts, machine.chips_per_host,
    ) == FACTS[name]  # fmt: skip
    assert math.prod(machine.topology) == machine.num_hosts * machine.chips_per_host
    assert math.prod(machine.mesh.sizes(machine.num_chips).values()) == machine.num_chips
    assert machine.chip_memory_bytes > 1 << 30


SLICES = [name for name in sorted(FACTS) if FACTS[name][0] == "tpu"]


@pytest.mark.parametrize("name", SLICES)
def test_slice_has_its_generations_chips(name):
    machine = target.load_target(name)
    generation, _, count = machine.accelerator_type.partition("-")
    # v5p names count TensorCores, two a chip; the others count chips.
    assert int(count) == machine.num_chips * (2 if generation == "v5p" else 1)
    tflops, hbm, link, links, price = CHIPS[generation]
    assert machine.peak_tflops.bfloat16 == tflops
    assert (machine.hbm_gb_per_s, machine.ici_gb_per_s) == (hbm, link)
    assert link * links * 2 == ICI_GB_PER_S[generation]
    paid = machine.price_usd_per_hour
    assert paid == (None if price is None else pytest.approx(price * machine.num_chips))
    assert predict.generation(machine.accelerator_type) == generation


@pytest.mark.parametrize("name", GPU_HOSTS)
def test_gpu_host_is_what_its_vendor_sells_and_its_launcher_starts_it(name):
    machine, facts = target.load_target(name), GPU_HOSTS[name]
    chips, memory_gb, cores, memory_gib, tflops, hbm = facts
    assert (machine.num_chips, machine.host_cores, machine.host_memory_gib) == (
        chips, cores, memory_gib,
    )  # fmt: skip
    # The driver keeps some of it: less than the 24 or 80 GiB that the vendor calls GB.
    assert 0.9 * memory_gb < machine.hbm_gib < memory_gb
    assert (machine.peak_tflops.bfloat16, machine.hbm_gb_per_s) == (tflops, hbm)
    launcher = machine.launcher
    assert launcher.kind == "ec2" and launcher.instance_type == machine.accelerator_type
    assert launcher.instance_type.replace(".", "_") == name
    assert machine.price_usd_per_hour < launcher.max_usd_per_hour


def test_local_gpu_asks_nvidia_smi_and_says_so_where_there_is_none(nvidia_smi, monkeypatch):
    assert target.load_target("local_gpu").hbm_gib == pytest.approx(23028 / 1024)
    assert target.load_target("local_gpu", ["hbm_gib=40"]).chip_memory_bytes == 40 << 30
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ValueError, match="nvidia-smi tells no GPU memory"):
        _ = target.load_target("local_gpu").chip_memory_bytes


def test_local_cpu_is_measured_and_its_peak_grows_with_cores():
    machine = target.load_target("local_cpu")
    assert machine.host_cores == target.usable_cores()
    assert machine.chip_memory_bytes == pytest.approx(target.memory_limit_bytes(), abs=1024)
    four = target.load_target("local_cpu", ["host_cores=4"])
    assert four.chip_flops_per_s("float32") == pytest.approx(0.6e12)


def test_mesh_takes_the_rest_or_says_why_not():
    assert target.MeshIntent(data=2, tensor=2).sizes(16) == {
        "data": 2, "fsdp": 4, "expert": 1, "tensor": 2, "context": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match="multiply to 3, which does not fit 16"):
        target.MeshIntent(data=3).sizes(16)
    assert target.MeshIntent(expert="auto", context="auto").sizes(16)["expert"] == 1
    with pytest.raises(ValueError, match="multiply to 2, which does not fit 16"):
        target.MeshIntent(data=2, fsdp=1).sizes(16)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_hosts=3", "must be num_chips"),
        ("topology=[4,8]", "topology 4x8 must multiply"),
        ("mesh.data=-1", "only one mesh axis"),
        ("mesh.tensor=0", "at least 1"),
        ("hbm_gib=null", "hbm_gib is required"),
        ("chip_count=4", "unknown key"),
        ("num_chips='16'", "valid integer"),
    ],
)
def test_wrong_target_is_refused_with_the_reason(override, message):
    with pytest.raises(load.ConfigError, match=message):
        target.load_target("v5e_16", [override])


def test_unknown_target_suggests_the_nearest():
    with pytest.raises(load.ConfigError, match="did you mean g5_2xlarge"):
        target.load_target("g5-2xlarge")


def test_a_system_without_affinity_tells_its_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert target.usable_cores() >= 1


def test_target_is_read_from_a_path(tmp_path):
    path = tmp_path / "mine.yaml"
    text = (target.TARGETS / "g5_2xlarge.yaml").read_text(encoding="utf-8")
    path.write_text(text.replace("name: g5_2xlarge", "name: mine"), encoding="utf-8")
    assert target.load_target(str(path)).name == "mine"


def test_processes_of_this_machine_are_devices_with_their_parts_of_it():
    whole = target.load_target("local_cpu")
    quarters = target.load_target("local_cpu", ["launcher.processes=4"])
    assert (quarters.num_chips, quarters.topology, quarters.num_hosts) == (4, (4,), 1)
    assert quarters.chip_memory_bytes == pytest.approx(whole.chip_memory_bytes / 4, abs=1)
    assert quarters.host_cores == max(1, whole.host_cores // 4)
