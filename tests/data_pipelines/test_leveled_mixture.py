"""Streams of levels: exact shares, nothing skipped or repeated, a prefix that never changes."""

import hashlib

import numpy as np
import pytest

from data_pipelines import ledger
from data_pipelines import leveled_mixture

LEVELS = np.repeat(np.arange(5, dtype=np.uint8), 40)
BASIC = {"a": (0.6, 0.1, 0.0, 0.0, 0.0)}
LATER = {"a": (0.15, 0.15, 0.6, 0.1, 0.0)}


def make_mixture(**changes) -> leveled_mixture.LeveledMixture:
    rng = np.random.default_rng(0)
    options = {
        "names": ["a", "b"],
        "sizes": [rng.integers(1, 9, 200), rng.integers(1, 9, 70)],
        "levels": [LEVELS, None],
        "weights": [3.0, 1.0],
        "block_size": 64,
        "seed": 1,
        "is_shuffled": True,
    }
    return leveled_mixture.LeveledMixture(**{**options, **changes})


def read(mixture: leveled_mixture.LeveledMixture, blocks: range) -> np.ndarray:
    """Return (source, document) of the blocks' documents."""
    return np.concatenate([np.stack(mixture.block(block), axis=1) for block in blocks])


def test_each_stream_has_every_document_once_an_epoch_through_all_entries() -> None:
    mixture = make_mixture()
    for start, shares in ((0, BASIC), (7, LATER), (7, BASIC), (19, LATER), (60, BASIC)):
        mixture.append(start, shares)
    found = read(mixture, range(120))
    for level in range(4):
        mine = found[(found[:, 0] == 0)][:, 1]
        mine = mine[LEVELS[mine] == level]
        for epoch in range(len(mine) // 40):
            documents = mine[epoch * 40 : (epoch + 1) * 40]
            assert sorted(documents.tolist()) == list(range(level * 40, level * 40 + 40))
    other = found[found[:, 0] == 1][:, 1]
    assert len(other) >= 140
    assert sorted(other[:70].tolist()) == sorted(other[70:140].tolist()) == list(range(70))


def test_shares_are_kept_in_tokens_replay_included() -> None:
    mixture = make_mixture()
    mixture.append(0, LATER)
    rng = np.random.default_rng(0)
    sizes = [rng.integers(1, 9, 200), rng.integers(1, 9, 70)]
    found = read(mixture, range(400))
    taken = np.zeros(6)
    for source, document in found.tolist():
        taken[5 if source else LEVELS[document]] += sizes[source][document]
    wanted = np.array([0.15, 0.15, 0.6, 0.1, 0.0, 1 / 3]) * 0.75
    np.testing.assert_allclose(taken / taken.sum(), wanted, atol=2e-3)


def test_a_level_without_documents_leaves_its_share_to_the_others() -> None:
    few = np.sort(np.random.default_rng(1).choice([1, 4], 200)).astype(np.uint8)
    mixture = make_mixture(levels=[few, None])
    mixture.append(0, BASIC)  # of levels 0 and 1 there is only 1
    found = read(mixture, range(20))
    assert set(few[found[found[:, 0] == 0][:, 1]].tolist()) == {1}
    only_hard = make_mixture(levels=[np.full(200, 4, np.uint8), None])
    only_hard.append(0, BASIC)
    assert (read(only_hard, range(20))[:, 0] == 0).any(), "the nearest level is read"


@pytest.mark.parametrize("start", [3, 0])
def test_entries_are_only_appended(start) -> None:
    mixture = make_mixture()
    if start:
        with pytest.raises(ValueError, match="from 0 on, got 3"):
            mixture.append(3, BASIC)
        return
    mixture.append(0, BASIC)
    mixture.append(5, LATER)
    with pytest.raises(ValueError, match="from 5 on, got 4"):
        mixture.append(4, BASIC)


def make_ledger(*, has_levels: bool) -> ledger.Ledger:
    rng = np.random.default_rng(3)
    lengths = [rng.integers(2, 300, count).astype(np.int32) for count in (200, 250)]
    return ledger.Ledger(
        ["a", "b"], lengths, [2.0, 1.0], seed=5, row_tokens=64, block_rows=16,
        levels=[LEVELS, None] if has_levels else None,
    )  # fmt: skip


def plan_bytes(made: ledger.Ledger, start: int, stop: int) -> bytes:
    plan = made.pieces(start, stop)
    arrays = (plan.source, plan.document, plan.start, plan.length, plan.row_starts)
    return b"".join(np.ascontiguousarray(each, np.int64).tobytes() for each in arrays)


def test_an_entry_changes_no_row_before_it_and_comes_back_from_its_state() -> None:
    plain, changed = make_ledger(has_levels=True), make_ledger(has_levels=True)
    for each in (plain, changed):
        each.append(0, BASIC)
    before = plan_bytes(changed, 0, 200)
    changed.append(101, LATER)
    (first, second) = changed.leveled.entries
    border = sum(plain.plan(block).num_rows for block in range(second.start_block))
    assert first.start_block == 0 and 101 <= border < 101 + 20
    assert plan_bytes(changed, 0, border) == plan_bytes(plain, 0, border)
    assert plan_bytes(changed, 0, 200) != before
    again = make_ledger(has_levels=True)
    again.set_entries(changed.leveled.get_state())
    again.anchor(*changed.locate(150))
    assert plan_bytes(again, 150, 200) == plan_bytes(changed, 150, 200)


def test_rows_without_a_curriculum_are_those_from_before_there_was_one() -> None:
    found = hashlib.sha256(plan_bytes(make_ledger(has_levels=False), 0, 300)).hexdigest()
    assert found == "54315ed49b2a4743bc6a237bcc3f1309f76923827faa442bb3d7a10017b4ef42"
