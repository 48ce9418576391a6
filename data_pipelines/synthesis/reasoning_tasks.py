"""Tasks of reasoning-gym, its difficulty knobs set to five levels; its verifiers are the checks.

Row i asks its dataset for one item with a seed of its own, so rows do not depend on each other.
Left out are datasets whose tasks differ from one interpreter to the next (they iterate over sets),
those that take seconds, and those whose tasks differ in a few characters from one to the next: they
would be near duplicates of each other.
"""

import dataclasses
import functools
import warnings
from typing import Any

from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.base import Unmade
from data_pipelines.synthesis.draws import Draws

VERSION = 1
LICENCE = "Apache-2.0"
MAX_CHARS = 6000
ENDINGS = (
    "",
    "",
    "\nThink first, then answer.",
    "\nGive only the answer.",
    "\nAnswer in the form asked for.",
    "\nTake your time.",
)

# What the knobs are at the levels 0 to 4, by dataset: its parameters, five values each. A pair is
# (min, max) of the two parameters min_<name> and max_<name>.
KNOBS: dict[str, dict[str, tuple]] = {
    "basic_arithmetic": {
        "terms": ((2, 3), (3, 4), (4, 6), (6, 8), (8, 12)),
        "digits": ((2, 3), (2, 3), (2, 4), (3, 4), (4, 6)),
    },
    "chain_sum": {
        "terms": ((2, 3), (3, 4), (4, 6), (6, 9), (9, 14)),
        "digits": ((3, 4), (3, 4), (3, 5), (4, 6), (5, 8)),
    },
    "products": {"digits": ((2, 3), (3, 3), (3, 4), (4, 5), (5, 7))},
    "gcd": {
        "numbers": ((2, 2), (2, 3), (3, 3), (3, 4), (4, 5)),
        "value": ((10, 900), (50, 2000), (100, 9000), (1000, 60_000), (5000, 900_000)),
    },
    "base_conversion": {
        "value": ((30, 900), (200, 4000), (1000, 30_000), (9000, 900_000), (90_000, 99_000_000))
    },
    "prime_factorization": {
        "value": (
            (100, 3000),
            (1000, 9000),
            (5000, 40_000),
            (30_000, 300_000),
            (200_000, 4_000_000),
        )
    },
    "fraction_simplification": {
        "value": ((1, 90), (10, 400), (50, 2000), (500, 9000), (3000, 90_000)),
        "factor": ((2, 30), (5, 60), (10, 200), (50, 900), (100, 4000)),
    },
    "decimal_arithmetic": {"terms": ((2, 2), (3, 3), (4, 5), (6, 7), (8, 10))},
    "complex_arithmetic": {
        "real": ((-15, 15), (-30, 30), (-80, 80), (-300, 300), (-999, 999)),
        "imag": ((-15, 15), (-30, 30), (-80, 80), (-300, 300), (-999, 999)),
    },
    "simple_equations": {
        "terms": ((2, 2), (3, 3), (4, 4), (5, 6), (7, 9)),
        "value": ((2, 99), (5, 150), (10, 300), (50, 900), (100, 5000)),
    },
    "number_sorting": {
        "numbers": ((4, 5), (6, 8), (9, 14), (15, 24), (25, 40)),
        "value": (
            (-100.0, 100.0),
            (-300.0, 300.0),
            (-900.0, 900.0),
            (-5000.0, 5000.0),
            (-9e4, 9e4),
        ),
    },
    "number_filtering": {"numbers": ((4, 6), (7, 10), (11, 16), (17, 26), (27, 40))},
    "word_sorting": {"words": ((4, 5), (6, 8), (9, 13), (14, 22), (23, 36))},
    "letter_counting": {"words": ((5, 8), (9, 14), (15, 24), (25, 40), (41, 70))},
    "word_sequence_reversal": {"words": ((4, 5), (6, 9), (10, 15), (16, 25), (26, 45))},
    "caesar_cipher": {"words": ((3, 4), (5, 7), (8, 12), (13, 18), (19, 20))},
    "palindrome_generation": {"length": ((7, 9), (10, 12), (13, 16), (17, 21), (22, 30))},
    "string_manipulation": {
        "string_length": ((8, 12), (10, 16), (14, 22), (20, 32), (30, 50)),
        "num_rules": ((3, 3), (4, 5), (6, 7), (8, 10), (11, 14)),
    },
    "calendar_arithmetic": {"offset_upper_bound": (40, 100, 300, 1000, 5000)},
    "time_intervals": {"max_date_difference_days": (10, 60, 300, 2000, 20_000)},
    "family_relationships": {"family_size": ((4, 4), (5, 5), (6, 6), (7, 7), (8, 9))},
    "knights_knaves": {"n_people": (2, 2, 3, 4, 5), "depth_constraint": (2, 3, 3, 3, 4)},
    "leg_counting": {
        "animals": ((3, 3), (4, 5), (6, 8), (9, 12), (13, 16)),
        "instances": ((2, 15), (2, 30), (2, 60), (5, 120), (5, 300)),
    },
    "course_schedule": {"num_courses": ((6, 7), (8, 10), (11, 15), (16, 22), (23, 34))},
    "maze": {
        "grid_size": ((6, 6), (7, 7), (8, 9), (10, 11), (12, 14)),
        "dist": ((4, 8), (5, 9), (6, 12), (8, 15), (10, 20)),
    },
    "rotate_matrix": {"n": ((4, 4), (5, 5), (6, 7), (8, 9), (10, 12))},
    "spiral_matrix": {"n": ((4, 4), (5, 5), (6, 7), (8, 9), (10, 12))},
    "mini_sudoku": {"empty": ((6, 7), (8, 8), (9, 9), (10, 10), (11, 12))},
}
NOT_RANGES = {
    "difficulty",
    "offset_upper_bound",
    "max_date_difference_days",
    "n_people",
    "depth_constraint",
}


@functools.cache
def _gym() -> Any:
    """Return reasoning-gym's factory; it takes seconds to import."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarnings of cellpylib, below it
            from reasoning_gym import factory
    except ImportError as missing:
        raise ImportError(
            "generator kind reasoning_gym needs the package reasoning-gym; install it by "
            "MISTRAL_JAX_LOCKS=data ./run setup"
        ) from missing
    return factory


def settings(dataset: str, level: int) -> dict[str, Any]:
    """Return a dataset's parameters at a level."""
    found: dict[str, Any] = {}
    for knob, values in KNOBS[dataset].items():
        if knob in NOT_RANGES:
            found[knob] = values[level]
        else:
            found[f"min_{knob}"], found[f"max_{knob}"] = values[level]
    return found


def item(dataset: str, level: int, seed: int) -> dict[str, Any]:
    """Return one task: question, answer, metadata."""
    return _gym().create_dataset(dataset, size=1, seed=seed, **settings(dataset, level))[0]


def verify_names(datasets: tuple[str, ...]) -> tuple[str, ...]:
    """Return the datasets to use.

    Raises:
        ValueError: one is not among those whose levels are known.
    """
    unknown = sorted(set(datasets) - KNOBS.keys())
    if unknown:
        raise ValueError(
            f"generator datasets: expected names among {', '.join(KNOBS)}, got {unknown[0]}"
        )
    return datasets or tuple(KNOBS)


def make(draws: Draws, level: int, index: int, *, datasets: tuple[str, ...]) -> Task:
    """Return a task of one of the datasets."""
    del index
    dataset = draws.pick(datasets)
    for _ in range(3):
        made = item(dataset, level, draws.below(1 << 31))
        question, answer = made["question"], made["answer"]
        if isinstance(answer, str) and answer.strip() and len(question) <= MAX_CHARS:
            break
    else:
        raise Unmade("no_answer", f"{dataset} gave three tasks without a usable answer")
    entry = {
        "question": question,
        "answer": answer,
        "metadata": plain(made["metadata"]),
    }
    return Task(
        prompt=question.strip() + draws.pick(ENDINGS),
        completion=answer.strip(),
        check={"kind": "reasoning_gym", "dataset": dataset, "entry": entry},
        topic=f"reasoning_gym.{dataset}",
        licence=LICENCE,
    )


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: tuples as lists, keys as text, anything odd as text."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case dict():
            return {str(key): plain(each) for key, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case set() | frozenset():
            return sorted(map(str, value))
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return plain(dataclasses.asdict(value))
        case _:
            return str(value)
