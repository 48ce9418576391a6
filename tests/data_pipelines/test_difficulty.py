"""Difficulty against known difficulty: reasoning-gym's knobs, code that grows; ties, NaN, speed."""

import importlib
import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import difficulty
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.synthesis import draws
from mistral_jax import tokenizers
from mistral_jax.protocols import Score

ROOT = Path(__file__).resolve().parents[2]
ROWS_PER_LEVEL = 20
# Of 28 tasks that were looked at, 16 reach 0.6 (2026-11); the others' knobs do not show in the
# text (the base of a conversion, the size of a polynomial's roots), or hardly.
TASKS = ("chain_sum", "gcd", "number_sorting", "propositional_logic", "simple_equations")


def row(text: str, kind: str = "text", **facts) -> Row:
    document = Document("d", "text", text=text)
    return Row(document, "s", kind, "general", "MIT", facts=facts)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    ranks = [difficulty.middle_ranks(np.asarray(each, float)) for each in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.load_tokenizer("mistral-common:v3")


def tasks_of(name: str) -> tuple[list[Row], list[int]]:
    """Return tasks with all knobs at level 0, then at 1, up to 4."""
    factory = pytest.importorskip("reasoning_gym.factory")
    found, level_of = [], []
    for level in range(5):
        knobs = factory.create_curriculum(name)
        for knob in knobs.attributes.values():
            knobs.set_attr_level(knob.name, min(level, len(knob.levels) - 1))
        config = knobs.generate_configuration({"seed": level, "size": ROWS_PER_LEVEL})
        for task in factory.create_dataset(name, **vars(config)):
            found.append(row(f"{task['question']}\n{task['answer']}", "math"))
            level_of.append(level)
    return found, level_of


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize("name", TASKS)
def test_scores_rank_tasks_like_the_knobs_that_made_them(name, tokenizer) -> None:
    rows, level_of = tasks_of(name)
    scores = difficulty.scores(difficulty.table_of(rows, tokenizer=tokenizer))
    assert spearman(scores, level_of) >= 0.6


@pytest.mark.parametrize("name", ["code_tasks", "maths"])
def test_scores_rank_generated_rows_like_their_levels(name) -> None:
    """0.63 and 0.51 over 200 rows: levels are topics there, which the text shows less."""
    pytest.importorskip("sympy")
    maker = importlib.import_module(f"data_pipelines.synthesis.{name}")
    rows, level_of = [], []
    for level, number in itertools.product(range(5), range(ROWS_PER_LEVEL)):
        task = maker.make(draws.Draws("test", level, number), level, number)
        made = Document(
            "d", "prompt_completion", prompt=task.prompt, completion=task.completion
        )  # fmt: skip
        rows.append(Row(made, "s", task.kind, "general", "MIT"))
        level_of.append(level)
    assert spearman(difficulty.scores(difficulty.table_of(rows)), level_of) >= 0.45


def program(size: int, rng: np.random.Generator) -> str:
    """Return a function of `size` loops and conditions inside each other."""
    lines = ["def work(values):", "    total = 0"]
    for depth in range(size):
        indent = "    " * (depth + 1)
        inner = rng.choice([f"for v{depth} in values:", f"if total > {rng.integers(9)}:"])
        lines.append(indent + str(inner))
        lines.append(f"{indent}    total += {rng.integers(99)}")
    return "\n".join([*lines, "    return total"]) + "\n"


def test_scores_rank_code_like_its_size() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 8, 80).tolist()
    rows = [row(program(size, rng), "code") for size in sizes]
    assert spearman(difficulty.scores(difficulty.table_of(rows)), sizes) >= 0.6
    (one,) = difficulty.table_of([row("x = [i for i in y if i and z]", "code")])
    found = dict(zip(difficulty.NAMES, one.tolist()))
    assert found["branches"] == pytest.approx(np.log1p(2))  # the comprehension and the `and`
    assert found["nesting"] == 1


def test_features_say_nothing_where_they_do_not_apply() -> None:
    chat = Row(
        Document("c", "chat", messages=tuple({"role": "user", "content": "Hi"} for _ in range(3))),
        "s", "text", "general", "MIT",
    )  # fmt: skip
    table = difficulty.table_of([row("not code (", "code"), chat, row("")])
    found = [dict(zip(difficulty.NAMES, each)) for each in table.tolist()]
    assert np.isnan([found[0]["tree_depth"], found[0]["turns"], found[0]["rarity"]]).all()
    assert found[1]["turns"] == 3 and np.isnan(found[1]["nesting"])
    assert np.isnan(found[2]["readability"])
    assert difficulty.scores(np.zeros((0, len(difficulty.NAMES)), np.float32)).shape == (0,)


def test_a_scorer_is_asked_once_and_what_it_knows_is_easy() -> None:
    class Knows:
        calls = 0

        def score(self, texts):
            self.calls += 1
            return [Score(1.0 if "known" in text else 0.25) for text in texts]

    scorer = Knows()
    table = difficulty.table_of([row("known"), row("other")], scorer=scorer)
    assert table[:, difficulty.NAMES.index("loss")].tolist() == [0.0, 0.75]
    assert scorer.calls == 1


def slow_score(table: np.ndarray, line: np.ndarray) -> float:
    """Return the mean over the groups of the mean rank of a row, number by number."""
    means = []
    for group in difficulty.GROUPS:
        ranks = []
        for name in group:
            column = table[:, difficulty.NAMES.index(name)]
            value = line[difficulty.NAMES.index(name)]
            told = [each for each in column.tolist() if each == each]
            if value == value and len(set(told)) > 1:
                below = sum(each < value for each in told)
                equal = sum(each == value for each in told)
                ranks.append((below + equal / 2) / len(told))
        if ranks:
            means.append(sum(ranks) / len(ranks))
    return sum(means) / len(means) if means else 0.5


def test_scores_do_not_depend_on_the_order_and_ties_are_ties() -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 4, (50, len(difficulty.NAMES))).astype(np.float32)
    table[rng.random(table.shape) < 0.6] = np.nan
    table[:, 5] = 7  # the same everywhere: says nothing
    table[0] = np.nan
    scores = difficulty.scores(table)
    shuffled = rng.permutation(50)
    np.testing.assert_array_equal(difficulty.scores(table[shuffled]), scores[shuffled])
    np.testing.assert_allclose(scores, [slow_score(table, line) for line in table])
    assert scores[0] == 0.5


def test_levels_are_fifths_and_makers_know_better() -> None:
    scores = np.linspace(0, 1, 100)
    assert np.bincount(difficulty.levels_of(scores)).tolist() == [20] * 5
    assert set(difficulty.levels_of(np.full(9, 0.5))) == {2}
    known = [None, 4, None]
    assert difficulty.levels_of(np.array([0.0, 0.1, 0.9]), known).tolist() == [0, 4, 4]
    told = [row("x", level=3), row("x", difficulty=0.99), row("x", difficulty=1), row("x")]
    assert [difficulty.known_level(each) for each in told] == [3, 4, 4, None]
    with pytest.raises(ValueError, match="expected a level from 0 to 4, got 5"):
        difficulty.known_level(row("x", level=5))
    order = difficulty.order_of(
        np.array([1, 0, 0, 0]), np.array([0.1, 0.5, 0.5, 0.2]), [b"a", b"c", b"b", b"d"]
    )
    assert order.tolist() == [3, 2, 1, 0]


def test_a_long_text_costs_no_more_than_a_sample() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    long = row(text * 200, "code")  # 5 MB
    started = time.process_time()
    difficulty.features(long)
    rate = len(long.text) / 1e6 / (time.process_time() - started)
    assert rate > 10, f"{rate:.0f} MB per CPU-second"
