"""Published training runs on TPU slices, to set and to judge the constants of predict.py.

Throughput, batch and remat are from MaxText (docs/reference/models/tiering.md, the benchmark
configurations beside it, and the steps that its recipes logged; read 2026-11): all bfloat16, flash
attention, parameters split over every chip. Tokens per second carry no convention. Their MFU counts
6 FLOPs for each active weight but the embedding, no recompute, and attention pairs either all or,
since their pull request 1988, the causal half: `counts_all_pairs` says which gives the printed
figure. Not stated there, and taken from the nearest configuration: rows and remat of Llama 2 70B on
512 and of Mixtral 8x7B on 256 chips of v5p.
"""

import dataclasses
from typing import Literal

from launch import arithmetic
from launch import predict
from launch import target as target_lib
from mistral_jax.config import presets
from mistral_jax.config.model import DecoderConfig
from mistral_jax.config.model import DefaultRope
from mistral_jax.config.model import DenseFfn
from mistral_jax.config.model import MoeFfn
from mistral_jax.config.model import NoAdapter

ATTENTION = frozenset({"attention/kernel"})
UP = frozenset({"dense_ffn/gate_proj", "dense_ffn/up_proj", "experts/gate_proj", "experts/up_proj"})
OUT = frozenset({"attention/o_proj"})
# Their `custom` remat on v6e: queries, keys and values (and, in some, the output) wait on the host.
QKVO_KEPT = ATTENTION | UP
QKV_KEPT = ATTENTION | UP | OUT
EVERYTHING: frozenset[str] | None = None
QKV = frozenset({"attention/q_proj", "attention/k_proj", "attention/v_proj"})


@dataclasses.dataclass(frozen=True)
class Run:
    """One published run.

    Attributes:
        name: model, slice.
        role: `fit` runs set the constants; `held_out` ones judge them.
        target: one of ours.
        overrides: of the target, where the slice was another.
        rows: of each chip, in one pass.
        tokens_per_s: of each chip, as published.
        mfu: in percent, as published; None where only a step was logged.
        recomputed: what their remat ran again; None is every matmul of a layer.
        capacity_factor: of a dispatch that drops; None is dropless.
        expert: their expert-parallel axis.
    """

    name: str
    role: Literal["fit", "held_out"]
    decoder: DecoderConfig
    target: str
    num_tokens: int
    rows: int
    tokens_per_s: float
    mfu: float | None
    recomputed: frozenset[str] | None
    overrides: tuple[str, ...] = ()
    counts_all_pairs: bool = False
    capacity_factor: float | None = None
    expert: int = 1


def _grouped(
    num_layers: int, width: int, num_heads: int, ffn: DenseFfn | MoeFfn, vocab_size: int
) -> DecoderConfig:
    return DecoderConfig(
        num_layers=num_layers, width=width, num_heads=num_heads, num_kv_heads=8, head_width=128,
        vocab_size=vocab_size, ffn=ffn, rope=DefaultRope(theta=5e5), max_positions=131072,
    )  # fmt: skip


LLAMA_2_70B = _grouped(80, 8192, 64, DenseFfn(width=28672), 32000)
LLAMA_31_8B = _grouped(32, 4096, 32, DenseFfn(width=14336), 128256)
LLAMA_31_70B = _grouped(80, 8192, 64, DenseFfn(width=28672), 128256)
LLAMA_31_405B = _grouped(126, 16384, 128, DenseFfn(width=53248), 128256)
MISTRAL_7B = _grouped(32, 4096, 32, DenseFfn(width=14336), 32768)
MIXTRAL_8X7B = _grouped(32, 4096, 32, MoeFfn(width=14336, num_experts=8, top_k=2), 32000)
MIXTRAL_8X22B = _grouped(56, 6144, 48, MoeFfn(width=16384, num_experts=8, top_k=2), 32768)
LLAMA_4_SCOUT = _grouped(
    48, 5120, 40, MoeFfn(width=8192, num_experts=16, top_k=1, num_shared_experts=1), 202048
)
DEEPSEEK_V3 = presets.PRESETS["deepseek_v3"]
V6E_32 = ("topology=[4,8]", "num_chips=32", "num_hosts=8")
V6E_128 = ("topology=[8,16]", "num_chips=128", "num_hosts=32")
V6E_16 = ("topology=[4,4]", "num_chips=16", "num_hosts=4")

RUNS = (
    Run(
        "Llama 2 70B, v5p 512 chips",
        "fit",
        LLAMA_2_70B,
        "v5p_1024",
        4096,
        2,
        692,
        65.4,
        UP | ATTENTION,
    ),
    Run(
        "Mixtral 8x7B, v5p 256 chips",
        "fit",
        MIXTRAL_8X7B,
        "v5p_512",
        4096,
        36,
        2909,
        52.56,
        EVERYTHING,
        counts_all_pairs=True,
    ),
    Run(
        "Llama 3.1 8B, v6e 256 chips",
        "fit",
        LLAMA_31_8B,
        "v6e_256",
        8192,
        4,
        7207,
        45.46,
        QKVO_KEPT,
        counts_all_pairs=True,
    ),
    Run(
        "Mixtral 8x22B, v6e 256 chips",
        "fit",
        MIXTRAL_8X22B,
        "v6e_256",
        4096,
        8,
        1326,
        36.2,
        QKVO_KEPT,
        capacity_factor=1.25,
        expert=4,
        counts_all_pairs=True,
    ),
    Run(
        "Llama 3.1 405B, v5p 512 chips",
        "held_out",
        LLAMA_31_405B,
        "v5p_1024",
        8192,
        2,
        124.6,
        68.5,
        QKV_KEPT | QKV,
    ),
    Run(
        "Mixtral 8x7B, v5p 64 chips",
        "held_out",
        MIXTRAL_8X7B,
        "v5p_128",
        4096,
        36,
        3031,
        54.89,
        EVERYTHING,
        counts_all_pairs=True,
    ),
    Run(
        "Llama 4 Scout, v5p 512 chips",
        "held_out",
        LLAMA_4_SCOUT,
        "v5p_1024",
        8192,
        8,
        2070,
        49.1,
        EVERYTHING,
    ),
    Run(
        "DeepSeek-V3, v5p 512 chips",
        "held_out",
        DEEPSEEK_V3,
        "v5p_1024",
        8192,
        6,
        542.1,
        33.2,
        EVERYTHING,
    ),
    Run(
        "Llama 2 70B, v6e 256 chips",
        "held_out",
        LLAMA_2_70B,
        "v6e_256",
        4096,
        2,
        905,
        43.8,
        QKV_KEPT,
        counts_all_pairs=True,
    ),
    Run(
        "Llama 3.1 70B, v6e 256 chips",
        "held_out",
        LLAMA_31_70B,
        "v6e_256",
        8192,
        5,
        960,
        50.33,
        QKV_KEPT,
        counts_all_pairs=True,
    ),
    Run(
        "Llama 3.1 70B, v6e 128 chips",
        "held_out",
        LLAMA_31_70B,
        "v6e_256",
        8192,
        4,
        942,
        49.4,
        QKV_KEPT,
        overrides=V6E_128,
        counts_all_pairs=True,
    ),
    Run(
        "Llama 3.1 70B, v6e 64 chips",
        "held_out",
        LLAMA_31_70B,
        "v6e_64",
        8192,
        2,
        877,
        46.0,
        QKV_KEPT,
        counts_all_pairs=True,
    ),
    Run(
        "Llama 3.1 70B, v6e 32 chips",
        "held_out",
        LLAMA_31_70B,
        "v6e_256",
        8192,
        2,
        921,
        48.3,
        QKV_KEPT,
        overrides=V6E_32,
        counts_all_pairs=True,
    ),
    Run(
        "Llama 3.1 405B, v6e 256 chips",
        "held_out",
        LLAMA_31_405B,
        "v6e_256",
        8192,
        1,
        123,
        38.55,
        QKV_KEPT | QKV,
        counts_all_pairs=True,
    ),
    Run(
        "Llama 3.1 8B, v6e 16 chips",
        "held_out",
        LLAMA_31_8B,
        "v6e_256",
        8192,
        3,
        7243,
        45.7,
        QKVO_KEPT,
        overrides=V6E_16,
        counts_all_pairs=True,
    ),
    Run(
        "Llama 3.1 8B, v6e 8 chips",
        "held_out",
        LLAMA_31_8B,
        "v6e_8",
        8192,
        3,
        7139,
        45.0,
        QKVO_KEPT,
        counts_all_pairs=True,
    ),
    Run(
        "Mistral 7B, v6e 8 chips",
        "held_out",
        MISTRAL_7B,
        "v6e_8",
        8192,
        6,
        7777,
        47.1,
        QKVO_KEPT,
        counts_all_pairs=True,
    ),
    Run(
        "Mixtral 8x7B, v6e 256 chips",
        "held_out",
        MIXTRAL_8X7B,
        "v6e_256",
        4096,
        12,
        3899,
        35.23,
        QKVO_KEPT,
        capacity_factor=1.25,
        counts_all_pairs=True,
    ),
)


def workload(run: Run) -> tuple[predict.Workload, target_lib.Target]:
    """Return what one chip of the run did, and the slice."""
    machine = target_lib.load_target(run.target, list(run.overrides))
    mesh = {"data": 1, "fsdp": machine.num_chips // run.expert, "expert": run.expert, "tensor": 1,
            "context": 1}  # fmt: skip
    recomputed = run.recomputed
    if recomputed is None:
        recomputed = predict.recomputed_names(run.decoder, NoAdapter(), "full")
    # float32 parameters and two moments, read and written, and the gradients.
    state = 28 * arithmetic.shard_bytes(run.decoder, mesh, 1)
    work = predict.Workload(
        decoder=run.decoder, mesh=mesh, num_tokens=run.num_tokens, micro_batch=run.rows, passes=1,
        recomputed=recomputed, capacity_factor=run.capacity_factor, state_bytes=state,
    )  # fmt: skip
    return work, machine


def predicted_tokens_per_s(run: Run) -> float:
    """Return tokens per second of each chip by the frozen constants."""
    work, machine = workload(run)
    return work.pass_tokens / predict.step_time(work, machine).total


def published_mfu(run: Run) -> float:
    """Return the MFU that the published tokens per second give, counted as the publisher did."""
    _, machine = workload(run)
    flops = arithmetic.flops_per_token(run.decoder, NoAdapter(), run.num_tokens, "none")
    model = flops.model
    if run.counts_all_pairs:
        keys = arithmetic.mean_keys(run.decoder, run.num_tokens)
        attention = 3 * arithmetic.attention_flops(run.decoder, run.num_tokens)
        model += attention * (run.num_tokens / keys - 1)
    return 100 * model * run.tokens_per_s / (machine.peak_tflops.bfloat16 * 1e12)
