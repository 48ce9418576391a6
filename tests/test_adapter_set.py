"""Several adapters on one base: each as if alone, switched without compiling, added up."""

from pathlib import Path

import jax
import numpy as np
import pytest

import mistral_jax as mj
from mistral_jax import artifact
from mistral_jax import export
from mistral_jax.config import model as model_config
from mistral_jax.generate import engine
from mistral_jax.models import streamed
from mistral_jax.models import weights
from tests import test_merge

KINDS: dict[str, model_config.LowRankAdapter] = {
    "a": model_config.LoraAdapter(rank=4, alpha=8.0),
    "b": model_config.LoraAdapter(
        rank=2, alpha=3.0, scaling="sqrt_rank", target_modules=("q_proj", "down_proj")
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a base and two adapters of different rank, scale and modules."""
    root = tmp_path_factory.mktemp("set")
    base = test_merge.write_base(root / "base", "dense")
    return {"base": base} | {
        name: test_merge.write_adapter(root / name, base, adapter)
        for name, adapter in KINDS.items()
    }


@pytest.fixture(scope="module")
def both(folders: dict[str, Path]) -> artifact.Artifact:
    adapters = {name: folders[name] for name in KINDS}
    return mj.load(str(folders["base"]), compute="float32", adapters=adapters)


def alone(folders: dict[str, Path], name: str) -> np.ndarray:
    """Return the logits of one adapter on the base, without the set."""
    reader = weights.open_reader(folders["base"])
    adapter, arrays = export.load_adapter(folders[name], reader.config)
    merged = export.readers.MergedReader(reader, arrays, adapter)
    return export.reference_logits(merged, reader.config)


def logits(model: artifact.Artifact) -> np.ndarray:
    config = model.definition.config
    reader = export.readers.TreeReader(model.params, config)
    tokens = export.parity_tokens(config)
    return streamed.logits(reader, config, tokens, model.definition.adapter)[0]


def test_each_adapter_computes_what_it_does_alone(
    folders: dict[str, Path], both: artifact.Artifact
) -> None:
    assert np.abs(alone(folders, "a") - alone(folders, "b")).max() > 0.05
    for name in KINDS:
        found = logits(mj.use_adapter(both, name))
        np.testing.assert_allclose(found, alone(folders, name), atol=2e-5)
    np.testing.assert_array_equal(logits(both), logits(mj.use_adapter(both, "a")))


def test_a_switch_shares_the_base_and_compiles_nothing(both: artifact.Artifact) -> None:
    first, second = (mj.use_adapter(both, name) for name in ("a", "b"))
    shared = "layers/mlp/up_proj/kernel"
    assert first.params[shared] is second.params[shared] is both.params[shared]
    mj.generate(both, ["x"], max_tokens=3, adapter="a", is_raw=True)
    before = engine._generate._cache_size()
    texts = [
        mj.generate(both, ["x"], max_tokens=3, adapter=name, is_raw=True)[0].tokens
        for name in ("b", "a")
    ]
    assert engine._generate._cache_size() == before
    assert texts[0] != texts[1]


def test_a_weighted_sum_merges_to_the_sum_of_the_updates(
    folders: dict[str, Path], both: artifact.Artifact, tmp_path: Path
) -> None:
    shares = {"a": 0.7, "b": -0.4}
    blended = mj.blend_adapters(both, shares)
    assert blended.definition.adapter.rank == 8
    written = mj.save(blended, tmp_path / "merged", format="hf", dtype="float32")
    assert written.largest_logit_difference is not None
    assert written.largest_logit_difference < 1e-5
    paths = ("layers/attention/q_proj/kernel", "layers/mlp/up_proj/kernel")
    base, merged = (weights.open_reader(path) for path in (folders["base"], tmp_path / "merged"))
    for path in paths:
        expected = np.asarray(base.read(path, (1,)), np.float32)
        for name, share in shares.items():
            adapter, arrays = export.load_adapter(folders[name], base.config)
            pair = [arrays.get(path.replace("kernel", leaf)) for leaf in ("lora_a", "lora_b")]
            if pair[0] is not None and pair[1] is not None:
                expected = expected + share * adapter.scale * pair[0][1] @ pair[1][1]
        np.testing.assert_allclose(merged.read(path, (1,)), expected, atol=1e-5)


def test_wrong_names_kinds_and_weights_are_refused(
    folders: dict[str, Path], both: artifact.Artifact, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no adapter 'c'; it has: a, b"):
        mj.generate(both, ["x"], adapter="c")
    with pytest.raises(ValueError, match="expected a finite number for one or more of a, b"):
        mj.blend_adapters(both, {"a": float("nan")})
    with pytest.raises(ValueError, match="adapters is empty"):
        mj.load(str(folders["base"]), adapters={})
    dora = test_merge.write_adapter(tmp_path / "dora", folders["base"], test_merge.ADAPTERS["dora"])
    with pytest.raises(ValueError, match="adapters of one set are of one kind"):
        mj.load(str(folders["base"]), adapters={"a": folders["a"], "dora": dora})
    alone = mj.load(str(folders["base"]), adapters={"dora": dora})
    with pytest.raises(ValueError, match="this model has kind dora"):
        mj.blend_adapters(alone, {"dora": 1.0})
    assert jax.tree.leaves(alone.adapters)
