"""LoRA: equal to the base at the start, to the merged model always; only the asked-for modules."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.adapters import attach
from mistral_jax.adapters import lora
from mistral_jax.adapters import merging
from mistral_jax.config import model as model_config
from mistral_jax.config import presets
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers

TINY = model_config.DecoderConfig(
    num_layers=2, width=32, num_heads=4, num_kv_heads=2, head_width=8, vocab_size=61,
    ffn=model_config.DenseFfn(width=48), rope=model_config.DefaultRope(theta=1e4),
    max_positions=64, init_std=0.2, qkv_bias=True,
)  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 16)), jnp.int32)


def adapter(**changes: object) -> model_config.LoraAdapter:
    return model_config.LoraAdapter.model_validate({"rank": 4, "alpha": 8.0, **changes})


@functools.cache
def define(dropout: float = 0.0) -> definition_lib.Definition:
    return definition_lib.define(TINY, adapter=adapter(dropout=dropout))


@functools.cache
def fresh() -> definition_lib.Params:
    return definition_lib.initialise(define(), rng.seed_key(0), sharding.single_device_mesh())


@functools.cache
def trained() -> definition_lib.Params:
    """Return parameters whose adapters have moved: B is not zero."""
    generator = np.random.default_rng(1)
    params = dict(fresh())
    for path in define().trainable_paths():
        noise = generator.normal(size=params[path].shape) * 0.1
        params[path] = params[path] + jnp.asarray(noise, jnp.float32)
    return params


@functools.partial(jax.jit, static_argnums=0)
def logits_of(definition, params, dropout_key=None):
    model = definition.bind(params)
    positions = jnp.broadcast_to(jnp.arange(16, dtype=jnp.int32), TOKENS.shape)
    hidden, *_ = model.hidden(TOKENS, positions, dropout_key=dropout_key)
    return model.logits(hidden)


def base_only(params: definition_lib.Params) -> definition_lib.Params:
    return {path: value for path, value in params.items() if not lora.is_adapter_path(path)}


def test_a_fresh_adapter_computes_exactly_what_the_base_does() -> None:
    base = logits_of(definition_lib.define(TINY), base_only(fresh()))
    np.testing.assert_array_equal(logits_of(define(), fresh()), base)
    assert any(np.any(fresh()[path]) for path in define().trainable_paths())


def test_an_adapter_that_has_trained_changes_the_model() -> None:
    difference = np.abs(logits_of(define(), trained()) - logits_of(define(), fresh()))
    assert difference.max() > 0.1


def test_merged_equals_unmerged() -> None:
    arrays = {path: np.asarray(trained()[path]) for path in define().trainable_paths()}
    base = {path: np.asarray(value) for path, value in base_only(trained()).items()}
    reader = readers.MergedReader(readers.TreeReader(base, TINY), arrays, adapter())
    merged = {
        path: jnp.stack([reader.read(path, (layer,)) for layer in range(2)])
        if path.startswith("layers/")
        else jnp.asarray(reader.read(path, ()))
        for path in base
    }
    found = logits_of(definition_lib.define(TINY), merged)
    np.testing.assert_allclose(found, logits_of(define(), trained()), atol=2e-5)


def test_merging_adds_the_scaled_product_in_float32() -> None:
    generator = np.random.default_rng(0)
    kernel = np.ones((2, 6, 5), ml_dtypes.bfloat16)
    lora_a = generator.normal(size=(2, 6, 3)).astype(np.float32) * 0.05
    lora_b = generator.normal(size=(2, 3, 5)).astype(np.float32) * 0.05
    out = merging.merged(kernel, lora_a, lora_b, 2.0)
    expected = (1 + 2.0 * np.einsum("lir,lro->lio", lora_a, lora_b)).astype(ml_dtypes.bfloat16)
    assert out.dtype == kernel.dtype
    np.testing.assert_array_equal(out, expected)


def test_gradients_of_a_fresh_adapter_reach_b_and_not_yet_a() -> None:
    """B is zero, so A has no influence until B has moved; both get a gradient after that."""
    paths = define().trainable_paths()

    def gradients(params):
        frozen = base_only(params)

        def loss(adapters):
            return jnp.mean(jnp.square(logits_of(define(), frozen | adapters)))

        return jax.grad(loss)({path: params[path] for path in paths})

    for path, gradient in gradients(fresh()).items():
        assert np.any(gradient) == path.endswith("lora_b"), path
    for path, gradient in gradients(trained()).items():
        assert np.abs(np.asarray(gradient)).reshape(2, -1).max(axis=1).min() > 0, path


@pytest.mark.parametrize(("rank", "count"), [(16, 41_943_040), (64, 167_772_160)])
def test_trainable_count_of_mistral_7b_is_the_known_one(rank: int, count: int) -> None:
    definition = definition_lib.define(
        presets.PRESETS["mistral_7b_v0_3"], adapter=adapter(rank=rank, alpha=16.0)
    )
    paths = definition.trainable_paths()
    assert definition.num_parameters(paths) == count
    assert len(paths) == 7 * 2


def test_only_the_requested_modules_are_adapted() -> None:
    definition = definition_lib.define(
        TINY, adapter=adapter(target_modules=("q_proj", "down_proj"))
    )
    assert set(definition.trainable_paths()) == {
        f"layers/{path}/{name}"
        for path in ("attention/q_proj", "mlp/down_proj")
        for name in ("lora_a", "lora_b")
    }


def test_a_module_that_is_not_there_is_refused() -> None:
    layers = definition_lib.define(TINY).bind(base_only(fresh())).layers
    del layers.mlp.up_proj
    with pytest.raises(ValueError, match="the model has no up_proj"):
        attach.adapt([layers], adapter(target_modules=("q_proj", "up_proj")), key=rng.seed_key(0))


def test_a_starts_uniform_with_peft_bounds_and_differs_by_module_and_layer() -> None:
    down = np.asarray(fresh()["layers/mlp/down_proj/lora_a"])
    assert np.abs(down).max() <= 1 / np.sqrt(48)
    assert abs(down.std() * np.sqrt(3 * 48) - 1) < 0.1
    assert not np.array_equal(down[0], down[1])
    q, k = (np.asarray(fresh()[f"layers/attention/{name}_proj/lora_a"]) for name in "qk")
    assert not np.array_equal(q, k)


def test_dropout_acts_only_with_a_key_and_repeats_with_the_same_key() -> None:
    plain = np.asarray(logits_of(define(), trained()))
    dropping = define(dropout=0.5)
    np.testing.assert_array_equal(logits_of(dropping, trained()), plain)
    first, again, other = (
        np.asarray(logits_of(dropping, trained(), rng.seed_key(seed))) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - plain).max() > 1e-3
    # A key without dropout in the config changes nothing.
    np.testing.assert_array_equal(logits_of(define(), trained(), rng.seed_key(1)), plain)


def test_dropout_keeps_the_mean_and_drops_the_asked_share() -> None:
    """Seen on one module: the mean over many draws of its output is the output without dropout."""
    graph = define(dropout=0.25).bind(trained()).layers.attention.q_proj
    module = jax.tree.map(lambda leaf: leaf[0], graph)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 32)), jnp.float32)
    keys = jax.random.split(rng.seed_key(0), 4000)
    drawn = jax.jit(jax.vmap(lambda key: module(x, dropout_key=key)))(keys)
    error = np.abs(np.asarray(drawn.mean(axis=0) - module(x)))
    assert error.max() < 5 * np.asarray(drawn).std(axis=0).max() / np.sqrt(4000)
    assert np.asarray(drawn).std(axis=0).max() > 0.01
