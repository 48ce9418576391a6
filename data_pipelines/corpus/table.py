"""Which documents a corpus keeps, whose they are and how hard: one table over all parts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_pipelines import difficulty
from data_pipelines.corpus import encode_task
from data_pipelines.corpus import fates
from data_pipelines.corpus import parts
from data_pipelines.corpus.job import Job

COLUMNS = ("part", "row", "record", "expert", "maker", "is_eval", "tokens", "digest")


@dataclass(frozen=True, slots=True)
class Table:
    """Every document that is kept, in the order of the parts; all arrays [documents].

    Attributes:
        part, row, record: which part, which row of it, which record of its encoded ones.
        expert, maker, is_eval: whose, by whom, on which side.
        tokens: how long; 0 without a tokenizer.
        digest: the sha256 of what each says.
        score: difficulty within its expert, 0 to 1.
        level: 0 to 4.
    """

    part: np.ndarray
    row: np.ndarray
    record: np.ndarray
    expert: np.ndarray
    maker: np.ndarray
    is_eval: np.ndarray
    tokens: np.ndarray
    digest: np.ndarray
    score: np.ndarray
    level: np.ndarray

    def of(self, expert: int, *, is_eval: bool) -> np.ndarray:
        """Return the documents of one split of an expert, by level, then in order."""
        (chosen,) = np.nonzero((self.expert == expert) & (self.is_eval == is_eval))
        return chosen[np.argsort(self.level[chosen], kind="stable")]


def build(job: Job, part_numbers: list[int]) -> Table:
    """Return the table of a job whose parts are all encoded."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    numbers, known = [], []
    for number in part_numbers:
        encoded = np.load(job.part("encode", number) / encode_task.ENCODED_FILE)
        chosen = encoded["row"]
        features = parts.features(job.part("map", number))[chosen]
        columns["part"].append(np.full(len(chosen), number, np.int32))
        columns["row"].append(chosen)
        columns["record"].append(np.arange(len(chosen), dtype=np.int32))
        columns["expert"].append(features["expert"])
        columns["maker"].append(features["maker"])
        columns["is_eval"].append(fates.is_eval(job, number)[chosen])
        columns["tokens"].append(encoded["tokens"])
        columns["digest"].append(features["digest"])
        known.append(features["level"])
        numbers.append(parts.difficulty(job.part("map", number))[chosen])
    joined = {name: np.concatenate(each) for name, each in columns.items()}
    score, level = _graded(joined["expert"], np.concatenate(numbers), np.concatenate(known))
    return Table(**joined, score=score, level=level)


def _graded(
    expert: np.ndarray, numbers: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    score = np.zeros(len(expert), np.float32)
    level = np.zeros(len(expert), np.uint8)
    for each in np.unique(expert):
        (mine,) = np.nonzero(expert == each)
        score[mine] = difficulty.scores(numbers[mine])
        level[mine] = difficulty.levels_of(score[mine], known[mine])
    return score, level


def lines(job: Job, made: Table, chosen: np.ndarray) -> Iterator[bytes]:
    """Yield the lines of documents in the order chosen, opening one part at a time."""
    for number, places in runs_of(made.part[chosen]):
        yield from parts.lines(job.part("map", number), made.row[chosen[places]].tolist())


def runs_of(values: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Yield (value, where) of each run of equal values."""
    edges = np.flatnonzero(np.diff(values)) + 1
    for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(values)]):
        if stop > start:
            yield int(values[start]), slice(start, stop)
