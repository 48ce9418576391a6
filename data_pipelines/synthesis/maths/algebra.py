"""Level 1: equations, polynomials, sequences, systems, powers."""

from fractions import Fraction

from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws
from data_pipelines.synthesis.maths.problem import linear
from data_pipelines.synthesis.maths.problem import multiply
from data_pipelines.synthesis.maths.problem import polynomial
from data_pipelines.synthesis.maths.problem import problem
from data_pipelines.synthesis.maths.problem import signed
from data_pipelines.synthesis.maths.problem import value_at


def linear_equation(draws: Draws) -> Task:
    """Solve a*x + b = c*x + d."""
    v, root = draws.pick(words.VARIABLES), draws.between(-30, 30)
    a, c = draws.sample(range(2, 25), 2)
    b = draws.nonzero(-90, 90)
    d = a * root + b - c * root
    text = f"{linear(a, b, v)} = {linear(c, d, v)}"
    asked = draws.pick(("Solve {} for {}.", "Which {1} satisfies {0}?", "Find {1} if {0}."))
    steps = [
        f"Collect {v} on one side: {linear(a - c, 0, v)} = {d - b}.",
        f"Divide by {a - c}: {v} = {root}.",
    ]
    return problem(
        draws,
        "linear_equation",
        asked.format(text, v),
        steps=steps,
        answer=str(root),
        expected=f"({d} - {b}) / ({a} - {c})".replace("- -", "+ "),
    )


def quadratic(draws: Draws) -> Task:
    """Find the larger root of a quadratic equation."""
    v, lead = draws.pick(words.VARIABLES), draws.between(1, 6)
    small, large = sorted(draws.sample(range(-25, 26), 2))
    factors = [lead * small * large, -lead * (small + large), lead]
    side = draws.pick(("larger", "smaller"))
    root = large if side == "larger" else small
    discriminant = factors[1] ** 2 - 4 * factors[0] * lead
    text = f"{polynomial(factors, v)} = 0"
    asked = draws.pick(
        ("Find the {side} root of {eq}.", "Solve {eq}; what is the {side} solution?")
    )
    steps = [
        f"The discriminant is ({factors[1]})**2 - 4*{lead}*({factors[0]}) = {discriminant}.",
        f"Its square root is {lead * (large - small)}.",
        f"The roots are {small} and {large}.",
    ]
    sign = "+" if side == "larger" else "-"
    return problem(
        draws,
        "quadratic",
        asked.format(side=side, eq=text),
        steps=steps,
        answer=str(root),
        expected=f"(-({factors[1]}) {sign} sqrt({discriminant})) / (2 * {lead})",
    )


def system(draws: Draws) -> Task:
    """Solve two linear equations with two unknowns."""
    u, v = draws.sample(words.VARIABLES, 2)
    x, y = draws.between(-15, 15), draws.between(-15, 15)
    while True:
        a, b, c, d = (draws.nonzero(-12, 12) for _ in range(4))
        if a * d != b * c:
            break
    p, q = a * x + b * y, c * x + d * y
    wanted, value = draws.pick(((u, x), (v, y)))
    determinant = a * d - b * c
    top = f"{p}*({d}) - ({b})*({q})" if wanted == u else f"({a})*({q}) - {p}*({c})"
    first = f"{a}*{u}{signed(b)}*{v} = {p}"
    second = f"{c}*{u}{signed(d)}*{v} = {q}"
    asked = draws.pick(
        (
            f"Given {first} and {second}, find {wanted}.",
            f"The system {first}, {second} has one solution. What is {wanted}?",
        )
    )
    steps = [
        f"The determinant is {determinant}.",
        f"By Cramer's rule {wanted} = ({top})/({determinant}) = {value}.",
    ]
    return problem(
        draws,
        "system",
        asked,
        steps=steps,
        answer=str(value),
        expected=f"({top}) / ({determinant})",
    )


def expand(draws: Draws) -> Task:
    """Expand a product of polynomials."""
    v = draws.pick(words.VARIABLES)
    left = [draws.nonzero(-9, 9), draws.nonzero(-9, 9)]
    right = [draws.nonzero(-9, 9), draws.between(-9, 9), draws.nonzero(1, 6)]
    text = f"({polynomial(left, v)})*({polynomial(right, v)})"
    answer = polynomial(multiply(left, right), v)
    asked = draws.pick(
        ("Expand {}.", "Multiply out {} and collect terms.", "Write {} without brackets.")
    )
    steps = [
        f"({polynomial([0, left[1]], v)})*({polynomial(right, v)}) = "
        f"{polynomial(multiply([0, left[1]], right), v)}.",
        f"({left[0]})*({polynomial(right, v)}) = {polynomial(multiply([left[0]], right), v)}.",
        "Add the two lines.",
    ]
    return problem(draws, "expand", asked.format(text), steps=steps, answer=answer, expected=text)


def compose(draws: Draws) -> Task:
    """Evaluate a composition of functions."""
    f = [draws.nonzero(-9, 9), draws.nonzero(-6, 6), draws.nonzero(-4, 4)]
    g = [draws.nonzero(-9, 9), draws.nonzero(-6, 6)]
    at = draws.between(-6, 6)
    inner = int(value_at(g, at))
    outer = value_at(f, inner)
    one, two = draws.sample(("f", "g", "h", "F", "G", "k"), 2)
    asked = (
        f"Let {one}(x) = {polynomial(f, 'x')} and {two}(x) = {polynomial(g, 'x')}. "
        + draws.pick(("What is {one}({two}({at}))?", "Find {one}({two}({at})).")).format(
            one=one, two=two, at=at
        )
    )
    steps = [f"{two}({at}) = {inner}.", f"{one}({inner}) = {outer}."]
    inside = polynomial(g, "x").replace("x", f"({at})")
    return problem(
        draws,
        "compose",
        asked,
        steps=steps,
        answer=str(outer),
        expected=polynomial(f, "x").replace("x", f"({inside})"),
    )


def arithmetic_sequence(draws: Draws) -> Task:
    """Sum an arithmetic sequence that a story hides."""
    first, step, count = draws.between(2, 60), draws.between(2, 25), draws.between(8, 60)
    last = first + (count - 1) * step
    name, goods = draws.pick(words.PEOPLE), draws.pick(words.GOODS)
    told = draws.pick(
        (
            f"{name} collects {first} {goods} on the first day and {step} more each day "
            f"than the day "
            f"before. How many in {count} days?",
            f"Sum the {count} terms {first}, {first + step}, {first + 2 * step}, ..., {last}.",
            f"Row one of a hall seats {first}, each further row {step} more. How many seats have "
            f"{count} rows?",
        )
    )
    total = count * (first + last) // 2
    steps = [f"The last term is {last}.", f"The sum is {count}*({first} + {last})/2 = {total}."]
    return problem(
        draws,
        "arithmetic_sequence",
        told,
        steps=steps,
        answer=str(total),
        expected=f"{count} * {first} + {step} * {count} * ({count} - 1) / 2",
    )


def powers(draws: Draws) -> Task:
    """Simplify a quotient of powers."""
    v, w = draws.sample(words.VARIABLES, 2)
    a, k = draws.between(2, 12), draws.between(2, 12)
    m, n, p, q = (draws.between(2, 12) for _ in range(4))
    m, n = max(m, n) + 1, min(m, n)
    p, q = max(p, q) + 1, min(p, q)
    text = f"{a * k}*{v}**{m}*{w}**{p}/({a}*{v}**{n}*{w}**{q})"
    answer = f"{k}*{v}**{m - n}*{w}**{p - q}"
    asked = draws.pick(
        ("Simplify {}.", "Reduce {} to one product.", "Write {} as simply as it goes.")
    )
    steps = [
        f"{a * k}/{a} = {k}.",
        f"Subtract exponents: {m} - {n} = {m - n}, {p} - {q} = {p - q}.",
    ]
    return problem(draws, "powers", asked.format(text), steps=steps, answer=answer, expected=text)


def ages(draws: Draws) -> Task:
    """Turn a story about ages into an equation."""
    name, other = draws.sample(words.PEOPLE, 2)
    factor, young, years = draws.between(2, 5), draws.between(6, 30), draws.between(2, 15)
    old = factor * young
    total = old + young + 2 * years
    told = draws.pick(
        (
            f"{name} is {factor} times as old as {other}. In {years} years their ages add up to "
            f"{total}. How old is {other} now?",
            f"{other} is younger than {name}, who is {factor} times that age; {years} "
            f"years from now they are {total} years old together. What is {other}'s age today?",
        )
    )
    steps = [
        f"Let a be the age: a + {factor}*a + 2*{years} = {total}.",
        f"So {factor + 1}*a = {total - 2 * years} and a = {young}.",
    ]
    return problem(
        draws,
        "ages",
        told,
        steps=steps,
        answer=str(young),
        expected=f"({total} - 2 * {years}) / ({factor} + 1)",
    )


def mixture(draws: Draws) -> Task:
    """Mix two solutions."""
    a, b = sorted(draws.sample(range(5, 95), 2))
    x, y = draws.between(2, 60), draws.between(2, 60)
    share = Fraction(a * x + b * y, x + y)
    name = draws.pick(words.PEOPLE)
    told = draws.pick(
        (
            f"{name} mixes {x} litres of a {a} percent solution with {y} litres of a {b} "
            f"percent one.",
            f"{x} litres at {a} percent and {y} litres at {b} percent go into {name}'s tank.",
        )
    )
    steps = [
        f"The substance in it is ({x}*{a} + {y}*{b})/100 litres.",
        f"Over {x + y} litres that is {share} percent.",
    ]
    return problem(
        draws,
        "mixture",
        told + " What percentage is the mixture, as a fraction?",
        steps=steps,
        answer=str(share),
        expected=f"({a} * {x} + {b} * {y}) / ({x} + {y})",
    )


MAKERS = (
    linear_equation,
    quadratic,
    system,
    expand,
    compose,
    arithmetic_sequence,
    powers,
    ages,
    mixture,
)
