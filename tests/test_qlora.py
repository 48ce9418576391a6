"""A run with its base in NF4: trained, reopened, exported as an adapter and merged."""

from pathlib import Path

import numpy as np
import pytest

import mistral_jax
from mistral_jax import artifact
from mistral_jax import export
from mistral_jax import manifest
from mistral_jax import rng
from mistral_jax import sharding
from mistral_jax import tokenizers
from mistral_jax.config import model as model_config
from mistral_jax.formats import peft
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from mistral_jax.models import weights
from tests import tiny

CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "lora.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, artifact.Artifact]:
    """Return the base's folder, and a run of a few steps on it."""
    folder = tmp_path_factory.mktemp("qlora")
    config = tiny.decoder(
        259, width=64, head_width=16, ffn=model_config.DenseFfn(width=128), max_positions=512
    )
    mesh = sharding.single_device_mesh()
    params = definition_lib.initialise(definition_lib.define(config), rng.seed_key(1), mesh)
    reader = readers.TreeReader(params, config)
    base = folder / "base"
    export.write_model(
        reader, base, format="hf", dtype="bfloat16",
        tokenizer=tokenizers.load_tokenizer("bytes"), name="base",
    )  # fmt: skip
    (folder / "docs").mkdir()
    (folder / "docs" / "words.txt").write_text("The harbour lies in the north. " * 400)
    result = mistral_jax.train(
        str(CONFIG), "precision.frozen=nf4", f"output={folder / 'run'}", "data.tokenizer=bytes",
        f"model={{kind: checkpoint, weights: {base}}}", f"data.train={folder / 'docs'}",
        "optimizer={learning_rate: 1e-2, max_steps: 4}",
    )  # fmt: skip
    assert result.reason == "done"
    return base, artifact.load_run(folder / "run")


def test_the_base_is_held_in_codes(trained: tuple[Path, artifact.Artifact]) -> None:
    _, model = trained
    assert model.params["layers/mlp/up_proj/kernel/codes"].dtype == np.uint8
    assert "layers/mlp/up_proj/kernel" not in model.params
    assert np.abs(np.asarray(model.params["layers/mlp/down_proj/lora_b"])).max() > 0


def test_the_adapter_is_merged_into_the_original_weights(
    trained: tuple[Path, artifact.Artifact], tmp_path: Path
) -> None:
    base, model = trained
    merged = mistral_jax.save(model, tmp_path / "merged", format="hf")
    assert merged.largest_logit_difference < 1e-2
    path = "layers/mlp/down_proj"
    original = weights.open_reader(base).read(f"{path}/kernel", (1,))
    lora_a, lora_b = (np.asarray(model.params[f"{path}/{n}"])[1] for n in ("lora_a", "lora_b"))
    update = lora_a @ lora_b * model.definition.adapter.scale
    expected = (original.astype(np.float32) + update).astype(original.dtype)
    found = weights.open_reader(tmp_path / "merged").read(f"{path}/kernel", (1,))
    np.testing.assert_array_equal(found, expected)


def test_the_adapter_alone_is_a_peft_folder(
    trained: tuple[Path, artifact.Artifact], tmp_path: Path
) -> None:
    _, model = trained
    mistral_jax.save(model, tmp_path / "adapter", format="peft")
    _, found = export.load_adapter(tmp_path / "adapter", model.definition.config)
    assert set(found) == set(model.definition.trainable_paths())
    for path, value in found.items():
        np.testing.assert_array_equal(value, np.asarray(model.params[path]), err_msg=path)


def test_the_run_is_an_adapter_of_its_base_alone(
    trained: tuple[Path, artifact.Artifact], tmp_path: Path
) -> None:
    base, model = trained
    run = model.directory
    assert run is not None
    loaded = mistral_jax.load(str(base), compute="float32", adapters={"harbour": run})
    for path in model.definition.trainable_paths():
        np.testing.assert_array_equal(loaded.params[path], model.params[path], err_msg=path)
    mistral_jax.save(model, tmp_path / "adapter", format="peft")
    recorded = peft.AdapterFile(tmp_path / "adapter").settings.base_digest
    assert recorded == manifest.weights_digest(base) == artifact.recorded_base(run)
    with pytest.raises(ValueError, match="the model has adapters already"):
        mistral_jax.load(str(run), adapters={"again": run})
    config = model.definition.config
    mesh = sharding.single_device_mesh()
    params = definition_lib.initialise(definition_lib.define(config), rng.seed_key(2), mesh)
    reader, other = readers.TreeReader(params, config), tmp_path / "other"
    export.write_model(
        reader, other, format="hf", dtype="bfloat16",
        tokenizer=tokenizers.load_tokenizer("bytes"), name="other",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"run was trained on a base whose files are .*other has"):
        mistral_jax.load(str(other), adapters={"harbour": run})
