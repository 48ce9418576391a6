"""Families of functions: the code passes its tests, its slip does not, and the tests bite."""

import json
import subprocess
import sys

import pytest

from data_pipelines import verify
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.synthesis import code_tasks
from data_pipelines.synthesis.code_tasks import family
from data_pipelines.synthesis.code_tasks import standard_library
from data_pipelines.synthesis.draws import Draws

FAMILIES = [each for level in code_tasks.LEVELS for each in level]
# Says of each program whether it ends without an error.
PROGRAM = """
import json, sys
def ends(program):
    try:
        exec(program, {})
    except Exception:
        return False
    return True
print(json.dumps([ends(each) for each in json.load(sys.stdin)]))
"""


def run_all(programs):
    """Run programs of ours, which need no sandbox, in one process."""
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", PROGRAM],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def drawn(draw):
    return [family.draw(each, Draws("family", each.topic, draw)) for each in FAMILIES]


def test_there_are_thirty_families_over_five_levels():
    assert len(code_tasks.LEVELS) == 5
    assert len({each.topic for each in FAMILIES}) == len(FAMILIES) >= 30


def test_all_code_passes_its_tests_and_no_slip_does():
    functions = [made for draw in range(4) for made in drawn(draw)]
    right = run_all(["\n".join([made.code, *made.tests]) for made in functions])
    assert not [made.code for made, ends in zip(functions, right) if not ends]
    assert all(made.wrong != made.code for made in functions)
    wrong = run_all(["\n".join([made.wrong, *made.tests]) for made in functions])
    assert not [made.wrong for made, ends in zip(functions, wrong) if ends]


def test_the_standard_librarys_examples_give_what_it_says():
    examples = standard_library.examples()
    assert len(examples) > 50
    confirmed = run_all([standard_library.confirmation(each) for each in examples])
    assert not [each for each, ends in zip(examples, confirmed) if not ends]
    tasks = [standard_library.task(each, Draws(at)) for at, each in enumerate(examples)]
    assert {task.licence for task in tasks} == {"PSF-2.0"}
    assert all(task.completion.endswith(each.output) for task, each in zip(tasks, examples))


def test_library_examples_come_once_each():
    rows = [code_tasks.make(Draws(at), 0, at, library_share=0.5) for at in range(400)]
    library = [task.prompt for task in rows if task.licence == "PSF-2.0"]
    assert len(library) == len(standard_library.examples()) < 200
    assert [task.licence for task in rows[:4]] == ["generated", "PSF-2.0"] * 2


@pytest.mark.slow
def test_the_tests_notice_most_changes_to_the_code():
    rows = []
    for each in FAMILIES:
        task = family.task(each, Draws("mutants", each.topic), min_killed=0.6)
        document = Document(each.topic, "prompt_completion", completion=task.completion)
        facts = {"check": task.check}
        rows.append(Row(document, "code", "code", "code", "generated", facts=facts))
    with verify.Verifier() as verifier:
        scores = verifier.verify(rows)
    killed = {row.id: score.value for row, score in zip(rows, scores)}
    assert min(killed.values()) >= 0.6, killed
    assert sum(share >= 0.85 for share in killed.values()) >= 0.8 * len(killed), killed
