"""Linear plus cross-entropy, in chunks, with the gradient formed in the forward pass.

Logits are never held for more than one chunk of tokens: an eighth of the memory and 0.77 of the
time of materialised logits (8192 x 512 x 32768, two CPU cores). The backward pass only scales.
On a mesh every device takes its own tokens: cut into chunks by the compiler, the tokens of all
devices would be gathered and the head computed on each.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Float
from jaxtyping import Int

from mistral_jax import sharding

DEFAULT_CHUNK_TOKENS = 1024


@dataclasses.dataclass(frozen=True)
class _Placement:
    """Which mesh axes split what on a device; nothing where there is one device.

    Attributes:
        tokens: axes over which the tokens lie.
        embed: axes that split the kernel's rows; gathered for the work.
        vocab: axes that split its columns; each device has its own logits.
    """

    tokens: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()

    @property
    def can_scatter(self) -> bool:
        """Whether the kernel's gradient is wanted by just the devices that add to it."""
        return bool(self.embed) and set(self.embed) <= set(self.tokens)


def linear_cross_entropy(
    hidden: Float[Array, "*tokens D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "*tokens"],
    weights: Float[Array, "*tokens"],
    *,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    z_loss: float = 0.0,
    has_kernel_gradient: bool = True,
) -> Float[Array, ""]:
    """Return sum(weights * (cross entropy + z_loss * logsumexp^2)), in nats, float32.

    Args:
        hidden: final hidden states, in the compute dtype; [B, T, D] on a mesh.
        kernel: output projection.
        targets: ids below V; where the weight is 0 any valid id will do.
        weights: per token; the sum is not divided by them.
        chunk_tokens: tokens of a device whose logits exist at one time.
        z_loss: factor on the squared logsumexp (arXiv:2204.02311, section 5).
        has_kernel_gradient: False where the head is frozen: saves a third of the work. The
            kernel's gradient is then zero.
    """
    return _loss(hidden, kernel, targets, weights, chunk_tokens, z_loss, has_kernel_gradient)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _loss(
    hidden: Array, kernel: Array, targets: Array, weights: Array,
    chunk_tokens: int, z_loss: float, has_kernel_gradient: bool,
) -> Array:  # fmt: skip
    del has_kernel_gradient
    on_device = functools.partial(
        _loss_on_device, chunk_tokens=chunk_tokens, z_loss=z_loss, has_gradient=False,
        has_kernel_gradient=False,
    )  # fmt: skip
    return _on_mesh(on_device, hidden, kernel, targets, weights)[0]


def _forward(
    hidden: Array, kernel: Array, targets: Array, weights: Array,
    chunk_tokens: int, z_loss: float, has_kernel_gradient: bool,
) -> tuple[Array, tuple]:  # fmt: skip
    on_device = functools.partial(
        _loss_on_device, chunk_tokens=chunk_tokens, z_loss=z_loss, has_gradient=True,
        has_kernel_gradient=has_kernel_gradient,
    )  # fmt: skip
    total, token_losses, hidden_gradient, kernel_gradient = _on_mesh(
        on_device, hidden, kernel, targets, weights
    )
    kept = kernel if kernel_gradient is None else kernel_gradient
    return total, (hidden_gradient, kept, token_losses)


def _backward(
    chunk_tokens: int, z_loss: float, has_kernel_gradient: bool, kept: tuple, scale: Array
) -> tuple:
    del chunk_tokens, z_loss
    hidden_gradient, kernel_gradient, token_losses = kept
    if not has_kernel_gradient:
        kernel_gradient = jnp.zeros_like(kernel_gradient)
    return (
        (hidden_gradient * scale).astype(hidden_gradient.dtype),
        (kernel_gradient * scale).astype(kernel_gradient.dtype),
        None,
        token_losses * scale,
    )


_loss.defvjp(_forward, _backward)


def token_losses(
    hidden: Float[Array, "*tokens D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "*tokens"],
    *,
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
) -> Float[Array, "*tokens"]:
    """Return each token's cross-entropy in nats, float32; for evaluation, without a gradient."""
    on_device = functools.partial(
        _loss_on_device, chunk_tokens=chunk_tokens, z_loss=0.0, has_gradient=False,
        has_kernel_gradient=False,
    )  # fmt: skip
    weights = jnp.ones(targets.shape, jnp.float32)
    return _on_mesh(on_device, hidden, kernel, targets, weights)[1]


def _on_mesh(
    on_device: Callable, hidden: Array, kernel: Array, targets: Array, weights: Array
) -> tuple:
    """Run on one device, or on every device of the mesh with its own tokens."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or hidden.ndim != 3:
        return on_device(hidden, kernel, targets, weights, place=_Placement())
    tokens = sharding.spec(("batch", "sequence"), targets.shape, mesh)
    states = sharding.spec(("batch", "sequence", None), hidden.shape, mesh)
    head = sharding.spec(("embed", "vocab"), kernel.shape, mesh)
    place = _Placement(
        tokens=sharding.names(tokens[0]) + sharding.names(tokens[1]),
        embed=sharding.names(head[0]),
        vocab=sharding.names(head[1]),
    )
    has_gradient = on_device.keywords["has_gradient"]
    is_whole = not place.can_scatter
    summed = sharding.spec((None, "vocab"), kernel.shape, mesh) if is_whole else head
    has_kernel_gradient = has_gradient and on_device.keywords["has_kernel_gradient"]
    out = (
        sharding.spec((), (), mesh),
        tokens,
        states if has_gradient else None,
        summed if has_kernel_gradient else None,
    )
    return jax.shard_map(
        functools.partial(on_device, place=place),
        mesh=mesh,
        in_specs=(states, head, tokens, tokens),
        out_specs=out,
        check_vma=False,
    )(hidden, kernel, targets, weights)


def _loss_on_device(
    hidden: Float[Array, "*tokens D"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "*tokens"],
    weights: Float[Array, "*tokens"],
    *,
    place: _Placement,
    chunk_tokens: int,
    z_loss: float,
    has_gradient: bool,
    has_kernel_gradient: bool,
) -> tuple[Array, Array, Array | None, Array | None]:
    """Return the mesh's loss, and of this device's tokens: losses, both gradients."""
    width = hidden.shape[-1]
    compute_kernel = kernel.astype(hidden.dtype)
    if place.embed:
        # Bytes a device and pass: D * V / tensor * itemsize.
        compute_kernel = jax.lax.all_gather(compute_kernel, place.embed, axis=0, tiled=True)

    def add(carry: tuple, chunk: tuple) -> tuple[tuple, tuple]:
        total, kernel_gradient = carry
        chunk_hidden, chunk_targets, chunk_weights = chunk
        loss, score_gradient, losses = _chunk_loss(
            chunk_hidden, chunk_targets, chunk_weights, compute_kernel, z_loss, place
        )
        if not has_gradient:
            return (total + loss, None), (losses, None)
        hidden_gradient = jnp.einsum("nv,dv->nd", score_gradient, compute_kernel)
        if place.vocab:
            # Bytes a device and chunk: 4 * chunk * D. float32: the parts of all columns add up.
            wide = hidden_gradient.astype(jnp.float32)
            hidden_gradient = jax.lax.psum(wide, place.vocab).astype(hidden.dtype)
        if kernel_gradient is not None:
            # float32: the sum runs over every token of the step.
            kernel_gradient = kernel_gradient + jnp.einsum(
                "nd,nv->dv", chunk_hidden, score_gradient, preferred_element_type=jnp.float32
            )
        return (total + loss, kernel_gradient), (losses, hidden_gradient)

    zero = jnp.zeros(compute_kernel.shape, jnp.float32) if has_kernel_gradient else None
    flat = (hidden.reshape(-1, width), targets.reshape(-1), weights.reshape(-1))
    chunks = _split(flat, chunk_tokens)
    (total, kernel_gradient), (losses, hidden_gradient) = jax.lax.scan(
        add, (jnp.float32(0), zero), chunks
    )
    if place.tokens:
        total = jax.lax.psum(total, place.tokens)  # 4 bytes
    if hidden_gradient is not None:
        hidden_gradient = hidden_gradient.reshape(-1, width)[: targets.size].reshape(hidden.shape)
    if kernel_gradient is not None:
        kernel_gradient = _summed(kernel_gradient, place).astype(kernel.dtype)
    losses = losses.reshape(-1)[: targets.size].reshape(targets.shape)
    return total, losses, hidden_gradient, kernel_gradient


def _summed(gradient: Float[Array, "D v"], place: _Placement) -> Float[Array, "d v"]:
    """Return the sum over all devices' tokens, split as the kernel is where that can be."""
    rest = place.tokens
    if place.can_scatter:
        # Bytes a device and pass: 4 * D * V / tensor.
        gradient = jax.lax.psum_scatter(gradient, place.embed, scatter_dimension=0, tiled=True)
        rest = tuple(axis for axis in place.tokens if axis not in place.embed)
    # Bytes a device and pass: what is left of it.
    return jax.lax.psum(gradient, rest) if rest else gradient


def _chunk_loss(
    hidden: Float[Array, "n D"],
    targets: Int[Array, " n"],
    weights: Float[Array, " n"],
    kernel: Float[Array, "D v"],
    z_loss: float,
    place: _Placement,
) -> tuple[Float[Array, ""], Float[Array, "n v"], Float[Array, " n"]]:
    """Return the chunk's loss, d loss / d logits in the hidden dtype, and losses per token."""
    # float32: bf16 logsumexp loses two digits at V=32768.
    logits = jnp.einsum("nd,dv->nv", hidden, kernel, preferred_element_type=jnp.float32)
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    if place.vocab:
        peak = jax.lax.pmax(peak, place.vocab)  # 4 bytes a token, as the two sums below
        targets = targets - jax.lax.axis_index(place.vocab) * logits.shape[1]
    exponentials = jnp.exp(logits - peak)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    is_target = targets[:, None] == jnp.arange(logits.shape[1], dtype=targets.dtype)[None, :]
    own = jnp.clip(targets, 0, logits.shape[1] - 1)
    target_logits = jnp.take_along_axis(logits, own[:, None], axis=-1)[:, 0]
    if place.vocab:
        total = jax.lax.psum(total, place.vocab)
        target_logits = jax.lax.psum(jnp.where(own == targets, target_logits, 0.0), place.vocab)
    logsumexp = (peak + jnp.log(total))[:, 0]
    losses = logsumexp - target_logits + z_loss * jnp.square(logsumexp)
    probability_scale = weights * (1 + 2 * z_loss * logsumexp)
    gradient = exponentials * (probability_scale[:, None] / total)
    gradient = jnp.where(is_target, gradient - weights[:, None], gradient)
    return jnp.sum(losses * weights), gradient.astype(hidden.dtype), losses


def _split(arrays: tuple[Array, ...], chunk_tokens: int) -> tuple[Array, ...]:
    """Cut [N, ...] into [chunks, chunk, ...], padded with zeros (weight 0 counts nothing)."""
    num_tokens = arrays[0].shape[0]
    chunk = min(chunk_tokens, num_tokens)
    padding = -num_tokens % chunk

    def cut(array: Array) -> Array:
        widths = [(0, padding)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, widths).reshape(-1, chunk, *array.shape[1:])

    return tuple(cut(array) for array in arrays)
