"""The longest row in memory, what waits on the host, and what levers a plan pulls for them."""

from pathlib import Path

import pytest

from launch import longest
from launch import passes
from launch import plan
from launch import target
from mistral_jax.config import load

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


def qlora(*overrides: str):
    return load.load_run(ROOT / "configs/mistral_7b/qlora_r64.yaml", list(overrides))


def planned(*overrides: str, on: tuple[str, ...] = ()) -> plan.Plan:
    return plan.resolve(qlora(*overrides), target.load_target("g5_2xlarge", on))


def case_of(on: tuple[str, ...] = ()) -> passes.Case:
    run, machine = qlora(), target.load_target("g5_2xlarge", on)
    decoder = plan.shapes.decoder_of_run(run)
    mesh = plan.choose_mesh(run, machine, decoder)
    return passes.Case(run, machine, decoder, mesh, 4, "cudnn", None, None)


def test_qlora_of_rank_64_on_4_x_1024_takes_at_most_11_gib():
    made = planned()
    assert made.trainable_parameters == 167_772_160
    assert made.memory.total <= 11 * GIB
    assert made.remat == "full"
    assert (made.micro_batch_sequences, made.accumulation) == (4, 1)
    assert any("not measured" in note for note in made.notes)


def test_qlora_has_room_for_rows_of_32k():
    assert planned().longest_sequence == 32768
    long = planned("data.sequence_length=32768")
    assert long.memory.total <= long.memory.available
    assert long.mlp_chunk_tokens == 4096


@pytest.mark.parametrize("on", [(), ("remat=full",), ("hbm_gib=16",), ("remat=offload",)])
def test_the_longest_row_fits_and_the_next_does_not(on):
    case = case_of(on)
    found = longest.longest_row(case)
    assert found is not None
    step = 4096 if found >= 4096 else 128
    remats = passes.remats_of(case.target)[-2:]

    def fits(length):
        held = (passes.step_memory(case, 1, remat, num_tokens=length) for remat in remats)
        return any(memory.fits for memory in held)

    assert fits(found)
    assert not fits(found + step)


def test_no_row_fits_where_the_weights_alone_do_not():
    assert longest.longest_row(case_of(("hbm_gib=4",))) is None


def test_layer_inputs_go_to_the_host_only_where_the_device_has_no_room():
    assert planned().memory.on_host == 0
    # 32 layers of 16,384 x 4,096 in bfloat16.
    small = planned("data.sequence_length=16384", on=("hbm_gib=16",))
    assert small.remat == "offload"
    assert small.memory.on_host == 32 * 16384 * 4096 * 2
    assert small.memory.activations == small.memory.on_host // 16
    with pytest.raises(passes.MemoryTooSmall):
        planned("data.sequence_length=16384", on=("hbm_gib=16", "host_memory_gib=4"))


def test_an_optimizer_state_on_the_host_counts_there():
    here, there = planned(), planned(on=("offload=optimizer",))
    state = 8 * 167_772_160
    assert abs(there.memory.on_host - state) <= 64
    assert there.memory.total <= here.memory.total - state
    assert there.seconds_per_step > here.seconds_per_step


def test_8_bit_adam_takes_a_quarter_of_the_state():
    exact, rounded = planned(), planned("optimizer.moments=int8")
    saved = exact.memory.optimizer_state - rounded.memory.optimizer_state
    assert saved == pytest.approx(0.746 * exact.memory.optimizer_state, rel=1e-2)
    assert exact.memory.total - rounded.memory.total == saved
