"""Each family's way through the product: import, two training steps, export, transformers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import mistral_jax as mj
from mistral_jax import artifact
from mistral_jax import convert
from mistral_jax import tokenizers
from tests.peers import ours
from tests.peers.conftest import ALL_FAMILIES
from tests.peers.conftest import ONE_STEP
from tests.peers.conftest import draw_batch
from tests.peers.conftest import draw_config

VOCAB_SIZE = 288  # of the byte tokenizer, and some more
DOCUMENTS = Path(__file__).parents[2] / "docs"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A family's twin after two steps, exported.

    Attributes:
        imported: the largest logit difference that the import printed.
        change: of the logits by training.
        ours: logits of the trained model before its export.
        theirs: logits of the export in transformers.
    """

    imported: float
    change: float
    ours: np.ndarray
    theirs: np.ndarray


def logits_of(path: str | Path, tokens: np.ndarray) -> np.ndarray:
    folder = Path(path)
    model = (
        artifact.load_run(folder, compute="float32")
        if artifact.is_run(folder)
        else artifact.load_checkpoint(folder, compute="float32")
    )
    return ours.logits(model.definition, model.params, tokens)


@pytest.fixture(scope="module")
def trained(seed: int, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    root = tmp_path_factory.mktemp("families")
    generator = np.random.default_rng(seed + 1)
    jobs, batches = [], {}
    for family in ALL_FAMILIES:
        config = draw_config(family, generator) | {"vocab_size": VOCAB_SIZE}
        batches[family] = draw_batch(config, generator)
        np.savez(root / f"{family}.npz", **batches[family])
        jobs.append({
            "folder": str(root / family), "family": family, "config": config, "seed": 1,
            "batch": str(root / f"{family}.npz"), "prompt": [1, 2], "num_tokens": 1,
            "optimizer": ours.torch_settings(ONE_STEP),
        })  # fmt: skip
    ours.run_peer("make_checkpoints.py", {"draws": jobs}, root)
    found, items = {}, []
    for family, batch in batches.items():
        tokenizers.load_tokenizer("bytes").save(root / family)
        base, run, out = (root / f"{family}_{part}" for part in ("base", "run", "out"))
        imported = convert.import_checkpoint(str(root / family), str(base), dtype="checkpoint")
        mj.train(
            "configs/tiny/dense.yaml",
            f"model={{kind: checkpoint, weights: {base}}}",
            f"output={run}",
            f"data.train={DOCUMENTS}",
            "data.sequence_length=64",
            "optimizer.max_steps=2",
            "optimizer.warmup_steps=0",
            "optimizer.learning_rate=1e-2",
            "evaluate.max_rows=2",
        )
        convert.export_model(str(run), str(out), format="hf", dtype="float32")
        tokens = batch["tokens"]
        np.save(root / f"{family}_tokens.npy", tokens)
        items.append({
            "folder": str(out), "tokens": str(root / f"{family}_tokens.npy"),
            "out": str(root / f"{family}_logits.npy"),
        })  # fmt: skip
        before, after = logits_of(base, tokens), logits_of(run, tokens)
        difference = imported.largest_logit_difference
        assert difference is not None
        change = float(np.abs(after - before).max())
        found[family] = Trained(difference, change, after, np.empty(0))
    ours.run_peer("run_logits.py", {"items": items}, root)
    return {
        family: dataclasses.replace(each, theirs=np.load(root / f"{family}_logits.npy"))
        for family, each in found.items()
    }


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_twin_is_imported_trained_exported_and_read_by_transformers(
    family: str, trained: dict[str, Trained]
) -> None:
    found = trained[family]
    assert found.imported == 0.0
    assert found.change > 1e-2  # the two steps did something
    assert float(np.abs(found.theirs - found.ours).max()) <= 1e-4
