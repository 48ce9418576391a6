"""The process behind formulas.py: are two answers of mathematics equal?

Run by decode_worker.py; imports sympy and nothing of ours. Text never reaches sympy's own parser,
which evaluates it: it is parsed by `ast` and built from the names below, with caps on the size of
numbers. The grammar is Python's: + - * / // % ** (or ^), exact decimals, calls of FUNCTIONS, the
constants pi, E, I and oo, `a = b` for an equation, {a, b} for a set, (a, b) or [a, b] for a
sequence, lists of lists for matrices, True and False. Other names are real variables.

Equality: exact for rational functions; else both are evaluated to 60 digits at fixed points
(negative and broken ones, too), and when they cannot be, sympy has to simplify the difference to
zero. So a wrong answer would have to agree to 55 digits at every point.
"""

import ast
import json
import signal
from collections.abc import Callable
from typing import Any

import sympy

MAX_LENGTH = 4000
MAX_DIGITS = 400
MAX_POWER = 2000  # of a number; of anything else the degree below counts
MAX_DEGREE = 300
DIGITS, AGREEING = 60, sympy.Float("1e-55", 60)
# Irregular, of both signs, so that no function in the grammar takes them all alike.
POINTS = tuple(
    sympy.Rational(top, bottom)
    for top, bottom in (
        (7, 5), (-11, 7), (23, 9), (-3, 8), (1, 11), (31, 6), (-43, 13), (5, 3), (-17, 19), (61, 8),
    )
)  # fmt: skip
WHOLE_POINTS = (3, 1, 4, 2, 7, 5, 0, 6, 9, 11)
ENOUGH = 4  # of the points must give a number
FREE_CONSTANTS = {"C", "c", "K", "k", "C1"}

Equation = tuple[str, Any, Any]
CONSTANTS = {"pi": sympy.pi, "E": sympy.E, "e": sympy.E, "I": sympy.I, "oo": sympy.oo}


class Refused(ValueError):
    """Text outside the grammar."""


def _factorial(n: Any) -> Any:
    if n.is_number and not 0 <= n <= 1000:
        raise Refused(f"factorial of {n}")
    return sympy.factorial(n)


def _solve(equation: Any, *symbols: Any) -> frozenset:
    """Return the solutions of one unknown as a set."""
    side = equation[1] - equation[2] if _is_equation(equation) else equation
    unknown = symbols[0] if symbols else next(iter(side.free_symbols))
    return frozenset(sympy.solve(side, unknown))


def _matrix(rows: Any) -> sympy.Matrix:
    return sympy.Matrix([list(row) if isinstance(row, tuple) else [row] for row in rows])


def _series(expression: Any, symbol: Any, point: Any, order: Any) -> Any:
    """Return the Taylor polynomial with the powers below `order`."""
    if not 0 < order <= 30:
        raise Refused(f"a series of order {order}")
    return sympy.series(expression, symbol, point, int(order)).removeO()


def _rows(matrix: Any) -> tuple:
    return tuple(tuple(row) for row in matrix.tolist())


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(sympy, name)
        for name in (
            "sqrt", "cbrt", "root", "exp", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos",
            "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "floor", "ceiling",
            "sign", "gamma", "erf", "re", "im", "conjugate", "gcd", "lcm", "binomial", "fibonacci",
            "diff", "integrate", "limit", "expand", "factor", "simplify", "Mod", "Min", "Max",
            "Rational", "totient", "divisor_count", "divisor_sigma", "isprime", "nextprime",
        )
    },
    "abs": sympy.Abs, "Abs": sympy.Abs, "log": sympy.log, "ln": sympy.log, "min": sympy.Min,
    "max": sympy.Max, "factorial": _factorial, "solve": _solve, "series": _series,
    "sum": lambda term, *bounds: sympy.summation(term, *bounds),
    "product": lambda term, *bounds: sympy.product(term, *bounds),
    "det": lambda rows: _matrix(rows).det(),
    "rank": lambda rows: sympy.Integer(_matrix(rows).rank()),
    "trace": lambda rows: _matrix(rows).trace(),
    "inverse": lambda rows: _rows(_matrix(rows).inv()),
    "transpose": lambda rows: _rows(_matrix(rows).T),
    "matmul": lambda a, b: _rows(_matrix(a) * _matrix(b)),
    "dot": lambda a, b: sum((x * y for x, y in zip(a, b, strict=True)), sympy.Integer(0)),
    "cross": lambda a, b: tuple(_matrix(a).cross(_matrix(b))),
    "eigenvalues": lambda rows: frozenset(_matrix(rows).eigenvals()),
    "subs": lambda expression, name, value: expression.subs(name, value),
}  # fmt: skip


class TooLong(BaseException):
    """The time is over; no `except Exception` on the way may keep it."""


def _stop(number: int, frame: object) -> None:
    raise TooLong


def decode(hint: str, data: bytes) -> dict[str, Any]:
    """Return {"equal": bool or None, "why": text} of a request as formulas.py sends it.

    `hint` is the CPU time in seconds that it may take. CPU time, not the clock, so that the
    verdict is the same on a busy machine.
    """
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, float(hint), 0.1)
    try:
        answer = _decode(data)
        signal.setitimer(signal.ITIMER_PROF, 0)
    except TooLong:
        signal.setitimer(signal.ITIMER_PROF, 0)
        answer = {"equal": None, "why": f"took over {hint} s"}
    return answer


def _decode(data: bytes) -> dict[str, Any]:
    asked = json.loads(data)
    try:
        is_equal, why = compare(asked)
    except (Refused, SyntaxError) as error:
        return {"equal": False, "why": f"not a formula of the grammar ({error})"}
    except RecursionError:
        return {"equal": False, "why": "nested too deeply"}
    except (ArithmeticError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        return {"equal": False, "why": f"{type(error).__name__}: {error}"[:300]}
    return {"equal": is_equal, "why": why}


def compare(asked: dict[str, Any]) -> tuple[bool | None, str]:
    """Compare an answer with what is expected of it."""
    kinds = {name: {"positive": True} for name in asked["positive"]}
    kinds |= {name: kinds.get(name, {}) | {"integer": True} for name in asked["integer"]}
    reader = Reader(kinds)
    answer = reader.read(asked["answer"])
    if asked["zero"] is not None:
        answer = answer[2] if _is_equation(answer) else answer
        residual = Reader(kinds, {"answer": answer}).read(asked["zero"])
        return equal(residual, sympy.Integer(0), asked)
    expected = reader.read(asked["expected"])
    if _is_equation(answer) and not _is_equation(expected) and answer[1].is_Symbol:
        answer = answer[2]  # "x = 3" answers what asks for 3
    return equal(answer, expected, asked)


class Reader:
    """Builds values from text."""

    def __init__(self, kinds: dict[str, dict[str, bool]], given: dict[str, Any] | None = None):
        """Remember the variables' assumptions and the names that stand for something."""
        self._kinds = kinds
        self._given = given or {}

    def read(self, text: str) -> Any:
        """Return the value of a text: expression, bool, tuple, frozenset or equation."""
        if len(text) > MAX_LENGTH:
            raise Refused(f"{len(text)} characters")
        text = text.strip().strip("$").replace("^", "**").replace("−", "-")
        left, sign, right = _split_equation(text)
        if sign:
            return "=", self._read(left), self._read(right)
        return self._read(left)

    def _read(self, text: str) -> Any:
        return self._value(ast.parse(text.strip(), mode="eval").body)

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() as value):
                return value
            case ast.Constant(value=int() | float() as value):
                return _number(node, value)
            case ast.Name(id=name):
                return self._name(name)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return -self._number_of(inner)
            case ast.UnaryOp(op=ast.UAdd(), operand=inner):
                return self._number_of(inner)
            case ast.BinOp(left=left, op=operator, right=right):
                return _combined(operator, self._number_of(left), self._number_of(right))
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return tuple(map(self._value, parts))
            case ast.Set(elts=parts):
                return frozenset(map(self._value, parts))
            case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
                return "=", self._value(left), self._value(right)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, list(map(self._value, arguments)))
        raise Refused(type(node).__name__)

    def _name(self, name: str) -> Any:
        if name in self._given:
            return self._given[name]
        if name in CONSTANTS and name not in self._kinds:
            return CONSTANTS[name]
        if len(name) > 16 or "__" in name or name in FUNCTIONS:
            raise Refused(name)
        return sympy.Symbol(name, **(self._kinds.get(name) or {"real": True}))

    def _number_of(self, node: ast.expr) -> sympy.Expr:
        value = self._value(node)
        if not isinstance(value, sympy.Expr):
            raise Refused(f"{ast.unparse(node)} in a sum or product")
        return value

    def _call(self, name: str, arguments: list[Any]) -> Any:
        if name not in FUNCTIONS:
            raise Refused(f"the function {name}")
        if name in ("exp", "fibonacci", "binomial", "gamma"):
            _refuse_large(arguments, 10_000)
        value = FUNCTIONS[name](*arguments)
        return (
            bool(value)
            if value is sympy.true or value is sympy.false
            else (sympy.Integer(value) if type(value) is int else value)
        )


def _split_equation(text: str) -> tuple[str, str, str]:
    """Split at a single = outside of brackets."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "=" and not depth and "==" not in text[place - 1 : place + 2]:
            return text[:place], "=", text[place + 1 :]
    return text, "", ""


def _number(node: ast.Constant, value: float) -> sympy.Expr:
    """Return a literal exactly: 0.1 is one tenth."""
    if isinstance(value, int):
        if value.bit_length() > MAX_DIGITS * 4:
            raise Refused("a number of too many digits")
        return sympy.Integer(value)
    if not 1e-100 < abs(value) < 1e100 and value:
        raise Refused(f"the number {value}")
    return sympy.Rational(repr(value))


def _refuse_large(arguments: list[Any], most: int) -> None:
    for value in arguments:
        if isinstance(value, sympy.Expr) and value.is_Number and abs(value) > most:
            raise Refused(f"an argument of {value}")


def _combined(operator: ast.operator, a: Any, b: Any) -> sympy.Expr:
    match operator:
        case ast.Add():
            return a + b
        case ast.Sub():
            return a - b
        case ast.Mult():
            return a * b
        case ast.Div():
            return a / b
        case ast.FloorDiv():
            return sympy.floor(a / b)
        case ast.Mod():
            return sympy.Mod(a, b)
        case ast.Pow():
            most = MAX_POWER if a.is_number else MAX_DEGREE
            if b.is_number and not abs(b.evalf()) <= most:
                raise Refused(f"a power of {b}")
            if b.is_number and a.is_Rational and max(abs(a.p), a.q).bit_length() * abs(b) > 40_000:
                raise Refused(f"{a} to the power of {b}")
            return a**b
    raise Refused(type(operator).__name__)


def equal(a: Any, b: Any, asked: dict[str, Any]) -> tuple[bool | None, str]:
    """Tell whether an answer equals what is expected; None if it could not be found out."""
    if _is_equation(a) and _is_equation(b):
        return _equations_equal(a, b, asked)
    if isinstance(a, bool) or isinstance(b, bool):
        is_same = isinstance(a, bool) and isinstance(b, bool) and a is b
        return is_same, "identical" if is_same else f"{a} is not {b}"
    if isinstance(b, frozenset) or isinstance(a, frozenset):
        one, other = (x if isinstance(x, frozenset) else frozenset([x]) for x in (a, b))
        return _sets_equal(one, other, asked)
    if isinstance(a, tuple) or isinstance(b, tuple):
        if not (isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b)):
            return False, "not as many parts"
        verdicts = [equal(x, y, asked) for x, y in zip(a, b)]
        return min(verdicts, key=lambda verdict: (verdict[0] is not False, verdict[0] is not None))
    if not (isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr)):
        return False, "of different kinds"
    return _expressions_equal(a, b, asked)


def _is_equation(value: Any) -> bool:
    return isinstance(value, tuple) and value[:1] == ("=",)


def _equations_equal(a: Equation, b: Equation, asked: dict) -> tuple[bool | None, str]:
    """Equal if the differences of the sides are, up to a constant factor."""
    left, right = a[1] - a[2], b[1] - b[2]
    if right == 0 or left == 0:
        return left == right, "identical" if left == right else "one of them always holds"
    ratio = sympy.cancel(left / right)
    if ratio.free_symbols:
        ratio = sympy.simplify(ratio)
    return not ratio.free_symbols and ratio != 0, f"their sides' ratio is {ratio}"[:200]


def _sets_equal(a: frozenset, b: frozenset, asked: dict) -> tuple[bool, str]:
    left = list(b)
    for one in a:
        found = next((k for k, other in enumerate(left) if equal(one, other, asked)[0]), None)
        if found is None:
            return False, f"{one} is not in the set"
        del left[found]
    return not left, "the same set" if not left else f"{left[0]} is missing"


def _expressions_equal(a: sympy.Expr, b: sympy.Expr, asked: dict) -> tuple[bool | None, str]:
    if asked["constant"]:
        variables = sorted(b.free_symbols, key=str)
        extra = {symbol for symbol in a.free_symbols if str(symbol) not in FREE_CONSTANTS}
        if not variables or extra - set(variables):
            return False, "other variables"
        slopes = (tuple(sympy.diff(side, each) for each in variables) for side in (a, b))
        return equal(next(slopes), next(slopes), asked | {"constant": False})
    if a == b:
        return True, "identical"
    if any(each.has(sympy.nan, sympy.zoo) for each in (a, b)) or a.is_infinite or b.is_infinite:
        return False, f"{a} is not {b}"[:200]
    variables = sorted(a.free_symbols | b.free_symbols, key=str)
    if asked["tolerance"] and not variables:
        return _near(a, b, asked["tolerance"])
    if all(_is_rational_function(each, variables) for each in (a, b)):
        # cancel alone leaves sums of numbers unevaluated: -81/2 + 81/2 is not yet 0.
        difference = sympy.cancel(sympy.together(a - b)).doit()
        return difference == 0, "exact" if difference == 0 else f"they differ by {difference}"[:200]
    verdict = _probe(a, b, variables)
    if verdict[0] is None and sympy.simplify(a - b) == 0:
        return True, "simplify"
    return verdict


def _is_rational_function(expression: Any, variables: list) -> bool:
    numbers = expression.atoms(sympy.Number, sympy.NumberSymbol)
    return (
        all(each.is_Rational for each in numbers)
        and expression.is_rational_function(*variables)
        and not expression.atoms(sympy.Function)
        and not expression.has(sympy.I)
        and all(p.exp.is_Integer for p in expression.atoms(sympy.Pow))
    )


def _near(a: sympy.Expr, b: sympy.Expr, tolerance: float) -> tuple[bool | None, str]:
    x, y = a.evalf(DIGITS), b.evalf(DIGITS)
    is_near = bool(abs(x - y) <= sympy.Float(tolerance) * abs(y))
    return is_near, "near" if is_near else f"{x.n(8)} is not near {y.n(8)}"


def _probe(a: sympy.Expr, b: sympy.Expr, variables: list) -> tuple[bool | None, str]:
    """Evaluate both at fixed points; a difference at one of them decides."""
    num_points = len(POINTS) if variables else 1
    agreed = 0
    for start in range(num_points):
        values = {}
        for place, variable in enumerate(variables):
            points = WHOLE_POINTS if variable.is_integer else POINTS
            value = sympy.sympify(points[(start + 3 * place) % len(points)])
            if variable.is_positive:
                value = abs(value) + (1 if variable.is_integer else 0)
            values[variable] = value
        x, y = (_evaluated(each, values) for each in (a, b))
        if x is None or y is None:
            continue
        if abs(x - y) > AGREEING * max(1, abs(x), abs(y)):
            where = ", ".join(f"{name}={value}" for name, value in values.items())
            return (
                False,
                f"{x.n(8)} is not {y.n(8)} at {where}" if where else f"{x.n(8)}, not {y.n(8)}",
            )
        agreed += 1
    if agreed >= min(ENOUGH, num_points):
        return True, "probes"
    return None, "could not be evaluated or simplified"


def _evaluated(expression: sympy.Expr, values: dict) -> sympy.Expr | None:
    value = expression.subs(values).evalf(DIGITS)
    if not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo):
        return None
    real, imaginary = value.as_real_imag()
    is_number = all(isinstance(part, sympy.Float | sympy.Rational) for part in (real, imaginary))
    return value if is_number else None
