"""Python code against its tests, and its tests against small changes, in the sandbox."""

import secrets
from collections.abc import Iterator
from collections.abc import Sequence

from data_pipelines.corpus.row import Row
from data_pipelines.verify import answers
from data_pipelines.verify import checks
from data_pipelines.verify import mutate
from mistral_jax import sandbox
from mistral_jax.config import verify
from mistral_jax.protocols import Score

# The mark is printed when the tests have run through; a program that ends early never gets there.
# It keeps out slips (sys.exit, os._exit), not a program made to deceive: that shares the process.
_HARNESS = """\
import solution
globals().update({{k: v for k, v in vars(solution).items() if not k.startswith("__")}})
{tests}

for _name, _test in list(globals().items()):
    if _name.startswith("test") and callable(_test) and not hasattr(solution, _name):
        _test()
print({mark!r})
"""
_LONGEST_SHOWN = 300

Check = checks.PythonTests | checks.Mutants


def limits_of(config: verify.SandboxConfig) -> sandbox.Limits:
    """Return the sandbox's limits of a config."""
    return sandbox.Limits(**config.model_dump())


def start(config: verify.VerifyConfig) -> sandbox.Sandbox:
    """Return the sandbox for code, which starts with the first program."""
    return sandbox.Sandbox(limits_of(config.sandbox), sandbox.View())


def judge(
    items: Sequence[tuple[Check, Row]], config: verify.VerifyConfig, box: sandbox.Sandbox
) -> list[Score]:
    """Return the score of each row's code.

    Raises:
        SandboxMissing: there is no sandbox.
    """
    return [_judge_one(check, row, config, box) for check, row in items]


def _judge_one(check: Check, row: Row, config: verify.VerifyConfig, box: sandbox.Sandbox) -> Score:
    try:
        code = answers.code_of(answers.answer_of(row, check))
    except answers.NoAnswer as error:
        return answers.failed(check.kind, str(error))
    why = _run(code, check, box)
    if why:
        return answers.failed(check.kind, why)
    if isinstance(check, checks.PythonTests):
        return answers.passed(check.kind)
    return _judge_tests(check, code, config, box)


def _judge_tests(
    check: checks.Mutants, code: str, config: verify.VerifyConfig, box: sandbox.Sandbox
) -> Score:
    """Return the share of small changes that the tests notice."""
    changed = mutate.mutants(code, config.max_mutants)
    if not changed:
        return answers.failed(check.kind, "nothing in the code can be changed")
    alive = list(_survivors(changed, check, box, config.mutant_cpu_s))
    share = 1 - len(alive) / len(changed)
    wanted = config.min_killed if check.min_killed is None else check.min_killed
    found = {"killed": share, "num_mutants": len(changed), "survivors": alive[:5]}
    if share < wanted:
        reason = f"the tests notice {share:.0%} of {len(changed)} changes, not {wanted:.0%}"
        return answers.failed(check.kind, reason, **found)
    return answers.passed(check.kind, value=share, **found)


def _survivors(
    changed: Sequence[tuple[str, str]], check: Check, box: sandbox.Sandbox, cpu_s: float
) -> Iterator[str]:
    for code, what in changed:
        if not _run(code, check, box, cpu_s=cpu_s):
            yield what


def _run(code: str, check: Check, box: sandbox.Sandbox, cpu_s: float | None = None) -> str:
    """Run the tests on the code; return why they did not run through, "" if they did."""
    mark = secrets.token_hex(16)
    files = {name: text.encode() for name, text in check.files.items()}
    files["solution.py"] = code.encode(errors="surrogatepass")
    source = _HARNESS.format(tests=check.tests, mark=mark)
    try:
        outcome = box.run(sandbox.Case(source, files, cpu_s=cpu_s))
    except sandbox.SandboxMissing:
        raise
    except ValueError as error:  # a file's name, or text that is no UTF-8
        return str(error)
    if outcome.status == "ok" and outcome.stdout.endswith(mark + "\n"):
        return ""
    if outcome.status == "ok":
        return "the program ended before its tests did"
    if outcome.status != "failed":
        return outcome.status
    last = outcome.stderr.strip().rpartition("\n")[2]
    return last[:_LONGEST_SHOWN] or f"exit code {outcome.exit_code}"
