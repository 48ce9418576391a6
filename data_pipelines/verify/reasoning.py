"""Asks reasoning-gym's own verifiers, which evaluate what they read: so in the sandbox."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.corpus.row import Row
from data_pipelines.verify import answers
from data_pipelines.verify import checks
from data_pipelines.verify import code
from mistral_jax import sandbox
from mistral_jax.config import verify
from mistral_jax.protocols import Score

_PROGRAM = """\
import json, sys
import reasoning_gym
asked = json.load(sys.stdin)
score = reasoning_gym.get_score_answer_fn(asked["dataset"])(asked["answer"], asked["entry"])
print("score", float(score))
"""


def start(config: verify.VerifyConfig) -> sandbox.Sandbox:
    """Return the sandbox with reasoning-gym in it, which takes seconds to start.

    Raises:
        ImportError: reasoning-gym is not installed.
    """
    found = importlib.util.find_spec("reasoning_gym")
    if found is None or found.origin is None:
        raise ImportError(
            "checks of kind reasoning_gym need reasoning-gym: set up again with "
            "`MISTRAL_JAX_LOCKS=data`"
        )
    packages = str(Path(found.origin).parents[1])
    view = sandbox.View(python_paths=(packages,), preload=("reasoning_gym",))
    return sandbox.Sandbox(code.limits_of(config.heavy_sandbox), view)


def judge(items: Sequence[tuple[checks.ReasoningGym, Row]], box: sandbox.Sandbox) -> list[Score]:
    """Return the score of each row.

    Raises:
        SandboxMissing: there is no sandbox.
    """
    return [_judge_one(check, row, box) for check, row in items]


def _judge_one(check: checks.ReasoningGym, row: Row, box: sandbox.Sandbox) -> Score:
    try:
        answer = answers.answer_of(row, check)
    except answers.NoAnswer as error:
        return answers.failed("reasoning_gym", str(error))
    asked = {"dataset": check.dataset, "answer": answer, "entry": check.entry}
    outcome = box.run(sandbox.Case(_PROGRAM, stdin=json.dumps(asked).encode()))
    word, _, value = outcome.stdout.strip().rpartition("\n")[2].partition(" ")
    if outcome.status != "ok" or word != "score":
        last = outcome.stderr.strip().rpartition("\n")[2]
        return answers.failed("reasoning_gym", f"{outcome.status}: {last[:300]}")
    score = float(value)
    if score >= check.min_score:
        return answers.passed("reasoning_gym", score=score)
    return answers.failed(
        "reasoning_gym", f"{check.dataset} gives it {score:g}, not {check.min_score:g}"
    )
