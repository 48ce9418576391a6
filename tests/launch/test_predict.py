"""launch/predict.py and published.py: frozen constants against published runs."""

import dataclasses

import pytest

from launch import calibration
from launch import predict
from launch import published
from launch import target
from mistral_jax.config import presets
from mistral_jax.config.model import LoraAdapter
from mistral_jax.config.model import MoeFfn
from mistral_jax.config.model import NoAdapter

FIT = [run for run in published.RUNS if run.role == "fit"]
HELD_OUT = [run for run in published.RUNS if run.role == "held_out"]
# Its two published figures disagree: 123 tokens/s are 35.2 % by the count that gives the other
# figures of that page, and 38.55 % would be 135. The prediction is 169: the model misses it.
MISSED = "Llama 3.1 405B, v6e 256 chips"
MESH = {"data": 1, "fsdp": 64, "expert": 1, "tensor": 1, "context": 1}


def error_of(run):
    return published.predicted_tokens_per_s(run) / run.tokens_per_s - 1


def test_the_four_named_runs_set_the_constants():
    assert [run.mfu for run in FIT] == [65.4, 52.56, 45.46, 36.2]
    assert predict.MATMUL_EFFICIENCY == {"v5p": 0.84, "v6e": 0.69, "v5litepod": 0.84}
    assert predict.ROW_MOVE_SHARE == 0.06


@pytest.mark.parametrize("run", FIT, ids=lambda run: run.name)
def test_runs_of_the_fit_are_met_within_a_fifth(run):
    assert abs(error_of(run)) < 0.20
    assert abs(error_of(run)) < 0.05  # where they stand; the promise is the line above


@pytest.mark.parametrize("run", HELD_OUT, ids=lambda run: run.name)
def test_held_out_runs_are_met_within_a_fifth_but_one(run):
    assert (abs(error_of(run)) < 0.20) == (run.name != MISSED)


@pytest.mark.parametrize("run", published.RUNS, ids=lambda run: run.name)
def test_published_mfu_follows_from_tokens_by_its_stated_convention(run):
    if run.name == MISSED:
        assert published.published_mfu(run) == pytest.approx(35.2, abs=0.1)
        return
    # Within the rounding of two printed figures; Llama 2 70B on v5p predates both countings.
    assert published.published_mfu(run) == pytest.approx(run.mfu, abs=0.9)


def test_many_narrow_experts_lose_what_was_reported():
    """8 experts top-2 to 56 top-14 at equal active FLOPs: 50.4 % to 25-28 % was reported."""

    def share(num_experts, top_k, width):
        ffn = MoeFfn(width=width, num_experts=num_experts, top_k=top_k)
        base = presets.PRESETS["mixtral_8x7b"]
        decoder = base.model_copy(
            update={"ffn": ffn, "num_heads": 1, "num_kv_heads": 1, "head_width": 2, "vocab_size": 8}
        )
        names = predict.recomputed_names(decoder, NoAdapter(), "full")
        work = predict.Workload(decoder, MESH, 4096, 8, 1, names)
        step = predict.step_time(work, target.load_target("v5p_128"))
        flops = predict.arithmetic.flops_per_token(decoder, NoAdapter(), 4096, "none").model
        return predict.mfu(flops * work.pass_tokens, step.total, 459e12)

    assert share(8, 2, 14336) == pytest.approx(0.504, abs=0.03)
    assert 0.24 < share(56, 14, 2048) < 0.29


def test_experts_in_codes_take_the_time_to_run_again():
    mixture, adapter = presets.PRESETS["mixtral_8x7b"], LoraAdapter(rank=8, alpha=8.0)

    def step(are_experts_rerun, remat):
        names = predict.recomputed_names(
            mixture, adapter, remat, are_experts_rerun=are_experts_rerun
        )
        work = predict.Workload(mixture, MESH, 4096, 8, 1, names, adapter)
        return predict.step_time(work, target.load_target("v5p_128"))

    held, again = step(False, "none"), step(True, "none")
    assert again.experts == pytest.approx(1.5 * held.experts)  # forward, dX; forward again
    assert again.row_moves == pytest.approx(1.5 * held.row_moves)
    assert again.attention == held.attention
    assert step(True, "full") == step(False, "full")


def workload(**changes):
    decoder = presets.PRESETS["msem_671b"]
    names = predict.recomputed_names(decoder, NoAdapter(), "full")
    work = predict.Workload(decoder, MESH, 4096, 2, 2, names)
    return dataclasses.replace(work, **changes)


def test_parts_add_up_and_wires_hide_behind_compute():
    step = predict.step_time(workload(), target.load_target("v5p_2048"))
    parts = dataclasses.asdict(step)
    compute = sum(
        parts[name]
        for name in ("matmul", "experts", "attention", "pointwise", "row_moves", "optimizer")
    )
    assert step.compute == pytest.approx(compute)
    assert step.total == pytest.approx(compute + step.exposed)
    assert step.exposed == pytest.approx(predict.ICI_EXPOSED * (step.weights + step.exchange))


def test_wires_that_compute_cannot_hide_are_the_step():
    slow = target.load_target("v5p_2048", ["ici_gb_per_s=0.1"])
    step = predict.step_time(workload(), slow)
    assert step.total == pytest.approx(step.weights + step.exchange)


def test_remat_and_longer_rows_cost_and_adapters_save():
    machine = target.load_target("v5p_2048")
    base = predict.step_time(workload(), machine)
    assert predict.step_time(workload(recomputed=frozenset()), machine).total < base.total
    long = predict.step_time(workload(num_tokens=8192, micro_batch=1), machine)
    assert long.attention == pytest.approx(2 * base.attention, rel=1e-3)
    adapter = LoraAdapter(rank=4, alpha=4.0, target_modules=("o_proj",))
    assert predict.step_time(workload(adapter=adapter), machine).matmul < base.matmul


def test_a_token_travels_once_to_each_device_that_it_needs():
    # 3 of 8 groups, a group a device: 3 copies, of which an eighth stays at home.
    mesh = MESH | {"expert": 8}
    sent = predict.exchange_wire_bytes(workload(mesh=mesh))
    tokens, layers, trips = 2 * 4096, 58, 4 + 2
    # All 24 may lie in two of the groups: a little less than 3 copies.
    assert sent == pytest.approx(layers * trips * tokens * 3 * 7 / 8 * 2 * 7168, rel=1e-4)


def test_latents_are_gathered_along_the_context_axis_and_not_keys():
    long = workload(mesh=MESH | {"context": 16}, num_tokens=262144, micro_batch=1)
    # 576 numbers a token; three trips.
    assert predict.exchange_wire_bytes(long) == 61 * 3 * 2 * 576 * (262144 / 16) * 15


def test_roofline_of_671b_on_a_pod_meets_the_goal():
    mesh = MESH | {"fsdp": 128, "expert": 8}
    work = workload(mesh=mesh, micro_batch=2, passes=2, state_bytes=20 * 2**30)
    line = predict.roofline(work, target.load_target("v5p_2048"))
    assert line["compute"] == pytest.approx(17.9, rel=0.02)
    assert line["hbm"] < line["compute"] / 2
    assert predict.ICI_EXPOSED * line["ici"] < line["compute"] / 2


def test_unknown_chips_are_refused():
    with pytest.raises(ValueError, match="no time constants for g5"):
        predict.step_time(workload(), target.load_target("g5_2xlarge"))


@pytest.mark.parametrize("run", [*FIT[:3], HELD_OUT[0], HELD_OUT[3]], ids=lambda run: run.name)
def test_published_ground_is_marked_calibrated(run):
    assert calibration.judge(*published.workload(run)) == ("calibrated", [])


@pytest.mark.parametrize(
    ("changes", "on", "news"),
    [
        ({}, "v5p_2048", "1,024 chips (published: up to 512); 24 experts of a token"),
        ({"mesh": MESH | {"expert": 8}}, "v5p_1024", "8 devices along the expert axis"),
        ({"num_tokens": 16384}, "v5p_1024", "16,384 tokens in a row"),
        ({"num_tokens": 1024}, "v5p_1024", "2,048 tokens of a chip in a pass"),
        ({"mesh": MESH | {"context": 2}}, "v5p_1024", "a context axis"),
        ({}, "v6e_256", "latent attention"),
        ({"adapter": LoraAdapter(rank=4, alpha=4.0)}, "v5p_1024", "an adapter"),
    ],
)
def test_new_ground_is_marked_extrapolated_and_named(changes, on, news):
    mark, reasons = calibration.judge(workload(**changes), target.load_target(on))
    assert mark == "extrapolated"
    assert news in reasons[0]


def test_chips_without_a_published_run_are_uncalibrated():
    mark, reasons = calibration.judge(workload(), target.load_target("v5e_16"))
    assert (mark, len(reasons)) == ("uncalibrated", 1)
