"""launch/arithmetic.py: closed forms against published counts and a slow count of pairs."""

import pytest

from launch import arithmetic
from mistral_jax.config import presets
from mistral_jax.config.model import LoraAdapter
from mistral_jax.config.model import NoAdapter

MISTRAL = presets.PRESETS["mistral_7b_v0_3"]
ONE_DEVICE = {"data": 1, "fsdp": 1, "expert": 1, "tensor": 1, "context": 1}
GIB = 1 << 30


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("mistral_7b_v0_1", 7_241_732_096),
        ("mistral_7b_v0_2", 7_241_732_096),
        ("mistral_7b_v0_3", 7_248_023_552),
        ("mixtral_8x7b", 46_702_792_704),
        ("mixtral_8x22b", 140_630_071_296),
        ("mistral_22b", 22_247_282_688),
        ("mistral_nemo_12b", 12_247_782_400),
        ("mistral_small_3", 23_572_403_200),
        ("ministral_8b", 8_019_808_256),
        ("ministral_3_3b", 3_429_006_336),
        ("ministral_3_8b", 8_489_553_920),
        ("ministral_3_14b", 13_506_073_600),
        ("mistral_large_2", 122_610_069_504),
        ("devstral_2", 125_025_988_608),
        ("qwen2_5_3b", 3_085_938_688),
        ("smollm2_135m", 134_515_008),
    ],
)
def test_parameter_count_is_the_published_one(preset, count):
    assert arithmetic.parameter_count(presets.PRESETS[preset]) == count


@pytest.mark.parametrize(
    ("preset", "count"),
    [("mixtral_8x7b", 12_879_925_248), ("mixtral_8x22b", 39_161_468_928)],
)
def test_active_parameters_of_a_mixture_are_the_published_ones(preset, count):
    assert arithmetic.active_parameter_count(presets.PRESETS[preset]) == count


def test_experts_that_nobody_chose_cost_hardware_and_not_model_flops():
    mixture = presets.PRESETS["mixtral_8x7b"]
    flops = arithmetic.flops_per_token(mixture, NoAdapter(), 1, "none")
    expert = 3 * 4096 * 14336
    assert flops.recompute == 6 * 32 * 6 * expert
    assert flops.hardware / flops.model == pytest.approx(46.7 / 12.88, rel=0.02)


def test_biases_count_where_the_model_has_them():
    biased = MISTRAL.model_copy(update={"qkv_bias": True})
    extra = arithmetic.parameter_count(biased) - arithmetic.parameter_count(MISTRAL)
    assert extra == 32 * (4096 + 1024 + 1024)


@pytest.mark.parametrize(
    ("rank", "modules", "count"),
    [
        (16, None, 41_943_040),
        (64, None, 167_772_160),
        (16, ("q_proj",), 4_194_304),
        (16, ("k_proj", "v_proj"), 5_242_880),
        (16, ("down_proj",), 9_437_184),
    ],
)
def test_lora_count_is_the_known_one(rank, modules, count):
    fields = {} if modules is None else {"target_modules": modules}
    adapter = LoraAdapter(rank=rank, alpha=16.0, **fields)
    assert arithmetic.adapter_count(MISTRAL, adapter) == count


@pytest.mark.parametrize(("num_tokens", "reach"), [(1, None), (7, None), (64, 16), (9, 9), (5, 99)])
def test_visible_keys_match_a_slow_count(num_tokens, reach):
    pairs = sum(
        1
        for query in range(num_tokens)
        for key in range(query + 1)
        if reach is None or query - key < reach
    )
    assert arithmetic.mean_visible_keys(num_tokens, reach) == pytest.approx(pairs / num_tokens)


@pytest.mark.parametrize(
    ("adapter", "num_tokens", "remat", "gflops"),
    [
        (NoAdapter(), 4096, "none", 45.9),
        (LoraAdapter(rank=64, alpha=16.0), 1024, "none", 30.3),
        (LoraAdapter(rank=64, alpha=16.0), 1024, "full", 44.8),
    ],
)
def test_flops_per_token_of_mistral_7b(adapter, num_tokens, remat, gflops):
    flops = arithmetic.flops_per_token(MISTRAL, adapter, num_tokens, remat)
    assert flops.hardware / 1e9 == pytest.approx(gflops, abs=0.1)
    assert flops.model == arithmetic.flops_per_token(MISTRAL, adapter, num_tokens, "none").model


def bytes_of(adapter, mesh=ONE_DEVICE, **changes):
    fields = {
        "num_tokens": 1024, "micro_batch": 4, "accumulation": 1, "attention": "cudnn",
        "remat": "full", "compute_bytes": 2, "frozen_bytes": 2,
    }  # fmt: skip
    return arithmetic.device_bytes(MISTRAL, adapter, mesh=mesh, **(fields | changes))


def test_lora_bytes_match_hand_arithmetic():
    held = bytes_of(LoraAdapter(rank=64, alpha=16.0))
    assert held.frozen_parameters == 2 * 7_248_023_552
    # Parameters, two moments and gradients in float32: 16 bytes each, 2.5 GiB.
    states = held.trained_parameters + held.optimizer_state + held.gradients
    assert states == 16 * 167_772_160
    # 32 layer inputs of 4 x 1024 x 4096 in bfloat16: 1 GiB.
    assert held.activations == GIB


def test_full_training_bytes_are_sixteen_for_each_parameter():
    held = bytes_of(NoAdapter())
    states = held.trained_parameters + held.optimizer_state + held.gradients
    assert (held.frozen_parameters, states) == (0, 16 * 7_248_023_552)


def test_fsdp_splits_state_and_norms_stay_whole():
    held = bytes_of(NoAdapter(), mesh=ONE_DEVICE | {"fsdp": 16})
    norms = 65 * 4096
    assert held.trained_parameters == 4 * ((7_248_023_552 - norms) // 16 + norms)


def test_each_remat_keeps_less_than_the_one_before():
    kept = [bytes_of(NoAdapter(), remat=remat).activations for remat in ("none", "dots", "full")]
    assert kept[0] > kept[1] > kept[2] > 0


def test_accumulation_holds_a_second_set_of_gradients():
    once, twice = (bytes_of(NoAdapter(), accumulation=count).gradients for count in (1, 2))
    assert twice == 2 * once


def test_reference_attention_holds_scores_and_cudnn_does_not():
    held = {
        name: bytes_of(NoAdapter(), attention=name, remat="none").activations
        for name in ("reference", "banded", "cudnn")
    }
    assert held["reference"] > held["banded"] > held["cudnn"]
