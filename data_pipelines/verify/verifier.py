"""Takes rows apart into checks, has each kind judged together, and puts the verdicts together."""

import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from data_pipelines import limited_process
from data_pipelines.corpus.row import Row
from data_pipelines.verify import answers
from data_pipelines.verify import checks
from data_pipelines.verify import code
from data_pipelines.verify import constraints
from data_pipelines.verify import formulas
from data_pipelines.verify import plain
from data_pipelines.verify import proofs
from data_pipelines.verify import reasoning
from mistral_jax import sandbox
from mistral_jax.config import verify
from mistral_jax.protocols import Score

_RANK = {answers.FAILED: 0, answers.UNVERIFIED: 1, answers.PASSED: 2}
Item = tuple[Any, Row]


class Verifier:
    """Verifies rows, in one thread.

    Its sandboxes and its process for formulas start when they are needed, and live until `close`
    or the end of the process.
    """

    def __init__(
        self,
        config: verify.VerifyConfig | None = None,
        *,
        documents: plain.Documents = plain.no_documents,
    ) -> None:
        """Remember the limits, and how to find a document's text by its id (for `span`)."""
        self._config = config or verify.VerifyConfig()
        self._documents = documents
        self._started: list[sandbox.Sandbox | limited_process.LimitedProcess] = []

    def __enter__(self) -> "Verifier":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the sandboxes and the process for formulas."""
        self.close()

    def close(self) -> None:
        """End the sandboxes and the process for formulas; the next row starts them anew."""
        for each in self._started:
            each.close()

    def verify(self, rows: Sequence[Row]) -> list[Score | None]:
        """Return a score for each row, in order; None for a row without a check.

        A check that is wrong in itself makes the row fail, with the reason.

        Raises:
            SandboxMissing: a row needs the sandbox, and there is none.
            ImportError: a row needs a package that is not installed.
        """
        jobs: list[tuple[int, Item]] = []
        scores: dict[int, list[Score]] = {}
        for index, row in enumerate(rows):
            if (check := row.facts.get("check")) is None:
                continue
            try:
                jobs += [(index, (each, row)) for each in checks.parse(check)]
            except checks.BadCheck as error:
                scores.setdefault(index, []).append(answers.failed("bad_check", str(error)))
        for kinds, judge in self._judges():
            mine = [job for job in jobs if job[1][0].kind in kinds]
            found = judge([item for _, item in mine]) if mine else []
            for (index, _), score in zip(mine, found, strict=True):
                scores.setdefault(index, []).append(score)
        return [_joined(scores[index]) if index in scores else None for index in range(len(rows))]

    def check(self, check: object, row: Row) -> Score:
        """Return the score of one row by a check.

        Raises:
            BadCheck: the check is not as data_pipelines/verify describes it.
            SandboxMissing, ImportError: as `verify`.
        """
        checks.parse(check)
        score = self.verify([row.with_facts(check=check)])[0]
        assert score is not None, "the row has a check"
        if score.detail["kind"] == "bad_check":
            raise checks.BadCheck(score.detail["reason"])
        return score

    @functools.cached_property
    def _code(self) -> sandbox.Sandbox:
        return self._kept(code.start(self._config))

    @functools.cached_property
    def _reasoning(self) -> sandbox.Sandbox:
        return self._kept(reasoning.start(self._config))

    @functools.cached_property
    def _formulas(self) -> limited_process.LimitedProcess:
        return self._kept(formulas.start(self._config))

    def _kept[T: (sandbox.Sandbox, limited_process.LimitedProcess)](self, started: T) -> T:
        self._started.append(started)
        return started

    def _judges(self) -> tuple[tuple[tuple[str, ...], Callable[[list[Item]], list[Score]]], ...]:
        """Return the kinds and who judges them."""
        config = self._config
        return (
            (("python_tests", "mutants"), lambda items: code.judge(items, config, self._code)),
            (
                ("sympy",),
                lambda items: formulas.judge(items, self._formulas, config.formula_cpu_s),
            ),
            (("reasoning_gym",), lambda items: reasoning.judge(items, self._reasoning)),
            (("proof",), lambda items: proofs.judge(items, config)),
            (("span", "constraints", "exact", "number"), self._judge_plain),
        )

    def _judge_plain(self, items: list[Item]) -> list[Score]:
        return [self._judge_one_plain(check, row) for check, row in items]

    def _judge_one_plain(self, check: checks.Check, row: Row) -> Score:
        try:
            match check:
                case checks.Span():
                    return plain.span(check, row, self._documents)
                case checks.Exact():
                    return plain.exact(check, row)
                case checks.Number():
                    return plain.number(check, row)
                case checks.Constraints():
                    why = constraints.broken(answers.answer_of(row, check), check.rules)
                    kind = check.kind
                    return answers.failed(kind, why) if why else answers.passed(kind)
        except answers.NoAnswer as error:
            return answers.failed(check.kind, str(error))
        except checks.BadCheck as error:
            return answers.failed("bad_check", str(error))
        raise AssertionError(f"no judge for {check.kind}")


def _joined(scores: list[Score]) -> Score:
    """Return the score of a row with several checks: all must pass; the worst one speaks."""
    worst = min(scores, key=lambda score: (_RANK[score.detail["verdict"]], score.value))
    if len(scores) == 1:
        return worst
    return Score(worst.value, worst.detail | {"all": [score.detail for score in scores]})
