"""Rows are verified: each kind takes the right answer and refuses the wrong one."""

import shutil

import pytest

from data_pipelines import verify
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from mistral_jax.config.verify import SandboxConfig
from mistral_jax.config.verify import VerifyConfig
from mistral_jax.sandbox import Limits

ADD = "```python\ndef add(a, b):\n    return a + b\n```"
COQ = "Theorem a : forall n : nat, n + 0 = n.\nProof. induction n; simpl; auto. Qed."


def row(answer: str, check: object = None, prompt: str = "", made_from: str = "") -> Row:
    document = Document(
        "r", "prompt_completion", prompt=prompt, completion=answer, made_from=made_from
    )
    facts = {} if check is None else {"check": check}
    return Row(document, "made", "text", "general", "generated", facts=facts)


# (check, right answer, wrong answers); one verifier judges them all in one batch.
CASES = [
    (
        {"kind": "python_tests", "tests": "def test_add():\n    assert add(2, 3) == 5"},
        f"Here it is.\n{ADD}\nThat is all.",
        [
            ADD.replace("+", "-"),
            "import sys; sys.exit(0)",
            "import os; os._exit(0)",
            "def add(a, b:",
            "while True: pass",
        ],
    ),
    (
        {"kind": "python_tests", "tests": "assert area() == 7", "files": {"data.txt": "7"}},
        "def area(): return int(open('data.txt').read())",
        ["def area(): return int(open('/etc/hostname').read())"],
    ),
    ({"kind": "mutants", "tests": "assert add(2, 3) == 5"}, ADD, [ADD.replace("+", "*")]),
    (
        {"kind": "exact", "expected": ["Paris", "in Paris"], "fold": True, "after": "Answer:"},
        "France.\nAnswer:  PARIS",
        ["Answer: Rome", "Paris"],
    ),
    (
        {"kind": "number", "expected": 1500.0, "relative": 0.01, "unit": "m/s"},
        "1,499.5 m/s.",
        ["1499.5", "1600 m/s", "1500 km/s", "-1500 m/s", "fast"],
    ),
    (
        {"kind": "span", "document": "d", "start": 4, "end": 9, "quote": "river"},
        "It is a river.",
        ["It is a lake."],
    ),
    (
        {"kind": "span", "in": "prompt", "start": 0, "end": 3, "quote": "Who", "exact": True},
        "Who",
        ["Who?"],
    ),
    (
        {"kind": "constraints", "rules": [{"rule": "words", "count": 2}]},
        "two words",
        ["three words here"],
    ),
    (
        [{"kind": "exact", "expected": "7"}, {"kind": "number", "expected": 7.0}],
        "7",
        ["8"],
    ),
]


@pytest.fixture(scope="module")
def verifier():
    config = VerifyConfig(sandbox=SandboxConfig(wall_s=5.0, cpu_s=1))
    with verify.Verifier(config, documents={"d": "The river runs."}.get) as made:
        yield made


def test_right_answers_pass_and_wrong_ones_fail(verifier):
    rows, wanted = [], []
    for check, right, wrong in CASES:
        for answer in (right, *wrong):
            rows.append(row(answer, check, prompt="Who is it?"))
            wanted.append("passed" if answer == right else "failed")
    found = verifier.verify([*rows, row("no check")])
    assert found.pop() is None
    verdicts = [score.detail["verdict"] for score in found]
    mismatches = [
        (made.document.completion, score) for made, score, verdict in zip(rows, found, wanted)
        if score.detail["verdict"] != verdict
    ]  # fmt: skip
    assert not mismatches
    assert verdicts == wanted
    assert all((score.value > 0) == (score.detail["verdict"] == "passed") for score in found)
    assert all(score.detail["reason"] for score in found if score.value == 0)


def test_the_share_of_mutants_is_the_score(verifier):
    code = "def clamp(x, lo, hi):\n    if x < lo:\n        return lo\n    return min(x, hi)"
    strong = "assert [clamp(x, 1, 3) for x in (0, 1, 2, 3, 4)] == [1, 1, 2, 3, 3]"
    weak = "clamp(1, 2, 3)"
    good, bad = verifier.verify(
        [row(code, {"kind": "mutants", "tests": tests}) for tests in (strong, weak)]
    )
    assert good.detail["verdict"] == "passed" and good.value == good.detail["killed"] >= 0.7
    assert bad.detail["verdict"] == "failed" and bad.detail["killed"] <= 0.5
    assert bad.detail["survivors"]


def test_what_cannot_be_found_out_is_unverified(verifier, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    cases = [
        ({"kind": "proof", "checker": "agda"}, "checker_missing"),
        ({"kind": "span", "document": "gone", "start": 0, "end": 1, "quote": "x"}, "not at hand"),
    ]
    for check, reason in cases:
        score = verifier.check(check, row("x"))
        assert score.detail["verdict"] == "unverified" and reason in score.detail["reason"]
        assert score.value == 0
    proof = {"kind": "proof", "checker": "coq"}
    for left_open in ("Theorem a : False. Admitted.", "Axiom a : False."):
        assert verifier.check(proof, row(left_open)).detail["verdict"] == "failed"


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ({"kind": "oracle"}, "oracle"),
        ({"tests": ""}, "kind"),
        ({"kind": "python_tests"}, "tests"),
        ({"kind": "exact", "expected": "7", "tolerance": 1}, "tolerance"),
        ({"kind": "sympy"}, "either"),
        ({"kind": "number", "expected": "7"}, "expected"),
        ([], "at least 1"),
        ({"kind": "exact", "expected": object()}, "serializable"),
        ({"kind": "constraints", "rules": [{"rule": "rhymes"}]}, "rhymes"),
        ({"kind": "constraints", "rules": [{"rule": "words", "number": 3}]}, "number"),
        ({"kind": "constraints", "rules": [{"rule": "words"}]}, "count"),
    ],
)
def test_a_bad_check_is_refused_by_name(verifier, check, says):
    with pytest.raises(verify.BadCheck, match=says):
        verifier.check(check, row("x"))
    score = verifier.verify([row("x", check)])[0]
    assert score.detail["verdict"] == "failed" and score.detail["kind"] == "bad_check"


def test_the_config_has_the_sandboxs_limits():
    assert Limits(**SandboxConfig().model_dump()) == Limits()


@pytest.mark.slow
def test_reasoning_gym_judges_its_own_answers():
    import reasoning_gym

    rows, wanted = [], []
    for name in ("chain_sum", "simple_integration", "countdown"):
        for entry in reasoning_gym.create_dataset(name, size=3, seed=1):
            check = {"kind": "reasoning_gym", "dataset": name, "entry": entry, "after": "Answer:"}
            rows += [row(f"Answer: {entry['answer']}", check), row("Answer: 12345", check)]
            wanted += ["passed", "failed"]
    hostile = "Answer: __import__('os').system('touch /tmp/escaped_from_verify')"
    rows.append(row(hostile, rows[-1].facts["check"]))
    with verify.Verifier() as verifier:
        found = [score.detail["verdict"] for score in verifier.verify(rows)]
    assert found == [*wanted, "failed"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("coqc") is None, reason="coqc is not installed")
def test_coq_takes_a_proof_and_refuses_a_broken_one():
    statement = "forall n : nat, n + 0 = n"
    check = {"kind": "proof", "checker": "coq", "statement": statement}
    cases = {
        COQ: "passed",
        f"Said so:\n```coq\n{COQ}\n```": "passed",
        COQ.replace("n + 0 = n", "n + 1 = n"): "failed",
        COQ.replace("induction n; simpl; auto. Qed", "Admitted"): "failed",
        COQ.replace("forall n : nat, n + 0 = n", "True"): "failed",
        "Variable cheat : forall P : Prop, P.\n" + COQ.replace(
            "induction n; simpl; auto", "apply cheat"
        ): "failed",
    }  # fmt: skip
    with verify.Verifier() as verifier:
        found = {text: verifier.check(check, row(text)).detail for text in cases}
    assert {text: detail["verdict"] for text, detail in found.items()} == cases, found
