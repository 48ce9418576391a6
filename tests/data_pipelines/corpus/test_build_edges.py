"""The corpus engine where inputs, outputs and settings are not what it would like."""

import fcntl
import json
from pathlib import Path

import pytest

from data_pipelines import prepare
from data_pipelines.corpus import build
from data_pipelines.corpus import inventory
from data_pipelines.corpus import job as jobs
from data_pipelines.corpus import needed
from data_pipelines.corpus import output
from data_pipelines.corpus import summary
from data_pipelines.corpus.job import Job
from mistral_jax.config import corpus as corpus_config
from tests.data_pipelines.corpus import test_build

PLAIN = [{"kind": "clean", "boilerplate": False}]
OPEN_GATE = {"min_complexity": 0.0, "min_diversity": 0.0, "min_accuracy": 0.0, "max_toxicity": 1.0}
QUESTIONS = {"kind": "document_questions", "name": "questions", "min_per_document": 1}


def config_of(folder: Path, **changed) -> corpus_config.CorpusConfig:
    given = {"near_duplicates": None, "gate": OPEN_GATE, "tokenizer": None, **changed}
    return test_build.config_of(folder, **given)


def write_texts(folder: Path, count: int, *, mail: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(count):
        town = f"In 18{at:02d}, Anna Miller{at} moved to Lund and bought {at + 20} sheep."
        (folder / f"{at:02d}.txt").write_text(f"{test_build.text_of(at)}\n\n{town} {mail}")


def sides_by_id(folder: Path) -> dict[str, str]:
    return {
        json.loads(line)["id"]: split
        for split, file in (("train", "train_dataset.jsonl"), ("eval", "val_dataset.jsonl"))
        for line in (folder / "general" / file).open()
    }


def test_a_reason_that_no_file_can_hold_is_spelled(tmp_path):
    write_texts(tmp_path / "in", 2)
    (tmp_path / "in" / "a.jsonl").write_text('{"\\ud800": 1}\n')
    made = build.build(config_of(tmp_path), tmp_path / "out")
    (reject,) = [json.loads(line) for line in (made.folder / "rejects.jsonl").open()]
    assert reject["id"] == "notes/a.jsonl#1"
    assert "\\ud800" in reject["reason"]


def test_a_limit_counts_documents_and_not_what_was_made_of_them(tmp_path):
    write_texts(tmp_path / "in", 12)
    limited = config_of(tmp_path).sources[0].model_dump() | {"max_documents": 7}
    config = config_of(tmp_path, sources=[limited], generators=[QUESTIONS], task_bytes=1000)
    found = build.build(config, tmp_path / "out").manifest
    assert found["sources"]["notes"]["kept"] == 7
    assert found["sources"]["questions"]["kept"] >= 7


def test_a_reject_counts_for_who_made_it():
    made = {"questions", "maths"}
    assert summary._source_of("notes/a?b.txt?questions#3", made) == "questions"
    assert summary._source_of("notes/a?b.txt", made) == "notes"
    assert summary._source_of("maths#7", made) == "maths"


def test_sides_stay_when_processors_and_the_share_change(tmp_path):
    write_texts(tmp_path / "in", 30, mail="Write to anna@uni-lund.se.")
    config = config_of(tmp_path, eval_fraction=0.5, processors={"text": PLAIN})
    build.build(config, tmp_path / "out")
    before = sides_by_id(tmp_path / "out")
    changed = {"text": [*PLAIN, {"kind": "pii"}]}
    build.build(config_of(tmp_path, eval_fraction=0.9, processors=changed), tmp_path / "out")
    text = (tmp_path / "out/general/train_dataset.jsonl").read_text()
    assert "<EMAIL>" in text and "anna@" not in text
    assert sides_by_id(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("manifest", "what"),
    [({"name": "web app"}, "other data"), ({"kind": "corpus", "name": "old"}, "corpus 'old'")],
)
def test_an_output_that_is_not_this_corpus_is_refused_and_stays(tmp_path, manifest, what):
    write_texts(tmp_path / "in", 2)
    (tmp_path / "out" / "code").mkdir(parents=True)
    (tmp_path / "out" / "code" / "app.py").write_text("mine")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(output.OtherCorpus, match=what) as refused:
        build.build(config_of(tmp_path), tmp_path / "out")
    assert refused.value.exit_code == 3
    assert (tmp_path / "out" / "code" / "app.py").read_text() == "mine"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest


def test_an_output_below_a_file_is_refused(tmp_path):
    write_texts(tmp_path / "in", 1)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file; choose another output"):
        build.build(config_of(tmp_path), tmp_path / "file" / "out")


def test_finding_a_corpus_whole_leaves_the_work_of_another_process(tmp_path):
    write_texts(tmp_path / "in", 2)
    config = config_of(tmp_path)
    build.build(config, tmp_path / "out")
    work = tmp_path / "out" / jobs.WORK
    work.mkdir()
    with (tmp_path / "out" / prepare.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert build.build(config, tmp_path / "out").is_reused
        assert work.is_dir()
    assert build.build(config, tmp_path / "out").is_reused
    assert not work.exists()


def test_nothing_to_read_and_nothing_to_make_is_said(tmp_path):
    config = config_of(tmp_path, sources=[], generators=[QUESTIONS])
    with pytest.raises(build.NothingKept, match="needs documents"):
        build.build(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"generators": [QUESTIONS | {"sources": ["nots"]}]}, r"\(notes\), got 'nots'"),
        ({"processors": {"text": [{"kind": "expert", "only": ["nots"]}]}}, "got 'nots'"),
        ({"sources": [{"name": "notes", "path": ["a", ""]}]}, "expected a path, got an empty one"),
    ],
)
def test_names_that_mean_nothing_are_refused(tmp_path, changed, said):
    with pytest.raises(ValueError, match=said):
        inventory.makers(config_of(tmp_path, **changed))


def test_a_number_of_workers_alone_says_which_executor(tmp_path):
    (tmp_path / "c.yaml").write_text("name: a\noutput: b\n")
    config = corpus_config.load_corpus(tmp_path / "c.yaml", ["executor.workers=1"])
    assert config.executor == corpus_config.LocalExecutor(workers=1)


def test_what_an_eager_process_read_beyond_a_limit_does_not_count(tmp_path):
    sources = [
        {"name": name, "path": "in", "max_documents": most} for name, most in (("a", 5), ("b", 50))
    ]
    config = config_of(tmp_path, sources=sources, max_documents=12)
    tasks = tuple({"maker": maker, "files": []} for maker in (0, 0, 1, 1, 1))
    job = Job(tmp_path, config, inventory.makers(config), tasks)
    entry = {"pdfs": 6, "documents": 6}
    entries = [{**entry, "number": number} for number in range(5)]
    for order in ([0, 2, 3, 4], [1, 4, 3, 2, 0]):  # task 1 lies beyond the limit of "a"
        limits = needed.NeededTasks(job)
        counted = [each for number in order for each in limits.add(number, entries[number])]
        assert [each["number"] for each in counted] == [0, 2]
        assert [number for number in range(5) if limits.is_wanted(number)] == [0, 2]
