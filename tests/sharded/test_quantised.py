"""A quantised base on a mesh: the numbers of one device, codes gathered and not kernels."""

import functools
import re
import types

import jax
import numpy as np
import pytest

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import context_parallel
from mistral_jax.nn import expert_parallel
from tests import tiny as tiny_decoder

pytestmark = pytest.mark.sharded

WIDE = {"width": 256, "num_heads": 4, "head_width": 64, "max_positions": 16}
MIXTURE = model_config.MoeFfn(
    width=128, num_experts=4, top_k=2, num_groups=2, groups_per_token=2, num_shared_experts=1
)
LATENT = model_config.LatentAttention(
    latent_rank=64, query_rank=128, content_width=32, rotary_width=32, value_width=64
)
DENSE = tiny_decoder.decoder(64, **WIDE, ffn=model_config.DenseFfn(width=384))
DECODERS = {
    "dense": DENSE,
    "dora": DENSE,
    "mixture": tiny_decoder.decoder(64, **WIDE, ffn=MIXTURE),
    "experts": tiny_decoder.decoder(64, **WIDE, ffn=MIXTURE),
    "latent": tiny_decoder.decoder(
        64, **WIDE, num_kv_heads=4, attention=LATENT, ffn=model_config.DenseFfn(width=128)
    ),
}
ADAPTER = model_config.LoraAdapter(rank=4, alpha=8.0, target_modules=("q_proj", "o_proj"))
ADAPTERS = {
    "dora": model_config.DoraAdapter(rank=4, alpha=8.0),
    "experts": model_config.LoraAdapter(rank=4, alpha=8.0),
    "latent": model_config.DoraAdapter(rank=4, alpha=8.0, target_modules=("kv_b_proj", "o_proj")),
}
CASES = [
    ("dense", "nf4", {"fsdp": 2, "tensor": 2}),
    ("dense", "int8", {"fsdp": 2, "tensor": 2}),
    ("mixture", "nf4", {"fsdp": 2, "tensor": 2}),
    ("mixture", "nf4", {"expert": 2, "tensor": 2}),
    # Blocks of 64 inputs divide over no eight devices: codes are whole where kernels would not be.
    ("dora", "nf4", {"fsdp": 8}),
    ("experts", "nf4", {"expert": 2, "fsdp": 2, "tensor": 2}),
    ("latent", "nf4", {"context": 2, "tensor": 2}),
]


@functools.cache
def numbers(name: str, kind: str) -> dict[str, np.ndarray]:
    """Return a model's parameters, with adapters that have moved."""
    adapter = ADAPTERS.get(name, ADAPTER)
    definition = definition_lib.define(DECODERS[name], adapter=adapter, frozen=kind)
    mesh = sharding.single_device_mesh()
    params = definition_lib.initialise(definition, rng.seed_key(1), mesh)
    generator = np.random.default_rng(2)
    found = {path: np.asarray(value) for path, value in params.items()}
    for path in definition.trainable_paths():
        noise = generator.normal(0, 0.1, found[path].shape)
        found[path] = found[path] + noise.astype(np.float32)
    return found


def value_and_gradients(
    tiny: types.ModuleType, name: str, kind: str, sizes: dict[str, int]
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, jax.Array], str]:
    """Return hidden states, adapters' gradients, the base, and the compiled text."""
    num_devices = int(np.prod(list(sizes.values()), dtype=int))
    mesh = sharding.make_mesh(sizes, jax.devices()[:num_devices])
    placement = expert_parallel.Placement(buffer_factor=float("inf"))
    runtime = decoder_lib.Runtime(experts=placement)
    adapter = ADAPTERS.get(name, ADAPTER)
    definition = definition_lib.define(
        DECODERS[name], adapter=adapter, frozen=kind, runtime=runtime
    )
    shardings = definition.shardings(mesh)
    params = {
        path: jax.device_put(value, shardings[path]) for path, value in numbers(name, kind).items()
    }
    trained = set(definition.trainable_paths())
    adapters = {path: params[path] for path in sorted(trained)}
    base = {path: value for path, value in params.items() if path not in trained}
    arrays = {
        field: jax.device_put(
            context_parallel.reordered(value[0], mesh), sharding.batch_sharding(mesh)
        )
        for field, value in tiny.batch(0, 1).items()
    }

    def loss(adapters: dict, base: dict, arrays: dict) -> tuple[jax.Array, jax.Array]:
        model = definition.bind(base | adapters)
        hidden = model.hidden(arrays["tokens"], arrays["positions"], arrays["segment_ids"]).hidden
        # Squares of a normed row have a fixed sum: their gradient would be noise.
        return (hidden**3 * (1 + arrays["tokens"][..., None])).mean(), hidden

    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        compiled = step.lower(adapters, base, arrays).compile()
        (_, hidden), gradients = compiled(adapters, base, arrays)
    whole = {path: np.asarray(value) for path, value in gradients.items()}
    return np.asarray(hidden), whole, base, compiled.as_text()


@pytest.mark.parametrize(("name", "kind", "sizes"), CASES, ids=str)
def test_a_mesh_gives_the_numbers_of_one_device(
    tiny: types.ModuleType, name: str, kind: str, sizes: dict[str, int]
) -> None:
    expected, wanted, *_ = value_and_gradients(tiny, name, kind, {})
    found, gradients, base, text = value_and_gradients(tiny, name, kind, sizes)
    order = context_parallel.zigzag_order(expected.shape[1], sizes.get("context", 1))
    np.testing.assert_allclose(found, expected[:, order], rtol=0, atol=1e-5)
    for path, value in wanted.items():
        scale = np.abs(value).max()
        assert scale > 0, path
        np.testing.assert_allclose(gradients[path], value, rtol=0, atol=1e-4 * scale, err_msg=path)
    if name in ADAPTERS:
        return
    codes = base["layers/attention/q_proj/kernel/codes"]
    assert codes.addressable_shards[0].data.size < codes.size
    if name == "dense":
        integer = "u8" if kind == "nf4" else "s8"
        gathered = re.findall(r"= (\w+)\[([\d,]*)\]\S* all-gather", text)
        assert any(dtype == integer for dtype, _ in gathered)
        # No dequantised kernel of a layer travels.
        sizes_moved = [int(np.prod([int(n) for n in dims.split(",")])) for _, dims in gathered]
        moved = zip(gathered, sizes_moved, strict=True)
        assert max((size for (dtype, _), size in moved if dtype == "f32"), default=0) < 256 * 256
