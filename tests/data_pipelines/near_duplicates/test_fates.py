"""Fates: one of each cluster stays, sides never move, bridges are set aside; over any history."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from data_pipelines.near_duplicates import assignments
from data_pipelines.near_duplicates import clusters
from data_pipelines.near_duplicates import fates

# Document i says the words i .. i + 9: neighbours have 9 of 11 in common (J = .818), so that
# documents that come later can tie those apart together.
WIDTH = 10


def jaccard(first: int, second: int) -> float:
    """Return the exact similarity of two documents."""
    one, other = (set(range(start, start + WIDTH)) for start in (first, second))
    return len(one & other) / len(one | other)


def digests_of(documents) -> np.ndarray:
    """Return the content digests of documents."""
    data = b"".join(hashlib.sha256(str(document).encode()).digest() for document in documents)
    return np.frombuffer(data, np.uint8).reshape(-1, 32)


def run(documents, earlier=None, **options) -> tuple[fates.Fates, dict[int, str]]:
    """Decide about a corpus, clustered by exact similarity; return the side of what stays too."""
    found = clusters.Clusters(len(documents))
    near = [
        (place, before)
        for place, document in enumerate(documents)
        for before in range(place)
        if jaccard(document, documents[before]) >= 0.8
    ]
    first, second = np.array(near, np.int64).reshape(-1, 2).T
    found.union(first, second)
    decided = fates.decide(
        digests_of(documents),
        found.representatives(),
        earlier or assignments.nothing(),
        **{"eval_fraction": 0.4, **options},
    )
    names = [fates.NAMES[code] for code in decided.codes]
    sides = {
        document: name.removeprefix("kept:")
        for document, name in zip(documents, names, strict=True)
        if name.startswith("kept:")
    }
    return decided, sides


places = st.tuples(st.integers(0, 60), st.integers(0, 10_000))
histories = st.lists(st.lists(places, max_size=10), min_size=2, max_size=4)


@settings(max_examples=60, deadline=None)
@given(histories)
def test_adding_files_anywhere_moves_nothing_and_no_near_pair_crosses_the_sides(history):
    corpus: list[int] = []
    earlier, before = assignments.nothing(), {}
    for added in history:
        for document, place in added:
            corpus.insert(place % (len(corpus) + 1), document)
        decided, sides = run(corpus, earlier)
        assert {key: sides.get(key) for key in before} == before
        for one in sides:
            assert all(
                side == sides[one] for other, side in sides.items() if jaccard(one, other) >= 0.8
            )
        assert sum(decided.counts().values()) == len(corpus)
        assert len(sides) == (decided.codes <= fates.KEPT_EVAL).sum(), "no document stays twice"
        assert decided.from_before == len(before)
        again, _ = run(corpus, decided.assignments)
        assert np.array_equal(again.codes <= 1, decided.codes <= 1), "a second run changes nothing"
        earlier, before = decided.assignments, sides


@settings(max_examples=60, deadline=None)
@given(histories, st.integers(0, 1 << 32))
def test_removing_files_forgets_nothing(history, seed):
    known: dict[int, str] = {}
    earlier = assignments.nothing()
    everything: list[int] = []
    rng = np.random.default_rng(seed)
    for added in history:
        everything += [document for document, _ in added]
        corpus = [document for document in everything if rng.random() < 0.6]
        decided, sides = run(corpus, earlier)
        assert all(known.get(document, side) == side for document, side in sides.items())
        assert all(document in sides for document in corpus if document in known)
        known |= sides
        earlier = decided.assignments


def test_newcomer_between_both_sides_is_a_bridge_and_both_stay():
    apart = next(
        (one, one + 2)
        for one in range(0, 1000, 30)
        if len(set(run([one, one + 2])[1].values())) == 2
    )
    first, _ = run(list(apart))
    bridge = apart[0] + 1
    decided, sides = run([bridge, *apart, bridge], first.assignments)
    assert decided.counts() == {
        "kept:train": 1, "kept:eval": 1, "duplicate": 1, "near_duplicate": 0, "split_bridge": 1,
        "over_limit": 0,
    }  # fmt: skip
    assert sides == run(list(apart))[1]
    assert decided.instead.tolist() == [fates.NOBODY] * 3 + [0]
    alone, _ = run([bridge], decided.assignments)
    assert alone.counts()["split_bridge"] == 1, "a bridge stays one when what it touched is gone"


def test_copy_takes_the_side_of_what_stayed_before_it():
    for number in range(0, 600, 30):
        first, sides = run([number, number + 1])
        assert first.instead.tolist() == [fates.NOBODY, 0]
        alone, later = run([number + 1], first.assignments)
        assert later == {number + 1: sides[number]}
        _, both = run([number, number + 1], alone.assignments)
        assert both == sides | later, "what was kept once stays, though it is near another now"


def test_fraction_is_near_the_wanted_one_and_the_limit_counts_clusters():
    documents = list(range(0, 40_000, 20))
    digests = digests_of(documents)
    nobody = np.arange(len(documents))
    for fraction in (0.0, 0.2, 1.0):
        decided = fates.decide(digests, nobody, assignments.nothing(), eval_fraction=fraction)
        share = decided.counts()["kept:eval"] / len(documents)
        assert abs(share - fraction) <= 3 * np.sqrt(fraction * (1 - fraction) / len(documents))
    corpus = [0, 1, 0, 20, 40, 41, 60]
    decided, _ = run(corpus, max_documents=2)
    assert [fates.NAMES[code] for code in decided.codes[4:]] == [
        "over_limit", "near_duplicate", "over_limit",
    ]  # fmt: skip
    later, sides = run([60, *corpus], decided.assignments, max_documents=3)
    assert set(sides) == {0, 20, 60}
    assert later.from_before == 2


def test_assignments_survive_the_disk_and_damage_is_refused(tmp_path):
    decided, _ = run([1, 2, 2, 30, 50, 70])
    header = assignments.write(tmp_path, decided.assignments)
    assert header["documents"] == 5
    assert header["kept_train"] + header["kept_eval"] == 4
    back = assignments.read(tmp_path)
    assert np.array_equal(back.digests, decided.assignments.digests)
    assert np.array_equal(back.marks, decided.assignments.marks)
    more, _ = run([90, 1, 2], back)
    assignments.write(tmp_path, more.assignments)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(assignments.read(tmp_path)) == 6
    assert len(assignments.read(tmp_path / "absent")) == 0

    path = next(tmp_path.glob("*.npy"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(assignments.DamagedAssignments, match="sha256"):
        assignments.read(tmp_path)
    (tmp_path / assignments.HEADER).write_text(json.dumps({"version": 9}))
    with pytest.raises(assignments.DamagedAssignments, match="version 9"):
        assignments.read(tmp_path)


def test_a_group_stays_on_the_side_of_its_kept_documents():
    groups = np.repeat(np.arange(1, 9, dtype=np.uint64) << np.uint64(60), 4)
    groups[:2] = 0  # documents of no group
    first, sides = run(list(range(0, 32_000, 1000)), groups=groups, eval_fraction=0.3)
    documents = list(range(500, 32_500, 1000)) + list(range(0, 32_000, 1000))
    both = np.concatenate((groups, groups))
    _, after = run(documents, first.assignments, groups=both, eval_fraction=1.0)
    assert {document: after[document] for document in sides} == sides
    side_of = dict(zip(groups.tolist(), sides.values(), strict=True))
    for document, group in zip(documents, both.tolist(), strict=True):
        assert after[document] == side_of[group] or group == 0
    assert {"train", "eval"} == set(side_of.values())
