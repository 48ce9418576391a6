"""The decoder against a float64 NumPy decoder, and the properties that every decoder must have."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.models import decoder as decoder_lib
from mistral_jax.models import definition as definition_lib
from mistral_jax.nn import routing
from tests import tiny

T = 24
TINY = tiny.decoder(61, init_std=0.2)
WINDOW = model_config.WindowAttention(window=5)
VARIANTS = {
    "plain": TINY,
    "window": TINY.model_copy(update={"attention": WINDOW}),
    "qwen": TINY.model_copy(update={"tied_head": True, "qkv_bias": True}),
    "interleaved": TINY.model_copy(
        update={
            "num_layers": 4,
            "attention": model_config.InterleavedAttention(window=5, period=("window", "full")),
        }
    ),
    "ministral3": TINY.model_copy(
        update={
            "rope": model_config.YarnRope(
                theta=100.0, factor=4.0, original_max_positions=16, beta_fast=2.0, mscale=1.0
            ),
            "query_scaling": model_config.LogQueryScaling(beta=0.5, period=7),
        }
    ),
    "moe": TINY.model_copy(
        update={"ffn": model_config.MoeFfn(width=24, num_experts=6, num_groups=2, top_k=2)}
    ),
    # DeepSeek-V3's and msem's: latent attention, groups, a balance bias, shared experts.
    "latent": TINY.model_copy(
        update={
            "num_layers": 3,
            "num_kv_heads": 4,
            "head_width": 12,
            "attention": model_config.LatentAttention(
                query_rank=10, latent_rank=16, content_width=8, rotary_width=4, value_width=6
            ),
            "rope": model_config.YarnRope(
                theta=100.0, factor=4.0, original_max_positions=16, beta_fast=2.0,
                mscale=1.0, mscale_all_dim=1.0,
            ),
            "query_scaling": model_config.LogQueryScaling(beta=0.5, period=7),
            "ffn": model_config.MoeFfn(
                width=12, num_experts=12, num_groups=4, groups_per_token=2, top_k=3,
                router=model_config.SigmoidRouter(), weights_scale=1.5, num_shared_experts=2,
                num_dense_layers=1, dense_width=20,
            ),
        }
    ),
    "latent_softmax": TINY.model_copy(
        update={
            "num_kv_heads": 4,
            "head_width": 12,
            "attention": model_config.LatentAttention(
                latent_rank=16, content_width=8, rotary_width=4, value_width=12
            ),
            "ffn": model_config.MoeFfn(
                width=12, num_experts=6, num_groups=3, groups_per_token=2, top_k=2,
                is_normalised=False, num_shared_experts=1,
            ),
        }
    ),
}  # fmt: skip


@functools.cache
def define(name: str) -> definition_lib.Definition:
    return definition_lib.define(VARIANTS[name])


@functools.cache
def params_of(name: str) -> definition_lib.Params:
    """Return random parameters; norms and biases too, which start at one and zero."""
    definition = define(name)
    params = definition_lib.initialise(definition, rng.seed_key(0), sharding.single_device_mesh())
    generator = np.random.default_rng(0)
    for path, shape in definition.shapes.items():
        if path.endswith(("scale", "bias")):
            params[path] = params[path] + jnp.asarray(
                generator.normal(size=shape.shape) * 0.3, jnp.float32
            )
    return params


@functools.partial(jax.jit, static_argnums=0)
def logits_of(definition, params, tokens, positions=None, segment_ids=None):
    model = definition.bind(params)
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    hidden, *_ = model.hidden(tokens, positions, segment_ids)
    return model.logits(hidden)


def draw_tokens(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 61, shape), jnp.int32)


class NumpyDecoder:
    """The same decoder in float64, token by token, head by head."""

    def __init__(self, config: model_config.DecoderConfig, params: dict) -> None:
        self.config = config
        self.params = {path: np.asarray(value, np.float64) for path, value in params.items()}

    def norm(self, x: np.ndarray, scale: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
        epsilon = epsilon or self.config.norm_epsilon
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale

    def at(self, path: str, layer: int) -> np.ndarray | None:
        """Return a layer's parameter; the first layers may be a stack of their own."""
        num_dense = self.config.num_dense_layers
        if layer < num_dense:
            found, own = self.params.get(f"dense_layers/{path}"), layer
        else:
            found, own = self.params.get(f"layers/{path}"), layer - num_dense
        return None if found is None else found[own]

    def project(self, x: np.ndarray, path: str, layer: int) -> np.ndarray:
        y = x @ self.at(f"{path}/kernel", layer)
        bias = self.at(f"{path}/bias", layer)
        return y if bias is None else y + bias

    def rotate(self, x: np.ndarray, position: int) -> np.ndarray:
        half = len(x) // 2
        rope = self.config.rope
        frequency = rope.theta ** (-np.arange(half) / half)
        gain = 1.0
        if rope.kind == "yarn":
            # In turns over the original length, as the paper's section 3.2 has it.
            turns = rope.original_max_positions * frequency / (2 * np.pi)
            index = np.arange(half)
            ends = []
            for wanted, rounded in ((rope.beta_fast, np.floor), (rope.beta_slow, np.ceil)):
                exact = np.interp(np.log(wanted), np.log(turns[::-1]), index[::-1])
                ends.append(rounded(exact))
            kept = 1 - np.clip((index - ends[0]) / (ends[1] - ends[0]), 0, 1)
            frequency = frequency * kept + frequency / rope.factor * (1 - kept)
            gain = 0.1 * np.log(rope.factor) + 1
            if rope.mscale_all_dim:  # here always equal to mscale
                gain = 1.0
        turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * frequency) * gain
        return np.concatenate([turned.real, turned.imag])

    def query_scale(self, t: int) -> float:
        scaling = self.config.query_scaling
        if scaling.kind == "none":
            return 1.0
        return 1 + scaling.beta * np.log(1 + t // scaling.period)

    def attend_latent(self, x: np.ndarray, layer: int) -> np.ndarray:
        c, latent = self.config, self.config.attention
        if latent.query_rank is None:
            q = self.project(x, "attention/q_proj", layer)
        else:
            narrow = self.project(x, "attention/q_a_proj", layer)
            narrow = self.norm(narrow, self.at("attention/q_a_norm/scale", layer), 1e-6)
            q = self.project(narrow, "attention/q_b_proj", layer)
        q = q.reshape(len(x), c.num_heads, c.head_width)
        narrow = self.project(x, "attention/kv_a_proj", layer)
        shared = [self.rotate(row[latent.latent_rank :], s) for s, row in enumerate(narrow)]
        scale = self.at("attention/kv_a_norm/scale", layer)
        latents = self.norm(narrow[:, : latent.latent_rank], scale, 1e-6)
        wide = self.project(latents, "attention/kv_b_proj", layer)
        wide = wide.reshape(len(x), c.num_heads, latent.content_width + latent.value_width)
        gain = 1.0
        if c.rope.kind == "yarn":
            gain = (0.1 * c.rope.mscale_all_dim * np.log(c.rope.factor) + 1) ** 2
        out = np.zeros((len(x), c.num_heads, latent.value_width))
        for head in range(c.num_heads):
            for t in range(len(x)):
                content, rotary = np.split(q[t, head], [latent.content_width])
                query = np.concatenate([content, self.rotate(rotary, t)]) * self.query_scale(t)
                keys = [
                    np.concatenate([wide[s, head, : latent.content_width], shared[s]])
                    for s in range(t + 1)
                ]
                scores = np.array([query @ key for key in keys])
                weights = np.exp(scores * gain / np.sqrt(c.head_width))
                values = wide[: t + 1, head, latent.content_width :]
                out[t, head] = weights / weights.sum() @ values
        return self.project(out.reshape(len(x), -1), "attention/o_proj", layer)

    def attend(self, x: np.ndarray, layer: int) -> np.ndarray:
        c = self.config
        if c.attention.kind == "latent":
            return self.attend_latent(x, layer)
        q, k, v = (self.project(x, f"attention/{name}_proj", layer) for name in "qkv")
        reach = c.attention.reaches[layer % len(c.attention.reaches)]
        out = np.zeros((len(x), c.num_heads * c.head_width))
        for head in range(c.num_heads):
            own = slice(head * c.head_width, (head + 1) * c.head_width)
            kv_head = head // (c.num_heads // c.num_kv_heads)
            shared = slice(kv_head * c.head_width, (kv_head + 1) * c.head_width)
            keys = [self.rotate(k[s, shared], s) for s in range(len(x))]
            for t in range(len(x)):
                first = 0 if reach is None else max(0, t - reach + 1)
                query = self.rotate(q[t, own], t) * self.query_scale(t)
                scores = np.array([query @ keys[s] for s in range(first, t + 1)])
                weights = np.exp(scores / np.sqrt(c.head_width))
                out[t, own] = weights / weights.sum() @ v[first : t + 1, shared]
        return self.project(out, "attention/o_proj", layer)

    def swiglu(self, x: np.ndarray, gate, up, down) -> np.ndarray:
        hidden = x @ gate
        return hidden / (1 + np.exp(-hidden)) * (x @ up) @ down

    def feed_forward(self, x: np.ndarray, layer: int) -> np.ndarray:
        kernels = [self.at(f"mlp/{name}_proj/kernel", layer) for name in ("gate", "up", "down")]
        ffn = self.config.ffn
        if kernels[0].ndim == 2:
            return self.swiglu(x, *kernels)
        out = np.zeros_like(x)
        if ffn.num_shared_experts:
            names = ("gate", "up", "down")
            shared = [self.at(f"mlp/shared/{name}_proj/kernel", layer) for name in names]
            out = self.swiglu(x, *shared)
        logits = x @ self.at("mlp/router/kernel", layer)
        bias = self.at("mlp/router/bias", layer)
        for t, row in enumerate(x):
            if ffn.router.kind == "sigmoid":
                scores = 1 / (1 + np.exp(-logits[t]))
            else:
                scores = np.exp(logits[t]) / np.exp(logits[t]).sum()
            judged = scores if bias is None else scores + bias
            groups = judged.reshape(ffn.num_groups, -1)
            allowed = range(ffn.num_groups)
            if ffn.groups_per_token:
                best_two = np.sort(groups, axis=1)[:, -2:].sum(1)
                allowed = np.argsort(-best_two)[: ffn.groups_per_token]
            candidates = [e for e in range(ffn.num_experts) if e // groups.shape[1] in allowed]
            best = sorted(candidates, key=lambda e: -judged[e])[: ffn.top_k]
            total = scores[best].sum() if ffn.is_normalised else 1.0
            for expert in best:
                at = divmod(expert, groups.shape[1])
                weight = scores[expert] / total * ffn.weights_scale
                out[t] += weight * self.swiglu(row, *(kernel[at] for kernel in kernels))
        return out

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        x = self.params["embed/embedding"][tokens]
        for layer in range(self.config.num_layers):
            normed = self.norm(x, self.at("attention_norm/scale", layer))
            x = x + self.attend(normed, layer)
            normed = self.norm(x, self.at("mlp_norm/scale", layer))
            x = x + self.feed_forward(normed, layer)
        x = self.norm(x, self.params["final_norm/scale"])
        head = self.params.get("head/kernel")
        return x @ (self.params["embed/embedding"].T if head is None else head)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_the_numpy_decoder(name: str) -> None:
    tokens = draw_tokens(1, T)
    expected = NumpyDecoder(VARIANTS[name], params_of(name)).logits(np.asarray(tokens)[0])
    found = logits_of(define(name), params_of(name), tokens)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_changing_a_token_leaves_earlier_logits_bit_equal() -> None:
    tokens = draw_tokens(2, T)
    before = np.asarray(logits_of(define("plain"), params_of("plain"), tokens))
    for changed in (0, 11, T - 1):
        other = tokens.at[0, changed].set((tokens[0, changed] + 1) % 61)
        after = np.asarray(logits_of(define("plain"), params_of("plain"), other))
        np.testing.assert_array_equal(after[0, :changed], before[0, :changed])
        np.testing.assert_array_equal(after[1], before[1])
        assert (np.abs(after[0, changed:] - before[0, changed:]).max(axis=-1) > 1e-4).all()


def test_window_hides_tokens_that_no_layer_can_reach() -> None:
    """Two layers of window 5 reach 8 tokens back and not one more."""
    tokens = draw_tokens(2, T)
    other = tokens.at[:, 3].set((tokens[:, 3] + 1) % 61)
    before, after = (
        np.asarray(logits_of(define("window"), params_of("window"), row)) for row in (tokens, other)
    )
    np.testing.assert_array_equal(after[:, 12:], before[:, 12:])
    assert np.abs(after[:, 11] - before[:, 11]).max() > 1e-5


@pytest.mark.parametrize("name", ["plain", "window", "latent"])
def test_packed_documents_equal_separate_runs(name: str) -> None:
    lengths = (9, 14)
    documents = [draw_tokens(1, length, seed=length) for length in lengths]
    packed = jnp.concatenate([*documents, jnp.zeros((1, 1), jnp.int32)], axis=1)
    positions = jnp.asarray([[*range(9), *range(14), 0]], jnp.int32)
    segment_ids = jnp.asarray([[1] * 9 + [2] * 14 + [0]], jnp.int32)
    together = logits_of(define(name), params_of(name), packed, positions, segment_ids)
    start = 0
    for document, length in zip(documents, lengths):
        alone = logits_of(define(name), params_of(name), document)
        np.testing.assert_allclose(together[:, start : start + length], alone, atol=2e-5)
        start += length


def test_padding_behind_a_document_does_not_matter() -> None:
    document = draw_tokens(1, 10)
    segment_ids = jnp.asarray([[1] * 10 + [0] * 14], jnp.int32)
    positions = jnp.asarray([[*range(10)] + [0] * 14], jnp.int32)
    rows = [jnp.concatenate([document, draw_tokens(1, 14, seed=seed)], axis=1) for seed in (1, 2)]
    first, second = (
        np.asarray(logits_of(define("plain"), params_of("plain"), row, positions, segment_ids))
        for row in rows
    )
    np.testing.assert_array_equal(first[:, :10], second[:, :10])
    alone = logits_of(define("plain"), params_of("plain"), document)
    np.testing.assert_allclose(first[:, :10], alone, atol=2e-5)


@jax.jit
def routed(params, tokens, replay=None, force_group=None):
    """Return hidden states and the experts of every mixture layer."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    control = routing.Control(force_group=force_group, replay=replay, is_recorded=True)
    out = define("latent").bind(params).hidden(tokens, positions, control=control)
    return out.hidden, out.aux.experts


def test_a_recorded_routing_replays_to_the_same_numbers_and_forces_other_tokens() -> None:
    tokens = draw_tokens(2, 8)
    hidden, recorded = routed(params_of("latent"), tokens)
    assert recorded.shape == (2, 2, 8, 3)  # the dense first layer routes nothing
    again, _ = routed(params_of("latent"), tokens, replay=recorded)
    np.testing.assert_allclose(again, hidden, atol=1e-6)
    _, experts = routed(params_of("latent"), tokens[::-1], replay=recorded)
    np.testing.assert_array_equal(experts, recorded)


def test_a_forced_group_takes_every_token_of_its_row_in_every_layer() -> None:
    _, experts = routed(params_of("latent"), draw_tokens(2, 8), force_group=jnp.asarray([3, 1]))
    assert (np.asarray(experts) // 3 == np.asarray([3, 1])[None, :, None, None]).all()


def with_runtime(definition: definition_lib.Definition, **changes: object):
    runtime = dataclasses.replace(definition.runtime, **changes)
    return definition_lib.define(definition.config, runtime=runtime)


@functools.cache
def loss_and_gradients(name: str, definition: definition_lib.Definition):
    def loss(params):
        return jnp.mean(jnp.square(logits_of(definition, params, draw_tokens(2, T))))

    return jax.jit(jax.value_and_grad(loss))(params_of(name))


@pytest.mark.parametrize(("name", "remat"), [("plain", "dots"), ("plain", "full"),
                                             ("plain", "offload"), ("latent", "full"),
                                             ("interleaved", "offload")])  # fmt: skip
def test_remat_changes_no_gradient(name: str, remat: decoder_lib.Remat) -> None:
    value, gradients = loss_and_gradients(name, define(name))
    rematted = with_runtime(define(name), remat=remat)
    again, gradients_again = loss_and_gradients(name, rematted)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    assert set(gradients_again) == set(rematted.shapes)
    for path, gradient in gradients.items():
        np.testing.assert_allclose(gradients_again[path], gradient, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("name", "remat"), [("plain", "none"), ("plain", "full"), ("interleaved", "full")]
)
def test_no_scan_stacks_the_layers_weights_again(name: str, remat: decoder_lib.Remat) -> None:
    """The backward pass reads the kernels where they lie; only their gradients are stacked."""
    definition = with_runtime(define(name), remat=remat)
    kernel = definition.shapes["layers/mlp/down_proj/kernel"]

    def loss(params):
        return jnp.mean(jnp.square(logits_of(definition, params, draw_tokens(2, T))))

    program = jax.make_jaxpr(jax.grad(loss))(dict(definition.shapes)).jaxpr
    stacked = [
        out.aval
        for scan in scans_of(program)
        for out in scan.outvars
        if out.aval.shape[-2:] == kernel.shape[-2:]
    ]
    assert sum(array.size for array in stacked) == kernel.size, stacked


def scans_of(program: jax.extend.core.Jaxpr) -> list:
    """Return the scans of a program, those inside its calls too."""
    found = []
    for equation in program.eqns:
        if equation.primitive.name == "scan":
            found.append(equation)
            continue
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, jax.extend.core.Jaxpr):
                found += scans_of(inner)
    return found


def test_remat_keeps_fewer_residuals() -> None:
    tokens = jax.ShapeDtypeStruct((2, T), jnp.int32)

    def kept_bytes(remat: decoder_lib.Remat) -> int:
        definition = with_runtime(define("plain"), remat=remat)

        def pull(params, tokens):
            return jax.vjp(lambda p: logits_of(definition, p, tokens), params)[1]

        kept = jax.tree.leaves(jax.eval_shape(pull, dict(definition.shapes), tokens))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)

    assert kept_bytes("full") < kept_bytes("dots") < kept_bytes("none")


def test_offload_keeps_layer_inputs_on_the_host_and_nothing_of_theirs_on_the_device() -> None:
    tokens = draw_tokens(2, T)
    stacked = f"[{TINY.num_layers},2,{T},{TINY.width}]"

    def program(remat: decoder_lib.Remat) -> str:
        definition = with_runtime(define("plain"), remat=remat)
        loss = lambda params: jnp.mean(jnp.square(logits_of(definition, params, tokens)))  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(dict(definition.shapes)))

    full, offload = program("full"), program("offload")
    assert f"f32{stacked}" in full
    assert "<host>" not in full
    assert f"f32<host>{stacked}" in offload
    assert f"f32{stacked}" not in offload


def test_a_feed_forward_in_chunks_changes_no_gradient_and_keeps_less() -> None:
    tokens = draw_tokens(2, T)
    whole = with_runtime(define("plain"), remat="full")
    parts = with_runtime(define("plain"), remat="full", mlp_chunk_tokens=T // 3)

    def gradients(definition: definition_lib.Definition):
        loss = lambda params: jnp.mean(jnp.square(logits_of(definition, params, tokens)))  # noqa: E731
        program = str(jax.make_jaxpr(jax.grad(loss))(params_of("plain")))
        return jax.jit(jax.value_and_grad(loss))(params_of("plain")), program

    (value, expected), all_at_once = gradients(whole)
    (again, found), in_chunks = gradients(parts)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    for path, gradient in expected.items():
        np.testing.assert_allclose(found[path], gradient, atol=1e-6, err_msg=path)
    # No array is as long as the row and as wide as the hidden states.
    hidden = f"[2,{T},{TINY.ffn.width}]"
    assert hidden in all_at_once
    assert hidden not in in_chunks


def test_every_parameter_gets_a_gradient() -> None:
    def loss(params):
        return jnp.mean(jnp.square(logits_of(define("qwen"), params, draw_tokens(2, T))))

    gradients = jax.grad(loss)(params_of("qwen"))
    for path, gradient in gradients.items():
        per_layer = np.abs(np.asarray(gradient)).reshape(2 if path.startswith("layers/") else 1, -1)
        # A bias on keys shifts all scores of a query alike but for the rotation: small, not zero.
        assert (per_layer.max(axis=1) > 1e-8).all(), path


def test_program_size_does_not_grow_with_depth() -> None:
    def num_equations(num_layers: int) -> int:
        deep = definition_lib.define(TINY.model_copy(update={"num_layers": num_layers}))
        tokens = jax.ShapeDtypeStruct((2, T), jnp.int32)

        def loss(params, tokens):
            return jnp.mean(logits_of(deep, params, tokens))

        jaxpr = jax.make_jaxpr(jax.grad(loss))(dict(deep.shapes), tokens)
        return str(jaxpr).count(" = ")

    assert 100 < num_equations(2) == num_equations(24)


def test_bfloat16_stays_close_to_float32() -> None:
    tokens = draw_tokens(2, T)
    narrow = with_runtime(define("plain"), compute_dtype=np.dtype(jnp.bfloat16))
    expected = np.asarray(logits_of(define("plain"), params_of("plain"), tokens))
    found = np.asarray(logits_of(narrow, params_of("plain"), tokens))
    assert found.dtype == np.float32
    error = np.abs(found - expected)
    assert error.mean() < 2e-2 * expected.std()
    assert error.max() < 2e-1 * expected.std()


@pytest.mark.parametrize("implementation", ["reference", "sdpa"])
def test_attention_implementations_agree_through_the_model(implementation: str) -> None:
    tokens = draw_tokens(2, T)
    other = with_runtime(define("window"), attention=implementation)
    expected = logits_of(define("window"), params_of("window"), tokens)
    found = logits_of(other, params_of("window"), tokens)
    np.testing.assert_allclose(found, expected, atol=1e-5)
