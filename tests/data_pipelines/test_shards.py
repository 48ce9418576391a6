"""Parts and splits: the cap on examples of one document, for all sizes of task, after a kill."""

import collections
import json
from pathlib import Path

import pytest

from data_pipelines import export_jsonl
from data_pipelines import inputs
from data_pipelines import map_tasks
from data_pipelines import prepare
from data_pipelines import shards
from data_pipelines import sources
from data_pipelines.documents import NO_ORIGIN
from mistral_jax import tokenizers
from mistral_jax.config.data import DataConfig

BYTES = tokenizers.load_tokenizer("bytes")
CAP = 3
OVER = "over_examples_per_document"
SHARDS = ("train/00000-*.array_record", "eval/00000-*.array_record", "rejects.jsonl")


def write_rows(folder: Path) -> list[tuple[str, str]]:
    """Write three files of rows of documents 0 to 4, some of none; return (name, text) in order."""
    folder.mkdir()
    written = []
    for file in range(3):
        lines = []
        for number in range(20):
            text = f"row {number} of file {file}"
            name = f"d{number % 5}" if number % 4 else ""
            key = "source" if number % 2 else "document"
            row = {"prompt": "q", "completion": text} if number % 3 else {"text": text}
            lines.append(json.dumps({**row, **({key: name} if name else {})}))
            written.append((name, text))
        (folder / f"{file}.jsonl").write_text("\n".join(lines))
    return written


def expected_texts(written: list[tuple[str, str]], cap: int) -> set[str]:
    seen: collections.Counter[str] = collections.Counter()
    kept = set()
    for name, text in written:
        seen[name] += 1
        if not name or seen[name] <= cap:
            kept.add(text)
    return kept


def texts_of(folder: Path) -> list[str]:
    found = []
    for split in shards.SPLITS:
        source = sources.ArrayRecordSource(folder, split)
        found += [BYTES.decode(source[i].tokens.tolist()) for i in range(len(source))]
    return [text[text.index("row") :] for text in found]


def make(raw: Path, out: Path, **options) -> prepare.Prepared:
    options = {"max_examples_per_document": CAP, "eval_fraction": 0.2, **options}
    return prepare.prepare(raw, out, tokenizer=BYTES, name="rows", **options)


def files_of(folder: Path) -> list[bytes]:
    return [next(folder.glob(name)).read_bytes() for name in SHARDS]


def test_the_first_rows_of_each_document_stay_for_every_size_of_task(tmp_path):
    written = write_rows(tmp_path / "in")
    wanted = expected_texts(written, CAP)
    assert 0 < len(wanted) < len(written)
    folders = [tmp_path / f"out{size}" for size in (1, 1 << 20)]
    for folder, size in zip(folders, (1, 1 << 20)):
        manifest = make(tmp_path / "in", folder, task_bytes=size).manifest
        assert sorted(texts_of(folder)) == sorted(wanted)
        assert manifest["rejects"]["by_kind"] == {OVER: len(written) - len(wanted)}
        assert manifest["counts"]["rejected"] == len(written) - len(wanted)
        assert manifest["settings"]["max_examples_per_document"] == CAP
    assert files_of(folders[0]) == files_of(folders[1])


def test_a_stopped_prepare_goes_on_with_the_same_rows(tmp_path, monkeypatch):
    write_rows(tmp_path / "in")
    make(tmp_path / "in", tmp_path / "whole", task_bytes=1)
    real = map_tasks.MapStage._map

    def stops(stage, part, *rest):
        if part.number == 2:
            raise KeyboardInterrupt
        return real(stage, part, *rest)

    monkeypatch.setattr(map_tasks.MapStage, "_map", stops)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "in", tmp_path / "out", task_bytes=1)
    monkeypatch.undo()
    # A part whose counts were damaged is made again.
    shards.Part(tmp_path / "out" / map_tasks.WORK, 1).origins_path.write_bytes(b"")
    made = make(tmp_path / "in", tmp_path / "out", task_bytes=1)
    assert made.resumed_tasks == 1
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_the_cap_identifies_a_folder_and_none_leaves_it_as_it_was(tmp_path):
    written = write_rows(tmp_path / "in")
    assert not make(tmp_path / "in", tmp_path / "out").is_reused
    assert make(tmp_path / "in", tmp_path / "out").is_reused
    assert not make(tmp_path / "in", tmp_path / "out", max_examples_per_document=CAP + 1).is_reused
    plain = make(tmp_path / "in", tmp_path / "out", max_examples_per_document=None)
    assert plain.manifest["counts"]["kept"] == len(written)
    assert "max_examples_per_document" not in plain.manifest["settings"]
    with pytest.raises(ValueError, match="expected 1 row or more, got 0"):
        make(tmp_path / "in", tmp_path / "none", max_examples_per_document=0)


@pytest.mark.parametrize("task_bytes", [1, 1 << 20])
def test_max_documents_counts_what_the_cap_has_left(tmp_path, task_bytes):
    written = write_rows(tmp_path / "in")
    wanted = [text for _, text in written if text in expected_texts(written, CAP)][:12]
    out = tmp_path / "out"
    make(tmp_path / "in", out, max_documents=12, task_bytes=task_bytes)
    assert sorted(texts_of(out)) == sorted(wanted)


def test_duplicates_take_no_place_and_numbers_and_odd_names_are_told_apart(tmp_path):
    rows = [
        {"text": "row 1", "document": 7}, {"text": "row 1", "document": "7"},
        {"text": "row 2", "document": "7", "source": "x"}, {"text": "row 3", "document": 7},
        {"text": "row 4", "document": "\ud800"}, {"text": "row 5", "document": "", "source": "x"},
        {"text": "row 6", "document": ["7"]}, {"text": "row 7", "document": True},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = make(tmp_path / "rows.jsonl", tmp_path / "out", max_examples_per_document=2)
    assert sorted(texts_of(tmp_path / "out")) == [f"row {n}" for n in (1, 2, 4, 5, 6, 7)]
    assert made.manifest["rejects"]["by_kind"] == {"duplicate": 1, OVER: 1}
    assert OVER in (tmp_path / "out" / "rejects.jsonl").read_text()


def test_a_row_that_the_cap_left_out_may_stay_under_another_document():
    marks = [(b"1", b"a"), (b"2", b"a"), (b"2", b"b"), (b"3", NO_ORIGIN), (b"4", NO_ORIGIN)]
    choice = shards.choose_splits(marks, 0.0, None, 1)
    assert choice.split == ["train", OVER, "train", "train", "train"]
    assert (choice.num_duplicates, choice.num_over_limit) == (0, 0)


def test_rows_for_people_keep_their_document(tmp_path):
    write_rows(tmp_path / "in")
    make(tmp_path / "in", tmp_path / "out", max_examples_per_document=None)
    export_jsonl.write_jsonl(tmp_path / "in", tmp_path / "out", tmp_path / "jsonl")
    made = make(tmp_path / "jsonl" / "train_dataset.jsonl", tmp_path / "again")
    assert made.manifest["rejects"]["by_kind"][OVER] > 0


def test_a_run_caps_raw_rows_and_refuses_a_folder_of_another_cap(tmp_path):
    write_rows(tmp_path / "in")
    shape = {"sequence_length": 32, "global_batch_sequences": 2, "max_examples_per_document": CAP}
    raw = DataConfig(train=str(tmp_path / "in"), eval_fraction=0.2, **shape)
    opened = inputs.open_sources(raw, BYTES, tmp_path / "run" / "data")
    folder = opened.train[0].folder
    manifest = sources.read_manifest(folder)
    assert manifest["rejects"]["by_kind"][OVER] > 0
    inputs.open_sources(DataConfig(train=str(folder), **shape), BYTES, tmp_path / "b" / "data")
    for cap, told in ((None, "without a cap"), (CAP + 1, "with 4")):
        make(tmp_path / "in", tmp_path / "other", max_examples_per_document=cap)
        other = DataConfig(train=str(tmp_path / "other"), **shape)
        with pytest.raises(ValueError, match=f"is 3, but this folder was prepared {told}"):
            inputs.open_sources(other, BYTES, tmp_path / "c" / "data")
