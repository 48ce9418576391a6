"""The corpus engine: same bytes after a kill and on any number of workers; every row accounted."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines import inputs
from data_pipelines import prepare
from data_pipelines import sources
from data_pipelines.corpus import bad_rows
from data_pipelines.corpus import build
from data_pipelines.corpus import inventory
from data_pipelines.corpus import job as jobs
from data_pipelines.corpus import needed
from data_pipelines.corpus import state
from data_pipelines.corpus.job import Job
from mistral_jax import tokenizers
from mistral_jax.config import corpus as corpus_config
from mistral_jax.config.data import DataConfig

WORDS = Path(random.__file__).read_text().split()


def text_of(number: int, words: int = 120) -> str:
    draw = random.Random(number)
    return " ".join(draw.choice(WORDS) for _ in range(words)) + f" number {number}."


def write_sources(folder: Path, *, files: int = 6, rows: int = 10) -> Path:
    """Write JSONL with a copy and a near copy in each file."""
    folder.mkdir(parents=True)
    for file in range(files):
        texts = [text_of(file * rows + row) for row in range(rows)]
        texts.append(texts[0])
        near = texts[1].split()
        near[60] = "changed"
        texts.append(" ".join(near))
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"{file:02d}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def config_of(folder: Path, **changed) -> corpus_config.CorpusConfig:
    plain = [{"kind": "clean", "boilerplate": False}]
    values = {
        "name": "test",
        "output": str(folder / "out"),
        "tokenizer": "bytes",
        "sources": [
            {"name": "notes", "path": str(folder / "in"), "kind": "text", "expert": "general",
             "licence": "CC0-1.0"},
        ],
        "processors": {"text": plain},
        "gate": {"min_complexity": 0.0, "max_toxicity": 1.0},
        "task_bytes": 2000,
        "executor": {"kind": "local", "workers": 1},
        **changed,
    }  # fmt: skip
    return corpus_config.CorpusConfig.model_validate_json(json.dumps(values))


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (state.STATE, ".prepare.lock")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, prepare.Prepared]:
    folder = tmp_path_factory.mktemp("whole")
    write_sources(folder / "in")
    return folder, build.build(config_of(folder), folder / "out")


def test_every_row_is_kept_or_accounted_for(whole):
    _, made = whole
    found = made.manifest["sources"]["notes"]
    assert found["read"] == 72
    assert found["duplicates"] == 6
    assert found["near_duplicates"] == 6
    assert found["kept"] == 60
    gone = ("rejected", "set_aside", "duplicates", "near_duplicates", "bridges", "left_out")
    assert found["read"] == found["kept"] + sum(found[each] for each in gone)
    listed = (made.folder / "rejects.jsonl").read_text().splitlines()
    assert len(listed) == 12
    assert made.manifest["funnel"][-1] == {"stage": "kept", "rows": 60}


def test_shards_hold_what_the_readable_files_say(whole):
    _, made = whole
    for split, file in (("train", "train_dataset.jsonl"), ("eval", "val_dataset.jsonl")):
        source = sources.ArrayRecordSource(made.folder / "general", split)
        source.verify()
        rows = [json.loads(line) for line in (made.folder / "general" / file).open()]
        assert len(rows) == len(source) > 0
        for row, example in zip(rows, source.__getitems__(range(len(source))), strict=True):
            assert example.document == row["id"]
            assert len(example.tokens) == len(row["text"].encode()) + 2
        assert list(source.levels) == sorted(source.levels)


def test_the_same_call_does_nothing(whole):
    folder, made = whole
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    again = build.build(config_of(folder), made.folder)
    assert again.is_reused and again.manifest == made.manifest
    assert before == {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}


def test_workers_change_nothing(whole, tmp_path):
    folder, made = whole
    config = config_of(folder, executor={"kind": "local", "workers": 2})
    other = build.build(config, tmp_path / "out")
    assert tree(other.folder) == tree(made.folder)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(whole, tmp_path):
    folder, made = whole
    config = config_of(folder, output=str(tmp_path / "out"))
    script = (
        "import sys; from pathlib import Path; from data_pipelines.corpus import build; "
        "from mistral_jax.config.corpus import CorpusConfig; "
        "build.build(CorpusConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, config.model_dump_json(), str(tmp_path / "out")]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    second = tmp_path / "out" / jobs.WORK / "map" / "00002"
    while not second.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # A part that was damaged after it was marked is made again.
    (tmp_path / "out" / jobs.WORK / "map" / "00000" / "rows.jsonl").write_bytes(b"")
    resumed = build.build(config, tmp_path / "out")
    assert not resumed.is_reused
    assert tree(tmp_path / "out") == tree(made.folder)


def test_sides_stay_when_files_are_added(tmp_path):
    write_sources(tmp_path / "in")
    build.build(config_of(tmp_path), tmp_path / "out")
    before = sides(tmp_path / "out")
    first = json.loads((tmp_path / "out/general/val_dataset.jsonl").open().readline())
    lines = [json.dumps({"text": text_of(1000 + row)}) for row in range(30)]
    lines.append(json.dumps({"text": first["text"] + " And one more."}))
    (tmp_path / "in" / "000.jsonl").write_text("\n".join(lines))  # before all others
    made = build.build(config_of(tmp_path), tmp_path / "out")
    after = sides(tmp_path / "out")
    assert len(after) == len(before) + 30
    assert {key: after[key] for key in before} == before
    assert made.manifest["split"]["from_before"] == len(before)


def sides(folder: Path) -> dict[str, str]:
    found = {}
    for split, file in (("train", "train_dataset.jsonl"), ("eval", "val_dataset.jsonl")):
        for line in (folder / "general" / file).open():
            found[json.loads(line)["text"]] = split
    return found


def test_a_limit_takes_the_first_documents(whole, tmp_path):
    folder, _ = whole
    limited = config_of(folder).sources[0].model_dump() | {"max_documents": 13}
    made = build.build(config_of(folder, sources=[limited]), tmp_path / "out")
    assert made.manifest["sources"]["notes"]["kept"] == 13
    ids = {json.loads(line)["id"] for line in (tmp_path / "out/general/train_dataset.jsonl").open()}
    ids |= {json.loads(line)["id"] for line in (tmp_path / "out/general/val_dataset.jsonl").open()}
    first = [f"notes/00.jsonl#{line}" for line in range(1, 11)]
    assert ids == {*first, *(f"notes/01.jsonl#{line}" for line in (1, 2, 3))}


def test_the_tasks_that_a_limit_needs_do_not_depend_on_the_order_of_ends(whole, tmp_path):
    folder, _ = whole
    limited = config_of(folder).sources[0].model_dump() | {"max_documents": 25}
    config = config_of(folder, sources=[limited], max_documents=12)
    tasks = tuple({"maker": 0, "files": []} for _ in range(10))
    job = Job(tmp_path, config, inventory.makers(config), tasks)
    for seed in range(30):
        order = random.Random(seed).sample(range(10), 10)
        limits = needed.NeededTasks(job)
        for number in order:
            limits.add(number, {"pdfs": 6 if seed % 2 else 0, "documents": 10})
        wanted = [number for number in range(10) if limits.is_wanted(number)]
        # 25 rows are in three tasks of ten, 12 PDFs in two tasks of six.
        assert wanted == ([0, 1] if seed % 2 else [0, 1, 2])


def test_a_source_of_rubbish_stops_the_run(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "fine"}\n' + "not JSON\n" * 40)
    with pytest.raises(bad_rows.TooManyBadRows, match="notes"):
        build.build(config_of(tmp_path, min_rows_for_stop=20), tmp_path / "out")


def test_other_files_in_the_output_are_refused(tmp_path):
    write_sources(tmp_path / "in", files=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="choose another output"):
        build.build(config_of(tmp_path), tmp_path / "out")


def test_a_run_reads_every_expert_of_a_corpus(whole, tmp_path):
    _, made = whole
    data = DataConfig(train=str(made.folder), sequence_length=32, global_batch_sequences=2)
    found = inputs.open_sources(data, tokenizers.load_tokenizer("bytes"), tmp_path)
    assert [source.name for source in found.train] == ["general"]
    assert found.weights == [made.manifest["experts"]["general"]["train"]["tokens"]]
    assert len(found.train[0]) + len(found.held_out[0]) == 60


def test_rows_made_from_one_document_are_on_one_side(tmp_path):
    (tmp_path / "in").mkdir()
    rows = [{"text": text_of(at), "document": f"book {at % 8}"} for at in range(48)]
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build.build(config_of(tmp_path, eval_fraction=0.5), tmp_path / "out")
    sides_of: dict[str, set[str]] = {}
    for split, file in (("train", "train_dataset.jsonl"), ("eval", "val_dataset.jsonl")):
        for line in (tmp_path / "out/general" / file).open():
            sides_of.setdefault(json.loads(line)["document"], set()).add(split)
    assert len(sides_of) == 8
    assert all(len(found) == 1 for found in sides_of.values())
    assert {"train", "eval"} == set.union(*sides_of.values())
