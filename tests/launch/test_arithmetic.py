"""launch/arithmetic.py: closed forms against published counts and a slow count of pairs."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from launch import arithmetic
from mistral_jax.config import presets
from mistral_jax.config.model import ALL_TARGET_MODULES
from mistral_jax.config.model import DoraAdapter
from mistral_jax.config.model import LoraAdapter
from mistral_jax.config.model import NoAdapter
from mistral_jax.config.model import SoftmaxRouter

MISTRAL = presets.PRESETS["mistral_7b_v0_3"]


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


@pytest.mark.parametrize(
    ("preset", "total", "active"),
    [
        ("msem_671b", 671_052_109_312, 78_447_285_760),
        ("deepseek_v3", 671_026_419_200, 37_552_297_472),
        ("mistral_small_4", 118_972_826_624, 6_632_588_288),
    ],
)
def test_latent_mixtures_have_their_published_totals(preset, total, active):
    decoder = presets.PRESETS[preset]
    assert arithmetic.parameter_count(decoder) == total
    assert arithmetic.active_parameter_count(decoder) == active
    assert sum(arithmetic.parameters_by_part(decoder).values()) == total


def test_parts_of_the_671b_model_match_hand_arithmetic():
    assert arithmetic.parameters_by_part(presets.PRESETS["msem_671b"]) == {
        "attention": 11_413_547_008,
        "embed": 131_072 * 7168,
        "head": 131_072 * 7168,
        "dense_ffn": 1_189_085_184,
        "router": 58 * (7168 * 256 + 256),
        "shared": 2_554_331_136,
        "experts": 8 * 81_738_596_352,
        "norm": 881_664,
    }


def test_only_a_sigmoid_router_has_a_bias():
    biased = presets.PRESETS["deepseek_v3"]
    ffn = biased.ffn.model_copy(update={"router": SoftmaxRouter()})
    plain = biased.model_copy(update={"ffn": ffn})
    assert arithmetic.parameter_count(biased) - arithmetic.parameter_count(plain) == 58 * 256


def test_idle_experts_cost_hardware_only_where_all_run():
    mixture = presets.PRESETS["mixtral_8x7b"]
    sparse, everything = (
        arithmetic.flops_per_token(mixture, NoAdapter(), 1, "none", experts)
        for experts in ("ragged", "all")
    )
    assert sparse.recompute == 0
    assert sparse.model == everything.model
    assert everything.recompute == 6 * 32 * 6 * 3 * 4096 * 14336
    assert everything.hardware / everything.model == pytest.approx(46.7 / 12.88, rel=0.02)


@pytest.mark.parametrize("frozen", ["nf4", "int8"])
def test_experts_in_codes_run_again_once_under_every_remat(frozen):
    mixture, adapter = presets.PRESETS["mixtral_8x7b"], LoraAdapter(rank=8, alpha=8.0)

    def flops(remat, experts, frozen):
        return arithmetic.flops_per_token(mixture, adapter, 1, remat, experts, frozen=frozen)

    held, codes = (flops("none", "ragged", kind) for kind in ("checkpoint", frozen))
    # Two experts of 32 layers, and their adapters of rank 8 on three projections.
    again = 2 * 32 * 2 * 3 * (4096 * 14336 + 8 * (4096 + 14336))
    assert (held.recompute, codes.recompute) == (0, again)
    assert codes.model == held.model
    # Full remat runs them once as well, not twice.
    assert flops("full", "ragged", frozen) == flops("full", "ragged", "checkpoint")
    # The oracle keeps its products.
    assert flops("none", "all", frozen) == flops("none", "all", "checkpoint")


def test_latent_attention_counts_its_own_widths():
    # 128 heads: scores over 128 + 64 channels, values over 128; half of 4097 keys on average.
    flops = arithmetic.attention_flops(presets.PRESETS["msem_671b"], 4096)
    assert flops == 61 * 128 * 2 * (192 + 128) * 4097 / 2
    step = arithmetic.flops_per_token(presets.PRESETS["msem_671b"], NoAdapter(), 4096, "none")
    assert step.model / 1e12 == pytest.approx(0.50, abs=0.005)


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


def test_dora_adds_the_outputs_of_each_projection():
    plain, dora = (
        arithmetic.adapter_count(MISTRAL, kind(rank=16, alpha=16.0))
        for kind in (LoraAdapter, DoraAdapter)
    )
    assert dora - plain == 1_376_256


def test_every_expert_of_mixtral_has_an_adapter_and_a_token_uses_two():
    mixtral = presets.PRESETS["mixtral_8x7b"]
    adapter = LoraAdapter(rank=16, alpha=16.0, target_modules=("gate_proj", "up_proj", "down_proj"))
    one_layer = 3 * 8 * 16 * (4096 + 14336)
    assert arithmetic.adapter_count(mixtral, adapter) == 32 * one_layer
    with_adapter, without = (
        arithmetic.flops_per_token(mixtral, each, 1, "none").model
        for each in (adapter, adapter.model_copy(update={"target_modules": ()}))
    )
    assert with_adapter - without == pytest.approx(6 * 32 * one_layer / 4)


def test_the_count_of_a_widely_copied_card_is_of_no_usual_adapter():
    """14,745,600: at no usual rank does any choice of Mistral-7B's modules have so many."""
    each = [
        arithmetic.adapter_count(MISTRAL, LoraAdapter(rank=1, alpha=1.0, target_modules=(module,)))
        for module in ALL_TARGET_MODULES
    ]
    sums = {sum(chosen) for count in range(1, 8) for chosen in itertools.combinations(each, count)}
    assert sum(each) * 16 == 41_943_040
    found = {rank for rank in range(1, 65) if 14_745_600 % rank == 0 and 14_745_600 // rank in sums}
    assert found == {6, 25, 45}


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
        # All of a layer again but down_proj, whose output nobody reads.
        (LoraAdapter(rank=64, alpha=16.0), 1024, "full", 41.07),
    ],
)
def test_flops_per_token_of_mistral_7b(adapter, num_tokens, remat, gflops):
    flops = arithmetic.flops_per_token(MISTRAL, adapter, num_tokens, remat)
    assert flops.hardware / 1e9 == pytest.approx(gflops, abs=0.1)
    assert flops.model == arithmetic.flops_per_token(MISTRAL, adapter, num_tokens, "none").model


def test_recomputing_runs_the_matmuls_that_the_backward_pass_reads():
    # jax's own count: forward and backward of a checkpointed feed-forward, its matmuls counted.
    def loss(kernels, x):
        gate, up, down = kernels
        layer = jax.checkpoint(lambda x: x + (jax.nn.silu(x @ gate) * (x @ up)) @ down)
        return jnp.sum(jnp.square(layer(layer(x))))

    kernels = (jnp.ones((8, 16)), jnp.ones((8, 16)), jnp.ones((16, 8)))
    text = jax.jit(jax.grad(loss)).lower(kernels, jnp.ones((4, 8))).compile().as_text()
    num_layers, without = 2, 9
    # 3 forward, 6 backward (the input's own gradient is not asked for: 2 less in the first layer),
    # gate and up again. Of the last layer nothing is kept either.
    matmuls = text.count(" dot(")
    assert matmuls == num_layers * (without + 2) - 2
