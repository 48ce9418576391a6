"""Raw documents to a prepared folder: counts, splits, masks, reuse, and a kill in the middle."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import map_tasks
from data_pipelines import prepare
from data_pipelines import readers
from data_pipelines import shards
from data_pipelines import sources
from mistral_jax import storage
from mistral_jax import tokenizers

BYTES = tokenizers.load_tokenizer("bytes")


def write_documents(folder: Path, count: int, words: int = 30) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    for index in range(count):
        text = " ".join(f"w{number}" for number in rng.integers(0, 1000, words))
        (folder / f"d{index:04d}.txt").write_text(text)


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def documents_of(folder: Path) -> dict[str, sources.ArrayRecordSource]:
    return {split: sources.ArrayRecordSource(folder, split) for split in ("train", "eval")}


def test_every_document_is_in_one_split_with_its_tokens(tmp_path):
    write_documents(tmp_path / "in", 60)
    made = prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES, eval_fraction=0.2)
    found = {}
    for split, source in documents_of(tmp_path / "out").items():
        source.verify()
        for index in range(len(source)):
            example = source[index]
            assert len(example.tokens) == source.lengths[index]
            assert example.tokens[0] == BYTES.bos_id
            assert example.tokens[-1] == BYTES.eos_id
            assert example.loss_mask.all()
            found[example.document] = (split, BYTES.decode(example.tokens.tolist()))
    texts = {path.name: path.read_text() for path in (tmp_path / "in").iterdir()}
    assert {name: text for name, (_, text) in found.items()} == texts
    assert 3 <= sum(split == "eval" for split, _ in found.values()) <= 25
    counts = made.manifest["counts"]
    assert (counts["documents_read"], counts["kept"], counts["rejected"]) == (60, 60, 0)


def test_a_document_keeps_its_split_when_files_are_added(tmp_path):
    write_documents(tmp_path / "in", 40)
    prepare.prepare(tmp_path / "in", tmp_path / "a", tokenizer=BYTES, eval_fraction=0.3)
    write_documents(tmp_path / "in", 70)
    prepare.prepare(tmp_path / "in", tmp_path / "b", tokenizer=BYTES, eval_fraction=0.3)
    before, after = (
        {
            source[i].document: split
            for split, source in documents_of(folder).items()
            for i in range(len(source))
        }
        for folder in (tmp_path / "a", tmp_path / "b")
    )
    assert all(after[document] == split for document, split in before.items())


def test_loss_is_on_completions_and_answers_only(tmp_path):
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    lines = [{"prompt": "in:", "completion": "out"}, {"messages": chat}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prepare.prepare(tmp_path / "x.jsonl", tmp_path / "out", tokenizer=BYTES, eval_fraction=0.0)
    source = sources.ArrayRecordSource(tmp_path / "out")
    learned = []
    for example in source.__getitems__([0, 1]):
        kept = example.tokens[example.loss_mask.astype(bool)].tolist()
        learned.append((BYTES.decode(kept), kept[-1]))
    assert learned[0] == ("out", BYTES.eos_id)
    assert learned[1][0].strip() == "answer"
    assert learned[1][1] == BYTES.eos_id


def test_duplicates_after_cleaning_are_kept_once_and_listed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_bytes(b"same text\r\n")
    (tmp_path / "in/b.txt").write_bytes(b"same text  \n\n")
    (tmp_path / "in/c.txt").write_bytes(b"other text")
    made = prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES, eval_fraction=0.0)
    assert made.manifest["counts"]["duplicates"] == 1
    assert made.manifest["rejects"]["first"][0]["id"] == "b.txt"
    listed = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in listed] == ["duplicate"]


def test_rejects_are_counted_and_listed(tmp_path):
    write_documents(tmp_path / "in", 5)
    (tmp_path / "in/bad.txt").write_bytes(b"\xff")
    (tmp_path / "in/x.jsonl").write_text('{"messages": []}\n{"text": "fine"}')
    prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES)
    summary = sources.manifest_summary(tmp_path / "out")
    assert summary["rejects_by_kind"] == {"empty_chat": 1, "not_utf8": 1}
    assert summary["counts"]["kept"] == 6
    assert sum(split["documents"] for split in summary["splits"].values()) == 6


@pytest.mark.parametrize(
    "line",
    [
        {"text": "\u200b\x01"},
        {"prompt": "q", "completion": "\u200b"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\x02"}]},
    ],
)
def test_what_cleaning_leaves_empty_is_kept_out(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(f'{json.dumps(line)}\n{{"text": "fine"}}')
    made = prepare.prepare(tmp_path / "x.jsonl", tmp_path / "out", tokenizer=BYTES)
    assert made.manifest["rejects"]["by_kind"] == {"empty": 1}
    assert made.manifest["counts"]["kept"] == 1


def test_small_sets_hold_out_one_document_and_train_on_one(tmp_path):
    write_documents(tmp_path / "in", 2)
    for fraction in (0.001, 0.999):
        folder = tmp_path / f"out{fraction}"
        prepare.prepare(tmp_path / "in", folder, tokenizer=BYTES, eval_fraction=fraction)
        assert [len(source) for source in documents_of(folder).values()] == [1, 1]
    (tmp_path / "in/d0001.txt").unlink()
    prepare.prepare(tmp_path / "in", tmp_path / "one", tokenizer=BYTES, eval_fraction=0.999)
    assert [len(source) for source in documents_of(tmp_path / "one").values()] == [1, 0]


def test_max_documents_is_the_same_for_every_size_of_task(tmp_path):
    write_documents(tmp_path / "in", 30)
    for task_bytes in (1, 500, 1 << 20):
        folder = tmp_path / f"out{task_bytes}"
        made = prepare.prepare(
            tmp_path / "in", folder, tokenizer=BYTES, max_documents=7, task_bytes=task_bytes
        )
        assert made.manifest["counts"]["kept"] == 7
    trees = [tree(tmp_path / f"out{size}") for size in (1, 500, 1 << 20)]
    splits = [{name: data for name, data in each.items() if "/" in name} for each in trees]
    assert len(splits[0]) == 4
    assert splits[0] == splits[1] == splits[2]


def test_a_second_call_does_nothing_and_changes_start_again(tmp_path):
    write_documents(tmp_path / "in", 10)
    folder = tmp_path / "out"
    first = prepare.prepare(tmp_path / "in", folder, tokenizer=BYTES)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    lines: list[str] = []
    again = prepare.prepare(tmp_path / "in", folder, tokenizer=BYTES, on_progress=lines.append)
    assert again.is_reused and not first.is_reused
    assert again.manifest == first.manifest
    assert "reused" in lines[0]
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    other = prepare.prepare(tmp_path / "in", folder, tokenizer=BYTES, eval_fraction=0.5)
    assert not other.is_reused
    (tmp_path / "in/d0003.txt").write_text("new words")
    changed = prepare.prepare(tmp_path / "in", folder, tokenizer=BYTES, eval_fraction=0.5)
    assert not changed.is_reused
    assert (
        changed.manifest["splits"]["train"]["digest"] != other.manifest["splits"]["train"]["digest"]
    )


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("00000-*.array_record", lambda path: path.write_bytes(path.read_bytes()[:-7])),
        ("00000-*.array_record", lambda path: flip(path, 100)),
        ("lengths.npy", lambda path: flip(path, -4)),
        ("lengths.npy", lambda path: flip(path, 0)),
    ],
)
def test_a_damaged_result_is_not_reused(tmp_path, file, damage):
    write_documents(tmp_path / "in", 10)
    prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES)
    whole = tree(tmp_path / "out")
    damage(next((tmp_path / "out/train").glob(file)))
    assert not prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES).is_reused
    assert tree(tmp_path / "out") == whole


def test_lengths_that_are_not_the_documents_are_never_used(tmp_path):
    write_documents(tmp_path / "in", 10)
    prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES)
    lengths = tmp_path / "out/train/lengths.npy"
    source = sources.ArrayRecordSource(tmp_path / "out")
    source.lengths[3] += 1
    with pytest.raises(sources.DamagedShard, match="document 3 has"):
        source.read_records([2, 3])
    flip(lengths, -4)
    with pytest.raises(sources.DamagedShard, match=r"lengths\.npy: expected sha256"):
        sources.ArrayRecordSource(tmp_path / "out")


def test_parts_that_a_killed_run_left_behind_are_removed(tmp_path):
    write_documents(tmp_path / "in", 3)
    prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES)
    (tmp_path / "out/work").mkdir()
    assert prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES).is_reused
    assert not (tmp_path / "out/work").exists()


def test_a_full_disk_is_said_as_such(tmp_path, monkeypatch):
    write_documents(tmp_path / "in", 3)
    (tmp_path / "full").symlink_to("/dev/full")
    monkeypatch.setattr(shards.Part, "records_path", property(lambda part: tmp_path / "full"))
    with pytest.raises(storage.DiskSpaceError, match="the disk is full"):
        prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 5, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path, fraction):
    write_documents(tmp_path / "in", 2)
    with pytest.raises(ValueError, match=r"0 <= eval_fraction < 1, got"):
        prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES, eval_fraction=fraction)


def test_earlier_results_inside_the_input_are_no_documents(tmp_path):
    write_documents(tmp_path / "in", 3)
    (tmp_path / "in/app").mkdir()
    (tmp_path / "in/app/manifest.json").write_text('{"name": "an app of the user"}')
    (tmp_path / "in/app/config.yaml").write_text("kept: true")
    for name in ("first", "second"):
        made = prepare.prepare(tmp_path / "in", tmp_path / "in" / name, tokenizer=BYTES)
        assert made.manifest["counts"]["kept"] == 4
        assert [each["id"] for each in made.manifest["rejects"]["first"]] == ["app/manifest.json"]


def test_the_output_may_lie_inside_the_input(tmp_path):
    write_documents(tmp_path, 5)
    for _ in range(2):
        made = prepare.prepare(tmp_path, tmp_path / "out", tokenizer=BYTES)
        assert made.manifest["counts"]["files"] == 5


def test_nothing_usable_leaves_nothing_behind(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"x")
    with pytest.raises(readers.NoDocuments, match=r"seen: 1 x unsupported_type"):
        prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES)
    assert not (tmp_path / "out").exists()


def test_a_failed_change_keeps_the_older_result(tmp_path):
    write_documents(tmp_path / "in", 4)
    prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES)
    before = tree(tmp_path / "out")
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(b"\xff")
    with pytest.raises(readers.NoDocuments):
        prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES)
    after = tree(tmp_path / "out")
    assert {name: after[name] for name in before if name != map_tasks.STATE} == {
        name: digest for name, digest in before.items() if name != map_tasks.STATE
    }


def test_other_peoples_folders_are_left_alone(tmp_path):
    write_documents(tmp_path / "in", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="choose another output folder"):
        prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    write_documents(tmp_path / "in", 2)
    monkeypatch.setattr(prepare, "SPACE_BASE_BYTES", 1 << 60)
    with pytest.raises(
        storage.DiskSpaceError, match=r"needs about 1,099,511,627,776 MiB, but only"
    ):
        prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES)
    assert not (tmp_path / "out").exists()


def hold_lock(folder: str, ready, done) -> None:
    with prepare.locked(Path(folder)):
        ready.set()
        done.wait(20)


def test_two_processes_do_not_write_one_folder(tmp_path):
    write_documents(tmp_path / "in", 2)
    prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES)
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold_lock, args=(str(tmp_path / "out"), ready, done))
    other.start()
    try:
        assert ready.wait(20)
        with pytest.raises(prepare.InUse, match="another process prepares"):
            prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES, max_documents=1)
    finally:
        done.set()
        other.join()


RUN = """
import sys
from data_pipelines import prepare
from mistral_jax import tokenizers
prepare.prepare(sys.argv[1], sys.argv[2], tokenizer=tokenizers.load_tokenizer("bytes"),
                task_bytes=3000, eval_fraction=0.2)
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    write_documents(tmp_path / "in", 600, words=60)
    options = {"tokenizer": BYTES, "task_bytes": 3000, "eval_fraction": 0.2}
    prepare.prepare(tmp_path / "in", tmp_path / "whole", **options)
    folder = tmp_path / "killed"
    state = folder / map_tasks.STATE
    child = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "in"), str(folder)])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and child.poll() is None:
        if state.exists() and len(json.loads(state.read_text())["done"]) >= 5:
            break
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it ended before it could be killed"
    done = json.loads(state.read_text())["done"]
    assert not sources.is_prepared(folder)
    with pytest.raises(ValueError, match="run `prepare`"):
        sources.ArrayRecordSource(folder)
    # The last marked part is damaged as well: it must be done again.
    (folder / "work" / f"{len(done) - 1:05d}.digests").write_bytes(b"")
    made = prepare.prepare(tmp_path / "in", folder, **options)
    assert made.resumed_tasks == len(done) - 1 >= 4
    assert tree(folder) == tree(tmp_path / "whole")


def test_a_truncated_shard_and_a_flipped_bit_are_found(tmp_path):
    write_documents(tmp_path / "in", 10)
    prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES)
    shard = next((tmp_path / "out/train").glob("00000-*.array_record"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(sources.DamagedShard, match=r"00000-\w+\.array_record: expected \d+ bytes"):
        sources.ArrayRecordSource(tmp_path / "out")
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    shard.write_bytes(flipped)
    source = sources.ArrayRecordSource(tmp_path / "out")
    with pytest.raises(sources.DamagedShard, match="expected sha256"):
        source.verify()
    shard.unlink()
    with pytest.raises(sources.DamagedShard, match="no such file"):
        sources.ArrayRecordSource(tmp_path / "out")


def test_sources_are_read_across_shards_in_the_asked_order(tmp_path, monkeypatch):
    write_documents(tmp_path / "in", 40)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1000)
    prepare.prepare(tmp_path / "in", tmp_path / "out", tokenizer=BYTES, eval_fraction=0.0)
    source = sources.ArrayRecordSource(tmp_path / "out", name="mine")
    assert len(source.manifest["splits"]["train"]["shards"]) > 5
    wanted = [39, 0, 17, 17, 5, 38]
    got = [example.document for example in source.__getitems__(wanted)]
    assert got == [f"d{index:04d}.txt" for index in wanted]
    assert source.name == "mine"
    with pytest.raises(IndexError):
        source[40]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "[" * 100_000, '{"version": 99, "splits": {}}', '{"version": 1, "splits": {}}'],
)
def test_a_foreign_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"prepare the data again"):
        sources.ArrayRecordSource(tmp_path)
