"""Expert implementations: the all-experts form against a loop, every other one against it."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.nn import experts
from mistral_jax.nn import routing
from mistral_jax.nn.kernels import experts_blocks
from mistral_jax.nn.kernels import experts_grouped
from mistral_jax.nn.kernels import experts_order
from mistral_jax.nn.kernels import experts_ragged

# More pairs than the largest block, and a multiple of none.
N, D, F, E, K = 331, 16, 24, 5, 2
# Where the kinds of block matter less than the time to compile them.
FEW = 40
CASES = ("random", "padding", "idle_expert", "one_expert", "no_expert")


def draw(num_tokens: int = N, *, case: str = "random", dtype: object = jnp.float32):
    """Return tokens, their choice and the experts' kernels."""
    generator = np.random.default_rng(num_tokens)
    first = generator.integers(0, E, num_tokens)
    chosen = np.stack([first, (first + generator.integers(1, E, num_tokens)) % E], axis=1)
    if case == "padding":
        chosen[::3] = E
        chosen[1::3, 1] = E
    elif case == "idle_expert":
        chosen[chosen == 2] = E
    elif case == "one_expert":
        chosen[:, 0], chosen[:, 1] = 3, E
    elif case == "no_expert":
        chosen[:] = E
    weights = generator.uniform(0.1, 1, chosen.shape)
    shapes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    kernels = {
        name: jnp.asarray(generator.normal(size=shape) / shape[1] ** 0.5, dtype)
        for name, shape in shapes.items()
    }
    x = jnp.asarray(generator.normal(size=(num_tokens, D)), dtype)
    choice = routing.Choice(jnp.asarray(chosen, jnp.int32), jnp.asarray(weights, jnp.float32))
    return x, choice, experts.Kernels(**kernels)


def weigh(out: jax.Array) -> jax.Array:
    """Return a number whose gradient by the outputs differs from one to the next."""
    return jnp.sum(out.astype(jnp.float32) * jnp.cos(jnp.arange(out.size).reshape(out.shape)))


@functools.cache
def differentiated(implementation: str):
    """Return the jitted function (x, choice, kernels) -> outputs and gradients by all floats."""

    def run(x, weights, kernels, chosen):
        out = experts.run_experts(
            x, routing.Choice(chosen, weights), kernels, implementation=implementation
        )
        return weigh(out), out

    both = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))

    def call(x, choice, kernels):
        (_, out), gradients = both(x, choice.weights, kernels, choice.experts)
        return out, gradients

    return call


def assert_close(found, expected, *, tolerance: float) -> None:
    """Compare trees, each leaf against its own largest number."""
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, atol=tolerance * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("case", CASES)
def test_all_experts_equal_a_loop_over_pairs(case: str) -> None:
    x, choice, kernels = draw(case=case)
    rows = np.asarray(x, np.float64)
    gate, up, down = (np.asarray(k, np.float64) for k in (kernels.gate, kernels.up, kernels.down))
    expected = np.zeros((N, D))
    for token in range(N):
        for expert, weight in zip(choice.experts[token], choice.weights[token], strict=True):
            if expert < E:
                into = rows[token] @ gate[expert]
                hidden = into / (1 + np.exp(-into)) * (rows[token] @ up[expert])
                expected[token] += float(weight) * (hidden @ down[expert])
    np.testing.assert_allclose(differentiated("all")(x, choice, kernels)[0], expected, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", ["blocks", "ragged", "grouped"])
@pytest.mark.usefixtures("lax_as_tokamax")
def test_every_implementation_equals_all_experts_in_value_and_gradient(
    implementation: str, case: str
) -> None:
    inputs = draw(case=case)
    found = differentiated(implementation)(*inputs)
    assert_close(found, differentiated("all")(*inputs), tolerance=1e-5)


@pytest.mark.parametrize("implementation", ["blocks", "ragged"])
def test_one_token(implementation: str) -> None:
    inputs = draw(1)
    found = differentiated(implementation)(*inputs)
    assert_close(found, differentiated("all")(*inputs), tolerance=1e-5)


@pytest.mark.parametrize("implementation", ["blocks", "ragged"])
def test_bfloat16_stays_close_to_float32(implementation: str) -> None:
    found = differentiated(implementation)(*draw(FEW, dtype=jnp.bfloat16))
    x, choice, kernels = draw(FEW, dtype=jnp.bfloat16)
    whole = differentiated("all")(
        x.astype(jnp.float32), choice, jax.tree.map(lambda k: k.astype(jnp.float32), kernels)
    )
    assert_close(found, whole, tolerance=2e-2)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        error = np.abs(np.asarray(ours, np.float32) - theirs).mean()
        # A few roundings of 2**-9 each on the way to a kernel gradient.
        assert error < 1e-2 * max(1, float(np.abs(theirs).mean()))
    assert found[0].dtype == jnp.bfloat16
    assert found[1][2].gate.dtype == jnp.bfloat16


@pytest.mark.parametrize("implementation", ["blocks", "ragged"])
def test_a_token_without_experts_is_never_read(implementation: str) -> None:
    x, choice, kernels = draw(case="padding")
    poisoned = x.at[::3].set(jnp.nan)
    found = differentiated(implementation)(poisoned, choice, kernels)
    assert_close(found, differentiated("all")(x, choice, kernels), tolerance=1e-5)
    out, (x_gradient, weight_gradient, _) = found
    assert not np.asarray(out)[::3].any()
    assert not np.asarray(x_gradient)[::3].any()
    assert not np.asarray(weight_gradient)[::3].any()


def test_scanned_and_recomputed_layers_equal_a_loop_of_layers() -> None:
    x, choice, kernels = draw(FEW, case="padding")
    stack = jax.tree.map(lambda kernel: jnp.stack([kernel, kernel[::-1]]), kernels)

    def layer(x, layer_kernels, name):
        return x + experts.run_experts(x, choice, layer_kernels, implementation=name)

    def scanned(stack, x):
        step = jax.checkpoint(lambda x, kernels: (layer(x, kernels, "blocks"), None))
        return weigh(jax.lax.scan(step, x, stack)[0])

    def looped(stack, x):
        for index in range(2):
            x = layer(x, jax.tree.map(lambda kernel, at=index: kernel[at], stack), "all")
        return weigh(x)

    found = jax.jit(jax.value_and_grad(scanned, argnums=(0, 1)))(stack, x)
    assert_close(
        found, jax.jit(jax.value_and_grad(looped, argnums=(0, 1)))(stack, x), tolerance=1e-5
    )


def test_rows_that_a_kernel_leaves_unwritten_reach_nothing() -> None:
    """A GPU kernel may leave what was in memory in the rows behind the last expert's."""

    def spoil(rows, sizes):
        is_owned = jnp.arange(rows.shape[0]) < jnp.sum(sizes)
        return jnp.where(is_owned[:, None], rows, jnp.nan)

    @jax.custom_vjp
    def matmul(rows, kernel, sizes):
        return spoil(jax.lax.ragged_dot(rows, kernel, sizes), sizes)

    def forward(rows, kernel, sizes):
        pull = jax.vjp(lambda r, k: jax.lax.ragged_dot(r, k, sizes), rows, kernel)[1]
        return matmul(rows, kernel, sizes), (pull, sizes)

    def backward(kept, gradient):
        row_gradient, kernel_gradient = kept[0](gradient)
        return spoil(row_gradient, kept[1]), kernel_gradient, None

    matmul.defvjp(forward, backward)
    x, choice, kernels = draw(case="padding")

    def run(x, weights, kernels):
        pairs = routing.Choice(choice.experts, weights)
        out = experts_ragged.run(x, pairs, kernels, matmul=matmul)
        return weigh(out), out

    both = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = both(x, choice.weights, kernels)
    expected = differentiated("all")(x, choice, kernels)
    assert_close((out, gradients), expected, tolerance=1e-5)


sort_pairs = jax.jit(experts_order.sort_pairs, static_argnames=("num_experts", "multiple"))


@pytest.mark.parametrize("multiple", [1, 8, 32])
@pytest.mark.parametrize("case", CASES)
def test_order_gives_each_pair_one_row_among_its_expert(case: str, multiple: int) -> None:
    chosen = np.asarray(draw(case=case)[1].experts)
    order = sort_pairs(jnp.asarray(chosen), E, multiple=multiple)
    rows, pairs = np.asarray(order.rows), np.asarray(order.pairs)
    starts, sizes = np.asarray(order.starts), np.asarray(order.sizes)
    counts = np.bincount(chosen.ravel(), minlength=E + 1)[:E]
    np.testing.assert_array_equal(sizes, -(-counts // multiple) * multiple)
    np.testing.assert_array_equal(starts, np.cumsum(sizes) - sizes)
    assert sizes.sum() <= len(pairs)
    has_expert = chosen < E
    np.testing.assert_array_equal(rows[~has_expert], len(pairs))
    owners = chosen[has_expert]
    found = rows[has_expert]
    assert ((found >= starts[owners]) & (found < (starts + sizes)[owners])).all()
    np.testing.assert_array_equal(pairs[found], np.flatnonzero(has_expert.ravel()))
    assert (pairs < chosen.size).sum() == has_expert.sum()


@pytest.mark.parametrize("case", CASES)
def test_blocks_visit_each_row_once_and_nothing_else(case: str) -> None:
    _, choice, _ = draw(case=case)
    sizes = experts_blocks.block_rows(choice.experts.size, E)
    assert len(sizes) == 3
    order = experts_order.sort_pairs(choice.experts, E, multiple=sizes[-1])

    def visit(state, expert, start, size):
        visits, owners = state
        at = start + jnp.arange(size)
        return visits.at[at].add(1, mode="drop"), owners.at[at].set(expert, mode="drop")

    empty = (jnp.zeros(order.pairs.shape, jnp.int32), jnp.full(order.pairs.shape, E))
    visits, owners = experts_blocks._visit_blocks(order, sizes, visit, empty)
    used = int(order.sizes.sum())
    np.testing.assert_array_equal(visits, np.arange(len(visits)) < used)
    expected = np.repeat(np.arange(E), np.asarray(order.sizes))
    np.testing.assert_array_equal(owners[:used], expected)
    padding = used - int(np.sum(np.asarray(choice.experts) < E))
    assert padding < E * sizes[-1]


def test_gradients_need_less_memory_than_one_projection_of_all_experts() -> None:
    """Gathered kernels, or a second copy of their gradients, would need three times that."""
    num_experts, width, hidden = 64, 64, 256
    x = jnp.zeros((100, width))
    shapes = [(num_experts, width, hidden)] * 2 + [(num_experts, hidden, width)]
    arrays = tuple(jnp.zeros(shape) for shape in shapes)
    choice = routing.Choice(jnp.zeros((100, K), jnp.int32), jnp.zeros((100, K)))

    def run(x, arrays):
        kernels = experts.Kernels(*arrays)
        return jnp.sum(experts.run_experts(x, choice, kernels, implementation="blocks"))

    compiled = jax.jit(jax.grad(run, argnums=(0, 1))).lower(x, arrays).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < arrays[0].nbytes


@pytest.mark.sharded
@pytest.mark.parametrize("implementation", ["blocks", "ragged"])
def test_each_device_runs_its_own_tokens(implementation: str) -> None:
    x, choice, kernels = draw(8 * 12, case="padding")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def part(x, chosen, weights, kernels):
        pairs = routing.Choice(chosen, weights)
        return experts.run_experts(x, pairs, kernels, implementation=implementation)

    split = jax.shard_map(
        part, mesh=mesh, in_specs=(rows, rows, rows, whole), out_specs=rows, check_vma=False
    )

    def run(x, weights, kernels):
        out = split(x, choice.experts, weights, kernels)
        return weigh(out), out

    both = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = both(x, choice.weights, kernels)
    expected = differentiated("all")(x, choice, kernels)
    assert_close((out, gradients), expected, tolerance=1e-5)


def test_auto_takes_each_platforms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts_grouped, "is_installed", lambda: True)
    bfloat16, float32 = np.dtype(jnp.bfloat16), np.dtype(np.float32)
    assert experts.choose_implementation("auto", "cpu", float32) == "blocks"
    assert experts.choose_implementation("auto", "tpu", bfloat16) == "ragged"
    assert experts.choose_implementation("auto", "gpu", bfloat16) == "grouped"
    assert experts.choose_implementation("auto", "gpu", float32) == "blocks"
    assert experts.choose_implementation("auto", "rocket", float32) == "blocks"
    assert experts.choose_implementation("grouped", "gpu", bfloat16) == "grouped"


def test_without_tokamax_a_gpu_gets_blocks_and_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts_grouped, "is_installed", lambda: False)
    bfloat16 = np.dtype(jnp.bfloat16)
    with pytest.warns(UserWarning, match="mistral_jax\\[kernels\\]"):
        assert experts.choose_implementation("auto", "gpu", bfloat16) == "blocks"
    with pytest.raises(ValueError, match="mistral_jax\\[kernels\\]"):
        experts.choose_implementation("grouped", "gpu", bfloat16)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="auto, all, blocks, ragged, grouped"):
        experts.choose_implementation("einsum", "cpu", np.dtype(np.float32))


@pytest.mark.skipif(importlib.util.find_spec("tokamax") is not None, reason="tokamax is here")
def test_grouped_without_tokamax_names_the_extra() -> None:
    with pytest.raises(ValueError, match="mistral_jax\\[kernels\\]"):
        experts_grouped.run(*draw(3))


@pytest.mark.parametrize("case", CASES)
def test_tokamax_equals_all_experts_by_its_portable_form(case: str) -> None:
    pytest.importorskip("tokamax")
    x, choice, kernels = draw(case=case)

    def run(x, weights, kernels):
        pairs = routing.Choice(choice.experts, weights)
        out = experts_grouped.run(x, pairs, kernels, names=("xla",))
        return weigh(out), out

    both = jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True)
    (_, out), gradients = both(x, choice.weights, kernels)
    assert_close((out, gradients), differentiated("all")(x, choice, kernels), tolerance=1e-5)


def test_tokamax_kernels_that_do_not_fit_the_device_are_named() -> None:
    pytest.importorskip("tokamax")
    with pytest.raises(ValueError, match=r"mosaic.*choose the experts implementation 'blocks'"):
        experts_grouped.run(*draw(3), names=("mosaic",))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_tokamax_kernels_equal_all_experts_on_a_gpu(case: str) -> None:
    pytest.importorskip("tokamax")
    generator = np.random.default_rng(0)
    _, choice, _ = draw(case=case)
    kernels = experts.Kernels(
        *(jnp.asarray(generator.normal(size=(E, 256, 256)) / 16, jnp.bfloat16) for _ in range(3))
    )
    x = jnp.asarray(generator.normal(size=(N, 256)), jnp.bfloat16)
    found = differentiated("grouped")(x, choice, kernels)
    assert_close(found, differentiated("blocks")(x, choice, kernels), tolerance=2e-2)


@pytest.mark.parametrize("implementation", ["blocks", "ragged"])
def test_fewer_rows_for_fewer_pairs_give_the_same_numbers(implementation: str) -> None:
    """Most of the rows that a device receives have few of their experts there."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(200, 8)), jnp.float32)
    chosen = np.where(generator.random((200, 6)) < 0.2, generator.integers(0, 4, (200, 6)), 4)
    num_pairs = int((chosen < 4).sum())
    assert num_pairs < 512 < chosen.size  # where the largest block does not fit into the rows
    choice = routing.Choice(
        jnp.asarray(chosen), jnp.asarray(generator.random((200, 6)), jnp.float32)
    )
    kernels = experts.Kernels(
        *(jnp.asarray(generator.normal(size=shape), jnp.float32)
          for shape in ((4, 8, 5), (4, 8, 5), (4, 5, 8)))
    )  # fmt: skip

    def total(name: str, max_pairs: int | None):
        def loss(x):
            out = experts.run_experts(x, choice, kernels, implementation=name, max_pairs=max_pairs)
            return jnp.sum(jnp.square(out))

        return jax.jit(jax.value_and_grad(loss))(x)

    expected, by_x = total("all", None)
    found, found_by_x = total(implementation, num_pairs)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found_by_x, by_x, rtol=1e-4, atol=1e-4)
