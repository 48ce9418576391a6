"""LoRA adapters: ours run by PEFT, PEFT's run by us, with the same logits."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax import export
from mistral_jax import rng
from mistral_jax.config import model as model_config
from mistral_jax.formats import names
from mistral_jax.formats import peft
from mistral_jax.models import adapter_start
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from tests import test_export
from tests.peers import ours
from tests.peers.conftest import Draw

TOLERANCE = 1e-5  # of the largest logit, where that is above 1
SOME = ("q_proj", "v_proj", "down_proj")
LATENT = ("kv_a_proj", "kv_b_proj", "o_proj")
ALL = model_config.ALL_TARGET_MODULES
# Of a model's stacked experts, as PEFT targets them.
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and an adapter; alphas are not the rank, one is no whole number."""

    index: int
    rank: int
    alpha: float
    modules: tuple[model_config.TargetModule, ...]
    kind: str = "lora"
    scaling: model_config.Scaling = "rank"

    @property
    def has_experts(self) -> bool:
        """Whether the adapter is on a mixture's experts, where PEFT has no dropout."""
        return self.index == MIXTRAL and "up_proj" in self.modules

    @property
    def settings(self) -> model_config.LowRankAdapter:
        """The adapter as a config has it."""
        kinds = {"lora": model_config.LoraAdapter, "dora": model_config.DoraAdapter}
        return kinds[self.kind](
            rank=self.rank, alpha=self.alpha, scaling=self.scaling, target_modules=self.modules
        )


MIXTRAL, LATENT_MODEL = 3, 7
CASES = [
    Case(0, 4, 12.0, ALL),
    Case(1, 3, 2.5, SOME),
    Case(2, 4, 8.0, ALL),
    Case(LATENT_MODEL, 4, 8.0, LATENT),
    Case(1, 5, 2.5, SOME, scaling="sqrt_rank"),
    Case(2, 4, 6.0, ALL, kind="dora"),
    Case(LATENT_MODEL, 3, 2.0, LATENT, kind="dora", scaling="sqrt_rank"),
    Case(MIXTRAL, 3, 6.0, ALL),
    Case(MIXTRAL, 3, 2.0, ("q_proj", "gate_proj", "up_proj", "down_proj"), scaling="sqrt_rank"),
]


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A model with an adapter in a folder, and the logits that PEFT gives it."""

    draw: Draw
    folder: Path
    definition: definition_lib.Definition
    params: definition_lib.Params
    theirs: np.ndarray


def adapted(
    draw: Draw, adapter: model_config.LowRankAdapter
) -> tuple[definition_lib.Definition, definition_lib.Params]:
    """Return the draw with random adapters, B drawn as well as A, magnitudes moved."""
    definition = definition_lib.define(draw.definition.config, adapter=adapter)
    adapters = adapter_start.start_adapters(definition, draw.params, rng.seed_key(1), ours.MESH())
    generator = np.random.default_rng(2)
    for path, value in adapters.items():
        if path.endswith("lora_b"):
            drawn = generator.normal(0, 0.1, value.shape)
            adapters[path] = jnp.asarray(drawn, jnp.float32)
        if path.endswith("lora_magnitude"):
            adapters[path] = value * jnp.asarray(generator.uniform(0.7, 1.4, value.shape))
    return definition, draw.params | adapters


@pytest.fixture(scope="module")
def written_by_us(draws: list[Draw], tmp_path_factory: pytest.TempPathFactory) -> list[Adapted]:
    root = tmp_path_factory.mktemp("adapters")
    models, items = [], []
    for number, case in enumerate(CASES):
        draw, folder, adapter = draws[case.index], root / str(number), case.settings
        definition, params = adapted(draw, adapter)
        trained = {path: params[path] for path in definition.trainable_paths()}
        export.write_adapter(
            trained,
            definition.config,
            adapter,
            folder,
            base_model=str(draw.folder),
            is_interleaved=draw.is_interleaved,
        )
        np.save(folder / "tokens.npy", draw.batch["tokens"])
        items.append({
            "folder": str(draw.folder),
            "adapter": str(folder),
            "tokens": str(folder / "tokens.npy"),
            "out": str(folder / "logits.npy"),
        })  # fmt: skip
        models.append((draw, folder, definition, params))
    ours.run_peer("run_logits.py", {"items": items}, root)
    return [Adapted(*model, np.load(model[1] / "logits.npy")) for model in models]


@pytest.fixture(scope="module")
def written_by_peft(draws: list[Draw], tmp_path_factory: pytest.TempPathFactory) -> list[Adapted]:
    root = tmp_path_factory.mktemp("peft")
    items = []
    for number, case in enumerate(CASES):
        draw = draws[case.index]
        stacked = EXPERTS if case.has_experts else ()
        np.save(root / f"tokens{number}.npy", draw.batch["tokens"])
        items.append({
            "folder": str(draw.folder),
            "adapter": str(root / str(number)),
            "tokens": str(root / f"tokens{number}.npy"),
            "rank": case.rank,
            "alpha": case.alpha,
            "dropout": 0.0 if stacked else 0.1,
            "target_modules": [
                peft.PEFT_NAMES[module]
                for module in case.modules
                if not stacked or module in names.ATTENTION_PROJECTIONS
            ],
            "target_parameters": list(stacked),
            "use_rslora": case.scaling == "sqrt_rank",
            "use_dora": case.kind == "dora",
            "seed": number,
        })  # fmt: skip
    ours.run_peer("make_adapters.py", {"items": items}, root)
    read = []
    for item, case in zip(items, CASES, strict=True):
        draw, folder = draws[case.index], Path(item["adapter"])
        adapter, arrays = export.load_adapter(
            folder, draw.definition.config, is_interleaved=draw.is_interleaved
        )
        found = adapter.model_copy(update={"dropout": 0.0, "target_modules": case.modules})
        assert found == case.settings
        assert adapter.dropout == item["dropout"]
        assert set(adapter.target_modules) == set(case.modules)
        definition = definition_lib.define(draw.definition.config, adapter=adapter)
        params = draw.params | {path: jnp.asarray(value) for path, value in arrays.items()}
        read.append(Adapted(draw, folder, definition, params, np.load(folder / "logits.npy")))
    return read


def check_logits(found: np.ndarray, model: Adapted) -> None:
    """Compare with PEFT's logits."""
    apart = float(np.abs(found - model.theirs).max())
    limit = TOLERANCE * max(1.0, float(np.abs(model.theirs).max()))
    assert apart <= limit, f"{model.draw.label}: logits differ by {apart:.2e}"


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("writer", ["written_by_us", "written_by_peft"])
def test_adapted_logits_are_those_of_peft(
    writer: str, number: int, request: pytest.FixtureRequest
) -> None:
    model: Adapted = request.getfixturevalue(writer)[number]
    found = ours.logits(model.definition, model.params, model.draw.batch["tokens"])
    assert np.abs(model.theirs - model.draw.expected["logits"]).max() > 0.05  # it does something
    check_logits(found, model)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_our_merged_weights_give_the_logits_of_peft(
    number: int, written_by_peft: list[Adapted]
) -> None:
    model = written_by_peft[number]
    config, adapter = model.definition.config, model.definition.adapter
    assert isinstance(adapter, model_config.LowRankAdapter)
    arrays = {path: np.asarray(value) for path, value in model.params.items()}
    trained = {path: arrays[path] for path in model.definition.trainable_paths()}
    base = readers.TreeReader(arrays, config)
    merged = readers.MergedReader(base, trained, adapter)
    plain = definition_lib.define(config)
    params = {
        path: jnp.stack([merged.read(path, (layer,)) for layer in range(shape.shape[0])])
        if path.startswith(definition_lib.STACKED_PREFIXES)
        else jnp.asarray(merged.read(path, ()))
        for path, shape in plain.shapes.items()
    }
    found = ours.logits(plain, params, model.draw.batch["tokens"])
    check_logits(found, model)


def latent(**changes: Any) -> model_config.DecoderConfig:
    """Return a mixture of DeepSeek's kind without shared experts and dense layers."""
    plain = {"num_shared_experts": 0, "num_dense_layers": 0, "router": model_config.SigmoidRouter()}
    config = test_export.LATENT
    return config.model_copy(update={"ffn": config.ffn.model_copy(update=plain | changes)})


def test_peft_does_not_read_the_files_that_say_so(tmp_path: Path) -> None:
    """It loads them without an error and computes something else, which is why they say it."""
    shapes = {
        "plain": latent(), "shared": latent(num_shared_experts=1),
        "dense": latent(num_dense_layers=1, dense_width=24),
        "mistral4": test_export.CONFIGS["mistral4"],
    }  # fmt: skip
    adapter = model_config.LoraAdapter(
        rank=3, alpha=6.0, target_modules=("gate_proj", "up_proj", "down_proj")
    )
    items, expected = [], {}
    for name, config in shapes.items():
        definition, folder = definition_lib.define(config, adapter=adapter), tmp_path / name
        params = test_export.random_params(definition)
        trained = {path: params[path] for path in definition.trainable_paths()}
        export.write_model(
            readers.TreeReader(params, config), folder, format="hf", dtype="float32",
            tokenizer=None, name=name,
        )  # fmt: skip
        export.write_adapter(trained, config, adapter, folder / "own", base_model=str(folder))
        np.save(folder / "tokens.npy", export.parity_tokens(config))
        items.append({
            "folder": str(folder),
            "adapter": str(folder / "own"),
            "tokens": str(folder / "tokens.npy"),
            "out": str(folder / "logits.npy"),
        })  # fmt: skip
        expected[name] = export.reference_logits(params, config, adapter)
    ours.run_peer("run_logits.py", {"items": items}, tmp_path)
    for name, logits in expected.items():
        apart = np.abs(np.load(tmp_path / name / "logits.npy")[0] - logits).max()
        says_so = peft.reason_not_for_peft(shapes[name], adapter.target_modules) is not None
        assert says_so == (name != "plain")
        assert apart > 0.1 if says_so else apart < 1e-4, (name, apart)
