"""Level 3: identities, induction steps, divisibility, squares: each ends in what was to be shown.

The check computes the closing expression anew; the sentences before it are right by construction.
"""

from data_pipelines.synthesis import words
from data_pipelines.synthesis.base import Task
from data_pipelines.synthesis.draws import Draws
from data_pipelines.synthesis.maths.problem import polynomial
from data_pipelines.synthesis.maths.problem import problem
from data_pipelines.synthesis.maths.problem import signed
from data_pipelines.synthesis.maths.problem import value_at


def square_difference(draws: Draws) -> Task:
    """Prove that an expression is a square, hence not negative."""
    u, v = draws.sample(words.VARIABLES, 2)
    a, b = draws.between(1, 14), draws.between(1, 14)
    text = f"{a * a}*{u}**2 + {b * b}*{v}**2 - {2 * a * b}*{u}*{v}"
    asked = draws.pick(
        (
            "Prove that {f} is never negative for real {u}, {v}, by writing it as a square.",
            "Show {f} >= 0 for all real {u} and {v}; give the square that it equals.",
        )
    )
    steps = [
        f"Compare with (p - q)**2 = p**2 - 2*p*q + q**2 for p = {a}*{u}, q = {b}*{v}.",
        f"The middle term is 2*{a}*{b}*{u}*{v} = {2 * a * b}*{u}*{v}, as needed.",
        "A square of a real number is not negative, which proves the claim.",
    ]
    return problem(
        draws,
        "square_difference",
        asked.format(f=text, u=u, v=v),
        steps=steps,
        answer=f"({a}*{u} - {b}*{v})**2",
        expected=text,
    )


def induction_step(draws: Draws) -> Task:
    """Carry out the step of an induction over a linear or quadratic summand."""
    n = draws.pick(("n", "m", "k"))
    a, b = draws.between(1, 15), draws.between(-12, 12)
    # sum of a*j + b for j = 1..n is (a*n**2 + (a + 2*b)*n) / 2
    closed = f"({polynomial([0, a + 2 * b, a], n)})/2"
    summand = f"{a}*({n} + 1){signed(b) if b else ''}"
    after = f"({polynomial([2 * a + 2 * b, 3 * a + 2 * b, a], n)})/2"
    asked = draws.pick(
        (
            "By induction, the sum of {a}*j{b} for j = 1..{n} is {closed}. Carry out the step from "
            "{n} to {n} + 1 and give the closed form at {n} + 1, expanded.",
            "Claim: summing {a}*j{b} over j from 1 to {n} gives {closed}. Prove the "
            "induction step; "
            "the result is the claim at {n} + 1 in powers of {n}.",
        )
    ).format(a=a, b=signed(b) if b else "", n=n, closed=closed)
    steps = [
        f"For {n} = 1 both sides are {a + b}.",
        f"Assume the claim at {n} and add the next summand {summand}.",
        f"{closed} + {summand} = {after}.",
        f"This is the claim with {n} + 1 in place of {n}, so the step holds.",
    ]
    return problem(
        draws,
        "induction_step",
        asked,
        steps=steps,
        answer=after,
        expected=f"{closed} + {summand}",
    )


def divisibility(draws: Draws) -> Task:
    """Prove that a product of neighbours, or a difference of powers, is divisible."""
    n = draws.pick(("n", "m", "k"))
    if draws.chance(0.5):
        a, r = draws.between(2, 40), draws.between(1, 60)
        power = draws.between(2, 3)
        d = a
        # (d*n + r)**2 - r**2 = d*n*(d*n + 2*r)
        text = f"({d}*{n} + {r})**{power} - {r**power}"
        quotient = (
            polynomial([0, 2 * r, d], n)
            if power == 2
            else polynomial([0, 3 * r * r, 3 * d * r, d * d], n)
        )
        steps = [
            f"Expand ({d}*{n} + {r})**{power}; the constant {r**power} cancels.",
            f"Every term that is left holds {d}, so take it out: {d}*({quotient}).",
        ]
    else:
        d = draws.between(3, 60)
        a, b = draws.between(2, 30), draws.between(1, 40)
        text = f"{d * a}*{n}**2 + {d * b}*{n} + {d}*{n}**3"
        quotient = polynomial([0, b, a, 1], n)
        steps = [f"{d * a} = {d}*{a} and {d * b} = {d}*{b}.", f"So it is {d}*({quotient})."]
    asked = draws.pick(
        (
            "Prove that {d} divides {f} for every whole number {n}; give the quotient.",
            "Show that {f} is a multiple of {d} whatever the integer {n} is, and name "
            "the cofactor.",
        )
    )
    steps.append(f"The bracket is a whole number, so {d} divides the expression.")
    return problem(
        draws,
        "divisibility",
        asked.format(d=d, f=text, n=n),
        steps=steps,
        answer=quotient,
        zero=f"{text} - {d}*answer",
    )


def factoring(draws: Draws) -> Task:
    """Prove an identity of differences of squares or cubes."""
    u, v = draws.sample(words.VARIABLES, 2)
    a, b = draws.between(1, 12), draws.between(1, 12)
    if draws.chance(0.5):
        text = f"{a * a}*{u}**2 - {b * b}*{v}**2"
        answer = f"({a}*{u} - {b}*{v})*({a}*{u} + {b}*{v})"
        steps = ["In the product the mixed terms cancel.", "The squares remain."]
    else:
        text = f"{a**3}*{u}**3 - {b**3}*{v}**3"
        answer = f"({a}*{u} - {b}*{v})*({a * a}*{u}**2 + {a * b}*{u}*{v} + {b * b}*{v}**2)"
        steps = [
            f"Multiply the second bracket by {a}*{u}, then by -{b}*{v}.",
            "All but the first and the last term cancel.",
        ]
    asked = draws.pick(
        (
            "Factor {} and prove it by expanding.",
            "Write {} as a product of two factors, with proof.",
        )
    )
    return problem(
        draws, "factoring", asked.format(text), steps=steps, answer=answer, expected=text
    )


def telescoping(draws: Draws) -> Task:
    """Prove a closed form by cancelling neighbours."""
    n, c = draws.pick(("n", "m", "k")), draws.between(1, 30)
    start = draws.between(1, 12)
    top = draws.between(2, 9)
    asked = draws.pick(
        (
            f"Prove a closed form for the sum of {top}/((j + {c})*(j + {c + 1})) over j = "
            f"{start}..{n}.",
            f"Sum {top}/((j + {c})*(j + {c + 1})) from j = {start} to {n} in closed form, "
            f"with proof.",
        )
    )
    first = start + c
    steps = [
        f"{top}/((j + {c})*(j + {c + 1})) = {top}/(j + {c}) - {top}/(j + {c + 1}).",
        "In the sum every term but the first and the last cancels.",
        f"{top}/{first} and -{top}/({n} + {c + 1}) remain.",
    ]
    return problem(
        draws,
        "telescoping",
        asked,
        steps=steps,
        answer=f"{top}/{first} - {top}/({n} + {c + 1})",
        expected=f"{top}*({n} - {start} + 1)/({first}*({n} + {c + 1}))",
    )


def parity(draws: Draws) -> Task:
    """Prove that a polynomial of an odd number is even or odd."""
    n = draws.pick(("n", "m", "k"))
    a, b, c = draws.between(1, 9), draws.between(-12, 12), draws.between(-20, 20)
    value = [a + b + c, 4 * a + 2 * b, 4 * a]  # a*(2n+1)**2 + b*(2n+1) + c
    is_odd = value[0] % 2
    rest = [(value[0] - is_odd) // 2, value[1] // 2, value[2] // 2]
    text = polynomial([c, b, a], "x")
    kind = "odd" if is_odd else "even"
    asked = draws.pick(
        (
            f"Let x = 2*{n} + 1. Prove that {text} is {kind}: find q with {text} = 2*q"
            f"{' + 1' if is_odd else ''}, in terms of {n}.",
            f"For odd x = 2*{n} + 1, show that {text} is {kind} and give the q of "
            f"2*q{' + 1' if is_odd else ''}.",
        )
    )
    inserted = text.replace("x", f"(2*{n} + 1)")
    steps = [
        f"Insert it: {inserted} = {polynomial(value, n)}.",
        f"Take out 2: q = {polynomial(rest, n)}, a whole number.",
    ]
    return problem(
        draws,
        "parity",
        asked,
        steps=steps,
        answer=polynomial(rest, n),
        zero=f"{inserted} - {is_odd} - 2*answer",
    )


def vieta(draws: Draws) -> Task:
    """Derive a symmetric expression of roots without solving."""
    v, p, q = draws.pick(words.VARIABLES), draws.nonzero(-20, 20), draws.nonzero(-20, 20)
    text = f"{polynomial([q, -p, 1], v)} = 0"
    k = draws.between(1, 9)
    value = p * p - 2 * q + k * q
    asked = draws.pick(
        (
            f"The roots of {text} are r and s. Prove a value for r**2 + s**2 + {k}*r*s.",
            f"Without solving {text}, derive r**2 + s**2 + {k}*r*s for its roots r, s.",
        )
    )
    steps = [
        f"Comparing factors gives r + s = {p} and r*s = {q}.",
        "r**2 + s**2 = (r + s)**2 - 2*r*s.",
        f"So the value is ({p})**2 - 2*({q}) + {k}*({q}) = {value}.",
    ]
    return problem(
        draws,
        "vieta",
        asked,
        steps=steps,
        answer=str(value),
        expected=f"({p})**2 + ({k} - 2)*({q})",
    )


def factor_theorem(draws: Draws) -> Task:
    """Prove that a value is a root and divide by its factor."""
    v, root = draws.pick(words.VARIABLES), draws.nonzero(-8, 8)
    q = [draws.nonzero(-9, 9), draws.between(-9, 9), draws.nonzero(1, 6)]
    f = [-root * q[0], q[0] - root * q[1], q[1] - root * q[2], q[2]]
    text = polynomial(f, v)
    asked = draws.pick(
        (
            f"Prove that {v} = {root} is a root of {text} and give the quadratic cofactor.",
            f"Show that {v}{signed(-root)} divides {text}; what is the quotient?",
        )
    )
    steps = [
        f"At {v} = {root} the value is {value_at(f, root)}.",
        f"Divide by {v}{signed(-root)}, highest power first; nothing remains.",
    ]
    return problem(
        draws,
        "factor_theorem",
        asked,
        steps=steps,
        answer=polynomial(q, v),
        expected=f"({text})/({v}{signed(-root)})",
    )


MAKERS = (
    square_difference,
    induction_step,
    divisibility,
    factoring,
    telescoping,
    parity,
    vieta,
    factor_theorem,
)
