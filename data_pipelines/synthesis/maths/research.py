"""Level 4: series, differential equations, linear algebra, recurrences, number theory, integrals
over infinite ranges."""

import math
from fractions import Fraction

from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws
from data_pipelines.synthesis.maths.problem import polynomial
from data_pipelines.synthesis.maths.problem import problem
from data_pipelines.synthesis.maths.problem import signed


def geometric_series(draws: Draws) -> Task:
    """Sum an infinite geometric series, or its derivative."""
    p = draws.between(1, 18)
    q = p + draws.between(1, 20)
    a, start = draws.between(1, 40), draws.between(0, 4)
    ratio = Fraction(p, q)
    if draws.chance(0.5):
        value = a * ratio**start / (1 - ratio)
        summand, expected = f"{a}*({ratio})**n", f"{a}*({ratio})**{start}/(1 - {ratio})"
        steps = [f"The ratio is {ratio}, below 1.", f"First term over 1 minus the ratio: {value}."]
        low = start
    else:
        value = a * ratio / (1 - ratio) ** 2
        summand, expected = f"{a}*n*({ratio})**n", f"{a}*{p}*{q}/({q} - {p})**2"
        steps = [
            "Differentiate sum x**n = 1/(1 - x) and multiply by x: x/(1 - x)**2.",
            f"At x = {ratio}, times {a}: {value}.",
        ]
        low = 1
    asked = draws.pick(
        (
            "Sum the series of {f} for n from {low} to infinity.",
            "Does the sum of {f} over n >= {low} converge, and to what?",
        )
    )
    return problem(
        draws,
        "geometric_series",
        asked.format(f=summand, low=low),
        steps=steps,
        answer=str(value),
        expected=expected,
    )


def taylor(draws: Draws) -> Task:
    """Find a Taylor coefficient."""
    k, power, c = draws.between(2, 9), draws.between(3, 7), draws.between(2, 12)
    value = Fraction(c * k**power, math.factorial(power))
    shift = draws.between(1, 2)
    text = f"{c}*x**{shift}*exp({k}*x)"
    asked = draws.pick(
        (
            f"What is the coefficient of x**{power + shift} in the Maclaurin series of {text}?",
            f"Expand {text} about 0; which factor stands at x**{power + shift}?",
        )
    )
    steps = [
        f"exp({k}*x) has the coefficient {k}**n/n! at x**n.",
        f"x**{shift} moves it, so n = {power}: {c}*{k}**{power}/{power}! = {value}.",
    ]
    return problem(
        draws,
        "taylor",
        asked,
        steps=steps,
        answer=str(value),
        expected=f"{c}*{k}**{power}/factorial({power})",
    )


def first_order_equation(draws: Draws) -> Task:
    """Solve y' = a*y + b with a start value."""
    a, c, start = draws.nonzero(-9, 9), draws.nonzero(-12, 12), draws.between(-20, 20)
    b = -a * c  # the rest solution is c
    name = draws.pick(words.PEOPLE)
    factor = start - c
    text = f"y'(t) = {a}*y(t){signed(b)}, y(0) = {start}"
    asked = draws.pick(
        (
            f"Solve {text}.",
            f"{name} models a tank by {text}. Give y as a function of t.",
            f"Which function satisfies {text}?",
        )
    )
    steps = [
        f"The constant solution is y = {c}.",
        f"The difference to it grows like exp({a}*t), from {start} - ({c}) = {factor}.",
    ]
    return problem(
        draws,
        "first_order_equation",
        asked,
        steps=steps,
        answer=f"{c}{signed(factor)}*exp({a}*t)",
        expected=f"-({b})/({a}) + ({start} + ({b})/({a}))*exp({a}*t)",
    )


def second_order_equation(draws: Draws) -> Task:
    """Solve a linear equation of second order with two real roots."""
    r, s = draws.sample([each for each in range(-7, 8) if each], 2)
    u, v = draws.nonzero(-9, 9), draws.nonzero(-9, 9)
    start, slope = u + v, r * u + s * v
    text = (
        f"y'' {'-' if r + s >= 0 else '+'} {abs(r + s)}*y' {'+' if r * s >= 0 else '-'} "
        f"{abs(r * s)}*y = 0, y(0) = {start}, y'(0) = {slope}"
    )
    asked = draws.pick((f"Solve {text}; y is a function of t.", f"Find y(t) with {text}."))
    steps = [
        f"The characteristic roots are {r} and {s}.",
        f"A + B = {start} and {r}*A + ({s})*B = {slope} give A = {u}, B = {v}.",
    ]
    return problem(
        draws,
        "second_order_equation",
        asked,
        steps=steps,
        answer=f"{u}*exp({r}*t){signed(v)}*exp({s}*t)",
        expected=f"(({slope}) - ({s})*({start}))/(({r}) - ({s}))*exp({r}*t)"
        f" + (({slope}) - ({r})*({start}))/(({s}) - ({r}))*exp({s}*t)",
    )


def eigenvalue(draws: Draws) -> Task:
    """Find the larger eigenvalue of a two by two matrix."""
    p, r = draws.between(-9, 9), draws.between(1, 12)
    b, c = draws.nonzero(-6, 6), draws.between(1, 5)
    # [[p + b*c, b*r], [c*(r + ...)]]: made from eigenvalues by a change of basis with det 1
    low, high = sorted((p, p + r))
    # S = [[1, b], [c, 1 + b*c]], S diag(low, high) S^-1
    s11, s12, s21, s22 = 1, b, c, 1 + b * c
    m11 = s11 * low * s22 - s12 * high * s21
    m12 = -s11 * low * s12 + s12 * high * s11
    m21 = s21 * low * s22 - s22 * high * s21
    m22 = -s21 * low * s12 + s22 * high * s11
    trace, determinant = m11 + m22, m11 * m22 - m12 * m21
    matrix = f"[[{m11}, {m12}], [{m21}, {m22}]]"
    asked = draws.pick(
        (
            f"What is the larger eigenvalue of {matrix}?",
            f"The matrix {matrix} has two real eigenvalues. Give the greater one.",
        )
    )
    steps = [
        f"Trace {trace}, determinant {determinant}.",
        f"x**2{signed(-trace)}*x{signed(determinant)} = 0 has the roots {low} and {high}.",
    ]
    return problem(
        draws,
        "eigenvalue",
        asked,
        steps=steps,
        answer=str(high),
        expected=f"(({trace}) + sqrt(({trace})**2 - 4*({determinant})))/2",
    )


def determinant(draws: Draws) -> Task:
    """Compute a determinant with one symbol in it."""
    a, b, c, d, e, f, g, h = (draws.between(-9, 9) for _ in range(8))
    v = draws.pick(("x", "t", "s", "z"))
    matrix = f"[[{v}, {a}, {b}], [{c}, {d}, {e}], [{f}, {g}, {h}]]"
    lead = d * h - e * g
    rest = -a * (c * h - e * f) + b * (c * g - d * f)
    asked = draws.pick(
        (f"Compute the determinant of {matrix}.", f"Expand det {matrix} along its first row.")
    )
    steps = [
        f"The minor of {v} is {d}*({h}) - ({e})*({g}) = {lead}.",
        f"The other two products add up to {rest}.",
    ]
    return problem(
        draws,
        "determinant",
        asked,
        steps=steps,
        answer=polynomial([rest, lead], v),
        expected=f"{v}*(({d})*({h}) - ({e})*({g})) - ({a})*(({c})*({h}) - ({e})*({f}))"
        f" + ({b})*(({c})*({g}) - ({d})*({f}))",
    )


def recurrence(draws: Draws) -> Task:
    """Solve a linear recurrence of first order."""
    a, c, start = draws.between(2, 9), draws.nonzero(-12, 12), draws.between(-20, 30)
    b = c * (1 - a)
    if start == c:
        start += 1
    text = f"u(n + 1) = {a}*u(n){signed(b)}, u(0) = {start}"
    asked = draws.pick(
        (f"Find a closed form for {text}.", f"Solve the recurrence {text} for u(n).")
    )
    steps = [f"A fixed point is {c}.", f"u(n) minus it is multiplied by {a} each time."]
    return problem(
        draws,
        "recurrence",
        asked,
        steps=steps,
        answer=f"{c}{signed(start - c)}*{a}**n",
        expected=f"({b})/(1 - {a}) + ({start} - ({b})/(1 - {a}))*{a}**n",
        positive=["n"],
    )


def improper_integral(draws: Draws) -> Task:
    """Integrate a power times an exponential to infinity."""
    n, a, c = draws.between(2, 7), draws.between(2, 9), draws.between(1, 30)
    value = Fraction(c * math.factorial(n), a ** (n + 1))
    v = draws.pick(("x", "t", "u"))
    asked = draws.pick(
        (
            f"Evaluate the integral of {c}*{v}**{n}*exp(-{a}*{v}) for {v} from 0 to infinity.",
            f"What is the area under {c}*{v}**{n}*exp(-{a}*{v}) over {v} >= 0?",
        )
    )
    steps = [
        f"Put s = {a}*{v}: it becomes {c}/{a}**{n + 1} times the integral of s**{n}*exp(-s).",
        f"That one is {n}! = {math.factorial(n)}.",
    ]
    return problem(
        draws,
        "improper_integral",
        asked,
        steps=steps,
        answer=str(value),
        expected=f"{c}*factorial({n})/{a}**{n + 1}",
    )


def modular_power(draws: Draws) -> Task:
    """Reduce a large power by squaring."""
    prime = draws.pick((101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167))
    base, exponent = draws.between(2, 60), draws.between(20, 400)
    value = pow(base, exponent, prime)
    square, steps, bits = base % prime, [], exponent
    power = 1
    while bits and len(steps) < 9:
        if bits & 1:
            steps.append(f"{base}**{power} is {square}.")
        square, bits, power = square * square % prime, bits >> 1, power * 2
    asked = draws.pick(
        (
            f"Find {base}**{exponent} modulo {prime}.",
            f"What remains of {base}**{exponent} when it is divided by {prime}?",
        )
    )
    return problem(
        draws,
        "modular_power",
        asked,
        steps=[f"Square again and again modulo {prime}.", *steps, "Multiply these and reduce."],
        answer=str(value),
        expected=f"Mod({base}**{exponent}, {prime})",
    )


MAKERS = (
    geometric_series,
    taylor,
    first_order_equation,
    second_order_equation,
    eigenvalue,
    determinant,
    recurrence,
    improper_integral,
    modular_power,
)
