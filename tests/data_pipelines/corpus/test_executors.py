"""Tasks on processes and on Ray: what a dying process does, and that every executor does the same.

The test on Ray is marked slow: it needs the lock `ray`, and a cluster takes seconds to start.
"""

import json
import sys
from pathlib import Path

import pytest

from data_pipelines.corpus import build
from data_pipelines.corpus import executors
from mistral_jax.config import corpus as corpus_config
from tests.data_pipelines.corpus import test_build

STAGE = """
import os, sys
from pathlib import Path


def run(job, number):
    tried = job / f"tried{number}"
    if number == 2 and not tried.exists():
        tried.touch()
        os._exit(9)
    if number == 4 and (job / "wrong").exists():
        raise ValueError("task four is wrong")
    if number == 5 and (job / "dead").exists():
        os._exit(9)
    print("noise on stdout")
    return {"number": number, "process": os.getpid()}
"""
LOCAL = corpus_config.LocalExecutor(workers=2)


@pytest.fixture
def job(tmp_path, monkeypatch) -> Path:
    (tmp_path / "own_stage.py").write_text(STAGE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_a_task_whose_process_died_is_done_again(job):
    done = dict(executors.run_tasks(LOCAL, job, "own_stage", range(6)))
    assert sorted(done) == list(range(6))
    assert (job / "tried2").exists()
    assert len({entry["process"] for entry in done.values()}) in (2, 3)


def test_an_error_and_a_second_death_stop_the_run_with_one_sentence(job):
    (job / "wrong").touch()
    with pytest.raises(executors.TaskFailed, match="task 4 of stage own_stage: task four is wrong"):
        list(executors.run_tasks(LOCAL, job, "own_stage", range(6)))
    (job / "dead").touch()
    with pytest.raises(executors.TaskFailed, match="task 5 of stage own_stage died twice"):
        list(executors.run_tasks(LOCAL, job, "own_stage", [5]))


def test_no_more_tasks_begin_when_the_caller_stops_asking(job):
    begun = []

    def numbers():
        for number in (0, 1, 3, 6, 7, 8):
            begun.append(number)
            yield number

    for _ in executors.run_tasks(LOCAL, job, "own_stage", numbers()):
        break
    assert len(begun) <= 3


@pytest.mark.slow
def test_ray_makes_the_same_corpus(tmp_path):
    import ray  # pyright: ignore[reportMissingImports]

    test_build.write_sources(tmp_path / "in")
    local = build.build(test_build.config_of(tmp_path), tmp_path / "local")
    on_ray = json.loads(test_build.config_of(tmp_path).model_dump_json())
    on_ray["executor"] = {"kind": "ray", "address": "local", "workers": 2}
    on_ray["near_duplicates"] |= {"runner": "ray"}
    config = corpus_config.CorpusConfig.model_validate_json(json.dumps(on_ray))
    try:
        made = build.build(config, tmp_path / "ray")
    finally:
        ray.shutdown()
    assert test_build.tree(made.folder) == test_build.tree(local.folder)
