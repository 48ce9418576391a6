"""The memory estimate of a small adapter step against what XLA's CPU compiler lays out for it.

The band says how far they may lie apart. The estimate errs on the safe side: it adds up what does
not live at one time (the loss' chunk, a layer's work, two whole layers of the base as numbers).
"""

import functools
from pathlib import Path

import jax
import pytest

from launch import memory
from mistral_jax import artifact
from mistral_jax import sharding
from mistral_jax.config import load
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.train import compile as compile_lib
from mistral_jax.train import optimizers
from mistral_jax.train import step as step_lib

CONFIG = Path(__file__).parents[2] / "configs" / "tiny" / "dense.yaml"
# Mistral-7B's layers, a sixteenth of its width.
SHAPE = (
    "model={kind: decoder, num_layers: 4, width: 256, num_heads: 8, num_kv_heads: 2, "
    "head_width: 32, vocab_size: 512, rope: {kind: default, theta: 1e4}, max_positions: 1024, "
    "ffn: {kind: dense, width: 896}}"
)
NOTHING = "adapter={kind: none}"
LORA = "adapter={kind: lora, rank: 8, alpha: 8}"
DROPPED = "adapter={kind: lora, rank: 8, alpha: 8, dropout: 0.1}"
DORA = "adapter={kind: dora, rank: 8, alpha: 8}"
BOTH = "adapter={kind: dora, rank: 8, alpha: 8, dropout: 0.1}"
BAND = (0.6, 1.1)


@functools.cache
def compiled_and_estimated(
    rows: int,
    tokens: int,
    chunk: int | None = None,
    *,
    adapter: str = LORA,
    remat: decoder_lib.Remat = "full",
    frozen: str = "nf4",
) -> tuple[compile_lib.Memory, memory.DeviceBytes]:
    precision = f"precision={{frozen: {frozen}, compute: float32}}"
    run = load.load_run(CONFIG, [SHAPE, adapter, precision])
    mesh = sharding.single_device_mesh()
    runtime = decoder_lib.Runtime(remat=remat, mlp_chunk_tokens=chunk)
    definition = definition_lib.define(
        run.model, adapter=run.adapter, runtime=runtime, frozen=run.precision.frozen
    )
    state = artifact.abstract_state(definition, run, mesh)
    step = step_lib.make_train_step(
        definition, run.stage, optimizers.make_optimizer(run.optimizer),
        optimizers.learning_rate(run.optimizer),
        state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    )  # fmt: skip
    base = compile_lib.abstract_frozen(definition, mesh, jax.numpy.float32)
    batch = compile_lib.abstract_batch(1, rows, tokens, mesh)
    found = compile_lib.compile_step(step, state, base, batch, mesh).memory
    layout = memory.Layout(
        mesh=dict.fromkeys(sharding.MESH_AXES, 1), num_tokens=tokens, micro_batch=rows,
        accumulation=1, attention="banded", remat=remat, compute_bytes=4, frozen_bytes=4,
        mlp_chunk_tokens=chunk, frozen=frozen,
    )  # fmt: skip
    return found, memory.device_bytes(run.model, run.adapter, run.optimizer, layout)


@pytest.mark.parametrize(
    ("rows", "tokens", "chunk"), [(4, 256, None), (2, 1024, 128)], ids=["4x256", "2x1024 in chunks"]
)
def test_the_estimate_of_a_qlora_step_is_near_the_compilers(
    rows: int, tokens: int, chunk: int | None
) -> None:
    assert_near(*compiled_and_estimated(rows, tokens, chunk))


# A plain base: under `none` and `dots` its own products are kept beside the adapters'.
@pytest.mark.parametrize(
    ("adapter", "remat"),
    [
        (BOTH, "none"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (NOTHING, "none"), (LORA, "none"), (DROPPED, "none"), (DORA, "none"),
                (LORA, "dots"), (DROPPED, "dots"), (DORA, "dots"), (BOTH, "dots"),
            ]
        ),
    ],
)  # fmt: skip
def test_the_estimate_knows_what_adapters_keep(adapter: str, remat: decoder_lib.Remat) -> None:
    assert_near(*compiled_and_estimated(4, 256, adapter=adapter, remat=remat, frozen="checkpoint"))


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "remat"), [(LORA, "dots"), (BOTH, "dots")])
def test_the_estimate_knows_what_adapters_on_codes_keep(
    adapter: str, remat: decoder_lib.Remat
) -> None:
    assert_near(*compiled_and_estimated(4, 256, adapter=adapter, remat=remat))


def assert_near(found: compile_lib.Memory, held: memory.DeviceBytes) -> None:
    ratio = found.temporaries / (held.total - held.arguments)
    print(f"temporaries {found.temporaries / 2**20:.1f} MiB, {ratio:.2f} of the estimate")
    assert BAND[0] <= ratio <= BAND[1]
    # Beside the arrays: the step, the key, the optimizer's counters.
    assert abs(found.arguments - held.arguments) <= 2 * memory.SCALAR_BYTES


def test_chunks_of_the_feed_forward_save_what_the_estimate_says() -> None:
    whole, whole_held = compiled_and_estimated(2, 1024)
    parts, parts_held = compiled_and_estimated(2, 1024, 128)
    saved = whole.temporaries - parts.temporaries
    said = whole_held.layer_work - parts_held.layer_work
    print(f"saved {saved / 2**20:.1f} MiB, said {said / 2**20:.1f} MiB")
    assert saved > 0
    assert 0.5 * said <= saved <= 2 * said
