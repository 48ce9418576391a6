"""Chunked linear cross-entropy against materialised logits in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.nn import loss

N, D, V = 37, 12, 23


def draw(*, num_tokens: int = N) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return hidden, kernel, targets and weights; every fourth weight is zero."""
    generator = np.random.default_rng(num_tokens)
    hidden = generator.normal(size=(num_tokens, D)).astype(np.float32)
    kernel = generator.normal(size=(D, V)).astype(np.float32)
    targets = generator.integers(0, V, num_tokens).astype(np.int32)
    weights = generator.uniform(0, 2, num_tokens).astype(np.float32)
    weights[::4] = 0
    return tuple(jnp.asarray(array) for array in (hidden, kernel, targets, weights))


def oracle(hidden, kernel, targets, weights, z_loss: float) -> dict[str, np.ndarray]:
    """Return the loss and its gradients by their formulas, whole logits, float64."""
    hidden, kernel, weights = (np.asarray(a, np.float64) for a in (hidden, kernel, weights))
    targets = np.asarray(targets)
    logits = hidden @ kernel
    logsumexp = np.log(np.exp(logits).sum(-1))
    rows = np.arange(len(targets))
    token_losses = logsumexp - logits[rows, targets] + z_loss * logsumexp**2
    probabilities = np.exp(logits - logsumexp[:, None])
    scores = probabilities * (1 + 2 * z_loss * logsumexp)[:, None]
    scores[rows, targets] -= 1
    scores *= weights[:, None]
    return {
        "loss": (token_losses * weights).sum(),
        "hidden": scores @ kernel.T,
        "kernel": hidden.T @ scores,
        "weights": token_losses,
    }


@pytest.mark.parametrize("chunk_tokens", [1, 10, 37, 64])
@pytest.mark.parametrize("z_loss", [0.0, 0.05])
def test_value_and_gradients_equal_the_formulas(chunk_tokens: int, z_loss: float) -> None:
    hidden, kernel, targets, weights = draw()
    expected = oracle(hidden, kernel, targets, weights, z_loss)

    def tripled(hidden, kernel, weights):
        return 3 * loss.linear_cross_entropy(
            hidden, kernel, targets, weights, chunk_tokens=chunk_tokens, z_loss=z_loss
        )

    gradient_of = jax.jit(jax.value_and_grad(tripled, argnums=(0, 1, 2)))
    value, gradients = gradient_of(hidden, kernel, weights)
    np.testing.assert_allclose(value, 3 * expected["loss"], rtol=1e-6)
    for name, found in zip(("hidden", "kernel", "weights"), gradients):
        np.testing.assert_allclose(found, 3 * expected[name], atol=3e-5, rtol=1e-5)
    # The value without a gradient takes another path through the code.
    np.testing.assert_allclose(tripled(hidden, kernel, weights), value, rtol=1e-6)


@pytest.mark.parametrize(("num_tokens", "chunk_tokens"), [(1, 1024), (5, 3)])
def test_short_batches_have_the_same_loss(num_tokens: int, chunk_tokens: int) -> None:
    inputs = draw(num_tokens=num_tokens)
    found = loss.linear_cross_entropy(*inputs, chunk_tokens=chunk_tokens)
    np.testing.assert_allclose(found, oracle(*inputs, 0.0)["loss"], rtol=1e-5, atol=1e-6)


def test_tokens_of_weight_zero_count_nothing() -> None:
    hidden, kernel, targets, weights = draw()
    gradient_of = jax.jit(jax.value_and_grad(loss.linear_cross_entropy, argnums=(0, 1)))
    value, (hidden_gradient, kernel_gradient) = gradient_of(hidden, kernel, targets, weights)
    is_counted = np.asarray(weights) > 0
    assert not np.asarray(hidden_gradient)[~is_counted].any()
    kept = tuple(jnp.asarray(np.asarray(a)[is_counted]) for a in (hidden, targets, weights))
    alone, (_, kernel_alone) = gradient_of(kept[0], kernel, kept[1], kept[2])
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    np.testing.assert_allclose(kernel_gradient, kernel_alone, atol=1e-5)
    nothing = loss.linear_cross_entropy(hidden, kernel, targets, jnp.zeros_like(weights))
    assert nothing == 0


def test_a_frozen_head_gets_no_gradient_and_hidden_gets_the_same() -> None:
    hidden, kernel, targets, weights = draw()
    gradients = [
        jax.grad(
            functools.partial(
                loss.linear_cross_entropy, chunk_tokens=10, has_kernel_gradient=is_trained
            ),
            argnums=(0, 1),
        )(hidden, kernel, targets, weights)
        for is_trained in (True, False)
    ]
    np.testing.assert_array_equal(gradients[0][0], gradients[1][0])
    assert np.abs(gradients[0][1]).max() > 0.1
    assert not np.asarray(gradients[1][1]).any()


def test_a_frozen_head_saves_the_matmul_of_its_gradient() -> None:
    inputs = draw()

    def flops(is_trained: bool) -> float:
        gradient = jax.grad(
            functools.partial(
                loss.linear_cross_entropy, chunk_tokens=N, has_kernel_gradient=is_trained
            ),
            argnums=(0, 1),
        )
        return jax.jit(gradient).lower(*inputs).compile().cost_analysis()["flops"]

    assert flops(False) < flops(True) - N * D * V


def test_token_losses_are_the_terms_of_the_loss() -> None:
    hidden, kernel, targets, weights = draw()
    for chunk_tokens in (1, 10, 64):
        tokens = loss.token_losses(hidden, kernel, targets, chunk_tokens=chunk_tokens)
        assert tokens.shape == (N,)
        expected = oracle(hidden, kernel, targets, np.ones(N), 0.0)["weights"]
        np.testing.assert_allclose(tokens, expected, atol=2e-6)
    total = loss.linear_cross_entropy(hidden, kernel, targets, weights, chunk_tokens=10)
    np.testing.assert_allclose(jnp.sum(tokens * weights), total, rtol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    hidden, kernel, targets, weights = draw()
    value, gradient = jax.value_and_grad(loss.linear_cross_entropy)(
        hidden * 1000, kernel, targets, weights
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_bfloat16_stays_close_and_gradients_keep_their_dtypes() -> None:
    hidden, kernel, targets, weights = draw()
    expected = oracle(hidden, kernel, targets, weights, 0.0)
    value, gradients = jax.value_and_grad(loss.linear_cross_entropy, argnums=(0, 1))(
        hidden.astype(jnp.bfloat16), kernel, targets, weights
    )
    assert value.dtype == jnp.float32
    assert gradients[0].dtype == jnp.bfloat16
    assert gradients[1].dtype == jnp.float32
    np.testing.assert_allclose(value, expected["loss"], rtol=1e-2)
    for found, name in zip(gradients, ("hidden", "kernel")):
        error = np.abs(np.asarray(found, np.float64) - expected[name])
        assert error.mean() < 2e-2 * np.abs(expected[name]).mean()


def test_memory_is_at_most_a_quarter_of_materialised_logits() -> None:
    num_tokens, width, vocab = 8192, 32, 4096
    shapes = (
        jax.ShapeDtypeStruct((num_tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
        jax.ShapeDtypeStruct((num_tokens,), jnp.int32),
        jax.ShapeDtypeStruct((num_tokens,), jnp.float32),
    )

    def materialised(hidden, kernel, targets, weights):
        log_probs = jax.nn.log_softmax(hidden @ kernel)
        chosen = jnp.take_along_axis(log_probs, targets[:, None], axis=1)[:, 0]
        return -jnp.sum(chosen * weights)

    def temporary_bytes(function) -> int:
        compiled = jax.jit(jax.value_and_grad(function, argnums=(0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    ours, theirs = temporary_bytes(loss.linear_cross_entropy), temporary_bytes(materialised)
    assert theirs >= num_tokens * vocab * 4
    assert ours <= theirs / 4, f"{ours / 2**20:.0f} MiB against {theirs / 2**20:.0f}"
