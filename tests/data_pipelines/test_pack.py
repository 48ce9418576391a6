"""Packing and order against slow, obvious versions, and as properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from data_pipelines import ledger
from data_pipelines import mixture
from data_pipelines import pack

LENGTHS = strategies.lists(strategies.integers(1, 64), min_size=0, max_size=120)


def slow_best_fit(lengths: list[int], row_tokens: int) -> list[int]:
    """Return the space used in each row by textbook best-fit decreasing, sorted."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [(space, row) for row, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting)[1]] -= length
        else:
            spaces.append(row_tokens - length)
    return sorted(row_tokens - space for space in spaces)


@settings(max_examples=200, deadline=None)
@given(LENGTHS, strategies.integers(64, 200))
def test_rows_are_filled_as_by_textbook_best_fit(lengths, row_tokens):
    row_of, num_rows = pack.best_fit_rows(np.array(lengths, np.int64), row_tokens)
    used = np.bincount(row_of, weights=lengths, minlength=num_rows) if lengths else np.zeros(0)
    assert sorted(used.astype(int).tolist()) == slow_best_fit(lengths, row_tokens)
    assert (used <= row_tokens).all()


@settings(max_examples=100, deadline=None)
@given(strategies.lists(strategies.integers(1, 300), max_size=40), strategies.integers(1, 90))
def test_pieces_cover_every_input_once(lengths, row_tokens):
    pieces = pack.cut_documents(np.array(lengths, np.int64), row_tokens)
    covered = [
        (document, start + offset)
        for document, start, length in zip(pieces.document, pieces.start, pieces.length)
        for offset in range(length)
    ]
    wanted = [(document, at) for document, length in enumerate(lengths) for at in range(length)]
    assert covered == wanted
    assert all(1 <= length <= row_tokens for length in pieces.length)


def test_a_piece_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match=r"1\.\.10, got 3\.\.11"):
        pack.best_fit_rows(np.array([3, 11]), 10)


def test_permutation_depends_on_its_whole_key_and_nothing_else():
    first = mixture.permutation(50, "order", 1, "a", 0)
    assert sorted(first) == list(range(50))
    assert (first == mixture.permutation(50, "order", 1, "a", 0)).all()
    for other in (("order", 2, "a", 0), ("order", 1, "b", 0), ("order", 1, "a", 1)):
        assert (first != mixture.permutation(50, *other)).any()


def test_permutation_is_the_same_in_every_release():
    assert mixture.permutation(8, "order", 0, "x", 0).tolist() == [7, 5, 1, 4, 3, 6, 0, 2]


def make_ledger(lengths, weights=None, **changes):
    names = [f"s{index}" for index in range(len(lengths))]
    options = {"seed": 3, "row_tokens": 32, "block_rows": 4, **changes}
    return ledger.Ledger(names, lengths, weights or [1.0] * len(lengths), **options)


def inputs_of(plan):
    """Return every (source, document, input) of a plan."""
    return [
        (int(source), int(document), int(start) + offset)
        for source, document, start, length in zip(
            plan.source, plan.document, plan.start, plan.length
        )
        for offset in range(length)
    ]


@settings(max_examples=60, deadline=None)
@given(
    strategies.lists(strategies.integers(2, 150), min_size=1, max_size=60),
    strategies.integers(1, 6),
    strategies.booleans(),
)
def test_every_input_of_a_source_is_used_once_per_epoch(lengths, block_rows, is_shuffled):
    made = make_ledger([np.array(lengths)], block_rows=block_rows, is_shuffled=is_shuffled)
    blocks = made.mixture.blocks_per_epoch
    wanted = [(0, document, at) for document, n in enumerate(lengths) for at in range(n - 1)]
    for epoch in range(3):
        seen = []
        for block in range(epoch * blocks, (epoch + 1) * blocks):
            seen += inputs_of(made.plan(block))
        assert sorted(seen) == wanted


@settings(max_examples=40, deadline=None)
@given(
    strategies.lists(strategies.integers(2, 90), min_size=1, max_size=30),
    strategies.lists(strategies.integers(2, 90), min_size=1, max_size=30),
    strategies.floats(0.1, 10),
    strategies.integers(0, 40),
    strategies.integers(1, 30),
)
def test_rows_are_random_access_over_mixed_sources(first, second, weight, start, count):
    lengths = [np.array(first), np.array(second)]
    straight = make_ledger(lengths, [1.0, weight])
    rows = [straight.pieces(row, row + 1) for row in range(start + count)]
    jumped = make_ledger(lengths, [1.0, weight]).pieces(start, start + count)
    assert jumped.num_rows == count
    at = 0
    for row in rows[start:]:
        width = len(row.document)
        for name in ("source", "document", "start", "length"):
            got = getattr(jumped, name)[at : at + width]
            assert (got == getattr(row, name)).all()
        at += width
        assert row.length.sum() <= 32


def test_an_anchor_gives_the_same_rows_without_packing_the_blocks_before_it():
    lengths = [np.random.default_rng(0).integers(2, 90, 400)]
    straight = make_ledger(lengths)
    block, first_row = straight.locate(200)
    anchored = make_ledger(lengths)
    anchored.anchor(block, first_row)
    assert (anchored.pieces(200, 210).document == straight.pieces(200, 210).document).all()
    assert min(anchored._plans) == block
    assert (anchored.pieces(3, 9).document == straight.pieces(3, 9).document).all()


def test_sources_get_tokens_by_their_weights():
    rng = np.random.default_rng(1)
    lengths = [rng.integers(2, 60, 500), rng.integers(2, 400, 300)]
    made = make_ledger(lengths, [3.0, 1.0], row_tokens=64, block_rows=16)
    totals = np.zeros(2)
    for block in range(40):
        plan = made.plan(block)
        totals += np.bincount(plan.source, weights=plan.length, minlength=2)
    assert totals[0] / totals.sum() == pytest.approx(0.75, abs=0.01)


def test_another_source_does_not_change_the_order_of_the_first():
    sizes = np.arange(1, 40)
    alone = mixture.SourceStream("a", sizes, seed=5, is_shuffled=True).window(0, 700)
    made = mixture.Mixture(
        [
            mixture.SourceStream("a", sizes, seed=5, is_shuffled=True),
            mixture.SourceStream("b", sizes, seed=5, is_shuffled=True),
        ],
        [1.0, 1.0],
        block_size=100,
    )
    source, document = zip(*(made.block(block) for block in range(12)))
    mine = np.concatenate(document)[np.concatenate(source) == 0]
    assert (mine[: len(alone)] == alone[: len(mine)]).all()
    assert len(mine) > 25


def test_lognormal_documents_fill_rows_to_97_percent():
    rng = np.random.default_rng(0)
    lengths = np.maximum(2, rng.lognormal(np.log(570) - 0.5, 1.0, 6000)).astype(np.int64)
    made = make_ledger([lengths], row_tokens=2048, block_rows=512)
    rows = sum(made.plan(block).num_rows for block in range(made.mixture.blocks_per_epoch))
    assert (lengths - 1).sum() / (rows * 2048) >= 0.97


def test_without_packing_each_row_is_one_document_cut_at_its_end():
    made = make_ledger([np.array([5, 100, 2])], packing="none", is_shuffled=False, block_rows=2)
    plan = made.pieces(0, 6)
    assert plan.document.tolist() == [0, 1, 2, 0, 1, 2]
    assert plan.length.tolist() == [4, 32, 1, 4, 32, 1]


@pytest.mark.parametrize(
    ("lengths", "weights", "message"),
    [
        ([np.array([], np.int64)], [1.0], "no documents"),
        ([np.array([5, 1])], [1.0], "document 1 has fewer than 2 tokens"),
        ([np.array([5])], [0.0], "weight must be > 0"),
    ],
)
def test_sources_that_cannot_be_ordered_are_refused(lengths, weights, message):
    with pytest.raises(ValueError, match=message):
        make_ledger(lengths, weights)
