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

from data_pipelines import sources
from data_pipelines.corpus import bad_rows
from data_pipelines.corpus import build
from data_pipelines.corpus import state
from mistral_jax.config import corpus as corpus_config

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
        "gate": {"min_complexity": 0.0},
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
def whole(tmp_path_factory) -> tuple[Path, build.Built]:
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
    config = config_of(folder, executor={"kind": "local", "workers": 3})
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
    second = tmp_path / "out" / build.WORK / "map" / "00002"
    while not second.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # A part that was damaged after it was marked is made again.
    (tmp_path / "out" / build.WORK / "map" / "00000" / "rows.jsonl").write_bytes(b"")
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


def test_a_limit_takes_the_first_documents_whatever_the_order_of_ends(whole, tmp_path):
    folder, _ = whole
    limited = config_of(folder).sources[0].model_dump() | {"max_documents": 13}
    trees = []
    for workers in (1, 3):
        config = config_of(
            folder, sources=[limited], executor={"kind": "local", "workers": workers}
        )
        made = build.build(config, tmp_path / f"out{workers}")
        assert made.manifest["sources"]["notes"]["kept"] == 13
        trees.append(tree(made.folder))
    assert trees[0] == trees[1]


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
