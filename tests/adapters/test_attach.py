"""Adapters on a mixture: of every expert, shared experts, dense layers; and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.adapters import lora
from mistral_jax.config import model as model_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from tests import tiny

MIXTURE = model_config.MoeFfn(
    width=16, num_experts=4, num_groups=2, top_k=2, num_shared_experts=1, num_dense_layers=1,
    dense_width=24,
)  # fmt: skip
CONFIG = tiny.decoder(61, ffn=MIXTURE, init_std=0.2)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 8)), jnp.int32)
PLAIN = definition_lib.define(CONFIG)


def settings(**changes: object) -> model_config.LoraAdapter:
    return model_config.LoraAdapter.model_validate({"rank": 3, "alpha": 6.0, **changes})


@functools.partial(jax.jit, static_argnums=0)
def logits_of(definition, params):
    model = definition.bind(params)
    positions = jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32), TOKENS.shape)
    return model.logits(model.hidden(TOKENS, positions)[0])


def test_every_expert_has_its_own_adapter_beside_its_kernel() -> None:
    definition = definition_lib.define(CONFIG, adapter=settings(target_modules=("down_proj",)))
    shapes = {path: definition.shapes[path].shape for path in definition.trainable_paths()}
    assert shapes == {
        "dense_layers/mlp/down_proj/lora_a": (1, 24, 3),
        "dense_layers/mlp/down_proj/lora_b": (1, 3, 32),
        "layers/mlp/down_proj/lora_a": (1, 2, 2, 16, 3),
        "layers/mlp/down_proj/lora_b": (1, 2, 2, 3, 32),
        "layers/mlp/shared/down_proj/lora_a": (1, 16, 3),
        "layers/mlp/shared/down_proj/lora_b": (1, 3, 32),
    }
    axes = definition.axes["layers/mlp/down_proj/lora_a"]
    assert axes == ("layer", "group", "expert", "expert_hidden", "rank")


def test_fresh_adapters_change_nothing_and_trained_ones_equal_the_merged_mixture() -> None:
    definition = definition_lib.define(CONFIG, adapter=settings())
    params = definition_lib.initialise(definition, rng.seed_key(0), sharding.single_device_mesh())
    base = {path: value for path, value in params.items() if not lora.is_adapter_path(path)}
    expected = logits_of(PLAIN, base)
    np.testing.assert_allclose(logits_of(definition, params), expected, atol=1e-6)
    drawn = np.asarray(params["layers/mlp/gate_proj/lora_a"])[0].reshape(4, -1)
    assert len({row.tobytes() for row in drawn}) == 4
    assert np.abs(drawn).max() <= 1 / np.sqrt(32)

    generator = np.random.default_rng(1)
    adapters = {
        path: params[path] + jnp.asarray(generator.normal(size=params[path].shape) * 0.1)
        for path in definition.trainable_paths()
    }
    adapters = {path: value.astype(jnp.float32) for path, value in adapters.items()}
    unmerged = logits_of(definition, base | adapters)
    assert np.abs(unmerged - expected).max() > 0.1
    arrays = {path: np.asarray(value) for path, value in adapters.items()}
    reader = readers.MergedReader(readers.TreeReader(base, CONFIG), arrays, settings())
    merged = {
        path: reader.read(path, (0,))[None]
        if path.startswith(definition_lib.STACKED_PREFIXES)
        else value
        for path, value in base.items()
    }
    one = reader.read("layers/mlp/up_proj/kernel", (0, 1, 0))
    np.testing.assert_array_equal(one, merged["layers/mlp/up_proj/kernel"][0, 1, 0])
    np.testing.assert_allclose(logits_of(PLAIN, merged), unmerged, atol=5e-5)


def test_root_of_rank_scaling_is_rslora_s() -> None:
    assert settings(rank=16, alpha=8.0).scale == 0.5
    assert settings(rank=16, alpha=8.0, scaling="sqrt_rank").scale == 2.0


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            model_config.DoraAdapter(rank=2, alpha=4.0),
            "routed experts have no magnitude.*=lora",
        ),
        (settings(dropout=0.1), "routed experts have no dropout.*dropout=0"),
        (settings(target_modules=("q_proj", "q_a_proj")), "has no q_a_proj; it has down_proj, ga"),
    ],
    ids=["dora", "dropout", "absent"],
)
def test_what_a_mixture_cannot_have_is_refused(
    adapter: model_config.LowRankAdapter, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        definition_lib.define(CONFIG, adapter=adapter)


def test_attention_of_a_mixture_may_have_dropout_and_magnitudes() -> None:
    adapter = model_config.DoraAdapter(rank=2, alpha=4.0, dropout=0.1, target_modules=("q_proj",))
    paths = definition_lib.define(CONFIG, adapter=adapter).trainable_paths()
    assert sorted(paths) == [
        f"{stack}/attention/q_proj/{name}"
        for stack in ("dense_layers", "layers")
        for name in lora.ADAPTER_NAMES
    ]
