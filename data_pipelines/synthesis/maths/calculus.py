"""Level 2: derivatives, integrals, limits, tangents, extrema."""

from fractions import Fraction

from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws
from data_pipelines.synthesis.maths.problem import derived
from data_pipelines.synthesis.maths.problem import linear
from data_pipelines.synthesis.maths.problem import multiply
from data_pipelines.synthesis.maths.problem import polynomial
from data_pipelines.synthesis.maths.problem import problem
from data_pipelines.synthesis.maths.problem import value_at


def _factors(draws: Draws, degree: int, size: int = 9) -> list[int]:
    return [draws.between(-size, size) for _ in range(degree)] + [draws.nonzero(-size, size)]


def derivative(draws: Draws) -> Task:
    """Differentiate a polynomial."""
    v, f = draws.pick(words.VARIABLES), _factors(draws, draws.between(3, 5), 12)
    text = polynomial(f, v)
    asked = draws.pick(
        (
            "Differentiate {f} with respect to {v}.",
            "Find the derivative of {f} in {v}.",
            "What is d/d{v} of {f}?",
            "Let y = {f}. Find dy/d{v}.",
        )
    )
    steps = ["Each term c*v**n becomes c*n*v**(n-1).", "The constant vanishes."]
    return problem(
        draws,
        "derivative",
        asked.format(f=text, v=v),
        steps=steps,
        answer=polynomial(derived(f), v),
        expected=f"diff({text}, {v})",
    )


def chain_rule(draws: Draws) -> Task:
    """Differentiate an outer function of an inner polynomial."""
    v, g = draws.pick(words.VARIABLES), _factors(draws, 2, 15)
    inner, slope = polynomial(g, v), polynomial(derived(g), v)
    power, k = draws.between(3, 8), draws.between(2, 9)
    outer, change = draws.pick(
        (
            (f"{k}*sin({inner})", f"{k}*cos({inner})"),
            (f"{k}*cos({inner})", f"-{k}*sin({inner})"),
            (f"{k}*exp({inner})", f"{k}*exp({inner})"),
            (f"({inner})**{power}", f"{power}*({inner})**{power - 1}"),
        )
    )
    asked = draws.pick(("Differentiate {f} in {v}.", "Use the chain rule on {f} (variable {v})."))
    steps = [
        f"The inner function is {inner}, its derivative {slope}.",
        f"The outer gives {change}.",
    ]
    return problem(
        draws,
        "chain_rule",
        asked.format(f=outer, v=v),
        steps=steps,
        answer=f"({slope})*{change}" if not change.startswith("-") else f"-({slope})*{change[1:]}",
        expected=f"diff({outer}, {v})",
    )


def product_rule(draws: Draws) -> Task:
    """Differentiate a product of a polynomial and an exponential or sine."""
    v, f, k = draws.pick(words.VARIABLES), _factors(draws, 2), draws.between(2, 9)
    text, slope = polynomial(f, v), polynomial(derived(f), v)
    other, change = draws.pick(
        (
            (f"exp({k}*{v})", f"{k}*exp({k}*{v})"),
            (f"sin({k}*{v})", f"{k}*cos({k}*{v})"),
        )
    )
    asked = draws.pick(
        (
            "Find the derivative of ({f})*{g} with respect to {v}.",
            "Apply the product rule to ({f})*{g}, variable {v}.",
        )
    )
    steps = [f"({text})' = {slope}.", f"({other})' = {change}.", "Add the two mixed products."]
    return problem(
        draws,
        "product_rule",
        asked.format(f=text, g=other, v=v),
        steps=steps,
        answer=f"({slope})*{other} + ({text})*{change}",
        expected=f"diff(({text})*{other}, {v})",
    )


def antiderivative(draws: Draws) -> Task:
    """Find an antiderivative, up to a constant."""
    v = draws.pick(words.VARIABLES)
    degree = draws.between(2, 4)
    whole = [0] + [draws.nonzero(-9, 9) for _ in range(degree)]
    f = derived(whole)
    text = polynomial(f, v)
    asked = draws.pick(
        (
            "Find an antiderivative of {f}.",
            "Integrate {f} with respect to {v}.",
            "Which function of {v} has the derivative {f}?",
        )
    )
    steps = ["Raise each power by one and divide by it.", "Any constant may be added; take 0."]
    return problem(
        draws,
        "antiderivative",
        asked.format(f=text, v=v),
        steps=steps,
        answer=polynomial(whole, v),
        expected=f"integrate({text}, {v})",
        constant=True,
    )


def definite_integral(draws: Draws) -> Task:
    """Integrate a polynomial over an interval."""
    v, f = draws.pick(words.VARIABLES), _factors(draws, draws.between(2, 3), 12)
    low = draws.between(-4, 3)
    high = low + draws.between(1, 5)
    whole = [Fraction(0)] + [Fraction(c, n + 1) for n, c in enumerate(f)]
    value = value_at(whole, high) - value_at(whole, low)
    text = polynomial(f, v)
    asked = draws.pick(
        (
            "Integrate {f} from {v} = {a} to {v} = {b}.",
            "What is the definite integral of {f} over [{a}, {b}]?",
            "Compute the integral of {f} in {v} between {a} and {b}.",
        )
    )
    steps = [
        f"An antiderivative is {polynomial(whole, v)}.",
        f"At {high} it is {value_at(whole, high)}, at {low} it is {value_at(whole, low)}.",
    ]
    return problem(
        draws,
        "definite_integral",
        asked.format(f=text, v=v, a=low, b=high),
        steps=steps,
        answer=str(value),
        expected=f"integrate({text}, ({v}, {low}, {high}))",
    )


def limit(draws: Draws) -> Task:
    """Take a limit where numerator and denominator vanish."""
    v, at = draws.pick(words.VARIABLES), draws.between(-9, 9)
    f, g = _factors(draws, 1), _factors(draws, 1)
    while not value_at(g, at):
        g = _factors(draws, 1)
    above, below = multiply(f, [-at, 1]), multiply(g, [-at, 1])
    value = Fraction(value_at(f, at)) / value_at(g, at)
    text = f"({polynomial(above, v)})/({polynomial(below, v)})"
    asked = draws.pick(
        (
            "Find the limit of {f} as {v} goes to {a}.",
            "What does {f} tend to when {v} -> {a}?",
        )
    )
    slopes = (value_at(derived(above), at), value_at(derived(below), at))
    steps = [
        f"Both parts vanish at {at}; cancel {linear(1, -at, v)}.",
        f"What is left is ({polynomial(f, v)})/({polynomial(g, v)}).",
    ]
    return problem(
        draws,
        "limit",
        asked.format(f=text, v=v, a=at),
        steps=steps,
        answer=str(value),
        expected=f"({slopes[0]}) / ({slopes[1]})",
    )


def tangent(draws: Draws) -> Task:
    """Write the tangent line of a curve."""
    f, at = _factors(draws, draws.between(2, 3)), draws.between(-4, 4)
    slope, value = value_at(derived(f), at), value_at(f, at)
    text = polynomial(f, "x")
    asked = draws.pick(
        (
            "Give the tangent to y = {f} at x = {a} as an expression in x.",
            "Which line touches y = {f} at x = {a}? Write its y in terms of x.",
        )
    )
    steps = [f"The slope at {at} is {slope}.", f"The point is ({at}, {value})."]
    derivative_there = polynomial(derived(f), "x").replace("x", f"({at})")
    value_there = text.replace("x", f"({at})")
    return problem(
        draws,
        "tangent",
        asked.format(f=text, a=at),
        steps=steps,
        answer=linear(slope, value - slope * at, "x"),
        expected=f"({value_there}) + ({derivative_there}) * (x - ({at}))",
    )


def extremum(draws: Draws) -> Task:
    """Find where a cost or height is extreme."""
    lead, where, best = draws.between(2, 12), draws.between(2, 40), draws.between(10, 500)
    is_peak = draws.chance(0.5)
    sign = -1 if is_peak else 1
    f = [sign * lead * where**2 + best, -sign * 2 * lead * where, sign * lead]
    name = draws.pick(words.PEOPLE)
    told = draws.pick(
        (
            f"A shop of {name} earns E(x) = {polynomial(f, 'x')} when x pieces are sold.",
            f"{name} throws a ball; after x tenths of a second its height is {polynomial(f, 'x')}.",
        )
        if is_peak
        else (
            f"The cost of {name}'s plant for x tons is {polynomial(f, 'x')}.",
            f"{name} models the error of a fit as {polynomial(f, 'x')}.",
        )
    )
    kind = "greatest" if is_peak else "smallest"
    slope = derived(f)
    steps = [f"The derivative is {polynomial(slope, 'x')}.", f"It is zero at x = {where}."]
    return problem(
        draws,
        "extremum",
        f"{told} For which x is that {kind}?",
        steps=steps,
        answer=str(where),
        expected=f"-({slope[0]}) / ({slope[1]})",
    )


def partial(draws: Draws) -> Task:
    """Take a mixed partial derivative."""
    a, b, c = (draws.nonzero(-9, 9) for _ in range(3))
    m, n, p, q = (draws.between(2, 5) for _ in range(4))
    text = f"{a}*x**{m}*y**{n} + {b}*x**{p}*y + {c}*y**{q}".replace("+ -", "- ")
    answer = f"{a * m * n}*x**{m - 1}*y**{n - 1} + {b * p}*x**{p - 1}".replace("+ -", "- ")
    asked = draws.pick(
        (
            "Differentiate {} once in x and once in y.",
            "Find the mixed second partial f_xy of {}.",
        )
    )
    steps = ["First x: the last term vanishes.", "Then y: multiply by the exponent of y."]
    return problem(
        draws,
        "partial",
        asked.format(text),
        steps=steps,
        answer=answer,
        expected=f"diff(diff({text}, x), y)",
    )


MAKERS = (
    derivative,
    chain_rule,
    product_rule,
    antiderivative,
    definite_integral,
    limit,
    tangent,
    extremum,
    partial,
)
