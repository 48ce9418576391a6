"""The Python API: load, adapt, train, generate, save. The CLI's verbs call the same functions."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

from mistral_jax import adapter_set
from mistral_jax import adapter_source
from mistral_jax import artifact
from mistral_jax import convert
from mistral_jax import job
from mistral_jax import protocols
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax import templates
from mistral_jax.config import load as config_load
from mistral_jax.config import model as model_config
from mistral_jax.export import Exported
from mistral_jax.formats import locate
from mistral_jax.generate import engine
from mistral_jax.generate import sampler
from mistral_jax.models import adapter_start
from mistral_jax.models import definition as definition_lib

MAX_SEED = (1 << 32) - 1


def load(
    uri: str,
    *,
    compute: str = "bfloat16",
    adapters: Mapping[str, str | Path] | None = None,
) -> artifact.Artifact:
    """Open a checkpoint (any supported format), or a run directory at its best step.

    Args:
        uri: a folder, a file, `package:NAME`, or hf://, s3://, gs://.
        compute: bfloat16 or float32.
        adapters: PEFT folders or runs by name, likewise anywhere, to be used on this base one at a
            time (`generate`, `use_adapter`) or added up (`blend_adapters`); the first is in use.

    Raises:
        ValueError: nothing usable is there, or an adapter is another base's; the message says
            what was looked for.
    """
    if adapters is not None:  # a wrong path is told before minutes of loading
        adapters = {name: adapter_source.find(found) for name, found in adapters.items()}
    path = locate.local_path(str(uri))
    model = (
        artifact.load_run(path, compute=compute)
        if artifact.is_run(path)
        else artifact.load_checkpoint(path, compute=compute)
    )
    return model if adapters is None else adapter_set.open_adapters(model, adapters)


def use_adapter(model: artifact.Artifact, name: str) -> artifact.Artifact:
    """Return the model with another of its adapters in use; the base is shared.

    Raises:
        ValueError: it has none of this name.
    """
    return adapter_set.use(model, name)


def blend_adapters(model: artifact.Artifact, weights: Mapping[str, float]) -> artifact.Artifact:
    """Return the model with the weighted sum of its adapters' updates as its adapter.

    Raises:
        ValueError: an unknown name, a weight that is not finite, or DoRA adapters.
    """
    return adapter_set.blend(model, weights)


def adapt(
    model: artifact.Artifact,
    *,
    rank: int,
    alpha: float | int,
    kind: str = "lora",
    scaling: model_config.Scaling = "rank",
    target_modules: Sequence[model_config.TargetModule] = model_config.ALL_TARGET_MODULES,
    dropout: float = 0.0,
    seed: int = 0,
) -> artifact.Artifact:
    """Return the model with fresh adapters; it computes the same until they are trained.

    Args:
        model: from `load`, without adapters.
        rank, alpha, scaling, target_modules, dropout: as in a config's `adapter`.
        kind: lora, or dora.
        seed: of the draw.

    Raises:
        ValueError: the model has adapters already, the kind is unknown, or the seed is out of
            range.
    """
    _check_seed(seed)
    if model.definition.adapter.kind != "none":
        raise ValueError("the model has adapters already; merge or export them first")
    kinds = {"lora": model_config.LoraAdapter, "dora": model_config.DoraAdapter}
    if kind not in kinds:
        raise ValueError(f"adapter kind {kind!r}: expected {' or '.join(kinds)}")
    adapter = kinds[kind](
        rank=rank,
        alpha=float(alpha),
        scaling=scaling,
        dropout=dropout,
        target_modules=tuple(target_modules),
    )
    old = model.definition
    definition = definition_lib.define(old.config, adapter=adapter, runtime=old.runtime)
    fresh = adapter_start.start_adapters(
        definition, model.params, rng.seed_key(seed), sharding.single_device_mesh()
    )
    return dataclasses.replace(model, definition=definition, params=model.params | fresh)


def train(config: str | Path, *overrides: str, target: str = "local_cpu") -> job.Result:
    """Train as a config file says; `overrides` are `key=value`, or `fresh=true`. See job.train.

    Raises:
        ValueError: a mistake in the config or the data; the message says what to do.
    """
    others, is_fresh = config_load.split_fresh(overrides)
    return job.train(config_load.load_run(config, others), target=target, fresh=is_fresh)


def generate(
    model: artifact.Artifact,
    prompts: list[str],
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    is_raw: bool = False,
    adapter: str | None = None,
) -> list[protocols.Completion]:
    """Return one completion for each prompt.

    Args:
        model: from `load`.
        prompts: texts; put into the model's chat template where it has one, unless `is_raw`.
        max_tokens: most new tokens.
        temperature: 0 is greedy.
        top_k, top_p: limits on sampling.
        seed: prompt i draws by seed + i, whoever shares the batch.
        is_raw: plain continuation.
        adapter: the name of one of the model's adapters; None is the one in use.

    Raises:
        ValueError: a limit or the seed is out of range, or a prompt is empty or too long.
    """
    _check_seed(seed, count=len(prompts))
    if adapter is not None:
        model = adapter_set.use(model, adapter)
    sampling = sampler.Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    generator = engine.TextGenerator(model.definition, model.params, model.tokenizer, sampling)
    if is_raw:
        tokenizer = model.tokenizer
        encoded = [tokenizer.encode(text, bos=tokenizer.add_bos) for text in prompts]
    else:
        encoded = [templates.prompt_tokens(text, model.tokenizer) for text in prompts]
    return generator.complete(encoded, max_tokens=max_tokens, seed=seed)


def save(
    model: artifact.Artifact, destination: str | Path, *, format: str, dtype: str = "bfloat16"
) -> Exported:
    """Write a model, reload it, and return what was written with the parity number.

    Args:
        model: from `load` or `adapt`.
        destination: folder, or a .gguf file; on this machine, in s3:// or gs://.
        format: hf, consolidated, gguf, or peft for the adapter alone.
        dtype: float32, float16, bfloat16; for gguf also q8_0.
    """
    return convert.export_artifact(model, destination, format=format, dtype=dtype)


def _check_seed(seed: int, *, count: int = 1) -> None:
    # jax.random.key takes 32 bits: a larger seed would draw what a smaller one draws.
    if not 0 <= seed <= MAX_SEED - (count - 1):
        raise ValueError(f"seed must be 0 to {MAX_SEED - (count - 1)}, got {seed}")
