"""What a run is refused for before anything is written: machine, tokenizer, samples."""

import jax

from launch import target as target_lib
from mistral_jax import distributed
from mistral_jax import templates
from mistral_jax import tokenizers
from mistral_jax.config import model as model_config
from mistral_jax.config import run as run_config


def check_platform(machine: target_lib.Target) -> None:
    """Check that jax sees the devices of a target.

    Raises:
        ValueError: it sees others, or fewer.
    """
    found = jax.default_backend()
    if found != machine.platform or len(jax.devices()) < machine.num_chips:
        raise ValueError(
            f"target {machine.name} wants {machine.num_chips} {machine.platform} device(s), but "
            f"jax sees {len(jax.devices())} of {found}; choose another --target, or run "
            "`mistral-jax doctor`"
        )


def check_processes(machine: target_lib.Target) -> None:
    """Check that the run has as many processes as its target has hosts, with equal shares.

    Raises:
        ValueError: it has not; both counts are in the message.
    """
    local = machine.launcher.processes if machine.launcher.kind == "local" else 1
    wanted, found = max(machine.num_hosts, local), jax.process_count()
    if found != wanted:
        raise ValueError(
            f"target {machine.name} wants {wanted} process(es), one a host, but {found} take(s) "
            f"part; start one on each host with the same {distributed.COORDINATOR} (`mistral-jax "
            "launch` does), or choose another --target"
        )
    seen = jax.device_count()
    if found > 1 and seen != machine.num_chips:
        raise ValueError(
            f"target {machine.name} has {machine.num_chips} device(s), but the {found} processes "
            f"see {seen} together; use a target with num_chips: {seen} and a topology to match"
        )


def check_same_weights(digest: str | None) -> None:
    """Check that every process of the run has read the same base weights; all must call.

    Raises:
        ValueError: one has other files than process 0.
    """
    found = distributed.gather(digest)
    for index, other in enumerate(found):
        if other != found[0]:
            raise ValueError(
                f"model.weights are not the same on every host: process 0 has {found[0]}, process "
                f"{index} has {other}; copy the same files to all of them"
            )


def check_tokenizer(tokenizer: tokenizers.Tokenizer, decoder: model_config.DecoderConfig) -> None:
    """Check that the model has a row for every token.

    Raises:
        ValueError: it has too few.
    """
    if tokenizer.vocab_size > decoder.vocab_size:
        raise ValueError(
            f"data.tokenizer: {tokenizer.name} has {tokenizer.vocab_size} tokens, but the model's "
            f"vocabulary is {decoder.vocab_size}; use the model's own tokenizer (auto)"
        )


def check_samples(
    run: run_config.RunConfig,
    tokenizer: tokenizers.Tokenizer,
    decoder: model_config.DecoderConfig,
) -> None:
    """Check that the sample prompts and their completions fit into the model.

    Raises:
        ValueError: they are too long.
    """
    prompts = sample_prompts(run, tokenizer)
    longest = max((len(prompt) for prompt in prompts), default=0)
    new = run.evaluate.sample_max_tokens
    if prompts and longest + new > decoder.max_positions:
        raise ValueError(
            f"evaluate.sample_prompts: {longest} tokens and evaluate.sample_max_tokens {new} exceed"
            f" the model's {decoder.max_positions} positions; shorten one of them"
        )


def sample_prompts(run: run_config.RunConfig, tokenizer: tokenizers.Tokenizer) -> list[list[int]]:
    """Return the tokens of the prompts that a run shows samples of."""
    return [templates.prompt_tokens(text, tokenizer) for text in run.evaluate.sample_prompts]
