"""Batches that follow a curriculum: resumed at any step, on any hosts, with anything made ahead."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import batches
from data_pipelines import levels
from data_pipelines import records
from data_pipelines import shards
from data_pipelines import sources
from mistral_jax.config import curriculum as config_lib
from mistral_jax.config.data import BestFitPacking
from mistral_jax.config.data import DataConfig
from mistral_jax.protocols import Batch

STEPS = 40
EVALUATE_EVERY = 2
ROWS = 4
QUICK = config_lib.AdaptiveCurriculum(
    measure=config_lib.LossMeasure(ceiling=1.0), smoothing=0.0, dwell_evaluations=1
)


def write_source(folder: Path, name: str, *, is_leveled: bool) -> sources.ArrayRecordSource:
    """Write a prepared folder whose documents hold their level + 1 as every token."""
    rng = np.random.default_rng(len(name))
    level_of = np.sort(rng.integers(0, 5, 120)).astype(np.uint8)
    entries = {}
    for split in ("train", "eval"):
        writer = shards.SplitWriter(folder / name / split)
        for number, level in enumerate(level_of.tolist()):
            tokens = np.full(rng.integers(4, 40), level + 1 if is_leveled else 9)
            tokens[0] = number
            writer.add(records.encode_record(tokens, None, f"{number}", token_bytes=2))
        entries[split] = writer.close()
        if is_leveled:
            levels.write(folder / name / split, level_of)
    manifest = {
        "version": sources.MANIFEST_VERSION, "name": name, "fingerprint": "", "token_bytes": 2,
        "tokenizer": {"name": "numbers", "digest": "0", "vocab_size": 256},
        "counts": {}, "rejects": {}, "splits": entries,
    }  # fmt: skip
    (folder / name / sources.MANIFEST).write_text(json.dumps(manifest))
    return sources.ArrayRecordSource(folder / name)


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> list[sources.ArrayRecordSource]:
    folder = tmp_path_factory.mktemp("leveled")
    return [
        write_source(folder, "math", is_leveled=True),
        write_source(folder, "code", is_leveled=True),
        write_source(folder, "plain", is_leveled=False),
    ]


def make(opened, held=None, **changes) -> batches.TrainBatches:
    options = {
        "train": "x", "sequence_length": 32, "global_batch_sequences": ROWS,
        "packing": BestFitPacking(block_rows=8), "curriculum": QUICK,
    }  # fmt: skip
    config = DataConfig(**{**options, **changes})
    held = None if held is None else np.asarray(held)
    return batches.train_batches(opened, config, seed=4, held_rows=held, max_steps=STEPS)


def run(stream: batches.TrainBatches, start: int, stop: int) -> list[Batch]:
    """Take batches as the loop does: losses after every second one, falling faster for math."""
    found = []
    for step in range(start, stop):
        found.append(next(stream))
        if (step + 1) % EVALUATE_EVERY == 0:
            fall = (step + 1) / STEPS
            of_math, of_code = 1 - min(1, 1.5 * fall), 1 - fall
            stream.observe({("math", 0): of_math, ("math", 3): of_math, ("code", 1): of_code})
    return found


def same(left: list[Batch], right: list[Batch]) -> bool:
    assert len(left) == len(right)
    names = batches.FIELDS
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for one, other in zip(left, right)
        for name in names
    )


@pytest.fixture(scope="module")
def whole(opened) -> list[Batch]:
    stream = make(opened)
    found = run(stream, 0, STEPS)
    assert stream.levels() == {"math": 4, "code": 4}
    assert len(stream.get_state()["curriculum"]["entries"]) >= 8
    return found


def test_killed_at_random_steps_the_run_goes_on_with_the_same_batches(opened, whole) -> None:
    generator = random.Random(20261121)
    stream, done = make(opened), 0
    while done < STEPS:
        stop = min(STEPS, done + generator.randint(1, 9))
        assert same(run(stream, done, stop), whole[done:stop])
        saved = json.dumps(stream.get_state())
        lost = generator.randint(0, 3)  # steps after the last checkpoint that the kill takes
        run(stream, stop, stop + lost)
        stream, done = make(opened), stop
        stream.set_state(json.loads(saved))


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_have_the_same_batches(opened, whole, hosts) -> None:
    parts = [run(make(opened, held), 0, STEPS) for held in np.split(np.arange(ROWS), hosts)]
    for step, wanted in enumerate(whole):
        for name in batches.FIELDS:
            joined = np.concatenate([getattr(part[step], name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(wanted, name))


def test_batches_do_not_depend_on_how_many_are_made_ahead(opened, whole) -> None:
    for prefetch in (0, 7):
        assert same(run(make(opened, prefetch_batches=prefetch), 0, STEPS), whole)


@pytest.mark.slow
def test_worker_processes_follow_the_curriculum(opened, whole) -> None:
    assert same(run(make(opened, worker_count=2), 0, STEPS), whole)


def shares_in(found: list[Batch]) -> np.ndarray:
    """Return the share of math's tokens that each level has."""
    counts = np.zeros(5)
    for batch in found:
        values = batch.targets[(batch.domain == 0) & (batch.loss_weights > 0)]
        counts += np.bincount(values - 1, minlength=5)[:5]
    return counts / counts.sum()


def test_a_level_is_read_with_its_replay(opened) -> None:
    stages = ({"level": 2, "at_step": 0}, {"level": 4, "at_fraction": 0.5})
    config = config_lib.ScheduleCurriculum.model_validate_json(json.dumps({"plan": stages}))
    stream = make(opened, curriculum=config, global_batch_sequences=32)
    assert stream.levels() == {"math": 2, "code": 2}
    first = run(stream, 0, STEPS // 2)
    np.testing.assert_allclose(shares_in(first), [0.15, 0.15, 0.6, 0.1, 0], atol=0.02)
    run(stream, STEPS // 2, STEPS // 2 + 2)  # what is left of the block
    second = run(stream, STEPS // 2 + 2, STEPS)
    assert stream.levels() == {"math": 4, "code": 4}
    np.testing.assert_allclose(shares_in(second), [1 / 12] * 4 + [2 / 3], atol=0.03)


def test_a_pass_has_as_many_steps_as_without_a_curriculum(opened) -> None:
    plain = make(opened, curriculum=config_lib.NoCurriculum())
    assert make(opened).num_steps(1.5) == plain.num_steps(1.5)
    assert (
        "curriculum" not in plain.get_state() and "levels" not in plain.get_state()["fingerprint"]
    )


def test_what_a_curriculum_cannot_do_is_refused(opened) -> None:
    with pytest.raises(ValueError, match=r"none of the sources \(plain\) has levels"):
        make(opened[2:])
    state = make(opened).get_state()
    with pytest.raises(batches.ResumeMismatch, match="curriculum was"):
        make(opened, curriculum=QUICK.model_copy(update={"smoothing": 0.5})).set_state(state)
    with pytest.raises(batches.ResumeMismatch, match="curriculum was"):
        make(opened, curriculum=config_lib.NoCurriculum()).set_state(state)


def test_probes_are_the_held_out_documents_of_each_level(opened) -> None:
    held_out = sources.ArrayRecordSource(opened[0].folder, "eval")
    probes = batches.probes(held_out)
    assert sum(map(len, probes.values())) == len(held_out)
    assert probes[1].name == "math/algebra"
    for level, probe in probes.items():
        (batch, *_) = batches.eval_batches(probe, sequence_length=32, batch_rows=2)
        assert set(batch.targets[batch.loss_weights > 0].tolist()) == {level + 1}
    with pytest.raises(IndexError):
        probes[1].read_records([len(probes[1])])


def test_levels_that_the_manifest_knows_are_guarded(opened, tmp_path) -> None:
    made = write_source(tmp_path, "math", is_leveled=True)
    path = made.folder / sources.MANIFEST
    manifest = json.loads(path.read_text())
    entry = shards.file_entry(made.folder / "train" / levels.FILE)
    manifest["splits"]["train"]["levels"] = entry
    path.write_text(json.dumps(manifest))
    sources.ArrayRecordSource(made.folder).verify()
    levels.write(made.folder / "train", np.zeros(len(made), np.uint8))
    with pytest.raises(sources.DamagedShard, match="expected sha256"):
        sources.ArrayRecordSource(made.folder)
