"""Tasks of programming: signature and docstring, implementation, tests; and library examples.

Five levels: syntax_basics, functions, algorithms, systems, optimization.
"""

from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.code_tasks import algorithms
from data_pipelines.synthesis.code_tasks import basics
from data_pipelines.synthesis.code_tasks import family
from data_pipelines.synthesis.code_tasks import functions
from data_pipelines.synthesis.code_tasks import optimization
from data_pipelines.synthesis.code_tasks import standard_library
from data_pipelines.synthesis.code_tasks import systems
from data_pipelines.synthesis.draws import Draws

VERSION = 1
LEVELS = (
    basics.FAMILIES,
    functions.FAMILIES,
    algorithms.FAMILIES,
    systems.FAMILIES,
    optimization.FAMILIES,
)


def make(
    draws: Draws,
    level: int,
    index: int,
    *,
    library_share: float = 0.0,
    mutant_share: float = 0.0,
    min_killed: float = 0.0,
) -> Task:
    """Return a task of the level; a share of the rows are examples of the standard library.

    Each example comes once: every 1/share-th row takes the next one, while there are any.

    Args:
        draws: its choices.
        level: 0 to 4.
        index: of the row.
        library_share: share of rows from the standard library.
        mutant_share: share of the other rows whose tests must catch mutants of the code.
        min_killed: share of the mutants that they must catch.
    """
    if library_share:
        place = int(index * library_share)
        if place < int((index + 1) * library_share) and place < len(standard_library.examples()):
            return standard_library.task(standard_library.examples()[place], draws)
    has_mutants = draws.chance(mutant_share)
    chosen = draws.pick(LEVELS[level])
    return family.task(chosen, draws, min_killed=min_killed if has_mutants else 0.0)
