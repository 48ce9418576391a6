"""A quantised base: loaded layer by layer, drawn, and the same model as its dequantised numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import export
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from mistral_jax.models import weights
from mistral_jax.nn import quantised
from tests import tiny

ADAPTER = model_config.LoraAdapter(rank=4, alpha=8.0, target_modules=("o_proj",))
MIXTURE = model_config.MoeFfn(width=64, num_experts=4, top_k=2)
LATENT = model_config.LatentAttention(
    latent_rank=64, query_rank=64, content_width=16, rotary_width=16, value_width=16
)
WIDE = {"width": 64, "num_heads": 4, "head_width": 32, "ffn": model_config.DenseFfn(width=128)}
SHAPES = {
    "dense": tiny.decoder(96, **WIDE, qkv_bias=True),
    "mixture": tiny.decoder(96, **WIDE | {"ffn": MIXTURE}),
    "latent": tiny.decoder(96, **WIDE | {"attention": LATENT, "num_kv_heads": 4}),
}  # fmt: skip
CASES = [("dense", "nf4"), ("dense", "int8"), ("mixture", "nf4"), ("latent", "nf4")]
MESH = sharding.single_device_mesh


@functools.cache
def define(name: str, frozen: str = "float32") -> definition_lib.Definition:
    return definition_lib.define(SHAPES[name], adapter=ADAPTER, frozen=frozen)


@functools.cache
def drawn(name: str) -> definition_lib.Params:
    return definition_lib.initialise(define(name), rng.seed_key(0), MESH())


@functools.cache
def packed(name: str, kind: str) -> definition_lib.Params:
    """Return the same draw with its projections quantised, by the host."""
    params = dict(drawn(name))
    for module in define(name, kind).quantised_modules():
        kernel = np.asarray(params.pop(module))
        stack, widths = kernel.shape[:-2], kernel.shape[-2:]
        parts = [
            quantised.from_host(one.T, kind, name=module) for one in kernel.reshape(-1, *widths)
        ]
        for part in parts[0]:
            array = np.stack([np.asarray(own[part]) for own in parts])
            params[f"{module}/{part}"] = jnp.asarray(array.reshape(*stack, *array.shape[1:]))
    return params


def split(definition, params):
    """Return moved adapters, so that B is not zero, and the base."""
    trained = definition.trainable_paths()
    generator = np.random.default_rng(1)
    adapters = {
        path: params[path] + jnp.asarray(generator.normal(0, 0.1, params[path].shape), jnp.float32)
        for path in trained
    }
    return adapters, {path: value for path, value in params.items() if path not in trained}


def dequantised(definition, params):
    """Return the parameters with plain kernels."""
    plain = {path: value for path, value in params.items() if "/kernel/" not in path}
    for module in definition.quantised_modules():
        start = f"{module}/"
        own = {p.removeprefix(start): v for p, v in params.items() if p.startswith(start)}
        plain[module] = jnp.asarray(quantised.to_host(own))
    return plain


def loss(definition, adapters, base):
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, 96, (2, 16)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(16, dtype=jnp.int32), tokens.shape)
    model = definition.bind(base | adapters)
    logits = model.logits(model.hidden(tokens, positions).hidden)
    return jnp.mean(jnp.square(logits)), logits


GRADIENTS = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True), static_argnums=0)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_logits_and_gradients_are_those_of_the_dequantised_base(name, kind):
    small, plain = define(name, kind), define(name)
    adapters, base = split(small, packed(name, kind))
    (_, logits), gradients = GRADIENTS(small, adapters, base)
    (_, expected), wanted = GRADIENTS(plain, adapters, dequantised(small, base))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)
    for path, gradient in wanted.items():
        scale = float(jnp.abs(gradient).max())
        assert scale > 0, path
        np.testing.assert_allclose(gradients[path], gradient, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_projection_is_quantised_and_nothing_else(name, kind):
    small, plain = define(name, kind), define(name)
    assert small.num_parameters() == plain.num_parameters()
    projections = {
        path
        for path in plain.shapes
        if path.startswith(definition_lib.STACKED_PREFIXES)
        and path.endswith("/kernel")
        and "/router/" not in path
    }
    assert set(small.quantised_modules()) == projections
    others = {path: shape for path, shape in small.shapes.items() if "/kernel/" not in path}
    assert others == {path: plain.shapes[path] for path in plain.shapes if path not in projections}


@pytest.mark.parametrize(("name", "kind"), [("dense", "nf4"), ("mixture", "int8")])
def test_a_drawn_base_is_the_plain_draw_quantised(name, kind):
    definition, plain = define(name, kind), drawn(name)
    small = definition_lib.initialise(definition, rng.seed_key(0), MESH())
    module = "layers/mlp/gate_proj/kernel"
    first = np.asarray(plain[module]).reshape(-1, *plain[module].shape[-2:])[0]
    expected = quantised.from_host(first.T, kind, name=module)
    for part, value in expected.items():
        found = np.asarray(small[f"{module}/{part}"])
        found = found.reshape(-1, *value.shape)[0]
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found, value, rtol=1e-5)
        else:
            assert np.mean(found == value) > 0.995, part
    for path in set(small) & set(plain):
        np.testing.assert_array_equal(small[path], plain[path], err_msg=path)


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [("dense", "nf4", "bfloat16"), ("dense", "int8", "float32"), ("mixture", "nf4", "bfloat16")],
)
def test_a_checkpoint_is_quantised_tensor_by_tensor(name, kind, dtype, tmp_path):
    config = SHAPES[name]
    reader = readers.TreeReader(drawn(name), config)
    export.write_model(
        reader, tmp_path / "base", format="hf", dtype=dtype, tokenizer=None, name="b"
    )
    small = define(name, kind)
    base = {path for path in small.shapes if path not in small.trainable_paths()}
    found = weights.load_params(small, tmp_path / "base", MESH(), dtype="checkpoint")
    assert set(found) == base
    file = weights.open_reader(tmp_path / "base")
    tree = readers.TreeReader(found, config)
    for module in small.quantised_modules():
        whole = file.read(module, (0,)).astype(np.float32)
        flat = whole.reshape(-1, *whole.shape[-2:])
        expected = [
            quantised.to_host(quantised.from_host(one.T, kind, name=module)) for one in flat
        ]
        # The reader of parameters in memory gives the stored numbers back.
        np.testing.assert_array_equal(tree.read(module, (0,)), np.reshape(expected, whole.shape))
        assert tree.dtype(module) == np.float32
    assert found["embed/embedding"].dtype == dtype


def test_a_width_without_whole_blocks_is_named():
    narrow = tiny.decoder(96)
    with pytest.raises(ValueError, match=r"layers/attention/\w+ has 32 inputs.*int8"):
        definition_lib.define(narrow, adapter=ADAPTER, frozen="nf4")


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_kernel_of_experts_is_kept_for_the_backward_pass(remat):
    old = define("mixture", "nf4")
    runtime = old.runtime.__class__(remat=remat)
    small = definition_lib.define(SHAPES["mixture"], adapter=ADAPTER, frozen="nf4", runtime=runtime)
    adapters, base = split(small, packed("mixture", "nf4"))
    pull = jax.eval_shape(
        lambda adapters, base: jax.vjp(lambda own: loss(small, own, base)[0], adapters)[1],
        adapters,
        base,
    )
    kept = jax.tree.leaves(pull)
    # [.., experts, in, out] of either projection, stacked over layers or not.
    wide = [leaf for leaf in kept if leaf.shape[-3:] == (4, 64, 64) and leaf.dtype == jnp.float32]
    assert not wide
    assert any(leaf.dtype == jnp.uint8 for leaf in kept)
