"""Verification of rows: does what a row says hold, checked by running or computing it?

A row says how it can be checked in `row.facts["check"]`: one check, or a list of checks that must
all pass. A check is JSON with a `kind`; unknown kinds and unknown or missing keys are refused
(BadCheck). Nothing here trusts a row: code runs in the sandbox, formulas are parsed
by an own parser, quotes are looked up.

The answer is the completion, the last assistant's message, or the text; with `"after": MARK` (any
kind but `span`) it is what follows the last MARK on its line: `"after": "Answer:"`. Code and
proofs are taken from the answer's fenced blocks (```), joined, or are the whole answer if it has
none.

The kinds, their keys (those in brackets are optional), and when they pass:

python_tests: tests, [files: {name: text}]
    The tests, run after the code, finish: bare asserts, or functions `test*`, which are called.
    The code's names are there, also as `import solution`.
mutants: tests, [files], [min_killed]
    python_tests passes, and the tests fail for at least this share of small changes to the code.
sympy: expected or zero, [positive: names], [integer: names], [constant: true], [tolerance]
    The answer equals `expected` (grammar: algebra.py; `diff(...)`, `integrate(...)`, `solve(...)`
    and the like are computed anew); or `zero`, in which `answer` stands for it, is 0, as in
    `diff(answer, x) - cos(x)`. constant: up to an added constant. tolerance: relative.
reasoning_gym: dataset, entry: {question, answer, metadata}, [min_score: 1]
    The dataset's own verifier gives at least that.
proof: checker: "coq", "lean" or "agda", [statement]
    The checker accepts it, nothing is left open or assumed, and `statement` stands in it.
span: start, end, quote, [document], [in: "prompt"], [exact: true]
    text[start:end] of the document (by default the one that the row was made from), or of the
    row's own prompt, is `quote`, and the answer says it; exact: and nothing else.
constraints: rules: [{rule, ...}]
    Every rule holds; constraints.py lists them.
exact: expected (a text, or a list of texts), [fold: true]
    The answer is one of them, spaces aside; fold: upper and lower case are the same.
number: expected, [relative], [absolute], [unit]
    The answer is a number that near to it, with that unit behind it and nothing else.

A Score's value is 1 or 0, for `mutants` the share of mutants that the tests killed (0 below the
share wanted). Its detail has `kind`, `verdict` ("passed", "failed", or "unverified" where the
means are missing: no checker installed, the document not at hand) and `reason`.
"""

from data_pipelines.corpus.row import Row
from data_pipelines.verify.checks import BadCheck
from data_pipelines.verify.verifier import Verifier
from mistral_jax.protocols import Score

__all__ = ["BadCheck", "Verifier", "check"]


def check(check: object, row: Row) -> Score:
    """Return the score of one row by a check, under the default limits.

    For many rows, `Verifier(config).verify(rows)`: they share a sandbox and a process.

    Raises:
        BadCheck, SandboxMissing, ImportError: as Verifier.check.
    """
    with Verifier() as verifier:
        return verifier.check(check, row)
