"""The join against exact Jaccard: what it finds, what it leaves, what it may not depend on."""

import itertools
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from data_pipelines.near_duplicates import clusters
from data_pipelines.near_duplicates import join
from data_pipelines.near_duplicates import runs
from mistral_jax.config.near_duplicates import NearDuplicates

CONFIG = NearDuplicates()
NUM_ORIGINALS = 400
# Shares of words replaced, and how many copies of each.
COPIES = {0.0: 30, 0.01: 150, 0.02: 60, 0.2: 80, 0.5: 80}


def shingles_of(text: str) -> frozenset[tuple[str, ...]]:
    """Return the set of word 5-grams, the obvious way."""
    words = text.lower().split()
    return frozenset(tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4)))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents of common words, and copies of some with words replaced, in random order."""
    rng = np.random.default_rng(0)
    made = [[f"w{word}" for word in rng.zipf(1.3, 150) % 2000] for _ in range(NUM_ORIGINALS)]
    for share, count in COPIES.items():
        for which in rng.integers(0, NUM_ORIGINALS, count):
            words = list(made[which])
            for place in np.flatnonzero(rng.random(len(words)) < share):
                words[place] = f"new{rng.integers(1 << 30)}"
            made.append(words)
    made += [[], [], ["!"], ["?"]]
    return [" ".join(made[which]) for which in rng.permutation(len(made))]


@pytest.fixture(scope="module")
def exact(texts) -> np.ndarray:
    """The exact similarity of all pairs."""
    sets = [shingles_of(text) if text else frozenset() for text in texts]
    found = np.zeros((len(sets), len(sets)))
    for (i, one), (j, other) in itertools.combinations(enumerate(sets), 2):
        if one and not one.isdisjoint(other):
            found[i, j] = found[j, i] = len(one & other) / len(one | other)
    return found


def write_runs(folder, texts, sizes, config=CONFIG) -> list[runs.Run]:
    """Write texts as tasks of these sizes, the last one with what is left."""
    made, at = [], 0
    for task, size in enumerate([*sizes, len(texts)]):
        writer = runs.RunWriter(runs.Run(folder, 3 * task), config)
        writer.add(texts[at : at + size])
        writer.close()
        made.append(writer.run)
        at += size
    return made


@pytest.fixture(scope="module")
def joined(texts, tmp_path_factory) -> join.Join:
    """The join of three tasks."""
    return join.join(write_runs(tmp_path_factory.mktemp("runs"), texts, [300, 0, 200]), CONFIG)


def test_near_pairs_are_found_and_distant_documents_stay(joined, exact):
    roots = joined.representatives
    first, second = np.nonzero(np.triu(exact >= 0.8))
    assert len(first) > 150
    assert (roots[first] == roots[second]).mean() >= 0.98
    gone = np.flatnonzero(roots != np.arange(len(roots)))
    # A document is falsely removed where nothing in its cluster is as much as half like it.
    best = np.array([exact[number, roots == roots[number]].max() for number in gone])
    against_kept = exact[gone, roots[gone]]
    assert len(gone) > 150
    assert (best < 0.5).mean() <= 0.01
    assert (against_kept < 0.5).mean() <= 0.01
    assert not (exact.max(axis=1)[gone] < 0.5).any()


def test_documents_without_words_are_nobodys_duplicates(joined, texts):
    empty = [number for number, text in enumerate(texts) if not text]
    assert joined.representatives[empty].tolist() == empty


def test_result_does_not_depend_on_tasks_nor_ranges(joined, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(join, "CHUNK_PAIRS", 7)
    config = CONFIG.model_copy(update={"join_keys": 3000, "key_ranges": 5})
    all_runs = write_runs(tmp_path, texts, [1, 500, 7], config)
    again = join.join(all_runs, config)
    assert again.num_queries == 5
    assert np.array_equal(again.representatives, joined.representatives)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_runs(tmp_path, texts, [1, 500, 7], config)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_bucket_of_a_thousand_copies_is_one_cluster_at_linear_cost(tmp_path):
    text = " ".join(f"w{number}" for number in range(50))
    others = [f"{number} " * 9 for number in range(40)]
    texts = [text] * 700 + others + [text] * 300
    found = join.join(write_runs(tmp_path, texts, [333]), CONFIG)
    facts = clusters.describe(found.representatives)
    assert facts.sizes == {1000: 1}
    assert facts.largest[0][:2] == (1000, 0)
    assert found.num_candidates < 1100


def test_runs_of_other_settings_or_cut_short_are_refused(tmp_path):
    (run, last) = write_runs(tmp_path, ["a b c d e f"] * 3, [2])
    with pytest.raises(runs.DamagedRun, match="expected signatures made with"):
        join.join([run, last], CONFIG.model_copy(update={"seed": 1}))
    with pytest.raises(ValueError, match="ascending order"):
        join.join([last, run], CONFIG)
    run.signatures_path.write_bytes(run.signatures_path.read_bytes()[:-4])
    with pytest.raises(runs.DamagedRun, match="expected 2 signatures"):
        join.join([run, last], CONFIG)
    last.bands_path.write_bytes(b"PAR1" * 8)
    with pytest.raises(runs.DamagedRun, match="cannot be read"):
        join.join([last], CONFIG)
    with pytest.raises(runs.DamagedRun, match="not there"):
        join.join([runs.Run(tmp_path, 99)], CONFIG)


def test_union_of_any_pairs_gives_the_smallest_number_of_each_component():
    rng = np.random.default_rng(2)
    for _ in range(20):
        first, second = rng.integers(0, 200, (2, 120))
        found = clusters.Clusters(200)
        for at in range(0, 120, 30):
            found.union(first[at : at + 30], second[at : at + 30])
        labels = np.arange(200)
        for _ in range(200):
            for one, other in zip(first, second, strict=True):
                labels[one] = labels[other] = min(labels[one], labels[other])
        assert np.array_equal(found.representatives(), labels)


def test_daft_does_not_phone_home_and_shows_no_progress(tmp_path):
    write_runs(tmp_path, ["some words that are the same"] * 5, [2])
    script = f"""
        import json, os, pathlib, sys, threading
        calls = []
        def listen(event, arguments):
            if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
                calls.append(event)
                raise ConnectionRefusedError(event)  # nothing ever leaves
        sys.addaudithook(listen)
        from data_pipelines.near_duplicates import engine, join, runs
        from mistral_jax.config.near_duplicates import NearDuplicates
        folder = pathlib.Path({str(tmp_path)!r})
        found = join.join([runs.Run(folder, 0), runs.Run(folder, 3)], NearDuplicates())
        for thread in threading.enumerate():
            if "send_request" in thread.name: thread.join(5)
        silent = list(calls)
        for name in engine.SILENT: del os.environ[name]
        sys.modules["daft"].scarf_telemetry.track_import_on_scarf()[0].join(5)
        print(json.dumps([found.representatives.tolist(), silent, calls]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=True, text=True
    )
    representatives, silent, heard = json.loads(done.stdout)
    assert representatives == [0] * 5
    assert silent == []
    assert heard, "the control must be heard, or the test proves nothing"
    assert done.stderr == ""
