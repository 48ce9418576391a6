"""What adapters start as: drawn low-rank pairs, and magnitudes that are the loaded base's norms."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from mistral_jax.adapters import attach
from mistral_jax.adapters import lora
from mistral_jax.models import definition as definition_lib


def start_adapters(
    definition: definition_lib.Definition,
    base: definition_lib.Params,
    key: PRNGKeyArray,
    mesh: Mesh,
) -> definition_lib.Params:
    """Return fresh adapters with which the model computes what its base does.

    Args:
        definition: a model with adapters.
        base: the parameters that do not train, as they are stored; quantised ones too.
        key: of the draws.
        mesh: where each shard goes.
    """
    paths = definition.trainable_paths()
    magnitudes = [path for path in paths if path.endswith(lora.MAGNITUDE)]
    # A drawn magnitude is the norm of a drawn kernel: with them the whole base would be drawn.
    pairs = [path for path in paths if path not in magnitudes]
    params = definition_lib.initialise(definition, key, mesh, pairs)
    if not magnitudes:
        return params
    shardings = definition.shardings(mesh)

    def norms(base: definition_lib.Params, params: definition_lib.Params) -> definition_lib.Params:
        unknown = {path: jnp.zeros(definition.shapes[path].shape) for path in magnitudes}
        model = definition.bind(base | params | unknown)
        return attach.starting_magnitudes(model, magnitudes)

    with jax.set_mesh(mesh):
        targets = {path: shardings[path] for path in magnitudes}
        return params | jax.jit(norms, out_shardings=targets)(base, params)
