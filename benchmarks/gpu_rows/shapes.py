"""The models of the GPU rows, their hashed numbers, and how a peer is told to build the same."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import hashed
from mistral_jax.config import model as model_config
from mistral_jax.config import presets
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import attention
from mistral_jax.nn import quantised

INIT_STD = 0.02
LORA_B_STD = 1e-2
QLORA = model_config.LoraAdapter(rank=64, alpha=16.0)
LORA = model_config.LoraAdapter(rank=16, alpha=32.0)
TINY = model_config.DecoderConfig(
    num_layers=2, width=64, num_heads=4, num_kv_heads=2, head_width=16, vocab_size=256,
    ffn=model_config.DenseFfn(width=128), rope=model_config.DefaultRope(theta=1e4),
    max_positions=1024,
)  # fmt: skip
# 1.3B: 24 layers of 2048 with four query heads to a key head.
PRETRAINED = model_config.DecoderConfig(
    num_layers=24, width=2048, num_heads=16, num_kv_heads=4, head_width=128, vocab_size=32768,
    ffn=model_config.DenseFfn(width=6144), rope=model_config.DefaultRope(theta=1e4),
    max_positions=8192,
)  # fmt: skip
SEVEN_B = presets.PRESETS["mistral_7b_v0_3"]


def define(
    machine: device.Machine,
    config: model_config.DecoderConfig,
    *,
    adapter: model_config.Adapter | None = None,
    remat: decoder_lib.Remat = "none",
    frozen: str = "float32",
) -> definition_lib.Definition:
    """Return the model with the kernels that this platform gets by default."""
    chosen = attention.choose_implementation("auto", machine.platform, machine.dtype)
    runtime = decoder_lib.Runtime(compute_dtype=machine.dtype, attention=chosen, remat=remat)
    return definition_lib.define(config, adapter=adapter, runtime=runtime, frozen=frozen)


def numbers(
    definition: definition_lib.Definition, paths: list[str], dtype: np.dtype
) -> definition_lib.Params:
    """Return hashed parameters; norms are 1. Quantised kernels are made of the hashed ones."""
    kind = definition.frozen_kind
    plain = definition_lib.define(definition.config).shapes if kind else {}
    found: definition_lib.Params = {}
    for path in paths:
        room, _, name = path.rpartition("/")
        if not room.endswith("/kernel"):
            found[path] = _numbers(path, definition.shapes[path].shape, dtype)
        elif name == "codes":
            kernel = _numbers(room, plain[room].shape, dtype)
            packed = jax.jit(quantised.quantise, static_argnums=1)(kernel, kind)
            found |= {f"{room}/{part}": array for part, array in vars(packed).items()}
    return found


def _numbers(path: str, shape: tuple[int, ...], dtype: np.dtype) -> jnp.ndarray:
    name = path.rpartition("/")[2]
    if name == "scale":
        return jnp.ones(shape, dtype)
    scales = {"lora_a": shape[-2] ** -0.5, "lora_b": LORA_B_STD}
    scale = scales.get(name, INIT_STD)
    make = hashed.stack if path.startswith("layers/") else hashed.array
    return make(path, shape, scale=scale, dtype=dtype)


def as_request(
    config: model_config.DecoderConfig, adapter: model_config.LoraAdapter | None = None
) -> dict:
    """Return what the peer needs in order to build the same model."""
    return {
        "num_layers": config.num_layers,
        "width": config.width,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_width": config.head_width,
        "vocab_size": config.vocab_size,
        "hidden": config.ffn.width,
        "theta": config.rope.theta,
        "norm_epsilon": config.norm_epsilon,
        "max_positions": config.max_positions,
        "init_std": INIT_STD,
        "lora_b_std": LORA_B_STD,
        "rank": adapter.rank if adapter else 0,
        "alpha": adapter.alpha if adapter else 0.0,
    }
