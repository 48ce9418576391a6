"""Adam in 8 bits against bitsandbytes' AdamW8bit on the same gradients: maps, codes, the path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.train import eight_bit
from mistral_jax.train import optimizers
from tests.peers import ours

NUM_STEPS = 20
# Flattened, bitsandbytes' blocks of 256 are these arrays' tiles.
SHAPES = {"a/kernel": (32, 512), "b/lora_a": (512, 16), "c/lora_b": (64, 64)}
CONFIG = optimizer_config.AdamW(
    learning_rate=1e-2, max_steps=NUM_STEPS, beta1=0.9, beta2=0.95, epsilon=1e-8,
    weight_decay=0.1, max_grad_norm=None, moments="int8",
    schedule=optimizer_config.ConstantSchedule(),
)  # fmt: skip


@pytest.fixture(scope="module")
def gradients(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: (
            generator.normal(0.2, 1.0, (NUM_STEPS, *shape))
            * 10.0 ** generator.uniform(-2, 0, (shape[0], 1))
        ).astype(np.float32)
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def theirs(gradients: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("adam8bit")
    np.savez(folder / "gradients.npz", **gradients)
    np.savez(folder / "parameters.npz", **start())
    job = {
        "gradients": str(folder / "gradients.npz"),
        "parameters": str(folder / "parameters.npz"),
        "out": str(folder / "out.npz"),
        "optimizer": {"lr": 1e-2, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
    }
    ours.run_peer("adam8bit.py", job, folder)
    return dict(np.load(folder / "out.npz"))


def start() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}


def train(gradients: dict, moments: str) -> tuple[dict[str, np.ndarray], optax.ScaleByAdamState]:
    """Return each array at every step, and Adam's state after the first."""
    config = CONFIG.model_copy(update={"moments": moments})
    optimizer = optimizers.make_optimizer(config)
    params = {name: jnp.asarray(value) for name, value in start().items()}
    state = optimizer.init(params)

    @jax.jit
    def step(params: dict, state: tuple, gradient: dict) -> tuple:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    path: dict[str, list] = {name: [] for name in SHAPES}
    first = state
    for number in range(NUM_STEPS):
        params, state = step(params, state, {n: g[number] for n, g in gradients.items()})
        first = state if number == 0 else first
        for name, value in params.items():
            path[name].append(np.asarray(value))
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    adam = next(filter(is_adam, jax.tree.leaves(first, is_leaf=is_adam)))
    return {name: np.stack(steps) for name, steps in path.items()}, adam


def test_the_maps_are_bitsandbytes(theirs: dict) -> None:
    for number, is_signed in ((1, True), (2, False)):
        expected = theirs[f"a/kernel.map{number}"]
        found = eight_bit.dynamic_map(is_signed=is_signed)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_the_path_is_near_bitsandbytes_and_no_further_from_exact_adam(
    theirs: dict, gradients: dict
) -> None:
    path, _ = train(gradients, "int8")
    exact, _ = train(gradients, "float32")
    for name in SHAPES:
        travelled = path[name] - start()[name]
        apart = travelled - (theirs[f"{name}.path"] - start()[name])
        error = np.sqrt(np.mean(apart**2) / np.mean(travelled**2))
        rounding = np.sqrt(np.mean((path[name] - exact[name]) ** 2) / np.mean(travelled**2))
        print(f"{name}: apart {error:.2e}, 8 bits apart from float32 {rounding:.2e}")
        # Their CPU code searches less closely among the smallest second moments.
        assert error < 5e-2, name
        theirs_rounding = np.sqrt(
            np.mean((theirs[f"{name}.path"] - exact[name]) ** 2) / np.mean(travelled**2)
        )
        print(f"  bitsandbytes apart from float32 {theirs_rounding:.2e}")
        assert rounding < 1.05 * theirs_rounding, name


def test_codes_are_never_further_from_the_moment_than_bitsandbytes(
    theirs: dict, gradients: dict
) -> None:
    _, adam = train(gradients, "int8")
    for name, shape in SHAPES.items():
        gradient = gradients[name][0].astype(np.float64)
        for number, moment, exact in (
            (1, adam.mu[name], 0.1 * gradient),
            (2, adam.nu[name], 0.05 * gradient**2),
        ):
            blocks = np.abs(exact.reshape(-1, 256))
            exact = exact.reshape(-1, 256) / blocks.max(axis=1, keepdims=True)
            table = theirs[f"{name}.map{number}"].astype(np.float64)
            peers, ours_ = (
                np.asarray(codes).reshape(-1, 256).astype(int)
                for codes in (theirs[f"{name}.codes{number}"], moment.codes)
            )
            further = np.abs(table[ours_] - exact) - np.abs(table[peers] - exact)
            print(f"{name} {number}: {np.mean(peers != ours_):.2e} of {shape} differ")
            # Their CPU code searches less closely among the smallest values, of which a second
            # moment has many.
            assert number == 2 or np.mean(peers != ours_) < 0.02
            # Beyond a rounding, only where a second moment must not become 0.
            is_kept = (ours_ == 1) & (peers == 0) & (number == 2)
            assert (further[~is_kept] < 1e-6).all()
