"""Asks the process that knows sympy whether an answer of mathematics is right."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from data_pipelines import limited_process
from data_pipelines.corpus.row import Row
from data_pipelines.verify import answers
from data_pipelines.verify import checks
from mistral_jax.config import verify
from mistral_jax.protocols import Score

# Not imported: it imports sympy, and belongs to the other process.
ALGEBRA = Path(__file__).with_name("algebra.py")
# The process limits its CPU time itself. This is by the clock, for its start on a busy machine,
# and for what hangs in C code.
BACKSTOP_S = 120.0


def start(config: verify.VerifyConfig) -> limited_process.LimitedProcess:
    """Return the process, which starts with the first question.

    Raises:
        ImportError: sympy is not installed.
    """
    if importlib.util.find_spec("sympy") is None:
        raise ImportError(
            "checks of kind sympy need sympy: set up again with `MISTRAL_JAX_LOCKS=data`"
        )
    return limited_process.LimitedProcess(
        ALGEBRA, timeout_s=BACKSTOP_S, memory_bytes=config.formula_memory_bytes
    )


def judge(
    items: Sequence[tuple[checks.Sympy, Row]],
    process: limited_process.LimitedProcess,
    cpu_s: float,
) -> list[Score]:
    """Return the score of each row's answer."""
    return [_judge_one(check, row, process, cpu_s) for check, row in items]


def _judge_one(
    check: checks.Sympy, row: Row, process: limited_process.LimitedProcess, cpu_s: float
) -> Score:
    try:
        answer = answers.answer_of(row, check).rstrip(".")
    except answers.NoAnswer as error:
        return answers.failed("sympy", str(error))
    asked = check.model_dump(exclude={"kind", "after"}) | {"answer": answer}
    found = process.ask(json.dumps(asked).encode(), hint=f"{cpu_s:g}")
    if found is None:
        return answers.unverified("sympy", f"the comparison ended early: {process.over_limits}")
    if "equal" not in found:
        return answers.failed("sympy", str(found.get("error")))
    why = str(found["why"])
    if found["equal"] is None:
        return answers.unverified("sympy", why)
    return answers.passed("sympy", why) if found["equal"] else answers.failed("sympy", why)
