"""Answers of mathematics: equal forms pass, wrong ones never do, hostile ones do no harm."""

import random
import re

import pytest
import sympy

from data_pipelines import verify
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from mistral_jax.config.verify import VerifyConfig


def row(answer: str, check: dict) -> Row:
    document = Document("r", "prompt_completion", prompt="?", completion=answer)
    facts = {"check": {"kind": "sympy", **check}}
    return Row(document, "made", "math", "math", "generated", facts=facts)


@pytest.fixture(scope="module")
def verifier():
    with verify.Verifier(VerifyConfig(formula_cpu_s=3.0)) as made:
        yield made


EQUAL = [
    ("((8*n+18)**2-324)/8", {"expected": "8*n**2+36*n"}),
    ("x^2 + 2*x + 1", {"expected": "(x + 1)**2"}),
    ("1/(x + 1)", {"expected": "(x - 1)/(x**2 - 1)"}),
    ("sqrt(5 + 2*sqrt(6))", {"expected": "sqrt(2) + sqrt(3)"}),
    ("1 - sin(x)**2", {"expected": "cos(x)**2"}),
    ("abs(x)", {"expected": "sqrt(x**2)"}),
    ("2*log(x)", {"expected": "log(x**2)", "positive": ["x"]}),
    ("1", {"expected": "cos(2*pi*n)", "integer": ["n"]}),
    ("Answer: 0.5", {"expected": "1/2", "after": "Answer:"}),
    ("3.14", {"expected": "pi", "tolerance": 0.001}),
    ("x = 3", {"expected": "3"}),
    ("2*y = 4*x + 2", {"expected": "y = 2*x + 1"}),
    ("{-1, 1}", {"expected": "solve(x**2 - 1, x)"}),
    ("(1, 2)", {"expected": "[2/2, 2]"}),
    ("2*x*cos(x**2)", {"expected": "diff(sin(x**2), x)"}),
    ("x*log(x) - x + C", {"zero": "diff(answer, x) - log(x)", "positive": ["x"]}),
    ("x**3/3 + 7", {"expected": "integrate(x**2, x)", "constant": True}),
    ("exp(2*x)", {"zero": "diff(answer, x) - 2*answer"}),
    ("[[-2, 1], [3/2, -1/2]]", {"expected": "inverse([[1, 2], [3, 4]])"}),
    ("n*(n + 1)/2", {"expected": "sum(k, (k, 1, n))", "integer": ["n"], "positive": ["n"]}),
    ("1 - x**2/2", {"expected": "series(cos(x), x, 0, 4)"}),
    ("True", {"expected": "isprime(101)"}),
    ("oo", {"expected": "limit(1/x, x, 0)"}),
]
WRONG = [
    ("x^2 + 2*x + 2", {"expected": "(x + 1)**2"}),
    ("x", {"expected": "sqrt(x**2)"}),
    ("2*log(x)", {"expected": "log(x**2)"}),
    ("x + 10**-40", {"expected": "x"}),
    ("pi + 10**-40", {"expected": "pi"}),
    ("0.333333333333", {"expected": "1/3"}),
    ("1", {"expected": "cos(2*pi*n)"}),
    ("2*y = 4*x + 3", {"expected": "y = 2*x + 1"}),
    ("{1}", {"expected": "solve(x**2 - 1, x)"}),
    ("{-1, 1, 2}", {"expected": "solve(x**2 - 1, x)"}),
    ("(2, 1)", {"expected": "(1, 2)"}),
    ("x**3/3 + y", {"expected": "integrate(x**2, x)", "constant": True}),
    ("x**3/2", {"expected": "integrate(x**2, x)", "constant": True}),
    ("False", {"expected": "isprime(101)"}),
    ("oo", {"expected": "-oo"}),
    ("", {"expected": "0"}),
    ("the answer is 3", {"expected": "3"}),
    ("expected", {"expected": "1"}),
    # What a parser that evaluates would run, or what would never end.
    ("__import__('os').system('touch /tmp/escaped')", {"expected": "1"}),
    ("().__class__.__bases__[0].__subclasses__()", {"expected": "1"}),
    ("(lambda: 1)()", {"expected": "1"}),
    ("[x for x in (1, 2)]", {"expected": "(1, 2)"}),
    ("diff.__globals__", {"expected": "1"}),
    ("9**9**9**9", {"expected": "1"}),
    ("(x + 1)**100000", {"expected": "1"}),
    ("factorial(10**9)", {"expected": "1"}),
    ("7" * 3000, {"expected": "1"}),
    ("(" * 1500 + ")" * 1500, {"expected": "1"}),
    ("-" * 3000 + "1", {"expected": "1"}),
    ("1e999999999", {"expected": "1"}),
]


def test_equal_forms_pass_and_others_fail(verifier):
    rows = [row(*case) for case in EQUAL + WRONG]
    found = [score.detail for score in verifier.verify(rows)]
    wanted = ["passed"] * len(EQUAL) + ["failed"] * len(WRONG)
    mismatches = [
        (case, detail)
        for case, detail, verdict in zip(EQUAL + WRONG, found, wanted)
        if detail["verdict"] != verdict
    ]
    assert not mismatches


@pytest.mark.slow
def test_what_takes_too_long_ends_unverified(verifier):
    endless = "integrate(exp(sin(x**3)*cos(x))*log(x**2 + sin(x)), x)"
    slow, after = verifier.verify([row(endless, {"expected": "1"}), row("1", {"expected": "1"})])
    assert slow.value == 0 and "took over" in slow.detail["reason"]
    assert after.detail["verdict"] == "passed"


def formula(draw: random.Random, depth: int) -> str:
    """Return a random formula in x and y."""
    if depth == 0:
        return draw.choice(["x", "y", str(draw.randint(2, 9)), f"{draw.randint(1, 9)}/7"])
    left, right = (formula(draw, depth - 1) for _ in range(2))
    return draw.choice(
        [f"({left} + {right})", f"({left} - {right})", f"({left})*({right})", f"({left})**2"]
        + [
            f"sin({left})",
            f"exp({left}/9)",
            f"sqrt(({right})**2 + 1)",
            f"({left})/(({right})**2 + 2)",
        ]
    )


def spoiled(draw: random.Random, text: str) -> str:
    """Return a formula with one part of it changed: a number, a sign, a variable, a function."""
    swaps = {"+": "-", "-": "+", "x": "y", "y": "x", "sin": "cos"} | {
        str(digit): str(digit % 9 + 1) for digit in range(1, 10)
    }
    found = draw.choice([each for each in re.finditer(r"\w+|[-+]", text) if each.group() in swaps])
    return text[: found.start()] + swaps[found.group()] + text[found.end() :]


def is_different(text: str, other: str) -> bool:
    """Tell by plain floating point, at points of its own, that two formulas differ."""
    x, y = sympy.symbols("x y", real=True)
    apart = [sympy.sympify(each, locals={"x": x, "y": y}) for each in (text, other)]
    for point in ({x: 0.3701, y: 1.4142}, {x: -1.2345, y: 0.7071}):
        a, b = (complex(each.subs(point)) for each in apart)
        if abs(a - b) > 1e-7 * max(1, abs(a), abs(b)):
            return True
    return False


def injected(count: int, seed: int) -> list[tuple[str, str]]:
    """Return (formula, a wrong form of it)."""
    draw = random.Random(seed)
    found: list[tuple[str, str]] = []
    while len(found) < count:
        text = formula(draw, draw.randint(1, 3))
        if "x" in text and is_different(text, wrong := spoiled(draw, text)):
            found.append((text, wrong))
    return found


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_injected_error_is_accepted(verifier, count):
    """And each formula equals itself in another spelling, or at worst is not decided."""
    pairs = injected(count, seed=count)
    wrong = verifier.verify([row(wrong, {"expected": text}) for text, wrong in pairs])
    assert [pair for pair, score in zip(pairs, wrong) if score.value > 0] == []
    few = pairs[:: max(1, count // 40)]
    right = verifier.verify(
        [row(f"x - (x*3 - 3*({text}))/3", {"expected": text}) for text, _ in few]
    )
    accepted = sum(score.value for score in right)
    assert accepted >= 0.98 * len(few), [score.detail for score in right if not score.value]
