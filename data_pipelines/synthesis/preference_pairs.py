"""Pairs of answers to one prompt, of which one is verifiably wrong: for preference training.

A row's completion is the chosen answer, and `facts["rejected"]` the other one, in the same form:
code that fails its tests, a result that is not equal, a quote that is not in the text, a form that
is not kept. The row's check passes for the one and fails for the other.
"""

from collections.abc import Callable

from data_pipelines.synthesis import code_tasks
from data_pipelines.synthesis import creative
from data_pipelines.synthesis import instructions
from data_pipelines.synthesis import language
from data_pipelines.synthesis import maths
from data_pipelines.synthesis import scientific
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.base import Unmade
from data_pipelines.synthesis.draws import Draws

VERSION = 1
TRIES = 8  # a slip may make no difference, such as the order of two equal words
MAKERS: tuple[Callable[[Draws, int, int], Task], ...] = (
    maths.make,
    code_tasks.make,
    scientific.make,
    language.make,
    instructions.make,
    creative.make,
)


def make(draws: Draws, level: int, index: int) -> Task:
    """Return a task with its wrong answer in the facts."""
    for _ in range(TRIES):
        task = draws.pick(MAKERS)(draws, level, index)
        if task.wrong and task.wrong.split() != task.completion.split():
            break
    else:
        raise Unmade("no_wrong_answer", f"{TRIES} tasks had no wrong answer to reject")
    return Task(
        task.prompt,
        task.completion,
        task.check,
        task.topic,
        kind=task.kind,
        licence=task.licence,
        facts={**task.facts, "rejected": task.wrong},
    )
