"""Dense pretraining step (12 layers, width 512, vocabulary 32k, 8x512, float32) against torch.

Same initial weights, same batch, AdamW; the first three losses must agree before the timing.
`python benchmarks/dense_step.py [--rounds 5]`.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import measure
from benchmarks import train_rows
from mistral_jax import export
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers

SHAPE = model_config.DecoderConfig(
    num_layers=12,
    width=512,
    num_heads=8,
    num_kv_heads=4,
    head_width=64,
    vocab_size=32768,
    ffn=model_config.DenseFfn(width=1408),
    rope=model_config.DefaultRope(theta=1e4),
    max_positions=1024,
)
ROWS, LENGTH = 8, 512
GOAL = 1.2


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    options = parser.parse_args()
    runtime = decoder_lib.Runtime(attention="banded", remat=options.remat)
    definition = definition_lib.define(SHAPE, runtime=runtime)
    mesh = sharding.single_device_mesh()
    params = definition_lib.initialise(definition, rng.seed_key(0), mesh)
    batch = train_rows.random_batch(ROWS, LENGTH, SHAPE.vocab_size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export.write_model(
            readers.TreeReader(params, SHAPE), folder / "model",
            format="hf", dtype="float32", tokenizer=None, name="dense",
        )  # fmt: skip
        peer = measure.PeerProcess(
            "torch_step.py", "full", str(folder / "model"), "-",
            str(train_rows.save_batch(batch, folder / "batch.npz")), "float32",
            str(train_rows.LEARNING_RATE),
        )  # fmt: skip
        ours = train_rows.make_step(definition, params, {}, batch)
        for index in range(3):
            our_loss, peer_loss = ours.run()[1], peer.ask("step")["loss"]
            measure.check_close(f"step {index}", our_loss, peer_loss, 5e-3)
        rounds = measure.interleave(
            measure.burst(lambda: ours.run()[0]),
            measure.burst(lambda: peer.ask("step")["seconds"]),
            num_rounds=options.rounds,
            num_warm=0,
        )
        peer.close()
    tokens = ROWS * LENGTH
    measure.report(
        "dense pretraining step, 12 layers of 512, vocabulary 32k, 8x512, float32",
        value=round(tokens / statistics.median(rounds.ours), 1),
        unit="tokens/s",
        peer="transformers MistralForCausalLM, torch AdamW (sdpa)",
        peer_value=round(tokens / statistics.median(rounds.peer), 1),
        ratio=round(rounds.speedup, 2),
        goal=GOAL,
        shapes={"parameters": definition.num_parameters(), "remat": options.remat},
        versions=peer.versions,
        n=options.rounds,
        spread=measure.spread([tokens / seconds for seconds in rounds.ours], digits=1),
    )


if __name__ == "__main__":
    sys.exit(main())
