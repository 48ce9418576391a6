"""The loop's steady cost: steps of a real run (data, metrics, prefetch) against the bare step.

Both train the tiny decoder on the same prepared documents, in one process and in turns; the loop's
losses must equal the bare step's in every bit. `python benchmarks/loop_overhead.py`.
"""

import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
from rich.console import Console

from benchmarks import measure
from data_pipelines import inputs
from mistral_jax import checkpoint
from mistral_jax import datasets
from mistral_jax import metrics
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax import tokenizers
from mistral_jax.config import load
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.train import loop
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib

ROOT = Path(__file__).resolve().parent.parent
STEPS, ROUNDS = 40, 5
GOAL = 0.98


def main() -> None:
    """Check, measure, print."""
    with tempfile.TemporaryDirectory() as name:
        print_line(Path(name))


def print_line(folder: Path) -> None:
    """Measure in a folder and print the line."""
    run = load.load_run(
        ROOT / "configs" / "tiny" / "dense.yaml",
        [f"data.train={ROOT / 'docs'}", f"optimizer.max_steps={STEPS}", "model.num_layers=8",
         "model.width=256", "model.ffn.width=768", "data.eval_fraction=0.0",
         "checkpoint.every_steps=1000000", "evaluate.every_steps=1000000"],
    )  # fmt: skip
    mesh = sharding.single_device_mesh()
    definition = definition_lib.define(run.model, runtime=decoder_lib.Runtime())
    optimizer = optimizers.make_optimizer(run.optimizer)
    step = step_lib.make_train_step(
        definition, run.stage, optimizer, optimizers.learning_rate(run.optimizer)
    )
    with contextlib.redirect_stdout(io.StringIO()):
        data = inputs.open_sources(run.data, tokenizers.load_tokenizer("bytes"), folder / "data")

    def fresh_state() -> state_lib.TrainState:
        params = definition_lib.initialise(definition, rng.seed_key(0), mesh)
        return state_lib.create(params, optimizer, 0, mesh, definition.shardings(mesh))

    def parts(number: int) -> loop.Parts:
        where = folder / f"run{number}"
        return loop.Parts(
            run=run, mesh=mesh, train_step=step, eval_step=lambda *_: (), frozen={},
            stream=datasets.train_stream(run, data, state=None), eval_sets={}, accumulation=1,
            checkpointer=checkpoint.Checkpointer(where / "checkpoints", run.checkpoint),
            writer=metrics.MetricsWriter(
                where, total_steps=STEPS, console=Console(file=io.StringIO())
            ),
            flops_per_step=None, peak_flops_per_s=None, take_samples=None,
            save_evaluation=lambda *_: None,
        )  # fmt: skip

    stream = datasets.train_stream(run, data, state=None)
    first = parts(-1)
    batches = [loop.place_micro_batches(next(stream), first) for _ in range(STEPS)]
    bare_losses: list[float] = []

    def bare() -> float:
        state = fresh_state()
        bare_losses.clear()
        jax.block_until_ready(state)
        started = time.monotonic()
        with jax.set_mesh(mesh):  # as the loop does; another context is another program
            for batch in batches:
                state, values = step(state, {}, batch)
                bare_losses.append(float(values["loss"]))
        return (time.monotonic() - started) / STEPS

    counter = iter(range(1000))

    def looped() -> float:
        made = parts(next(counter))
        outcome = loop.fit(made, fresh_state(), start_step=0)
        made.writer.close()
        made.checkpointer.close()
        losses = [row["loss"] for row in metrics.read_metrics(made.writer.path).steps]
        if losses != bare_losses:
            raise SystemExit("the loop's losses are not the bare step's")
        assert outcome.seconds_per_step is not None
        return outcome.seconds_per_step

    bare()
    rounds = measure.interleave(looped, bare, num_rounds=ROUNDS)
    measure.report(
        "steady cost of the loop: bare step / loop's median step",
        value=round(statistics.median(rounds.ours) * 1e3, 2),
        unit="ms a step",
        peer="the bare jitted step on batches in memory",
        peer_value=round(statistics.median(rounds.peer) * 1e3, 2),
        ratio=round(rounds.speedup, 3),
        goal=GOAL,
        shapes={"parameters": definition.num_parameters(), "rows": 8, "tokens": 256},
        n=ROUNDS,
        spread=measure.spread([seconds * 1e3 for seconds in rounds.ours], digits=2),
    )


if __name__ == "__main__":
    sys.exit(main())
