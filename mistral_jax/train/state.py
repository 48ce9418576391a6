"""TrainState: everything that a step changes, as one pytree, and its shardings."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax.models import definition as definition_lib

HOST_MEMORY = "pinned_host"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step takes and gives back.

    The fields are Any because the same tree also carries shapes (for a restore) and shardings.

    Attributes:
        step: how many steps were done, int32, a scalar.
        params: the trained parameters by path, float32; frozen ones are a separate argument.
        opt_state: the optimizer's state.
        key_data: the run's root key as plain data, uint32, so that it can be saved.
    """

    step: Any
    params: Any
    opt_state: Any
    key_data: Any


def create(
    params: definition_lib.Params,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    param_shardings: dict,
) -> TrainState:
    """Return the state before step 0; the optimizer's state is sharded like the parameters."""
    key_data = jax.random.key_data(rng.seed_key(seed))

    def build(params: definition_lib.Params, key_data: Array) -> TrainState:
        return TrainState(jnp.int32(0), params, optimizer.init(params), key_data)

    shardings = state_shardings(jax.eval_shape(build, params, key_data), param_shardings, mesh)
    with jax.set_mesh(mesh):
        return jax.jit(build, out_shardings=shardings)(params, key_data)


def state_shardings(abstract: TrainState, param_shardings: dict, mesh: Mesh) -> TrainState:
    """Return the sharding of every leaf; none is left to chance.

    Restoring onto another mesh fails where one leaf has no sharding: the optimizer's step count
    comes back on device 0 only.
    """
    return sharding.like_parameters(abstract, param_shardings, mesh)


def on_host(state: TrainState) -> TrainState:
    """Return the state's shapes with the optimizer's arrays in the host's memory.

    Its counters stay on the device. The step needs optimizers.with_state_on_host.
    """

    def moved(leaf: Any) -> Any:
        if not leaf.shape:
            return leaf
        host = leaf.sharding.with_memory_kind(HOST_MEMORY)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host)

    return dataclasses.replace(state, opt_state=jax.tree.map(moved, state.opt_state))
