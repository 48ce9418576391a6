"""A training step of a whole model beside torch: what the rows dense, lora and compiling share.

The models hold the same hashed numbers. Each token's loss, the first gradient's norm and three
losses agree before anything is timed.
"""

import dataclasses
import statistics

import jax
import numpy as np

from benchmarks import train_rows
from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import shapes
from launch import arithmetic
from mistral_jax.config import model as model_config
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import loss as loss_lib

NUM_CHECKED_STEPS = 3
# Of losses, which lie near the logarithm of the vocabulary whatever the model does.
LOSS_TOLERANCE = 2e-3
# Of token losses about their mean and of gradient norms: two bf16 models, each with its own
# rounding in every layer; another mask or rotation puts them about 1 apart.
MODEL_TOLERANCE = 0.1
TINY_TOLERANCE = 2e-3


@dataclasses.dataclass(frozen=True)
class Job:
    """A training step.

    Attributes:
        name: for the metric.
        config: the model.
        adapter: None trains everything.
        num_rows, length: of the batch.
        remat: what our backward pass recomputes.
        both_gib: memory that our step and the peer's take together.
        peer: transformers, or plain torch with compiled layers.
        frozen: how the base is stored: as `precision.frozen` spells it.
        cap_gib: device memory that each side may take; None is all.
    """

    name: str
    config: model_config.DecoderConfig
    adapter: model_config.LoraAdapter | None
    num_rows: int
    length: int
    remat: decoder_lib.Remat
    both_gib: float
    peer: str
    frozen: str = "float32"
    cap_gib: float | None = None

    @property
    def num_tokens(self) -> int:
        """Return how many tokens a step has."""
        return self.num_rows * self.length


def model_tolerance(machine: device.Machine) -> float:
    """Return how far two models' results may lie apart."""
    return TINY_TOLERANCE if machine.is_tiny else MODEL_TOLERANCE


def define(machine: device.Machine, job: Job) -> definition_lib.Definition:
    """Return our model."""
    return shapes.define(
        machine, job.config, adapter=job.adapter, remat=job.remat, frozen=job.frozen
    )


def make(machine: device.Machine, job: Job) -> train_rows.FixedBatchStep:
    """Return our step with its numbers in place; trained ones are float32."""
    definition = define(machine, job)
    trained = definition.trainable_paths()
    frozen = [path for path in definition.shapes if path not in set(trained)]
    return train_rows.make_step(
        definition,
        shapes.numbers(definition, trained, np.dtype(np.float32)),
        shapes.numbers(definition, frozen, machine.dtype),
        train_rows.random_batch(job.num_rows, job.length, job.config.vocab_size),
    )


def token_losses(machine: device.Machine, job: Job, step: train_rows.FixedBatchStep) -> np.ndarray:
    """Return the first row's losses, token by token."""
    definition = define(machine, job)
    batch = {name: array[0, :1] for name, array in step.batch.items()}

    @jax.jit
    def losses(params: definition_lib.Params, batch: dict) -> jax.Array:
        model = definition.bind(params)
        hidden, *_ = model.hidden(batch["tokens"], batch["positions"])
        flat = hidden.reshape(-1, hidden.shape[-1])
        return loss_lib.token_losses(flat, model.head_kernel(), batch["targets"].reshape(-1))

    return np.asarray(losses(step.frozen | step.state.params, batch))


def check_tokens(ours: np.ndarray, peer: list[float], tolerance: float) -> float:
    """Return how far token losses lie apart, relative to how much they differ among themselves."""
    left, right = ours - ours.mean(), np.asarray(peer) - np.mean(peer)
    return device.check("token by token", left, right, tolerance)


def measured(machine: device.Machine, peer: device.Peer, job: Job) -> device.Line:
    """Check, then time our step beside the peer's, in turns where memory allows."""
    is_shared = machine.memory_gib > job.both_gib
    expected = ask(machine, peer, job)
    if "error" in expected:
        peer.close()  # whatever it had loaded
    alone: list[float] = []
    if "error" not in expected and not is_shared:
        timer = peer.timer("step")
        alone = [timer() for _ in range(machine.rounds)]
        peer.close()
    step = make(machine, job)
    checks = check(machine, job, step, expected)
    ours = lambda: step.run()[0]  # noqa: E731
    in_turns = peer.timer("step") if "error" not in expected and is_shared else None
    rounds = device.race(ours, in_turns, num_rounds=machine.rounds)
    rounds.peer.extend(alone)
    return line(machine, job, expected, rounds, is_interleaved=is_shared, check=checks)


def ask(machine: device.Machine, peer: device.Peer, job: Job) -> device.Line:
    """Return the peer's losses; its model stays loaded."""
    loaded = peer.ask(
        "load",
        model=shapes.as_request(job.config, job.adapter),
        engine=job.peer,
        mode=_mode(job),
        cap_gib=job.cap_gib,
        is_checkpointed=job.remat == "full",
    )
    if "error" in loaded:
        return loaded
    answer = peer.ask(
        "train", num_rows=job.num_rows, length=job.length, num_steps=NUM_CHECKED_STEPS,
        learning_rate=train_rows.LEARNING_RATE,
    )  # fmt: skip
    return loaded | answer


def _mode(job: Job) -> str:
    if job.adapter is None:
        return "full"
    return "qlora" if job.frozen == "nf4" else "lora"


def check(
    machine: device.Machine, job: Job, step: train_rows.FixedBatchStep, expected: device.Line
) -> dict[str, float]:
    """Return how far losses and gradients lie apart; without a peer, that the loss falls."""
    if "error" in expected:
        losses = [step.run()[1] for _ in range(NUM_CHECKED_STEPS)]
        if not losses[-1] < losses[0]:
            raise device.CheckError(f"the loss does not fall on one batch: {losses}")
        return {"loss_fell_by": losses[0] - losses[-1]}
    tolerance = model_tolerance(machine)
    tokens = check_tokens(token_losses(machine, job, step), expected["token_losses"], tolerance)
    losses, norms = [], []
    for _ in range(NUM_CHECKED_STEPS):
        step.state, metrics = step.step(step.state, step.frozen, step.batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    return {
        "token_losses": tokens,
        "losses": device.check("losses", losses, expected["losses"], LOSS_TOLERANCE),
        "grad_norm": device.check(
            "gradient norm", norms[:1], expected["grad_norms"][:1], tolerance
        ),
    }


def line(machine: device.Machine, job: Job, expected: device.Line, rounds, **more) -> device.Line:
    """Return tokens a second, with the shares of the peaks that the model's FLOPs reach."""
    adapter = job.adapter or model_config.NoAdapter()
    flops = arithmetic.flops_per_token(job.config, adapter, job.length, "none").model
    seconds = statistics.median(rounds.ours)
    tflops = flops * job.num_tokens / 1e12 / seconds
    limit = None
    if machine.gemm_tflops:
        value = round(machine.gemm_tflops * 1e12 / flops, 1)
        limit = {"name": "model FLOPs at the matmul of this run", "value": value}
    if rounds.peer and len(rounds.peer) != len(rounds.ours):
        raise ValueError(f"{len(rounds.ours)} rounds of ours and {len(rounds.peer)} of the peer")
    return device.line(
        job.name,
        rounds,
        work=job.num_tokens,
        unit="tokens/s",
        peer=expected.get("error") or expected["name"],
        limit=limit,
        tflops=round(tflops, 3),
        peak_gib=device.peak_gib(),
        peer_peak_gib=expected.get("peak_gib"),
        flops_per_token=flops,
        shapes={
            "rows": job.num_rows,
            "tokens": job.length,
            "layers": job.config.num_layers,
            "width": job.config.width,
            "remat": job.remat,
            "adapter": job.adapter.rank if job.adapter else None,
            "frozen": job.frozen,
            "cap_gib": job.cap_gib,
        },
        **machine.shares(tflops),
        **more,
    )
