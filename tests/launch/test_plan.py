"""launch/plan.py: every config on every target resolves, or is refused for the expected reason."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes  # noqa: F401  numpy learns bfloat16
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from rich.console import Console

from launch import plan
from launch import plan_table
from launch import shapes
from launch import target
from launch import tensors
from mistral_jax import job
from mistral_jax.config import load
from mistral_jax.config import presets
from tests import shipped

ROOT = Path(__file__).parents[2]
CONFIGS = shipped.RUN_CONFIGS
TARGETS = target.target_names()
ON_MACHINE = {
    "local_cpu": ["host_memory_gib=16", "host_cores=2"],
    "local_gpu": ["hbm_gib=22.4", "host_memory_gib=32", "host_cores=8"],
}
SMALL_BATCH = "global_batch_sequences"
TOO_LARGE = "GiB on each device"
# What does not fit, and why. A pair that is not here must resolve.
REFUSED = {
    "demo/finetune": {
        SMALL_BATCH: (
            "g5_12xlarge k8s_v5e_16 p5_48xlarge slurm_h100 v5e_16 v5e_256 v5e_64 v5p_1024 "
            "v5p_12288 v5p_128 v5p_2048 v5p_256 v5p_4096 v5p_512 v5p_8 v5p_8192 v6e_256 "
            "v6e_64 v6e_8"
        ),
    },
    "mistral_7b/lora": {
        TOO_LARGE: "local_cpu",
        SMALL_BATCH: (
            "v5e_256 v5p_1024 v5p_12288 v5p_2048 v5p_256 v5p_4096 v5p_512 v5p_8192 v6e_256"
        ),
    },
    "mistral_7b/lora_instruct": {
        TOO_LARGE: "local_cpu",
        SMALL_BATCH: (
            "g5_12xlarge k8s_v5e_16 p5_48xlarge slurm_h100 v5e_16 v5e_256 v5e_64 v5p_1024 "
            "v5p_12288 v5p_128 v5p_2048 v5p_256 v5p_4096 v5p_512 v5p_8 v5p_8192 v6e_256 "
            "v6e_64 v6e_8"
        ),
    },
    "mistral_7b/lora_r64": {
        TOO_LARGE: "local_cpu",
        SMALL_BATCH: (
            "v5e_256 v5p_1024 v5p_12288 v5p_2048 v5p_256 v5p_4096 v5p_512 v5p_8192 v6e_256"
        ),
    },
    "mistral_7b/pretrain": {
        TOO_LARGE: "g5_12xlarge g5_2xlarge local_cpu local_gpu skypilot_a10g",
        SMALL_BATCH: "v5p_12288 v5p_4096 v5p_8192",
    },
    "mistral_7b/qlora_r64": {
        SMALL_BATCH: (
            "k8s_v5e_16 p5_48xlarge slurm_h100 v5e_16 v5e_256 v5e_64 v5p_1024 v5p_12288 "
            "v5p_128 v5p_2048 v5p_256 v5p_4096 v5p_512 v5p_8192 v6e_256 v6e_64 v6e_8"
        ),
    },
    "mixtral/mixtral_8x22b": {
        TOO_LARGE: (
            "g5_12xlarge g5_2xlarge k8s_v5e_16 local_cpu local_gpu p5_48xlarge "
            "skypilot_a10g slurm_h100 v5e_16 v5e_256 v5e_64 v5p_8 v6e_64 v6e_8"
        ),
        SMALL_BATCH: "v5p_12288 v5p_4096 v5p_8192",
    },
    "mixtral/mixtral_8x7b": {
        TOO_LARGE: (
            "g5_12xlarge g5_2xlarge k8s_v5e_16 local_cpu local_gpu p5_48xlarge "
            "skypilot_a10g v5e_16 v5e_64 v5p_8 v6e_8"
        ),
        SMALL_BATCH: "v5p_12288 v5p_4096 v5p_8192",
    },
    "msem/msem_16b": {
        TOO_LARGE: (
            "g5_12xlarge g5_2xlarge k8s_v5e_16 local_cpu local_gpu skypilot_a10g v5e_16 v6e_8"
        ),
        SMALL_BATCH: "v5p_12288 v5p_4096 v5p_8192",
    },
    "msem/msem_1_6b": {
        TOO_LARGE: "g5_2xlarge local_cpu local_gpu skypilot_a10g",
        SMALL_BATCH: "v5p_1024 v5p_12288 v5p_2048 v5p_4096 v5p_8192",
    },
    "msem/msem_671b": {
        TOO_LARGE: (
            "g5_12xlarge g5_2xlarge k8s_v5e_16 local_cpu local_gpu p5_48xlarge "
            "skypilot_a10g slurm_h100 v5e_16 v5e_256 v5e_64 v5p_128 v5p_256 v5p_512 v5p_8 "
            "v6e_256 v6e_64 v6e_8"
        ),
        SMALL_BATCH: "v5p_12288",
    },
    "msem/msem_671b_wide": {
        TOO_LARGE: (
            "g5_12xlarge g5_2xlarge k8s_v5e_16 local_cpu local_gpu p5_48xlarge "
            "skypilot_a10g slurm_h100 v5e_16 v5e_256 v5e_64 v5p_128 v5p_256 v5p_512 v5p_8 "
            "v6e_256 v6e_64 v6e_8"
        ),
        SMALL_BATCH: "v5p_12288",
    },
    "msem/msem_671b_256k": {
        TOO_LARGE: (
            "g5_12xlarge g5_2xlarge k8s_v5e_16 local_cpu local_gpu p5_48xlarge "
            "skypilot_a10g slurm_h100 v5e_16 v5e_256 v5e_64 v5p_1024 v5p_128 v5p_256 "
            "v5p_512 v5p_8 v6e_256 v6e_64 v6e_8"
        ),
        SMALL_BATCH: "v5p_12288",
    },
    "msem/msem_tiny": {
        SMALL_BATCH: (
            "v5e_256 v5e_64 v5p_1024 v5p_12288 v5p_128 v5p_2048 v5p_256 v5p_4096 "
            "v5p_512 v5p_8192 v6e_256 v6e_64"
        ),
    },
    "tiny/dense": {
        SMALL_BATCH: (
            "k8s_v5e_16 slurm_h100 v5e_16 v5e_256 v5e_64 v5p_1024 v5p_12288 v5p_128 "
            "v5p_2048 v5p_256 v5p_4096 v5p_512 v5p_8192 v6e_256 v6e_64"
        ),
    },
    "tiny/lora": {
        SMALL_BATCH: (
            "k8s_v5e_16 slurm_h100 v5e_16 v5e_256 v5e_64 v5p_1024 v5p_12288 v5p_128 "
            "v5p_2048 v5p_256 v5p_4096 v5p_512 v5p_8192 v6e_256 v6e_64"
        ),
    },
    "tiny/pod": {
        SMALL_BATCH: "v5p_12288 v5p_4096 v5p_8192",
    },
}


def config_name(path):
    return path.relative_to(ROOT / "configs").with_suffix("").as_posix()


def machine(name, *overrides):
    return target.load_target(name, [*ON_MACHINE.get(name, []), *overrides])


def shape_of(run):
    is_checkpoint = run.model.kind == "checkpoint"
    return presets.PRESETS["smollm2_135m"] if is_checkpoint else None


def planned(config, name, *overrides, on=()):
    run = load.load_run(ROOT / "configs" / f"{config}.yaml", list(overrides))
    return plan.resolve(run, machine(name, *on), decoder=shape_of(run))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("path", CONFIGS, ids=config_name)
def test_pair_resolves_or_is_refused_and_the_science_stays(path, name):
    run = load.load_run(path)
    before = run.science_hash()
    reasons = REFUSED.get(config_name(path), {})
    reason = next((why for why, targets in reasons.items() if name in targets.split()), None)
    if reason:
        with pytest.raises(plan.PlanError, match=reason):
            plan.resolve(run, machine(name), decoder=shape_of(run))
        assert run.science_hash() == before
        return
    made = plan.resolve(run, machine(name), decoder=shape_of(run))
    assert made.science_hash == before == run.science_hash() == load.load_run(path).science_hash()
    # The machine's answer changes no number of the experiment.
    assert made.global_batch_sequences == run.data.global_batch_sequences
    assert made.sequence_length == run.data.sequence_length
    assert made.max_steps == run.optimizer.max_steps
    product = made.micro_batch_sequences * made.accumulation * made.data_parallel
    assert product == run.data.global_batch_sequences
    assert made.memory.total <= made.memory.available
    elsewhere = {"total", "available", "on_host", "host_available"}
    parts = made.memory.model_dump(exclude=elsewhere)
    assert sum(parts.values()) == made.memory.total
    assert made.seconds_per_step > 0


def test_refusals_name_real_configs():
    assert set(REFUSED) <= {config_name(path) for path in CONFIGS}
    named = {
        name for why in REFUSED.values() for targets in why.values() for name in targets.split()
    }
    assert named <= set(TARGETS)


def test_same_config_runs_on_one_gpu_and_on_a_slice_and_on_a_pod():
    gpu, slice_, pod = (planned("tiny/pod", name) for name in ("g5_2xlarge", "v5e_16", "v5p_2048"))
    assert gpu.science_hash == slice_.science_hash == pod.science_hash
    assert [p.attention for p in (gpu, slice_, pod)] == ["cudnn", "splash", "splash"]
    assert [p.data_parallel for p in (gpu, slice_, pod)] == [1, 16, 1024]


def test_what_epochs_cost_is_known_with_the_data():
    made = planned("mistral_7b/lora_instruct", "g5_2xlarge")
    unknown = (made.max_steps, made.tokens, made.train_hours, made.cost_usd)
    assert unknown == (None, None, None, None)
    assert made.seconds_per_step > 0
    console = Console(file=io.StringIO(), width=120)
    console.print(plan_table.plan_table(made))
    shown = console.file.getvalue()
    assert "steps and hours depend on the data" in shown
    assert f"depends on the data; {made.price_usd_per_hour:,.2f} USD an hour" in shown
    by_steps = ("data.epochs=null", "optimizer.max_steps=3000")
    settled = planned("mistral_7b/lora_instruct", "g5_2xlarge", *by_steps)
    assert settled.cost_usd > 0
    assert made.with_steps(3000).model_dump(exclude={"science_hash"}) == settled.model_dump(
        exclude={"science_hash"}
    )


def test_lora_counts_of_mistral_7b():
    made = planned("mistral_7b/lora", "g5_2xlarge")
    assert (made.parameters, made.trainable_parameters) == (7_248_023_552, 41_943_040)
    assert planned("mistral_7b/lora_r64", "g5_2xlarge").trainable_parameters == 167_772_160


def test_time_and_cost_follow_from_flops_and_price():
    made = planned("mistral_7b/lora", "g5_2xlarge")
    tokens = made.global_batch_sequences * made.sequence_length
    seconds = tokens * made.hardware_flops_per_token / (70e12 * 0.35)
    assert made.seconds_per_step == pytest.approx(seconds)
    assert made.tokens == made.max_steps * tokens
    assert made.train_hours == pytest.approx(made.max_steps * seconds / 3600)
    assert made.cost_usd == pytest.approx(made.train_hours * 1.212)
    assert (made.calibration, made.time, made.roofline) == ("uncalibrated", None, None)
    assert made.assumed_utilization == pytest.approx(0.35)
    assert planned("demo/finetune", "local_cpu").cost_usd is None


def test_time_on_a_slice_is_the_predictors():
    made = planned("mistral_7b/pretrain", "v5p_512")
    parts = made.time.model_dump()
    wires = {"weights", "exchange"}
    shown = sum(value for part, value in parts.items() if part not in wires)
    assert made.seconds_per_step == pytest.approx(shown)
    assert made.mfu == pytest.approx(
        1024 * 4096 * made.model_flops_per_token / (made.seconds_per_step * 256 * 459e12)
    )
    assert made.assumed_utilization >= made.mfu
    assert made.days_per_trillion_tokens == pytest.approx(1e12 / made.tokens_per_s / 86400)
    assert made.cost_usd == pytest.approx(made.train_hours * 4.2 * 256)
    assert made.calibration == "calibrated"


def test_marks_say_how_far_a_time_can_be_trusted():
    marks = {
        name: planned("mistral_7b/pretrain", name).calibration
        for name in ("v5p_512", "v5p_2048", "v5e_16")
    }
    assert marks == {"v5p_512": "calibrated", "v5p_2048": "extrapolated", "v5e_16": "uncalibrated"}
    assert (
        "1,024 chips (published: up to 512)" in planned("mistral_7b/pretrain", "v5p_2048").notes[0]
    )


@pytest.mark.parametrize(
    ("config", "name", "mesh"),
    [
        ("msem/msem_671b", "v5p_2048", {"data": 2, "fsdp": 64, "expert": 8}),
        ("msem/msem_671b", "v5p_8192", {"data": 8, "fsdp": 64, "expert": 8}),
        ("msem/msem_671b_256k", "v5p_2048", {"data": 2, "fsdp": 4, "expert": 8, "context": 16}),
        ("msem/msem_671b_256k", "v5p_8192", {"data": 8, "expert": 8, "context": 64}),
    ],
)
def test_671b_fits_a_pod_with_a_tenth_to_spare(config, name, mesh):
    started = time.process_time()
    made = planned(config, name)
    assert time.process_time() - started < 1
    assert {axis: size for axis, size in made.mesh.items() if size > 1} == mesh
    assert made.memory.total <= 0.9 * 95 * (1 << 30)
    tokens = made.micro_batch_sequences * made.accumulation * made.data_parallel
    assert tokens * made.sequence_length == 16_777_216
    assert (made.parameters, made.active_parameters) == (671_052_109_312, 78_447_285_760)
    assert (made.experts, made.experts_transport) == ("ragged", "ragged")
    assert made.calibration == "extrapolated"


@pytest.mark.parametrize(
    ("config", "name", "mesh"),
    [
        # Hidden rows of 1,408 come in whole tiles for 8 devices, not for 32.
        ("msem/msem_16b", "v5e_256", {"data": 4, "fsdp": 8, "expert": 8}),
        ("msem/msem_16b", "v5p_128", {"fsdp": 8, "expert": 8}),
        # 256 devices have 16 rows each of a width of 4,096.
        ("mistral_7b/pretrain", "v5p_2048", {"data": 4, "fsdp": 256}),
    ],
)
def test_parts_are_whole_tiles_where_memory_allows(config, name, mesh):
    made = planned(config, name)
    assert {axis: size for axis, size in made.mesh.items() if size > 1} == mesh
    decoder = shapes.decoder_of_run(load.load_run(ROOT / "configs" / f"{config}.yaml"))
    for tensor in tensors.tensors(decoder):
        local = tensor.local_shape(made.mesh)
        # The embedding is split along its width, over the expert axis too.
        axis = {"experts": -2, "embed": -1}.get(tensor.part)
        rows = 0 if axis is None else local[axis]
        assert rows % plan.BFLOAT16_TILE_ROWS == 0, tensor.path


def test_parts_of_tiles_are_the_way_out_of_too_little_memory():
    roomy, tight = (planned("msem/msem_671b", "v5p_2048", on=[f"hbm_gib={g}"]) for g in (70, 60))
    assert [(p.mesh["data"], p.mesh["fsdp"]) for p in (roomy, tight)] == [(2, 64), (1, 128)]
    assert tight.memory.total < roomy.memory.total <= roomy.memory.available
    assert roomy.memory.total > tight.memory.available >= tight.memory.total
    with pytest.raises(plan.PlanError, match=TOO_LARGE):
        planned("msem/msem_671b", "v5p_2048", on=["hbm_gib=50"])


def test_a_number_of_devices_with_a_factor_of_three_moves_it_to_data():
    made = planned("msem/msem_671b", "v5p_12288", "data.global_batch_sequences=6144")
    assert (made.mesh["data"], made.mesh["fsdp"], made.mesh["expert"]) == (12, 64, 8)


def test_a_refusal_names_a_remedy_that_helps():
    with pytest.raises(plan.PlanError, match=r"optimizer\.moments=bfloat16"):
        planned("msem/msem_671b", "v5p_512")
    made = planned("msem/msem_671b", "v5p_512", "optimizer.moments=bfloat16")
    assert made.memory.total <= made.memory.available


def test_671b_on_a_pod_meets_the_roofline_that_was_asked():
    made = planned("msem/msem_671b", "v5p_2048")
    assert made.roofline["compute"] == pytest.approx(17.9, rel=0.02)
    assert made.roofline["hbm"] < made.roofline["compute"] / 2
    assert made.time.exposed < made.roofline["compute"] / 2


def test_expert_axis_is_for_mixtures_alone():
    assert planned("mistral_7b/pretrain", "v5p_512", on=["mesh.expert=8"]).mesh["expert"] == 1
    assert planned("mixtral/mixtral_8x7b", "v5p_512").mesh["expert"] == 8
    assert planned("mixtral/mixtral_8x7b", "v5p_512", on=["mesh.expert=4"]).mesh["expert"] == 4


def test_experts_that_do_not_divide_are_refused_with_both_numbers():
    with pytest.raises(plan.PlanError, match=r"expert=64 must divide num_groups \(8\).*\(32\)"):
        planned("msem/msem_671b", "v5p_2048", on=["mesh.expert=64"])


def test_top_k_beyond_the_chosen_groups_is_refused_by_the_config():
    model = "model={kind: decoder, num_layers: 1, width: 8, num_heads: 1, num_kv_heads: 1, "
    model += "head_width: 8, vocab_size: 8, rope: {kind: default, theta: 1e4}, max_positions: 8, "
    model += (
        "ffn: {kind: moe, width: 8, num_experts: 8, num_groups: 4, groups_per_token: 1, top_k: 3}}"
    )
    with pytest.raises(load.ConfigError, match=r"top_k \(3\).*2 experts of the 1 groups"):
        load.load_run(ROOT / "configs" / "tiny" / "dense.yaml", [model])


def test_rows_are_split_only_where_there_are_fewer_of_them_than_chips():
    assert planned("msem/msem_671b", "v5p_2048").mesh["context"] == 1
    with pytest.raises(plan.PlanError, match=SMALL_BATCH):  # pieces of 256 tokens would not do
        planned("mistral_7b/pretrain", "v5p_2048", "data.global_batch_sequences=64")


@pytest.mark.parametrize(
    ("optimizer", "bytes_each"),
    [
        ({}, 8),
        ({"optimizer.moments": "bfloat16"}, 4),
        ({"optimizer.kind": "muon"}, 4),
        # Rows and columns of the second moments, shared out: 112 MB on every chip.
        ({"optimizer.kind": "adafactor"}, 0.073),
    ],
)
def test_bytes_of_each_optimizer_stand_in_the_plan(optimizer, bytes_each):
    overrides = [f"{key}={value}" for key, value in optimizer.items()]
    made = planned("msem/msem_671b", "v5p_2048", *overrides)
    assert made.optimizer_bytes_per_parameter == pytest.approx(bytes_each, rel=0.1)


def test_too_large_mixture_names_its_largest_term():
    with pytest.raises(plan.PlanError) as caught:
        planned("msem/msem_671b", "v5p_256")
    message = str(caught.value)
    for part in ("optimizer state", "GiB on each device of v5p_256", "more devices"):
        assert part in message
    with pytest.raises(plan.PlanError, match=r"dispatch .* lower stage\.experts\.buffer_factor"):
        planned("msem/msem_671b_256k", "v5p_2048", "stage.experts.buffer_factor=8")


def test_too_large_names_bytes_and_remedy():
    with pytest.raises(plan.PlanError) as caught:
        planned("mistral_7b/pretrain", "g5_2xlarge")
    message = str(caught.value)
    for part in ("optimizer state 54.0 GiB", "20.6 GiB", "adapter.kind=lora"):
        assert part in message
    with pytest.raises(plan.PlanError, match=r"lower data\.sequence_length"):
        planned("mistral_7b/lora", "g5_2xlarge", "data.sequence_length=32768")


def test_sequence_beyond_the_model_is_refused():
    with pytest.raises(plan.PlanError, match="32769, but the model has 32768 positions"):
        planned("mistral_7b/lora", "g5_2xlarge", "data.sequence_length=32769")


def test_attention_that_does_not_apply_is_replaced_and_said():
    made = planned("tiny/dense", "g5_2xlarge")
    assert made.attention == "banded"
    assert "cuDNN has no float32 kernel" in made.notes[0]
    with pytest.raises(plan.PlanError, match="cuDNN has no float32 kernel"):
        planned("tiny/dense", "g5_2xlarge", on=["attention=cudnn"])


def test_target_may_fix_passes_and_remat():
    made = planned("mistral_7b/lora", "v5e_16", on=["micro_batch_sequences=1", "remat=full"])
    assert (made.micro_batch_sequences, made.accumulation, made.remat) == (1, 4, "full")
    with pytest.raises(plan.PlanError, match="does not divide the 4 rows"):
        planned("mistral_7b/lora", "v5e_16", on=["micro_batch_sequences=3"])


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_frozen_parameters_count_in_the_format_of_the_file(tmp_path, dtype, size):
    (tmp_path / "config.json").write_text("{}")
    arrays = {"norm": np.ones(3, np.float32), "kernel": np.ones((8, 8), np.dtype(dtype))}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    run = load.load_run(ROOT / "configs" / "tiny" / "lora.yaml")
    here = run.model_copy(update={"model": run.model.model_copy(update={"weights": str(tmp_path)})})
    memory = plan.resolve(here, machine("local_cpu"), decoder=here.model).memory
    absent = plan.resolve(run, machine("local_cpu")).memory
    assert memory.frozen_parameters * 2 == absent.frozen_parameters * size


def test_less_memory_means_smaller_passes_or_more_remat():
    roomy = planned("mistral_7b/lora", "g5_2xlarge", on=["hbm_gib=80"])
    tight = planned("mistral_7b/lora", "g5_2xlarge", on=["hbm_gib=19"])
    assert (roomy.remat, tight.remat) == ("none", "full")
    assert tight.micro_batch_sequences <= roomy.micro_batch_sequences


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 512),
    length=st.sampled_from([64, 128, 256]),
    memory=st.floats(1.5, 64),
)
def test_whatever_resolves_fits_and_multiplies_out(rows, length, memory):
    overrides = [f"data.global_batch_sequences={rows}", f"data.sequence_length={length}"]
    try:
        made = planned("tiny/dense", "v5e_16", *overrides, on=[f"hbm_gib={memory}"])
    except plan.PlanError:
        assert rows % 16
        return
    assert made.micro_batch_sequences * made.accumulation * 16 == rows
    assert made.memory.total <= made.memory.available


def test_json_round_trip():
    made = planned("demo/finetune", "local_cpu")
    text = made.model_dump_json()
    assert plan.Plan.model_validate_json(text) == made
    assert json.loads(text)["memory"]["total"] == made.memory.total


def test_plan_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        planned("tiny/dense", "local_cpu").accumulation = 1


def test_table_shows_the_figures():
    console = Console(file=io.StringIO(), width=120)
    console.print(plan_table.plan_table(planned("mistral_7b/lora", "v5e_16")))
    shown = console.file.getvalue()
    for part in ("7,248,023,552", "41,943,040 (0.58%)", "16 x v5litepod-16", "fsdp 16",
                 "uncalibrated", "USD", "frozen parameters", "wires, not hidden"):  # fmt: skip
        assert part in shown


def test_table_marks_every_time_of_a_mixture_and_shows_what_is_active():
    console = Console(file=io.StringIO(), width=160)
    console.print(plan_table.plan_table(planned("msem/msem_671b", "v5p_2048")))
    shown = console.file.getvalue()
    for part in ("78,447,285,760 (11.7%)", "ragged, rows travel ragged", "experts' rows",
                 "8.00 bytes of state", "At the specified peaks"):  # fmt: skip
        assert part in shown
    for line in shown.splitlines():
        if any(
            line.strip().startswith(name) for name in ("time per step", "tokens/s", "cost", "10^12")
        ):
            assert "extrapolated" in line


def test_plan_answers_within_a_second_and_without_jax():
    code = (
        "import sys, time\n"
        "from launch import plan, plan_table, target\n"
        "from mistral_jax.config import load\n"
        "run = load.load_run(sys.argv[1])\n"
        "plan_table.plan_table(plan.resolve(run, target.load_target('v5p_2048')))\n"
        "assert not {'jax', 'numpy'} & set(sys.modules)\n"
        "print(time.process_time())\n"  # CPU time, imports included: other work shares the cores
    )
    command = [sys.executable, "-c", code, str(ROOT / "configs/mistral_7b/pretrain.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1


@pytest.mark.parametrize("form", ["all_gather", "ring"])
def test_a_target_says_how_devices_exchange_keys(form):
    made = planned("msem/msem_671b_256k", "v5p_2048", on=(f"context_form={form}",))
    assert made.context_form == form
    runtime = job.runtime_of(load.load_run(ROOT / "configs/msem/msem_671b_256k.yaml"), made)
    assert runtime.context == form
