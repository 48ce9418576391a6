"""launch/target.py: every target multiplies out and says what its vendor says."""

import math
import os

import pytest

from launch import target
from mistral_jax.config import load

# Vendor facts, written down apart from the YAML files.
FACTS = {
    "local_cpu": ("cpu", "cpu", (1,), 1, 1, 1),
    "g5_2xlarge": ("gpu", "g5.2xlarge", (1,), 1, 1, 1),
    "v5e_16": ("tpu", "v5litepod-16", (4, 4), 16, 4, 4),
    "v5p_2048": ("tpu", "v5p-2048", (8, 8, 16), 1024, 256, 4),
}


def test_every_target_file_has_its_facts_here():
    assert target.target_names() == sorted(FACTS)


@pytest.mark.parametrize("name", sorted(FACTS))
def test_target_multiplies_out(name):
    machine = target.load_target(name)
    assert machine.name == name
    assert (
        machine.platform, machine.accelerator_type, machine.topology,
        machine.num_chips, machine.num_hosts, machine.chips_per_host,
    ) == FACTS[name]  # fmt: skip
    assert math.prod(machine.topology) == machine.num_hosts * machine.chips_per_host
    assert math.prod(machine.mesh.sizes(machine.num_chips).values()) == machine.num_chips
    assert machine.chip_memory_bytes > 1 << 30


def test_v5p_name_counts_cores_and_v5e_name_counts_chips():
    pod, slice_ = target.load_target("v5p_2048"), target.load_target("v5e_16")
    assert int(pod.accelerator_type.rpartition("-")[2]) == 2 * pod.num_chips
    assert int(slice_.accelerator_type.rpartition("-")[2]) == slice_.num_chips


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
