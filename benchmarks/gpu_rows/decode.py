"""Greedy decoding of Mistral 7B, bf16, batch 1, 8 and 32: prompt 512, 128 new tokens.

The rate is that of the tokens after the first: the time of 1 + 128 tokens less that of 1. The limit
is bandwidth: every weight but the embedding, and the rows' keys and values, once a token. Checked
against one pass over prompt and completion without a cache.
"""

import functools
import statistics
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from benchmarks import measure
from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import shapes
from benchmarks.gpu_rows import training
from launch import arithmetic
from mistral_jax.config import model as model_config
from mistral_jax.generate import engine
from mistral_jax.generate import sampler
from mistral_jax.models import definition as definition_lib

SCRIPT = "gpu_model.py"
BATCHES, TINY_BATCHES = (1, 8, 32), (2,)
# Two greedy choices may differ where the two best logits are closer than bf16 tells apart.
NEAR_TIE = 0.25
# The peer's decoding takes seconds a round.
PEER_ROUNDS = 2


def bytes_per_token(
    config: model_config.DecoderConfig, batch: int, num_keys: float, item_bytes: int
) -> float:
    """Return what one step reads: all weights but the embedding, and each row's cache."""
    embedding = config.vocab_size * config.width
    weights = arithmetic.parameter_count(config) - embedding
    per_key = 2 * config.num_layers * config.num_kv_heads * config.head_width
    return item_bytes * (weights + batch * num_keys * per_key)


@functools.partial(jax.jit, static_argnums=(0, 3))
def log_probs_without_cache(
    definition: definition_lib.Definition,
    params: definition_lib.Params,
    row: Int[Array, "1 T"],
    prompt_length: int,
) -> Float[Array, "n V"]:
    """Return the log-probabilities of every token at each place of the completion."""
    model = definition.bind(params)
    positions = jnp.arange(row.shape[1], dtype=jnp.int32)[None]
    hidden = model.hidden(row, positions).hidden[:, prompt_length - 1 : -1]
    return jax.nn.log_softmax(model.logits(hidden)[0], axis=-1)


def expected_log_probs(
    definition: definition_lib.Definition,
    params: definition_lib.Params,
    prompt: list[int],
    generated: engine.Generated,
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for the first row, the chosen tokens' log-probabilities and the greatest ones."""
    chosen = np.asarray(generated.tokens[0])
    row = jnp.asarray([prompt + generated.tokens[0]], jnp.int32)
    found = np.asarray(log_probs_without_cache(definition, params, row, len(prompt)))
    return found[np.arange(len(chosen)), chosen], found.max(axis=-1)


def check_greedy(chosen: np.ndarray, greatest: np.ndarray) -> float:
    """Return how many nats a chosen token lies behind the likeliest at most.

    Raises:
        CheckError: too many.
    """
    behind = float(np.max(greatest - chosen))
    if not behind <= NEAR_TIE:
        raise device.CheckError(f"decoding chose a token {behind:.2f} nats behind the likeliest")
    return behind


def seconds_after_first(run, num_new: int) -> float:
    """Return the seconds of num_new tokens after the first."""
    elapsed = []
    for count in (1, 1 + num_new):
        started = time.perf_counter()
        run(count)
        elapsed.append(time.perf_counter() - started)
    return max(elapsed[1] - elapsed[0], 1e-9)


def measured(
    machine: device.Machine,
    definition: definition_lib.Definition,
    params: definition_lib.Params,
    peer_answer: device.Line,
    batch: int,
) -> device.Line:
    """Check, then time beside what the peer took before."""
    config = definition.config
    prompt_length, num_new = lengths(machine)
    prompts = np.random.default_rng(0).integers(
        0, config.vocab_size, (batch, prompt_length), np.int32
    )
    prompts = prompts.tolist()

    def run(count: int) -> engine.Generated:
        return engine.generate_tokens(definition, params, prompts, max_tokens=count)

    run(1)
    greedy = run(1 + num_new)
    checks = {
        "nats_behind": check_greedy(*expected_log_probs(definition, params, prompts[0], greedy))
    }
    if batch == machine.pick(BATCHES, TINY_BATCHES)[0]:
        # Drawn tokens: the likeliest ones' log-probabilities hardly differ from each other.
        drawn = engine.generate_tokens(
            definition, params, prompts, max_tokens=1 + num_new,
            sampling=sampler.Sampling(temperature=1.0),
        )  # fmt: skip
        chosen, _ = expected_log_probs(definition, params, prompts[0], drawn)
        checks["log_probs"] = training.check_tokens(
            chosen, drawn.log_probs[0], training.model_tolerance(machine)
        )
    ours = [seconds_after_first(run, num_new) for _ in range(machine.rounds)]
    theirs = peer_answer.get("seconds", [])
    rate = batch * num_new / statistics.median(ours)
    keys = prompt_length + num_new / 2
    size_bytes = bytes_per_token(config, batch, keys, machine.dtype.itemsize)
    limits = {name: batch * gb * 1e9 / size_bytes for name, gb in machine.bandwidth().items()}
    limit = next(
        (
            {"name": f"bytes at the {source} rate", "value": round(limits[source], 1)}
            for source in ("copy", "spec")
            if source in limits
        ),
        None,
    )
    found = device.line(
        f"decode, Mistral 7B, batch {batch}, prompt {prompt_length}, +{num_new}",
        measure.Rounds(ours, []),
        work=batch * num_new,
        unit="tokens/s",
        peer=peer_answer.get("error") or peer_answer["name"],
        limit=limit,
        check=checks,
        is_interleaved=False,
        limits={name: round(value, 1) for name, value in limits.items()},
        gigabytes_per_token=round(size_bytes / 1e9, 3),
        peak_gib=device.peak_gib(),
        shapes={"batch": batch, "prompt": prompt_length, "new": num_new},
    )
    if theirs:
        peer_rate = batch * num_new / statistics.median(theirs)
        found |= {"peer_value": round(peer_rate, 1), "ratio": round(rate / peer_rate, 3)}
    return found


def lengths(machine: device.Machine) -> tuple[int, int]:
    """Return the tokens of a prompt, and how many are added after the first."""
    return machine.pick((512, 128), (16, 8))


def ask(machine: device.Machine, peer: device.Peer) -> dict[int, device.Line]:
    """Return the peer's seconds by batch; it ends before our model needs the memory."""
    config = machine.pick(shapes.SEVEN_B, shapes.TINY)
    prompt_length, num_new = lengths(machine)
    loaded = peer.ask(
        "load", model=shapes.as_request(config), engine="transformers", mode="infer",
        is_checkpointed=False,
    )  # fmt: skip
    found = {}
    for batch in machine.pick(BATCHES, TINY_BATCHES):
        answer = loaded
        if "error" not in loaded:
            answer = loaded | peer.ask(
                "decode", batch=batch, prompt_length=prompt_length, num_new=num_new,
                num_rounds=PEER_ROUNDS,
            )  # fmt: skip
        found[batch] = answer
    peer.close()
    return found


def lines(machine: device.Machine, peer: device.Peer) -> Iterator[device.Line]:
    """Yield a line for each batch."""
    config = machine.pick(shapes.SEVEN_B, shapes.TINY)
    answers = ask(machine, peer)
    definition = shapes.define(machine, config)
    params = shapes.numbers(definition, list(definition.shapes), machine.dtype)
    for batch, answer in answers.items():
        yield device.guarded(
            f"decode, Mistral 7B, batch {batch}",
            functools.partial(measured, machine, definition, params, answer, batch),
        )


if __name__ == "__main__":
    sys.exit(device.main(lines, SCRIPT))
