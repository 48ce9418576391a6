"""Batches against a slow builder; resume, hosts, workers, refused resumes, held-out rows."""

import decimal
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import batches
from data_pipelines import prepare
from data_pipelines import records
from data_pipelines import sources
from mistral_jax import tokenizers
from mistral_jax.config.data import BestFitPacking
from mistral_jax.config.data import DataConfig
from mistral_jax.config.data import NoPacking
from mistral_jax.config.data import Source
from mistral_jax.protocols import Batch
from mistral_jax.protocols import DataSource

BYTES = tokenizers.load_tokenizer("bytes")
T = 64


def make_source(folder: Path, name: str, count: int, seed: int, *, longest: int = 200) -> Path:
    """Prepare texts and prompt/completion pairs of random length."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        text = "".join(map(chr, rng.integers(97, 123, rng.integers(1, longest))))
        is_text = number % 2
        lines.append(
            {"text": text} if is_text else {"prompt": f"{name}{number}", "completion": text}
        )
    raw = folder / f"{name}.jsonl"
    raw.write_text("\n".join(map(json.dumps, lines)))
    prepare.prepare(raw, folder / name, tokenizer=BYTES, name=name, eval_fraction=0.2)
    return folder / name


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> list[sources.ArrayRecordSource]:
    folder = tmp_path_factory.mktemp("prepared")
    return [
        sources.ArrayRecordSource(make_source(folder, "a", 90, 1)),
        sources.ArrayRecordSource(make_source(folder, "b", 60, 2)),
    ]


def config(**changes) -> DataConfig:
    train = (Source(name="a", path="a", weight=2.0), Source(name="b", path="b", weight=1.0))
    options = {
        "train": train,
        "sequence_length": T,
        "global_batch_sequences": 8,
        "packing": BestFitPacking(block_rows=16),
        **changes,
    }
    return DataConfig(**options)


def equal(left: Batch, right: Batch) -> bool:
    return all(np.array_equal(getattr(left, n), getattr(right, n)) for n in batches.FIELDS)


def take(iterator, count: int) -> list[Batch]:
    return list(itertools.islice(iterator, count))


def slow_row(opened, plan) -> dict[str, list]:
    """Build one row token by token from whole documents."""
    row = {name: [] for name in batches.FIELDS}
    pieces = zip(plan.source, plan.document, plan.start, plan.length)
    for segment, (source, document, start, length) in enumerate(pieces, 1):
        example = opened[source][int(document)]
        for offset in range(length):
            at = int(start) + offset
            row["tokens"].append(example.tokens[at])
            row["targets"].append(example.tokens[at + 1])
            row["loss_weights"].append(float(example.loss_mask[at + 1]))
            row["positions"].append(offset)
            row["segment_ids"].append(segment)
            row["domain"].append(source)
    for values in row.values():
        values.extend([0] * (T - len(values)))
    return row


@pytest.mark.parametrize("packing", [BestFitPacking(block_rows=16), NoPacking(block_rows=16)])
def test_batches_equal_rows_built_token_by_token(opened, packing):
    made = batches.train_batches(opened, config(packing=packing), seed=4)
    for step, batch in enumerate(take(made, 6)):
        for index in range(8):
            plan = made._rows.order.pieces(step * 8 + index, step * 8 + index + 1)
            for name, values in slow_row(opened, plan).items():
                assert getattr(batch, name)[index].tolist() == values, name
        assert {getattr(batch, name).dtype for name in batches.FIELDS} == {
            np.dtype(np.int32),
            np.dtype(np.float32),
        }


def test_an_epoch_of_one_source_has_every_target_once(opened):
    source = opened[0]
    made = batches.train_batches(source_only := [source], config(train="a"), seed=0)
    order = made._rows.order
    rows = sum(order.plan(block).num_rows for block in range(order.mixture.blocks_per_epoch))
    batch = made._rows.batch(0, rows)
    inside = batch.segment_ids > 0
    got = sorted(zip(batch.tokens[inside].tolist(), batch.targets[inside].tolist()))
    wanted = []
    for index in range(len(source_only[0])):
        tokens = source[index].tokens.tolist()
        wanted += itertools.pairwise(tokens)
    assert got == sorted(wanted)


def test_a_resumed_iterator_goes_on_exactly(opened):
    straight = take(batches.train_batches(opened, config(), seed=4), 12)
    first = batches.train_batches(opened, config(), seed=4)
    take(first, 5)
    state = json.loads(json.dumps(first.get_state()))
    assert state["next_step"] == 5
    second = batches.train_batches(opened, config(), seed=4)
    second.set_state(state)
    third = batches.train_batches(opened, config(), seed=4, start_step=5)
    for wanted, got, other in zip(straight[5:], take(second, 7), take(third, 7)):
        assert equal(wanted, got) and equal(wanted, other)
    second.set_state({**state, "next_step": 0})
    assert equal(next(second), straight[0])


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_together_have_the_same_global_batch(opened, hosts):
    whole = take(batches.train_batches(opened, config(), seed=4), 4)
    held = np.split(np.arange(8), hosts)
    parts = [take(batches.train_batches(opened, config(), 4, held_rows=own), 4) for own in held]
    for step, wanted in enumerate(whole):
        joined = {
            name: np.concatenate([getattr(part[step], name) for part in parts])
            for name in batches.FIELDS
        }
        assert equal(wanted, Batch(**joined))


def test_prefetch_and_shuffle_off_are_honoured(opened):
    wanted = take(batches.train_batches(opened, config(), seed=4), 3)
    for prefetch in (0, 5):
        got = take(batches.train_batches(opened, config(prefetch_batches=prefetch), seed=4), 3)
        assert all(equal(left, right) for left, right in zip(wanted, got))
    plain = [
        take(batches.train_batches(opened, config(shuffle=False), seed=seed), 3) for seed in (1, 2)
    ]
    assert all(equal(left, right) for left, right in zip(*plain))
    assert not equal(plain[0][0], wanted[0])


def test_another_seed_gives_other_batches(opened):
    one, two = (next(batches.train_batches(opened, config(), seed=seed)) for seed in (1, 2))
    assert not equal(one, two)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(opened):
    wanted = take(batches.train_batches(opened, config(), seed=4), 5)
    made = batches.train_batches(opened, config(worker_count=2), seed=4)
    assert all(equal(left, right) for left, right in zip(wanted, take(made, 5)))


@pytest.mark.parametrize(
    ("changes", "seed", "field"),
    [
        ({}, 5, "seed was 4, is 5"),
        ({"sequence_length": 32}, 4, "sequence_length was 64, is 32"),
        ({"global_batch_sequences": 4}, 4, "global_batch_sequences was 8, is 4"),
        ({"packing": NoPacking()}, 4, "packing was"),
        ({"shuffle": False}, 4, "shuffle was True, is False"),
        ({"train": "a"}, 4, r"weights was .*2\.0.* is "),
    ],
)
def test_a_resume_with_other_settings_is_refused_by_name(opened, changes, seed, field):
    state = batches.train_batches(opened, config(), seed=4).get_state()
    other = batches.train_batches(opened, config(**changes), seed=seed)
    with pytest.raises(batches.ResumeMismatch, match=field):
        other.set_state(state)


def test_a_resume_with_changed_data_is_refused_by_name(opened, tmp_path):
    state = batches.train_batches(opened, config(), seed=4).get_state()
    changed = sources.ArrayRecordSource(make_source(tmp_path, "b", 61, 2))
    with pytest.raises(batches.ResumeMismatch, match="sources was"):
        batches.train_batches([opened[0], changed], config(), seed=4).set_state(state)


def test_sources_of_two_tokenizers_are_refused(opened, tmp_path):
    folder = make_source(tmp_path, "c", 5, 3)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"] = {"name": "other", "digest": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="different tokenizers"):
        batches.train_batches([opened[0], sources.ArrayRecordSource(folder)], config(train="a"), 0)


def test_a_host_may_hold_rows_that_are_not_neighbours(opened):
    held = np.array([0, 1, 5, 6, 7])
    whole = take(batches.train_batches(opened, config(), seed=4), 3)
    parts = take(batches.train_batches(opened, config(), seed=4, held_rows=held), 3)
    for wanted, got in zip(whole, parts):
        assert equal(Batch(**{name: getattr(wanted, name)[held] for name in batches.FIELDS}), got)


@pytest.mark.parametrize("held", [[], [0, 8], [-1, 0], [1, 0], [2, 2]])
def test_rows_that_are_not_of_the_batch_are_refused(opened, held):
    with pytest.raises(ValueError, match="global_batch_sequences"):
        batches.train_batches(opened, config(), 0, held_rows=np.array(held, int))


def test_hosts_together_have_the_held_out_rows_in_the_last_batch_too(opened):
    source = sources.ArrayRecordSource(opened[0].folder, "eval")

    def read(held):
        found = batches.eval_batches(
            source, sequence_length=T, batch_rows=4, max_rows=5, held_rows=held
        )
        return list(found)

    whole, parts = read(None), [read(np.array([0, 1])), read(np.array([2, 3]))]
    assert len(whole) == 2
    for number, wanted in enumerate(whole):
        joined = {
            name: np.concatenate([getattr(part[number], name) for part in parts])
            for name in batches.FIELDS
        }
        assert equal(wanted, Batch(**joined))
    assert not parts[1][1].loss_weights.any()


def test_held_out_rows_are_fixed_and_cover_the_split_once(opened):
    source = sources.ArrayRecordSource(opened[0].folder, "eval")
    runs = [list(batches.eval_batches(source, sequence_length=T, batch_rows=4)) for _ in range(2)]
    assert all(equal(left, right) for left, right in zip(*runs))
    assert {batch.tokens.shape for batch in runs[0]} == {(4, T)}
    inside = sum(int((batch.segment_ids > 0).sum()) for batch in runs[0])
    assert inside == int((source.lengths - 1).sum())
    few = list(batches.eval_batches(source, sequence_length=T, batch_rows=4, max_rows=6))
    assert [int((batch.segment_ids[:, 0] > 0).sum()) for batch in few] == [4, 2]
    assert equal(few[0], runs[0][0])
    assert not few[1].loss_weights[2:].any()


def test_long_documents_are_the_same_from_the_cache(tmp_path):
    source = sources.ArrayRecordSource(make_source(tmp_path, "long", 12, 5, longest=2000))
    made = batches.train_batches([source], config(train="a"), seed=1)
    first = [made._rows.batch(row, row + 1) for row in range(60)]
    assert made._rows._long
    assert all(equal(left, made._rows.batch(row, row + 1)) for row, left in enumerate(first))


def test_a_prepared_split_is_a_data_source(opened):
    assert isinstance(opened[0], DataSource)
    assert len(opened[0].digest) == 64


@pytest.mark.parametrize("token_bytes", [2, 4])
@pytest.mark.parametrize("mask", [None, [0, 1, 1], [1, 1, 1]])
def test_records_come_back(token_bytes, mask):
    tokens = np.array([1, 65535, 3])
    record = records.encode_record(
        tokens, None if mask is None else np.array(mask), "a!ü#1", token_bytes=token_bytes
    )
    example = records.decode_record(record)
    assert example.tokens.tolist() == tokens.tolist()
    assert example.loss_mask.tolist() == (mask or [1, 1, 1])
    assert example.document == "a!ü#1"
    for damaged in (record[:-1], record[:4], b"\x09" + record[1:]):
        with pytest.raises(records.RecordError):
            records.decode_record(damaged)


def test_a_token_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.65535, got 3\.\.65536"):
        records.encode_record(np.array([3, 65536]), None, "a", token_bytes=2)


@pytest.mark.parametrize("packing", [BestFitPacking(block_rows=16), NoPacking(block_rows=16)])
def test_an_epoch_ends_where_the_first_source_has_been_read_once(opened, packing):
    # a has 1.5 times the documents of b and twice its weight: it runs out first.
    stream = batches.train_batches(opened, config(packing=packing, global_batch_sequences=1), 3)
    num_rows = stream.num_steps(1)
    pieces = stream._rows.order.pieces(0, num_rows)
    first = pieces.document[(pieces.source == 0) & (pieces.start == 0)]
    assert sorted(first) == list(range(len(opened[0])))
    after = stream._rows.order.pieces(num_rows, num_rows + 40)
    assert 0 in after.source
    second = pieces.document[(pieces.source == 1) & (pieces.start == 0)]
    assert len(set(second)) == len(second) < len(opened[1])


def test_steps_of_epochs_are_rounded_up_and_need_no_anchor(opened):
    one = batches.train_batches(opened, config(global_batch_sequences=1), 3)
    num_rows = one.num_steps(1)
    for epochs in (0.001, 0.1, 1, 2.5, 3):
        for batch_rows in (1, 7, 8):
            stream = batches.train_batches(opened, config(global_batch_sequences=batch_rows), 3)
            stream.set_state({**stream.get_state(), "next_step": 20})
            exact = decimal.Decimal(str(epochs)) * num_rows / batch_rows
            assert stream.num_steps(epochs) == max(1, int(exact.to_integral_value("ROUND_CEILING")))
    tenth = batches.train_batches(opened, config(global_batch_sequences=num_rows), 3)
    assert tenth.num_steps(0.1) == 1
