"""A model without numbers: its paths, counts and axes, and the numbers that it draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.config import presets
from mistral_jax.models import definition as definition_lib
from tests import tiny

TINY = tiny.decoder(61)
LORA = model_config.LoraAdapter(rank=4, alpha=8.0)


@pytest.mark.parametrize(
    ("preset", "count"),
    # As their publishers count them: Mistral-7B-v0.1 and v0.3, SmolLM2-135M.
    [
        ("mistral_7b_v0_1", 7_241_732_096),
        ("mistral_7b_v0_3", 7_248_023_552),
        ("smollm2_135m", 134_515_008),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset: str, count: int) -> None:
    definition = definition_lib.define(presets.PRESETS[preset])
    assert definition.num_parameters() == count
    assert definition.trainable_paths() == list(definition.shapes)


def test_every_parameter_names_an_axis_for_each_dimension() -> None:
    config = TINY.model_copy(update={"qkv_bias": True})
    definition = definition_lib.define(config, adapter=LORA)
    for path, shape in definition.shapes.items():
        axes = definition.axes[path]
        assert len(axes) == len(shape.shape), path
        assert (axes[0] == "layer") == path.startswith("layers/"), path
        assert set(axes) <= set(sharding.RULES), path
    assert set(definition.shardings(sharding.single_device_mesh())) == set(definition.shapes)


def test_tied_and_biased_models_have_the_parameters_of_their_kind() -> None:
    plain = set(definition_lib.define(TINY).shapes)
    qwen = set(
        definition_lib.define(TINY.model_copy(update={"tied_head": True, "qkv_bias": True})).shapes
    )
    assert plain - qwen == {"head/kernel"}
    assert qwen - plain == {f"layers/attention/{name}_proj/bias" for name in "qkv"}


@functools.cache
def define() -> definition_lib.Definition:
    return definition_lib.define(TINY)


@functools.cache
def drawn(seed: int) -> definition_lib.Params:
    return definition_lib.initialise(define(), rng.seed_key(seed), sharding.single_device_mesh())


def test_numbers_depend_on_the_key_and_the_path_alone() -> None:
    adapted = definition_lib.define(TINY, adapter=LORA)
    paths = ["layers/mlp/up_proj/kernel", "head/kernel"]
    mesh = sharding.single_device_mesh()
    some = definition_lib.initialise(adapted, rng.seed_key(0), mesh, paths)
    assert set(some) == set(paths)
    for path, value in some.items():
        np.testing.assert_array_equal(value, drawn(0)[path])
    assert not np.array_equal(drawn(1)["head/kernel"], drawn(0)["head/kernel"])


def test_layers_and_projections_start_different_and_with_the_configured_spread() -> None:
    params = drawn(0)
    up, gate = (np.asarray(params[f"layers/mlp/{name}_proj/kernel"]) for name in ("up", "gate"))
    assert not np.array_equal(up[0], up[1])
    assert not np.array_equal(up, gate)
    assert abs(up.std() / TINY.init_std - 1) < 0.05
    down = np.asarray(params["layers/mlp/down_proj/kernel"])
    assert abs(down.std() / (TINY.init_std / np.sqrt(2 * TINY.num_layers)) - 1) < 0.05
    np.testing.assert_array_equal(params["final_norm/scale"], 1)
    assert all(value.dtype == jnp.float32 for value in params.values())


def test_binding_gives_back_the_numbers_that_went_in() -> None:
    params = drawn(0)
    model = define().bind(params)
    assert model.head is not None
    np.testing.assert_array_equal(model.head.kernel[...], params["head/kernel"])
    np.testing.assert_array_equal(
        jax.tree.leaves(model.layers.mlp.up_proj.kernel)[0], params["layers/mlp/up_proj/kernel"]
    )
