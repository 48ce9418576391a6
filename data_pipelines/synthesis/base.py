"""What a generator is: rows of its own by index, or rows of a document; and the common part.

A maker (`make(draws, level) -> Task`) says what a row asks and answers, and how the answer can be
checked; TaskRows gives it its choices, its level and its provenance. Row i depends on the
generator's name, the seeds and i alone, so any cut into chunks gives the same rows. With a writer
the answer is the model's, and it stays only if it passes the task's own check.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import Protocol

from data_pipelines import verify
from data_pipelines.corpus.row import Kind
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.documents import Reject
from data_pipelines.synthesis.draws import Draws
from data_pipelines.synthesis.writers import Writer
from mistral_jax.config import generators

LICENCE = "generated"
LEVELS = 5
WRITTEN_AT_ONCE = 32

Check = dict[str, Any] | list[dict[str, Any]]


class TaskGenerator(Protocol):
    """Makes rows by their index."""

    @property
    def name(self) -> str:
        """The name of the source that the rows say they are of."""
        ...

    def rows(self, start: int, stop: int) -> Iterator[Row | Reject]:
        """Yield rows start to stop - 1: the same ones, however the range is cut."""
        ...


class DocumentGenerator(Protocol):
    """Makes rows of a document."""

    @property
    def name(self) -> str:
        """The name of the source that the rows say they are of."""
        ...

    def rows(self, row: Row) -> Iterator[Row | Reject]:
        """Yield the rows that are made of one source row."""
        ...


class Unmade(ValueError):
    """A row that could not be made; it is counted by its kind."""

    def __init__(self, kind: str, reason: str) -> None:
        """Keep the short name to count by."""
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Task:
    """What a maker made.

    Attributes:
        prompt, completion: what is asked, and the right answer.
        check: how the answer can be verified, as verify/ reads it.
        topic: of which family it is.
        wrong: a wrong answer in the same form, that the check refuses; "" if there is none.
        kind: as Row.kind.
        licence: of what it was made from.
        facts: what else is known.
    """

    prompt: str
    completion: str
    check: Check
    topic: str
    wrong: str = ""
    kind: Kind = "text"
    licence: str = LICENCE
    facts: dict[str, Any] = field(default_factory=dict)


Maker = Callable[[Draws], Task]
ByLevel = Sequence[Sequence[Maker]]


@dataclass(frozen=True)
class TaskRows:
    """The rows of one generator of tasks.

    Attributes:
        config: its node.
        expert: whose rows they are, unless the node says otherwise.
        version: of the makers; another one may make other rows.
        make: from choices, level and index to a task.
        seed: the corpus's.
        writer: who writes the answers; None takes the makers'.
    """

    config: generators.MadeRows
    expert: str
    version: int
    make: Callable[[Draws, int, int], Task]
    seed: int = 0
    writer: Writer | None = None

    @property
    def name(self) -> str:
        """The generator's name."""
        return self.config.name

    @property
    def made_by(self) -> str:
        """What made the rows, and what it was told."""
        kind = getattr(self.config, "kind", "rows")
        told = f"seed={self.seed}.{self.config.seed}"
        return f"{kind}/{self.version} {told} {self.writer.label if self.writer else 'template'}"

    def rows(self, start: int, stop: int) -> Iterator[Row | Reject]:
        """Yield rows start to stop - 1."""
        if self.writer is None:
            yield from map(self._row, range(start, stop))
            return
        for first in range(start, stop, WRITTEN_AT_ONCE):
            made = [self._row(at) for at in range(first, min(first + WRITTEN_AT_ONCE, stop))]
            yield from self._written(made, first, self.writer)

    def _row(self, index: int) -> Row | Reject:
        name, seeds = self.config.name, f"{self.seed}.{self.config.seed}"
        draws = Draws(name, seeds, index)
        level = draws.weighted(self.config.levels)
        try:
            task = self.make(draws, level, index)
        except Unmade as unmade:
            return Reject(f"{name}#{index}", unmade.kind, str(unmade))
        return Row(
            document=Document(
                f"{name}#{index}",
                "prompt_completion",
                prompt=f"{task.prompt}\n",  # the completion begins on a line of its own
                completion=task.completion,
            ),
            source=name,
            kind=task.kind,
            expert=self.config.expert or self.expert,
            licence=task.licence,
            made_by=self.made_by,
            facts={
                "level": level,
                "difficulty": (level + 0.5) / LEVELS,
                "topic": task.topic,
                "check": task.check,
                **task.facts,
            },
        )

    def _written(
        self, made: list[Row | Reject], first: int, writer: Writer
    ) -> Iterator[Row | Reject]:
        rows = [row for row in made if isinstance(row, Row)]
        texts = writer.write([row.document.prompt for row in rows], seed=self.seed + first)
        judged = iter(_judged(rows, texts))
        for row in made:
            yield row if isinstance(row, Reject) else next(judged)


def _judged(rows: list[Row], texts: list[str | Reject]) -> list[Row | Reject]:
    """Return the rows with the writer's answers; those that fail their check as rejects."""
    answered = [
        row if isinstance(text, Reject) else with_completion(row, text)
        for row, text in zip(rows, texts, strict=True)
    ]
    with verify.Verifier() as verifier:
        scores = verifier.verify(answered)
    judged: list[Row | Reject] = []
    for row, text, score in zip(answered, texts, scores, strict=True):
        if isinstance(text, Reject):
            judged.append(Reject(row.id, text.kind, text.reason))
        elif score is None or score.value > 0:
            judged.append(row)
        else:
            why = f"the writer's answer fails its check: {score.detail['reason']}"
            judged.append(Reject(row.id, "wrong_answer", why))
    return judged


def with_completion(row: Row, completion: str) -> Row:
    """Return the row with another answer."""
    document = Document(
        row.id, "prompt_completion", prompt=row.document.prompt, completion=completion
    )
    return Row(
        document, row.source, row.kind, row.expert, row.licence, row.made_by, row.span, row.facts
    )


def of_level(makers: ByLevel) -> Callable[[Draws, int, int], Task]:
    """Return a make function that draws one of the level's makers."""

    def make(draws: Draws, level: int, index: int) -> Task:
        del index
        return draws.pick(makers[level])(draws)

    return make
