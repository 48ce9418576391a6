"""Five steps of a tiny decoder, full or LoRA, on a mesh of virtual CPU devices."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.config import model as model_config
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.config import stage as stage_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.train import optimizers
from mistral_jax.train import state as state_lib
from mistral_jax.train import step as step_lib
from tests import tiny

# data, fsdp, tensor
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2), (4, 1, 2)]
NUM_STEPS = 5
SEED = 7
ROWS, LENGTH = 8, 16

DECODER = tiny.decoder(
    64, attention=model_config.WindowAttention(window=6), qkv_bias=True, max_positions=LENGTH
)
ADAPTERS = {
    "full": model_config.NoAdapter(),
    "lora": model_config.LoraAdapter(
        rank=4, alpha=8.0, dropout=0.1, target_modules=("q_proj", "v_proj", "down_proj")
    ),
}
# Adam divides a gradient by its own size, rounding noise too: where a gradient is almost zero, two
# correct runs differ by a share of the learning rate, so it is small against the tolerance.
OPTIMIZER = optimizer_config.AdamW(
    learning_rate=1e-3, warmup_steps=2, max_steps=20, weight_decay=0.1
)


@dataclasses.dataclass
class Run:
    """A training run's parts on one mesh."""

    definition: definition_lib.Definition
    mesh: Mesh
    frozen: dict[str, jax.Array]
    state: state_lib.TrainState
    train_step: Any
    optimizer: Any

    def steps(self, first: int, count: int, accumulation: int) -> list[float]:
        """Do steps `first` to `first + count - 1`; return their losses."""
        losses = []
        with jax.set_mesh(self.mesh):
            for number in range(first, first + count):
                placed = place(batch(number, accumulation), self.mesh)
                self.state, metrics = self.train_step(self.state, self.frozen, placed)
                losses.append(float(metrics["loss"]))
        return losses

    def expected_shardings(self) -> state_lib.TrainState:
        """Return the sharding that the table gives every leaf of the state."""
        return state_lib.state_shardings(
            self.state, self.definition.shardings(self.mesh), self.mesh
        )


def mesh_of(sizes: tuple[int, int, int]) -> Mesh:
    """Return a mesh over the first devices."""
    named = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    return sharding.make_mesh(named, jax.devices()[: int(np.prod(sizes))])


def start(
    kind: str, sizes: tuple[int, int, int], decoder: model_config.DecoderConfig = DECODER
) -> Run:
    """Return a run before its first step."""
    mesh = mesh_of(sizes)
    definition = definition_lib.define(decoder, adapter=ADAPTERS[kind])
    trained = definition.trainable_paths()
    key = rng.seed_key(SEED)
    params = definition_lib.initialise(definition, key, mesh, trained)
    others = [path for path in definition.shapes if path not in trained]
    frozen = definition_lib.initialise(definition, key, mesh, others) if others else {}
    optimizer = optimizers.make_optimizer(OPTIMIZER)
    shardings = definition.shardings(mesh)
    state = state_lib.create(params, optimizer, SEED, mesh, shardings)
    schedule = optimizers.learning_rate(OPTIMIZER)
    train_step = step_lib.make_train_step(
        definition,
        stage_config.LmStage(z_loss=1e-4),
        optimizer,
        schedule,
        state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    )
    return Run(definition, mesh, frozen, state, train_step, optimizer)


@functools.cache
def on_one_device(kind: str, accumulation: int) -> tuple[list[float], dict[str, np.ndarray]]:
    """Return losses and trained parameters after NUM_STEPS on a single device."""
    run = start(kind, (1, 1, 1))
    losses = run.steps(0, NUM_STEPS, accumulation)
    return losses, whole(run.state.params)


def whole(tree: Any) -> Any:
    """Return a tree's arrays as NumPy arrays, gathered from all devices."""
    return jax.tree.map(np.asarray, tree)


def batch(number: int, accumulation: int) -> dict[str, np.ndarray]:
    """Return one global batch as [A, B, T]: packed rows, some targets without weight."""
    generator = np.random.default_rng(number)
    shape = (accumulation, ROWS, LENGTH)
    cut = generator.integers(4, LENGTH - 4, shape[:2])[..., None]
    index = np.broadcast_to(np.arange(LENGTH), shape)
    segments = 1 + (index >= cut)
    weights = (generator.random(shape) < 0.8) & (index + 1 != cut)
    return {
        "tokens": generator.integers(0, DECODER.vocab_size, shape).astype(np.int32),
        "targets": generator.integers(0, DECODER.vocab_size, shape).astype(np.int32),
        "loss_weights": weights.astype(np.float32),
        "positions": np.where(index >= cut, index - cut, index).astype(np.int32),
        "segment_ids": segments.astype(np.int32),
    }


def place(arrays: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Put [A, B, T] arrays on a mesh."""
    target = sharding.micro_batch_sharding(mesh)
    return {name: jax.device_put(array, target) for name, array in arrays.items()}
