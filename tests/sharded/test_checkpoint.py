"""Numbers that move between meshes: saved on one and restored on another, or read from files."""

import types
from pathlib import Path

import jax
import numpy as np
import pytest

from mistral_jax import checkpoint
from mistral_jax import export
from mistral_jax.config import evaluate as evaluate_config
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from mistral_jax.models import weights

pytestmark = pytest.mark.sharded

SAVED_ON = (2, 2, 2)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def saved(tiny: types.ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Save a run's step 2 on one mesh, and go on there to step 4."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    run = tiny.start("lora", SAVED_ON)
    run.steps(0, 2, 1)
    keeper = checkpoint.Checkpointer(folder, evaluate_config.CheckpointConfig())
    keeper.save(2, run.state, {"data": {"row": 16}}, eval_loss=1.5)
    keeper.close()
    kept = tiny.whole(run.state)
    return folder, kept, run.steps(2, 2, 1)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 1, 1), (1, 4, 2)])
def test_step_restores_bit_for_bit_on_another_mesh_and_goes_on(
    tiny: types.ModuleType, saved: tuple, sizes: tuple[int, int, int]
) -> None:
    folder, kept, losses = saved
    run = tiny.start("lora", sizes)
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        run.state,
    )
    keeper = checkpoint.Checkpointer(folder, evaluate_config.CheckpointConfig())
    restored, complaints = keeper.restore_newest(wanted)
    keeper.close()
    assert complaints == []
    assert restored is not None
    assert restored.record["data"] == {"row": 16}
    targets = jax.tree.leaves(run.expected_shardings())
    pairs = jax.tree_util.tree_leaves_with_path(restored.state)
    for (path, leaf), old, target in zip(pairs, jax.tree.leaves(kept), targets, strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_array_equal(np.asarray(leaf), old, err_msg=name)
        assert leaf.sharding.is_equivalent_to(target, leaf.ndim), name
    run.state = restored.state
    np.testing.assert_allclose(run.steps(2, 2, 1), losses, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module", params=["hf", "gguf"])
def checkpoint_file(
    request: pytest.FixtureRequest,
    tiny: types.ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, np.ndarray]]:
    """Write the tiny model's first numbers in a public format."""
    # Hugging Face has no architecture with a window and biases.
    decoder = tiny.DECODER.model_copy(update={"qkv_bias": False})
    run = tiny.start("full", (1, 1, 1), decoder)
    params = tiny.whole(run.state.params)
    path = tmp_path_factory.mktemp("model") / ("tiny.gguf" if request.param == "gguf" else "tiny")
    reader = readers.TreeReader(params, decoder)
    export.write_model(
        reader, path, format=request.param, dtype="float32", tokenizer=None, name="tiny"
    )
    return path, params


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 8, 1), (1, 4, 2)])
def test_checkpoint_file_loads_onto_a_mesh_as_onto_one_device(
    tiny: types.ModuleType,
    checkpoint_file: tuple[Path, dict[str, np.ndarray]],
    sizes: tuple[int, int, int],
) -> None:
    path, expected = checkpoint_file
    mesh = tiny.mesh_of(sizes)
    definition = definition_lib.define(weights.read_config(path))
    loaded = weights.load_params(definition, path, mesh)
    assert loaded.keys() == expected.keys()
    for name, target in definition.shardings(mesh).items():
        np.testing.assert_array_equal(np.asarray(loaded[name]), expected[name], err_msg=name)
        assert loaded[name].sharding.is_equivalent_to(target, loaded[name].ndim), name
