"""Random models of every family: the same numbers as transformers and torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mistral_jax import export
from mistral_jax.config import model as model_config
from mistral_jax.config import optimizer as optimizer_config
from mistral_jax.formats import names
from mistral_jax.generate import engine
from mistral_jax.models import definition as definition_lib
from mistral_jax.models import readers
from tests.peers import ours
from tests.peers.conftest import FAMILIES
from tests.peers.conftest import LATENT_FAMILIES
from tests.peers.conftest import ONE_STEP
from tests.peers.conftest import Draw
from tests.peers.conftest import parameters_of

Record = Callable[[str, str, float], None]
INDICES = range(len(FAMILIES))
NAMES = [f"{index}-{family}" for index, family in enumerate(FAMILIES)]
TOLERANCE = 1e-4


@pytest.fixture(params=INDICES, ids=NAMES)
def draw(request: pytest.FixtureRequest, draws: list[Draw]) -> Draw:
    return draws[request.param]


def test_the_draws_cover_what_they_should(draws: list[Draw]) -> None:
    configs = {draw.family: draw.definition.config for draw in draws}
    (reach,) = configs["mistral"].attention.reaches
    assert reach is not None and reach < draws[0].batch["tokens"].shape[1]
    assert len(configs["ministral"].attention.reaches) in (2, 3)
    for family in ("ministral3", "mistral3"):
        rope, scaling = configs[family].rope, configs[family].query_scaling
        assert rope.kind == "yarn" and scaling.kind == "log" and scaling.period < 24
    for family in LATENT_FAMILIES[:2]:
        config = configs[family]
        assert config.attention.kind == "latent"
        assert config.ffn.kind == "moe" and config.ffn.num_shared_experts
    for draw in draws:
        config = draw.definition.config
        assert config.head_width * config.num_heads != config.width
        assert 0.3 < np.std(draw.expected["logits"]) < 30
        if draw.family == "qwen2":
            assert float(np.abs(draw.params["layers/attention/k_proj/bias"]).max()) > 0.1


def test_logits_are_those_of_transformers(draw: Draw, record: Record) -> None:
    tokens = draw.batch["tokens"]
    found = ours.logits(draw.definition, draw.params, tokens)
    apart = float(np.abs(found - draw.expected["logits"]).max())
    assert apart <= TOLERANCE, (
        f"{draw.label}: logits differ by {apart:.2e}; "
        + ours.layer_differences(draw.definition, draw.params, tokens, draw.expected)
    )
    record(draw.family, "logits", apart)


@pytest.mark.parametrize("index", [0, 2, 3, 4, 5, 7, 8], ids=lambda index: NAMES[index])
def test_packed_documents_have_the_logits_of_separate_ones(index: int, draws: list[Draw]) -> None:
    draw = draws[index]
    found = ours.packed_logits(draw.definition, draw.params, draw.batch["tokens"])
    assert float(np.abs(found - draw.expected["logits"]).max()) <= TOLERANCE, draw.label


CHANGES = {
    "window": lambda c: {"attention": model_config.WindowAttention(window=c.attention.window + 1)},
    "epsilon": lambda c: {"norm_epsilon": c.norm_epsilon + 0.01},
    "theta": lambda c: {"rope": model_config.DefaultRope(theta=c.rope.theta / 4)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_logit_comparison_sees_a_wrong_shape(name: str, draws: list[Draw]) -> None:
    draw = draws[0]
    config = draw.definition.config
    wrong = definition_lib.define(config.model_copy(update=CHANGES[name](config)))
    tokens = draw.batch["tokens"]
    found = ours.logits(wrong, draw.params, tokens)
    assert float(np.abs(found - draw.expected["logits"]).max()) > TOLERANCE
    report = ours.layer_differences(wrong, draw.params, tokens, draw.expected)
    assert report.startswith("after layer 1: ")


def test_every_gradient_is_that_of_torch(draw: Draw, record: Record) -> None:
    batch = ours.batch_arrays(draw.batch)
    loss, gradients = ours.loss_gradients(draw.definition, draw.params, batch)
    expected = parameters_of(draw, "gradient/")
    assert abs(loss - float(draw.expected["loss"])) <= TOLERANCE, draw.label
    moved = {path: value for path, value in expected.items() if path not in names.FLOAT32_PATHS}
    assert all(np.abs(value).max() > 1e-5 for value in moved.values())
    apart = ours.assert_close(gradients, expected, TOLERANCE, f"{draw.label}: gradients")
    record(draw.family, "gradients", apart)


def test_one_adamw_step_is_that_of_torch(draw: Draw, record: Record) -> None:
    batch = ours.batch_arrays(draw.batch)
    seen, stepped = ours.train(draw.definition, draw.params, [batch], ONE_STEP)
    expected = parameters_of(draw, "stepped/")
    assert abs(seen[0]["grad_norm"] - float(draw.expected["grad_norm"])) <= TOLERANCE
    assert seen[0]["grad_norm"] > 2 * ONE_STEP.max_grad_norm  # so that clipping acts
    what = f"{draw.label}: parameters after a step"
    record(draw.family, "AdamW step", ours.assert_close(stepped, expected, TOLERANCE, what))


@pytest.mark.parametrize("change", [{"weight_decay": 0.0}, {"max_grad_norm": None}])
def test_the_step_comparison_sees_decay_and_clipping(change: dict, draws: list[Draw]) -> None:
    draw = draws[0]
    other = optimizer_config.AdamW.model_validate(ONE_STEP.model_dump() | change)
    _, stepped = ours.train(
        draw.definition, draw.params, [ours.batch_arrays(draw.batch)], other
    )  # fmt: skip
    expected = parameters_of(draw, "stepped/")
    with pytest.raises(AssertionError, match="differ by more than"):
        ours.assert_close(stepped, expected, TOLERANCE, "parameters")


@pytest.mark.parametrize("index", range(10), ids=lambda index: NAMES[index])
def test_decoding_with_a_cache_is_transformers_generate(index: int, draws: list[Draw]) -> None:
    draw = draws[index]
    theirs = draw.expected["greedy"].tolist()
    for reach in draw.definition.config.attention.reaches:
        assert reach is None or reach < len(draw.prompt) + len(theirs)
    made = engine.generate_tokens(
        draw.definition, draw.params, [draw.prompt], max_tokens=len(theirs)
    )  # fmt: skip
    agreed = [found == token for found, token in zip(made.tokens[0], theirs, strict=True)]
    if not all(agreed):
        # Two tokens may be equally likely up to rounding; what follows is then another text.
        first = agreed.index(False)
        scores = ours.logits(
            draw.definition, draw.params, np.array([[*draw.prompt, *theirs[:first]]], np.int32)
        )[0, -1]
        gap = abs(float(scores[theirs[first]] - scores[made.tokens[0][first]]))
        assert gap <= 1e-5, f"{draw.label}: token {first} differs, logits {gap:.2e} apart"


@pytest.fixture(scope="module")
def exported(draws: list[Draw], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export every draw, and let transformers compute the logits of the exports."""
    root = tmp_path_factory.mktemp("exported")
    items = []
    for index, draw in enumerate(draws):
        folder = root / str(index)
        reader = readers.TreeReader(
            {path: np.asarray(value) for path, value in draw.params.items()},
            draw.definition.config,
        )
        export.write_model(
            reader, folder, format="hf", dtype="float32", tokenizer=None, name="tiny"
        )
        np.save(folder / "tokens.npy", draw.batch["tokens"])
        items.append({
            "folder": str(folder),
            "tokens": str(folder / "tokens.npy"),
            "out": str(folder / "logits.npy"),
        })  # fmt: skip
    ours.run_peer("run_logits.py", {"items": items}, root)
    return root


@pytest.mark.parametrize("index", INDICES, ids=NAMES)
def test_our_export_gives_transformers_its_own_logits_again(
    index: int, draws: list[Draw], exported: Path, record: Record
) -> None:
    found = np.load(exported / str(index) / "logits.npy")
    apart = float(np.abs(found - draws[index].expected["logits"]).max())
    assert apart <= 1e-6, f"{draws[index].label}: {apart:.2e}"
    record(draws[index].family, "reloaded export", apart)
