"""Proofs, by the checker that is installed (Coq, Lean or Agda), in the sandbox.

A checker that accepts a file says nothing of what the file leaves open or assumes. So words that
leave something open are refused, and Coq and Lean are asked what the last theorem rests on.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.corpus.row import Row
from data_pipelines.verify import answers
from data_pipelines.verify import checks
from data_pipelines.verify import code
from mistral_jax import sandbox
from mistral_jax.config import verify
from mistral_jax.protocols import Score

SETTINGS = ("/etc/ocamlfind.conf",)  # Debian's coqc looks for its plugins with it


@dataclass(frozen=True, slots=True)
class Checker:
    """How a checker is run and what its proofs must not hold.

    Attributes:
        program, arguments: the command; the file's name comes last.
        file: the name of the source.
        refused: words that leave something unproven, or turn a check off.
        comments: what is taken out before they are looked for.
        theorem: finds the names of theorems.
        question: what is added to ask what a theorem rests on; "" if the checker needs no asking.
        good: what the answer must look like.
    """

    program: str
    arguments: tuple[str, ...]
    file: str
    refused: str
    comments: str
    theorem: str
    question: str
    good: str


CHECKERS = {
    "coq": Checker(
        "coqc", ("-q",), "proof.v",
        r"\b(Admitted|admit|Axioms?|Parameters?|Conjecture|bypass_check|Declare\s+ML|Unset|"
        r"(Guard|Positivity|Universe)\s+Checking|Drop|Redirect|Load|Cd|type_in_type)\b",
        r"\(\*.*?\*\)", r"\b(?:Theorem|Lemma|Corollary|Proposition|Fact|Remark)\s+([\w']+)",
        "\nPrint Assumptions {name}.\n", r"Closed under the global context\s*\Z",
    ),
    "lean": Checker(
        "lean", (), "proof.lean",
        r"\b(sorry|admit|axiom|native_decide|unsafe|implemented_by|extern|macro|elab|run_cmd|"
        r"#eval|initialize|syntax)\b",
        r"/-.*?-/|--[^\n]*", r"\b(?:theorem|lemma)\s+([\w'.]+)",
        "\n#print axioms {name}\n",
        r"(does not depend on any axioms|depends on axioms: "
        r"\[((propext|Quot\.sound|Classical\.choice)(,\s*)?)+\])\s*\Z",
    ),
    "agda": Checker(
        "agda", ("--safe",), "proof.agda",
        r"\b(postulate|primTrustMe)\b|\{-#|\{!|(?<!\S)\?(?!\S)",
        r"--[^\n]*", r"(?!x)x", "", "",
    ),
}  # fmt: skip


def judge(items: Sequence[tuple[checks.Proof, Row]], config: verify.VerifyConfig) -> list[Score]:
    """Return the score of each row's proof.

    Raises:
        SandboxMissing: a checker is installed, but there is no sandbox.
    """
    return [_judge_one(check, row, config) for check, row in items]


def _judge_one(check: checks.Proof, row: Row, config: verify.VerifyConfig) -> Score:
    checker = CHECKERS[check.checker]
    try:
        source = answers.code_of(answers.answer_of(row, check))
    except answers.NoAnswer as error:
        return answers.failed("proof", str(error))
    bare = re.sub(checker.comments, " ", source, flags=re.DOTALL)
    if found := re.search(checker.refused, bare):
        return answers.failed("proof", f"the proof holds {found.group()!r}")
    if check.statement is not None and _spaced(check.statement) not in _spaced(bare):
        return answers.failed("proof", "the statement does not stand in it")
    program = shutil.which(checker.program)
    if program is None:
        return answers.unverified("proof", "checker_missing", checker=check.checker)
    names = re.findall(checker.theorem, bare)
    if checker.question and not names:
        return answers.failed("proof", "there is no theorem in it")
    if checker.question:
        source += checker.question.format(name=names[-1])
    return _run(checker, program, source, config)


def _run(checker: Checker, program: str, source: str, config: verify.VerifyConfig) -> Score:
    real = Path(program).resolve()
    # A toolchain outside of /usr is seen whole: bin/lean, lib/lean.
    paths = ("/usr", str(real.parents[1]), *(path for path in SETTINGS if Path(path).exists()))
    view = sandbox.View(paths=paths, has_proc=True)
    outcome = sandbox.run(
        [str(real), *checker.arguments, checker.file],
        files={checker.file: source.encode(errors="replace")},
        limits=code.limits_of(config.heavy_sandbox),
        view=view,
    )
    said = outcome.stdout + outcome.stderr
    if outcome.status != "ok":
        return answers.failed("proof", f"{outcome.status}: {said.strip()[-300:]}")
    if checker.good and not re.search(checker.good, outcome.stdout):
        return answers.failed("proof", f"it rests on more: {said.strip()[-300:]}")
    return answers.passed("proof")


def _spaced(text: str) -> str:
    return " ".join(text.split())
