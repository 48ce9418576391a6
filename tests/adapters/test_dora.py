"""DoRA: equal to the base at the start, its formula in NumPy, the detached norm, merging."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.adapters import dora
from mistral_jax.adapters import lora
from mistral_jax.adapters import merging
from mistral_jax.config import model as model_config
from mistral_jax.config import presets
from mistral_jax.models import adapter_start
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from mistral_jax.nn import layers
from tests import tiny

IN, OUT, RANK, ALPHA = 12, 10, 3, 6.0
CONFIG = tiny.decoder(61, qkv_bias=True, init_std=0.2)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 8)), jnp.int32)


def settings(**changes: object) -> model_config.DoraAdapter:
    return model_config.DoraAdapter.model_validate({"rank": RANK, "alpha": ALPHA, **changes})


@pytest.fixture
def module() -> dora.DoraLinear:
    """Return one projection whose adapter has moved."""
    generator = np.random.default_rng(1)
    base = layers.Linear(
        IN, OUT, axes=("embed", "mlp"), init_std=0.3, compute_dtype=np.dtype(np.float32),
        has_bias=True, rngs=nnx.Rngs(0),
    )  # fmt: skip
    base.bias[...] = jnp.asarray(generator.normal(size=OUT), jnp.float32)
    made = dora.DoraLinear(base, settings(), key=rng.seed_key(0))
    made.lora_b[...] = jnp.asarray(generator.normal(size=(RANK, OUT)), jnp.float32)
    made.lora_magnitude[...] *= jnp.asarray(generator.uniform(0.5, 2, OUT), jnp.float32)
    return made


def whole(module: dora.DoraLinear) -> np.ndarray:
    """Return magnitude * (W + scale A B) / |W + scale A B| in float64."""
    kernel, lora_a, lora_b, magnitude = (
        np.asarray(value[...], np.float64)
        for value in (module.kernel, module.lora_a, module.lora_b, module.lora_magnitude)
    )
    turned = kernel + ALPHA / RANK * lora_a @ lora_b
    return magnitude * turned / np.linalg.norm(turned, axis=0)


def test_a_module_computes_the_papers_formula(module: dora.DoraLinear) -> None:
    x = np.random.default_rng(2).normal(size=(2, 5, IN)).astype(np.float32)
    expected = x @ whole(module) + np.asarray(module.bias[...])
    np.testing.assert_allclose(module(jnp.asarray(x)), expected, atol=2e-5)
    np.testing.assert_allclose(module.whole_kernel(), whole(module), atol=1e-5)


def test_merging_is_the_same_formula_in_the_kernels_dtype(module: dora.DoraLinear) -> None:
    arrays = [np.asarray(p[...]) for p in (module.kernel, module.lora_a, module.lora_b)]
    magnitude = np.asarray(module.lora_magnitude[...])
    out = merging.merged(*arrays, module.scale, magnitude)
    np.testing.assert_allclose(out, whole(module), atol=1e-5)
    narrow = merging.merged(
        arrays[0].astype(ml_dtypes.bfloat16), *arrays[1:], module.scale, magnitude
    )
    assert narrow.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(narrow.astype(np.float32), whole(module), rtol=2e-2, atol=1e-2)


def test_the_norm_gets_no_gradient_and_the_magnitude_does(module: dora.DoraLinear) -> None:
    graph, state = nnx.split(module)
    flat = {str(path[-1]): leaf[...] for path, leaf in nnx.to_flat_state(state)}
    x = jnp.asarray(np.random.default_rng(3).normal(size=(4, IN)), jnp.float32)
    norms = np.linalg.norm(
        np.asarray(flat["kernel"]) + module.scale * np.asarray(flat["lora_a"] @ flat["lora_b"]),
        axis=0,
    )

    def ours(params):
        return jnp.sum(jnp.sin(nnx.merge(graph, nnx.State(params))(x)))

    def with_constant_norms(params):
        turned = params["kernel"] + module.scale * params["lora_a"] @ params["lora_b"]
        kernel = params["lora_magnitude"] / norms * turned
        return jnp.sum(jnp.sin(x @ kernel + params["bias"]))

    found, expected = jax.grad(ours)(flat), jax.grad(with_constant_norms)(flat)
    for name in ("lora_a", "lora_b", "lora_magnitude"):
        assert np.abs(expected[name]).max() > 1e-3
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5, err_msg=name)


def test_an_output_without_weights_stays_zero() -> None:
    norms = dora.column_norms(jnp.zeros((4, 2), jnp.float32))
    assert np.all(norms > 0) and np.all(norms < 1e-10)


@functools.cache
def define() -> definition_lib.Definition:
    return definition_lib.define(CONFIG, adapter=settings())


@functools.partial(jax.jit, static_argnums=0)
def logits_of(definition, params):
    model = definition.bind(params)
    positions = jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32), TOKENS.shape)
    return model.logits(model.hidden(TOKENS, positions)[0])


def test_a_fresh_adapter_on_a_loaded_base_computes_what_the_base_does_and_merges() -> None:
    """The base is another than the draw's own, as one that comes out of a file."""
    plain = definition_lib.define(CONFIG)
    mesh = sharding.single_device_mesh()
    base = definition_lib.initialise(plain, rng.seed_key(7), mesh)
    fresh = adapter_start.start_adapters(define(), base, rng.seed_key(0), mesh)
    magnitude = fresh["layers/mlp/down_proj/lora_magnitude"]
    kernel = np.asarray(base["layers/mlp/down_proj/kernel"])
    np.testing.assert_allclose(magnitude, np.linalg.norm(kernel, axis=1), rtol=1e-6)
    assert define().axes["layers/mlp/down_proj/lora_magnitude"] == ("layer", "embed")
    expected = logits_of(plain, base)
    np.testing.assert_allclose(logits_of(define(), base | fresh), expected, atol=1e-5)

    generator = np.random.default_rng(1)
    moved = {
        path: value * jnp.asarray(generator.uniform(0.8, 1.2, value.shape), jnp.float32)
        + (0.1 * generator.normal(size=value.shape) if path.endswith(lora.B) else 0)
        for path, value in fresh.items()
    }
    unmerged = logits_of(define(), base | moved)
    assert np.abs(unmerged - expected).max() > 0.1
    arrays = {path: np.asarray(value) for path, value in moved.items()}
    reader = readers.MergedReader(readers.TreeReader(base, CONFIG), arrays, settings())
    merged = {
        path: jnp.stack([reader.read(path, (layer,)) for layer in range(2)])
        if path.startswith("layers/")
        else value
        for path, value in base.items()
    }
    np.testing.assert_allclose(logits_of(plain, merged), unmerged, atol=5e-5)


def test_no_kernel_is_drawn_for_a_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its norm comes from the loaded base; a drawn one would need the whole base in float32."""
    mesh, asked = sharding.single_device_mesh(), []
    base = definition_lib.initialise(definition_lib.define(CONFIG), rng.seed_key(7), mesh)
    initialise = definition_lib.initialise

    def noting(definition, key, mesh, paths=None):
        asked.extend(paths)
        return initialise(definition, key, mesh, paths)

    monkeypatch.setattr(definition_lib, "initialise", noting)
    fresh = adapter_start.start_adapters(define(), base, rng.seed_key(0), mesh)
    assert set(fresh) == set(define().trainable_paths())
    assert asked and {path.rpartition("/")[2] for path in asked} == {lora.A, lora.B}


def test_seven_modules_of_mistral_7b_have_1376256_magnitudes() -> None:
    shape = presets.PRESETS["mistral_7b_v0_3"]
    definition = definition_lib.define(shape, adapter=settings(rank=16))
    paths = definition.trainable_paths()
    magnitudes = [path for path in paths if path.endswith(lora.MAGNITUDE)]
    assert definition.num_parameters(magnitudes) == 1_376_256
    assert definition.num_parameters(paths) == 41_943_040 + 1_376_256


def test_a_magnitude_is_not_dropped_out_and_the_adapter_is(module: dora.DoraLinear) -> None:
    base = module
    dropping = dora.DoraLinear(base, settings(dropout=0.5), key=rng.seed_key(0))
    x = jnp.ones((1, IN), jnp.float32)
    # B is zero: what is dropped has no weight, whatever the key.
    np.testing.assert_array_equal(dropping(x, dropout_key=rng.seed_key(1)), dropping(x))
    dropping.lora_b[...] = base.lora_b[...]
    drawn = dropping(x, dropout_key=rng.seed_key(1))
    assert np.abs(np.asarray(drawn - dropping(x))).max() > 1e-3
