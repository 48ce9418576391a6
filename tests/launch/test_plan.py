"""launch/plan.py: every config on every target resolves, or is refused for the expected reason."""

import io
import json
import subprocess
import sys
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
from launch import target
from mistral_jax.config import load
from mistral_jax.config import presets

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
TARGETS = target.target_names()
ON_MACHINE = {"local_cpu": ["host_memory_gib=16", "host_cores=2"]}
SMALL_BATCH = "global_batch_sequences"
TOO_LARGE = "GiB on each device"
# What does not fit, and why. A pair that is not here must resolve.
REFUSED = {
    ("demo/finetune", "v5e_16"): SMALL_BATCH,
    ("demo/finetune", "v5p_2048"): SMALL_BATCH,
    ("tiny/dense", "v5e_16"): SMALL_BATCH,
    ("tiny/dense", "v5p_2048"): SMALL_BATCH,
    ("tiny/lora", "v5e_16"): SMALL_BATCH,
    ("tiny/lora", "v5p_2048"): SMALL_BATCH,
    ("mistral_7b/lora", "local_cpu"): TOO_LARGE,
    ("mistral_7b/lora", "v5p_2048"): SMALL_BATCH,
    ("mistral_7b/lora_r64", "local_cpu"): TOO_LARGE,
    ("mistral_7b/lora_r64", "v5p_2048"): SMALL_BATCH,
    ("mistral_7b/pretrain", "local_cpu"): TOO_LARGE,
    ("mistral_7b/pretrain", "g5_2xlarge"): TOO_LARGE,
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
    reason = REFUSED.get((config_name(path), name))
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
    parts = made.memory.model_dump(exclude={"total", "available"})
    assert sum(parts.values()) == made.memory.total
    assert made.seconds_per_step > 0


def test_refusals_name_real_configs():
    assert {config for config, _ in REFUSED} <= {config_name(path) for path in CONFIGS}


def test_same_config_runs_on_one_gpu_and_on_a_slice_and_on_a_pod():
    gpu, slice_, pod = (planned("tiny/pod", name) for name in ("g5_2xlarge", "v5e_16", "v5p_2048"))
    assert gpu.science_hash == slice_.science_hash == pod.science_hash
    assert [p.attention for p in (gpu, slice_, pod)] == ["cudnn", "splash", "splash"]
    assert [p.data_parallel for p in (gpu, slice_, pod)] == [1, 16, 1024]


def test_lora_counts_of_mistral_7b():
    made = planned("mistral_7b/lora", "g5_2xlarge")
    assert (made.parameters, made.trainable_parameters) == (7_248_023_552, 41_943_040)
    assert planned("mistral_7b/lora_r64", "g5_2xlarge").trainable_parameters == 167_772_160


def test_time_and_cost_follow_from_flops_and_price():
    made = planned("mistral_7b/pretrain", "v5p_2048")
    seconds = 1024 * 4096 * made.hardware_flops_per_token / (1024 * 459e12 * 0.5)
    assert made.seconds_per_step == pytest.approx(seconds)
    assert made.tokens == 125_000 * 1024 * 4096
    assert made.train_hours == pytest.approx(125_000 * seconds / 3600)
    assert made.cost_usd == pytest.approx(made.train_hours * 4300.8)
    assert made.calibration == "uncalibrated"
    assert planned("demo/finetune", "local_cpu").cost_usd is None


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
    tensors = {"norm": np.ones(3, np.float32), "kernel": np.ones((8, 8), np.dtype(dtype))}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
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
                 "uncalibrated", "USD", "frozen parameters", "Communication"):  # fmt: skip
        assert part in shown


def test_plan_answers_within_a_second_and_without_jax():
    code = (
        "import sys, time\n"
        "from launch import plan, plan_table, target\n"
        "from mistral_jax.config import load\n"
        "run = load.load_run(sys.argv[1])\n"
        "plan_table.plan_table(plan.resolve(run, target.load_target('v5p_2048')))\n"
        "assert 'jax' not in sys.modules\n"
        "print(time.process_time())\n"  # CPU time, imports included: other work shares the cores
    )
    command = [sys.executable, "-c", code, str(ROOT / "configs/mistral_7b/pretrain.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1
