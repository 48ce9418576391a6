"""Small changes to real functions are made, are programs, and are noticed by good tests."""

import ast
import bisect
import calendar
import colorsys
import difflib
import html
import inspect
import itertools
import string

import pytest

from data_pipelines import verify
from data_pipelines.corpus.row import Row
from data_pipelines.documents import Document
from data_pipelines.verify import mutate
from mistral_jax.config.verify import SandboxConfig
from mistral_jax.config.verify import VerifyConfig

GCD = "def gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a\n"
ROMAN = (
    "def roman(n):\n    text = ''\n"
    "    for value, sign in ((1000, 'M'), (900, 'CM'), (500, 'D'), (400, 'CD'), (100, 'C'),\n"
    "            (90, 'XC'), (50, 'L'), (40, 'XL'), (10, 'X'), (9, 'IX'), (5, 'V'), (4, 'IV'),\n"
    "            (1, 'I')):\n"
    "        while n >= value:\n            text += sign\n            n -= value\n    return text\n"
)


def grid(*parts: list) -> list[tuple]:
    return list(itertools.product(*parts))


SEARCH = (
    "def bisect_left(a, x):\n    lo, hi = 0, len(a)\n    while lo < hi:\n"
    "        mid = (lo + hi) // 2\n        if a[mid] < x:\n            lo = mid + 1\n"
    "        else:\n            hi = mid\n    return lo\n"
)
YEARS = grid(list(range(1890, 1910)), [1895, 1904, 1905, 2001, 2401])
LISTS = [[1], [1, 1], [1, 2, 2, 3], [2, 4, 6, 8, 9]]
# Source, name, arguments: the real function itself says what is right.
FUNCTIONS = [
    (inspect.getsource(calendar.isleap), calendar.isleap, [(y,) for y in range(1890, 2010)]),
    (inspect.getsource(calendar.leapdays), calendar.leapdays, YEARS),
    (SEARCH, bisect.bisect_left, grid(LISTS, [0, 1, 2, 3, 5, 9, 10])),
    (inspect.getsource(string.capwords), string.capwords, grid(["a bC  d", "x-yz"], [None, "-"])),
    (inspect.getsource(html.escape), html.escape, grid(["<a b=\"c\">&'", "x"], [True, False])),
    (
        inspect.getsource(difflib._calculate_ratio),
        difflib._calculate_ratio,
        grid([0, 1, 5], [0, 1, 10]),
    ),
    (
        inspect.getsource(colorsys.rgb_to_hsv),
        colorsys.rgb_to_hsv,
        grid([0.0, 0.25, 1.0], [0.0, 0.5, 0.9], [0.1, 0.7, 1.0]),
    ),
    (
        inspect.getsource(colorsys.hsv_to_rgb),
        colorsys.hsv_to_rgb,
        grid([0.0, 0.1, 0.2, 0.4, 0.5, 0.7, 0.9], [0.0, 0.5, 1.0], [0.2, 1.0]),
    ),
    (GCD, None, grid([0, 1, 12, 18, 35], [0, 1, 6, 14, 27])),
    (ROMAN, None, [(n,) for n in (1, 3, 4, 8, 9, 14, 40, 44, 90, 99, 400, 499, 944, 1999, 3888)]),
]  # fmt: skip


def written_tests(source: str, function, arguments: list[tuple]) -> tuple[str, str]:
    """Return (code, tests): what the function gives, written down."""
    if function is None:
        name = source.split("(")[0].removeprefix("def ")
        return source, f"import math\nexpected = {expected_of(name, arguments)!r}\n" + asks(
            name, arguments
        )
    expected = [function(*each) for each in arguments]
    return source, f"expected = {expected!r}\n" + asks(function.__name__, arguments)


def expected_of(name: str, arguments: list[tuple]) -> list:
    """Return what is right for the functions without an original in the standard library."""
    import math

    if name == "gcd":
        return [math.gcd(*each) for each in arguments]
    said = "I III IV VIII IX XIV XL XLIV XC XCIX CD CDXCIX CMXLIV MCMXCIX MMMDCCCLXXXVIII"
    return said.split()


def asks(name: str, arguments: list[tuple]) -> str:
    return (
        f"for arguments, right in zip({arguments!r}, expected):\n"
        f"    found = {name}(*arguments)\n    assert found == right, (arguments, found, right)\n"
    )


@pytest.fixture(scope="module")
def scores():
    rows = []
    for source, function, arguments in FUNCTIONS:
        code, tests = written_tests(source, function, arguments)
        check = {"kind": "mutants", "tests": tests, "min_killed": 0.0}
        document = Document("r", "prompt_completion", completion=f"```python\n{code}\n```")
        rows.append(Row(document, "made", "code", "code", "PSF", facts={"check": check}))
    config = VerifyConfig(max_mutants=20, mutant_cpu_s=0.3, sandbox=SandboxConfig(cpu_s=1))
    with verify.Verifier(config) as verifier:
        return verifier.verify(rows)


def test_good_tests_reject_wrong_code_of_ten_real_functions(scores):
    assert [score.detail["reason"] for score in scores] == [""] * 10
    total = sum(score.detail["num_mutants"] for score in scores)
    killed = sum(score.detail["num_mutants"] * score.detail["killed"] for score in scores)
    alive = {f[0][:30]: s.detail["survivors"] for f, s in zip(FUNCTIONS, scores)}
    assert total >= 120 and killed / total >= 0.95, (killed, total, alive)


def test_every_mutant_is_another_program_and_says_where():
    found = mutate.mutants(ROMAN, limit=100)
    texts = [text for text, _ in found]
    assert len(set(texts)) == len(texts) > 30
    assert ast.unparse(ast.parse(ROMAN)) not in texts
    assert all(ast.parse(text) for text in texts)
    kinds = {what.split(": ")[1] for _, what in found}
    assert kinds >= {"comparison", "operator", "constant_plus_one", "statement_dropped"}
    assert mutate.mutants(ROMAN, limit=100) == found
    assert mutate.mutants(ROMAN, limit=5) == found[:5]


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("x = a < b", "x = a <= b"),
        ("x = a and b", "x = a or b"),
        ("x = not a", "x = not not a"),
        ("x = -a", "x = +a"),
        ("x = a + b", "x = a - b"),
        ("x += 1", "x -= 1"),
        ("x = True", "x = False"),
        ("x = 'a'", "x = ''"),
        ("f(x)", "pass"),
        ("while a:\n    break", "while a:\n    continue"),
        ("while a:\n    continue", "while a:\n    break"),
        ("if a:\n    b", "if not a:\n    b"),
        ("def f():\n    return 2", "def f():\n    return None"),
        ("def f():\n    return 2", "def f():\n    return 3"),
    ],
)
def test_a_change_is_made(code, changed):
    assert changed in [text for text, _ in mutate.mutants(code, limit=50)]


def test_docstrings_annotations_and_main_blocks_stay():
    code = '"""Says 1."""\ndef f(x: "a < 1") -> "b":\n    """Two 2."""\n    pass\n'
    code += "if __name__ == '__main__':\n    f(1)\n"
    assert mutate.mutants(code, limit=50) == []
