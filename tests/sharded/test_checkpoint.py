"""Numbers that move between meshes: saved on one and restored on another, or read from files."""

import types
from pathlib import Path

import jax
import numpy as np
import pytest

from mistral_jax import checkpoint
from mistral_jax import export
from mistral_jax.config import evaluate as evaluate_config
from mistral_jax.formats import detect
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


class Watched(np.ndarray):
    """A file's mapped tensor that notes the size of every part that is read of it."""

    parts: tuple[list[tuple[int, int]], ...] = ()

    def __array_finalize__(self, source: object) -> None:
        self.parts = getattr(source, "parts", ())

    def __getitem__(self, index: object) -> np.ndarray:
        found = super().__getitem__(index)  # pyright: ignore[reportCallIssue, reportArgumentType]
        self.parts[0].append((np.size(found), self.size))
        return np.asarray(found)


def test_loading_onto_eight_devices_never_holds_a_whole_kernel(
    tiny: types.ModuleType,
    checkpoint_file: tuple[Path, dict[str, np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, _ = checkpoint_file
    parts: list[tuple[int, int]] = []
    read = detect.WeightsFile.tensor

    def watched(self: detect.WeightsFile, name: str) -> np.ndarray:
        array = read(self, name).view(Watched)
        array.parts = (parts,)
        return array

    monkeypatch.setattr(detect.WeightsFile, "tensor", watched)
    definition = definition_lib.define(weights.read_config(path))
    weights.load_params(definition, path, tiny.mesh_of((1, 8, 1)))
    kernels = [(size, whole) for size, whole in parts if whole > 32]  # a norm is whole everywhere
    assert len(kernels) >= 8 * 9, "every device reads of every kernel"
    # A GGUF's q and k are reordered first, one layer's tensor at a time.
    reordered = 0 if path.is_dir() else 2 * definition.config.num_layers
    assert sum(size == whole for size, whole in kernels) == reordered
    # 0: of a head whose channels all rotate, none is left as it is.
    assert all(size in (0, whole // 8, whole) for size, whole in kernels), max(kernels)
