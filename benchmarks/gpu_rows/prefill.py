"""Prefill of Mistral 7B: 8192 tokens of one prompt to the logits of the last, bf16."""

import dataclasses
import sys
from collections.abc import Callable
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_rows import device
from benchmarks.gpu_rows import shapes
from benchmarks.gpu_rows import training
from launch import arithmetic
from mistral_jax.config import model as model_config
from mistral_jax.models import definition as definition_lib

SCRIPT = "gpu_model.py"
# Without a peer: attention by definition holds every score.
CHECKED_TOKENS = 1024
BOTH_GIB = 48


def flops(config: model_config.DecoderConfig, length: int) -> float:
    """Return the forward FLOPs of a prompt whose last token alone reaches the head."""
    adapter = model_config.NoAdapter()
    every = arithmetic.flops_per_token(config, adapter, length, "none").model / 3 * length
    return every - 2 * config.width * config.vocab_size * (length - 1)


def last_logits(definition: definition_lib.Definition) -> Callable:
    """Return (params, tokens [1, T]) to the logits of the last token."""

    def run(params: definition_lib.Params, tokens: jax.Array) -> jax.Array:
        model = definition.bind(params)
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        return model.logits(model.hidden(tokens, positions).hidden[:, -1:])[0, 0]

    return run


def ask(
    machine: device.Machine, peer: device.Peer, config: model_config.DecoderConfig, length: int
) -> device.Line:
    """Return the peer's logits; its model stays loaded beside ours."""
    if machine.memory_gib < BOTH_GIB:
        peer.close()
        return {"error": f"not run: two models need {BOTH_GIB} GiB"}
    answer = peer.ask(
        "load", model=shapes.as_request(config), engine="transformers", mode="infer",
        is_checkpointed=False,
    )  # fmt: skip
    if "error" not in answer:
        answer |= peer.ask("prefill", length=length)
    if "error" in answer:
        peer.close()  # whatever it had loaded
    return answer


def measured(machine: device.Machine, peer: device.Peer) -> device.Line:
    """Check the last logits against the peer's, or against attention by definition, then time."""
    config, length = machine.pick((shapes.SEVEN_B, 8192), (shapes.TINY, 96))
    answer = ask(machine, peer, config, length)
    definition = shapes.define(machine, config)
    call_of = last_logits(definition)
    params = shapes.numbers(definition, list(definition.shapes), machine.dtype)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, length), np.int32)

    call = device.Program(call_of, params, jnp.asarray(tokens))
    if "error" in answer:
        tokens = tokens[:, :CHECKED_TOKENS]
        runtime = dataclasses.replace(definition.runtime, attention="reference")
        oracle = last_logits(definition_lib.define(config, runtime=runtime))
        found, expected = (jax.jit(one)(params, tokens) for one in (call_of, oracle))
    else:
        found, expected = call(), answer["logits"]
    apart = device.check("last logits", found, expected, training.model_tolerance(machine))
    rounds = device.race(
        device.timer(call),
        None if "error" in answer else peer.timer("prefill"),
        num_rounds=machine.rounds,
    )
    return device.flops_line(
        machine,
        f"prefill, Mistral 7B, {length} tokens",
        rounds,
        flops=flops(config, length),
        peer=answer.get("error") or answer["name"],
        check=apart,
        peak_gib=device.peak_gib(),
        shapes={"tokens": length, "layers": config.num_layers},
    )


def lines(machine: device.Machine, peer: device.Peer) -> Iterator[device.Line]:
    """Yield the line."""
    yield device.guarded("prefill, Mistral 7B", lambda: measured(machine, peer))


if __name__ == "__main__":
    sys.exit(device.main(lines, SCRIPT))
